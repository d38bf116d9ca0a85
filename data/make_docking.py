"""Make the docking sets of this folder from the source archives.

    python data/make_docking.py --source DIR [--workers 2]

`DIR` holds ``manifest.csv`` and, for each split, ``<split>.tar.xz`` with
``<split>/<id>/protein.pdb`` and ``<split>/<id>/ligand.sdf``. Receptors are cropped to whole
residues within 14 Å of the ligand; complexes that passed through PDBbind's preparation are left
out of what ships.
"""

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path

from bio_diffusion.dock import prepare

CROP = 14.0
HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    for split in ("val", "test", "train"):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(args.source / f"{split}.tar.xz") as archive:
                archive.extractall(folder, filter="data")
            status = prepare.main(
                [
                    f"--data={folder}/{split}",
                    f"--manifest={args.source / 'manifest.csv'}",
                    f"--split={split}",
                    "--exclude-source=PDBbind",
                    f"--crop={CROP}",
                    f"--workers={args.workers}",
                    f"--out={HERE / f'dock_{split}.safetensors'}",
                ]
            )
        if status not in (0, 3):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
