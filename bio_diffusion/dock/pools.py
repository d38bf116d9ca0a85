"""Dock complexes of known pose and keep the evidence of every candidate, to fit confidence to.

    python -m bio_diffusion.dock.pools --data DIR [--manifest FILE] --split NAME [--part NAME]
        [--sample N] --out FILE.csv [--checkpoint FILE] [key=value ...]

Each complex of `DIR/<id>/` (as for `bio_diffusion.dock.prepare`) is docked into the box of its
crystal ligand, 4 Å larger a side and 15 Å an edge at least, from RDKit conformers and with the
settings of `configs/dock.yaml` but for those given as words. A row is a candidate pose: its RMSD to
the crystal pose, its energies, what the networks say of it, its score, whether it fails a check,
and the evidence; `cpu_s` is of the whole complex. A sample is the first N ids by the sha256 of
"0:id". Rows of a complex are written together, and a run that was stopped goes on with the
complexes that its table lacks.

Exit status: 0 done; 2 bad usage or input; 3 some complexes could not be docked: they are named.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.command import Parser
from bio_diffusion.config import ConfigError, compose
from bio_diffusion.files import InputError, one_line

from .prepare import protein_file, read_ligand, read_manifest

if TYPE_CHECKING:
    import numpy as np

    from .complex import Site

__all__ = ["complex_flags", "in_order", "known_site", "main"]

logger = logging.getLogger(__name__)

_PADDING, _EDGE = 4.0, 15.0  # Å
_OF_COMPLEX = ("id", "split", "cluster", "cpu_s", "network")
_OF_POSE = ("rmsd", "energy", "fitted", "loss", "preference", "score", "failed")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = Parser(
        prog="python -m bio_diffusion.dock.pools",
        description=(__doc__ or "").split("\n")[0],
        epilog=(__doc__ or "").partition("[key=value ...]\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complex_flags(parser)
    parser.add_argument("--part", help="of these, the rows with this test_part")
    parser.add_argument("--checkpoint", help="network, by file or name (default: the usual one)")
    parser.add_argument("--out", type=Path, required=True, help="table to append to")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings, as of docking")
    args = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        rows = read_manifest(args.manifest or args.data / "manifest.csv", args.split)
        if args.part:
            rows = {key: row for key, row in rows.items() if row.get("test_part") == args.part}
            if not rows:
                raise InputError("empty", f"no row of {args.split} has the test_part {args.part}")
        return _run(args, rows)
    except (InputError, ConfigError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2


def complex_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose complexes of a folder, see `in_order`."""
    parser.add_argument("--data", type=Path, required=True, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, help="CSV with id, split and cluster")
    parser.add_argument("--split", required=True, help="the manifest's rows to take")
    parser.add_argument("--sample", type=_count, default=0, help="complexes to take (0: all)")


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: less than none; 0 takes all")
    return value


def _run(args: argparse.Namespace, rows: dict[str, dict[str, str]]) -> int:
    from .pipeline import Docker
    from .settings import Settings

    done = _ids_of(args.out) if args.out.exists() else set()
    settings = asdict(Settings.of(compose("dock", args.words)))
    docker, failed = Docker.load(args.checkpoint, **settings), 0
    for key in in_order(rows, args.sample):
        if key in done:
            continue
        begun = time.process_time()
        try:
            table = pool_rows(docker, args.data / key)
        except InputError as error:
            logger.warning("left out %s: %s", key, one_line(error))
            failed += 1
            continue
        fixed = {
            "id": key,
            "split": args.part or args.split,
            "cluster": rows[key].get("cluster", key),
            "cpu_s": f"{time.process_time() - begun:.2f}",
        }
        _append(args.out, [fixed | {"network": docker.checkpoint} | row for row in table])
        logger.info("%s: %d poses", key, len(table))
    return 3 if failed else 0


def in_order(rows: Iterable[str], sample: int = 0) -> list[str]:
    """Ids by the sha256 of "0:id"; the first `sample` of them, or all."""
    ids = sorted(rows, key=lambda key: hashlib.sha256(f"0:{key}".encode()).hexdigest())
    return ids[: sample or None]


def known_site(crystal: np.ndarray) -> Site:
    """The box of crystal coordinates (N, 3) Å, 4 Å larger a side and 15 Å an edge at least."""
    import numpy as np

    from .complex import Site

    low, high = crystal.min(0), crystal.max(0)
    return Site((low + high) / 2, np.maximum(high - low + 2 * _PADDING, _EDGE), "crystal")


def pool_rows(docker: object, folder: Path) -> list[dict[str, str]]:
    """RMSD, score and evidence of the candidate poses of one complex.

    Raises:
        InputError: protein or ligand cannot be used.
    """
    from bio_diffusion.command import one_thread

    from .metrics import symmetric_rmsd
    from .pipeline import Docker
    from .pool import EVIDENCE
    from .receptor import read_receptor

    assert isinstance(docker, Docker)
    protein = protein_file(folder)
    if protein is None:
        raise InputError("missing", "no protein.pdb and no protein.cif")
    ligand = read_ligand(folder)
    site = known_site(ligand.crystal)
    receptor = docker.prepare(read_receptor(protein).without(ligand.crystal))
    with one_thread():
        found = docker.candidates(receptor, ligand, [site])
    rmsd = symmetric_rmsd(found.coords.numpy(), ligand.crystal, ligand.mol)
    return [
        {
            "rmsd": f"{rmsd[i]:.3f}",
            "energy": f"{found.energy[i]:.4f}",
            "fitted": f"{found.fitted[i]:.4f}",
            "loss": f"{float(found.opinion.loss[i].mean()):.5f}",
            "preference": f"{float(found.opinion.preference[i]):.4f}",
            "score": f"{found.score[i]:.4f}",
            "failed": str(int(bool(found.failed[i]))),
        }
        | {name: f"{value:.5g}" for name, value in zip(EVIDENCE, values, strict=True)}
        for i, values in enumerate(found.evidence.tolist())
    ]


def _ids_of(path: Path) -> set[str]:
    """The complexes that a table holds.

    Raises:
        InputError: its columns are not those that this version writes.
    """
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        if list(table.fieldnames or ()) != _columns():
            raise InputError(
                "columns",
                f"{path}: holds other columns than this version writes; name a new file with --out",
            )
        return {row["id"] for row in table}


def _columns() -> list[str]:
    from .pool import EVIDENCE

    return [*_OF_COMPLEX, *_OF_POSE, *EVIDENCE]


def _append(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(), lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerows(rows)
    with path.open("a") as file:
        file.write(text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
