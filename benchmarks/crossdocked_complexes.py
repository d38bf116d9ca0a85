"""Ligands in other crystal structures of their protein, as folders of complexes to learn from.

    python benchmarks/crossdocked_complexes.py --data DATA/train --manifest manifest.csv \
        --split train --receptors 1 --out COMPLEXES

Of each ligand's cluster other PDB entries are tried in the order of a hash: their chains are laid
by the alpha carbons of the ligand's pocket (residues within 10 Å) on its own receptor, and one is
taken where at least 90 % of the pocket's residues are the same, the carbons agree within 1.5 Å,
the entry's own ligand lies there too (middles within 6 Å), no atom of the ligand comes closer than
2.2 Å to the receptor and half of them have it within 5 Å. COMPLEXES/manifest.csv says `split`,
cross, and `cluster`.
"""

import argparse
import csv
import hashlib
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner
from Bio.PDB import PDBParser
from Bio.PDB.Polypeptide import is_aa
from Bio.SeqUtils import seq1
from Bio.SVDSuperimposer import SVDSuperimposer
from rdkit import Chem
from scipy.spatial import cKDTree

from bio_diffusion.dock.prepare import read_manifest

POCKET, IDENTITY, CARBONS = 10.0, 0.9, 10
AGREE, TOGETHER, APART, BURIED = 1.5, 6.0, 2.2, 5.0  # Å

log = logging.getLogger("crossdocked_complexes")


@dataclass(frozen=True)
class Structure:
    """Atoms (A, 3) Å and, chain by chain, sequence and alpha carbons (R, 3) Å; its ligand."""

    atoms: np.ndarray
    chains: list[tuple[str, np.ndarray]]
    ligand: Chem.Mol

    @property
    def pose(self) -> np.ndarray:
        return self.ligand.GetConformer().GetPositions()


@lru_cache(maxsize=200)
def read(folder: Path) -> Structure:
    model = next(iter(PDBParser(QUIET=True).get_structure("", str(folder / "protein.pdb"))))
    chains = []
    for chain in model:
        residues = [r for r in chain if is_aa(r, standard=True) and "CA" in r]
        if residues:
            letters = "".join(seq1(r.get_resname()) for r in residues)
            chains.append((letters, np.array([r["CA"].coord for r in residues], dtype=float)))
    ligand = next(iter(Chem.SDMolSupplier(str(folder / "ligand.sdf"))))
    return Structure(np.array([a.coord for a in model.get_atoms()]), chains, ligand)


def laid(own: Structure, other: Structure, aligner: PairwiseAligner) -> np.ndarray | None:
    """The ligand's pose (N, 3) of `own` in the frame of `other`; None where it does not fit."""
    tree = cKDTree(own.pose)
    near = [tree.query(carbons)[0] < POCKET for _, carbons in own.chains]
    main = max(range(len(near)), key=lambda k: near[k].sum())
    letters, carbons = own.chains[main]
    for theirs, target in other.chains:
        pairs = aligner.align(letters, theirs)[0].indices
        pairs = pairs[:, (pairs >= 0).all(0)]
        pairs = pairs[:, near[main][pairs[0]]]
        same = sum(letters[i] == theirs[j] for i, j in pairs.T)
        if len(pairs.T) < CARBONS or same < IDENTITY * near[main].sum():
            continue
        fit = SVDSuperimposer()
        fit.set(target[pairs[1]], carbons[pairs[0]])
        fit.run()
        turn, shift = fit.get_rotran()
        pose = own.pose @ turn + shift
        gap = cKDTree(other.atoms).query(pose)[0]
        together = np.linalg.norm(pose.mean(0) - other.pose.mean(0)) < TOGETHER
        if fit.get_rms() < AGREE and together and gap.min() > APART and (gap < BURIED).mean() > 0.5:
            return pose
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, required=True, help="id, split, pdb, cluster")
    parser.add_argument("--split", default="train")
    parser.add_argument("--receptors", type=int, default=1, help="of each ligand, at most")
    parser.add_argument("--tries", type=int, default=6, help="of each ligand, at most")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    rows = read_manifest(args.manifest, args.split)
    clusters: dict[str, list[str]] = defaultdict(list)
    for key, row in rows.items():
        clusters[row["cluster"]].append(key)
    aligner = PairwiseAligner(mode="local", match_score=2, mismatch_score=-1)
    aligner.open_gap_score, aligner.extend_gap_score = -4, -0.5
    made = []
    for cluster, keys in clusters.items():
        for key in keys:
            others = [k for k in keys if rows[k]["pdb"] != rows[key]["pdb"]]
            others.sort(key=lambda k: hashlib.sha256(f"{key}:{k}".encode()).hexdigest())
            taken: set[str] = set()  # entries that have it by now
            for other in others[: args.tries]:
                if len(taken) == args.receptors:
                    break
                entry = rows[other]["pdb"]
                own, theirs = read(args.data / key), read(args.data / other)
                pose = None if entry in taken else laid(own, theirs, aligner)
                if pose is None:
                    continue
                taken.add(entry)
                name = f"{key}_in_{entry}"
                folder = args.out / name
                folder.mkdir(parents=True)
                os.symlink((args.data / other / "protein.pdb").resolve(), folder / "protein.pdb")
                mol = Chem.Mol(own.ligand)
                mol.GetConformer().SetPositions(np.ascontiguousarray(pose))
                with Chem.SDWriter(str(folder / "ligand.sdf")) as writer:
                    writer.write(mol)
                made.append({"id": name, "split": "cross", "cluster": cluster})
    with (args.out / "manifest.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["id", "split", "cluster"])
        writer.writeheader()
        writer.writerows(made)
    log.info(
        "%d of %d ligands in another receptor",
        len({m["id"].split("_in_")[0] for m in made}),
        len(rows),
    )


if __name__ == "__main__":
    main()
