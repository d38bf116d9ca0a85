"""Drug-like molecules docked into training pockets, as folders of complexes to learn from.

    python benchmarks/docked_complexes.py --data DATA/train --manifest manifest.csv \
        --sample 300 --confidence 0.5 --out COMPLEXES

Into each complex's known site one molecule of ZINC's training part, within three heavy atoms of the
complex's own ligand, is docked with the settings that ship. Its first pose becomes a complex;
COMPLEXES/manifest.csv says of it `split`, `confident` from the confidence asked for on and
`docked` below, `confidence`, `energy` in kcal/mol and `cluster`. A pose that fails a check is left
out. A run that was stopped goes on.
"""

import argparse
import csv
import hashlib
import logging
import os
from collections import defaultdict
from pathlib import Path

import pandas as pd
from rdkit import Chem

from bio_diffusion.command import one_thread
from bio_diffusion.dock.docked import Docked
from bio_diffusion.dock.ligand import Ligand, prepare
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pools import in_order, known_site
from bio_diffusion.dock.prepare import read_ligand, read_manifest
from bio_diffusion.files import InputError, find_data

WITHIN = 3  # heavy atoms
COLUMNS = ("id", "split", "cluster", "confidence", "energy")

log = logging.getLogger("docked_complexes")


def molecules() -> dict[int, list[str]]:
    """SMILES of ZINC's training part by the number of heavy atoms, told from their letters."""
    table = pd.read_csv(find_data("zinc250k.csv.gz", "it ships"))
    found = defaultdict(list)
    for smiles in table["smiles"][table["split"] == "train"]:
        found[Chem.MolFromSmiles(smiles, sanitize=False).GetNumAtoms()].append(smiles)
    return found


def guest(key: str, atoms: int, known: dict[int, list[str]]) -> Ligand:
    near = [s for n in range(atoms - WITHIN, atoms + WITHIN + 1) for s in known.get(n, [])]
    if not near:
        raise InputError("size", f"no molecule has about {atoms} heavy atoms")
    smiles = near[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(near)]
    return prepare(Chem.MolFromSmiles(smiles), f"{key}_zinc", smiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--sample", type=int, default=0, help="complexes to take (0: all)")
    parser.add_argument("--confidence", type=float, default=0.5, help="of a confident pose")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "manifest.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    done = set(read_manifest(table))
    rows, known, docker = read_manifest(args.manifest, args.split), molecules(), Docker.load()
    for key in in_order(rows, args.sample):
        own = read_ligand(args.data / key)
        try:
            ligand = guest(key, own.mol.GetNumAtoms(), known)
            if ligand.id in done:
                continue
            receptor = docker.prepare(args.data / key / "protein.pdb")
            with one_thread():
                found = next(iter(docker.dock(receptor, [ligand], [known_site(own.crystal)])))
        except InputError as error:
            log.warning("left out %s: %s", key, error)
            continue
        if not isinstance(found, Docked) or not found.rows[0]["valid"]:
            log.warning("left out %s: no valid pose", key)
            continue
        folder = args.out / ligand.id
        folder.mkdir(exist_ok=True)
        if not (folder / "protein.pdb").exists():
            os.symlink((args.data / key / "protein.pdb").resolve(), folder / "protein.pdb")
        (folder / "ligand.sdf").write_text(found.sdf.partition("$$$$\n")[0] + "$$$$\n")
        first = found.rows[0]
        split = "confident" if first["confidence"] >= args.confidence else "docked"
        row = (ligand.id, split, rows[key]["cluster"], first["confidence"], first["energy"])
        with table.open("a", newline="") as handle:
            csv.writer(handle).writerow(row)
        log.info("%s: confidence %.2f", ligand.id, first["confidence"])


if __name__ == "__main__":
    main()
