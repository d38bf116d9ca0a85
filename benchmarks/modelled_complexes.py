"""Modelled series as folders of complexes, as `bio_diffusion.dock.pools` and `decoys` read them.

    python benchmarks/modelled_complexes.py --data MODELLED --table modelled.csv --ligands 2 \
        [--identity 0.52] [--above 0.52] --out COMPLEXES

A series becomes the complexes of its first ligands by sha256, and of it COMPLEXES/manifest.csv
says: `split`, modelled; `cluster`, its protein, so that what is fitted to one series is not checked
on another of the same protein. `--identity` leaves out series whose protein's sequence is closer to
a training or a `pb_seen` protein's, `--above` those whose is not closer.
"""

import argparse
import csv
import os
from collections import defaultdict
from pathlib import Path

from rdkit import Chem
from vina_baseline import pick


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of series")
    parser.add_argument("--table", type=Path, required=True, help="modelled.csv")
    parser.add_argument("--ligands", type=int, default=2, help="of each series (0: all)")
    parser.add_argument("--identity", type=float, default=1.0, help="at most, 0 to 1")
    parser.add_argument("--above", type=float, default=-1.0, help="more than, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    series: dict[str, list[str]] = defaultdict(list)
    protein = {}
    with args.table.open() as handle:
        for row in csv.DictReader(handle):
            known = [float(row[c] or 0) for c in ("train_identity", "pb_seen_identity")]
            if not args.above < max(known) <= args.identity:
                continue
            series[row["target"]].append(row["id"])
            protein[row["target"]] = row["protein"]
    rows = []
    for target, ids in series.items():
        source = (args.data / target).resolve()
        mols = {mol.GetProp("id"): mol for mol in Chem.SDMolSupplier(str(source / "ligands.sdf"))}
        for key in pick(ids, args.ligands, 0):
            folder = args.out / key
            folder.mkdir(parents=True)
            os.symlink(source / "protein.pdb", folder / "protein.pdb")
            with Chem.SDWriter(str(folder / "ligand.sdf")) as writer:
                writer.write(mols[key])
            rows.append({"id": key, "split": "modelled", "cluster": protein[target]})
    with (args.out / "manifest.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
