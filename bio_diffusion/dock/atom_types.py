"""Vina's atom kinds from chemistry: ligands through RDKit, receptors by names and geometry.

Vina reads kinds from PDBQT files that other programs write. The rules here give the same kinds
without hydrogens in the input: ligands as Meeko types them, receptors as Open Babel does at pH 7.4.

Shapes: N ligand atoms, A receptor atoms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem
from scipy.spatial import cKDTree

from bio_diffusion.dock.physics import ATOM_KINDS

__all__ = ["active_torsions", "ligand_types", "receptor_types"]

_KIND = {name: i for i, name in enumerate(ATOM_KINDS)}
_OF_ELEMENT = {"S": "S", "SE": "S", "P": "P", "F": "F", "CL": "Cl", "BR": "Br", "I": "I",
               "SI": "Si", "B": "B"}  # fmt: skip

# A nitrogen accepts unless its lone pair is taken: aniline and pyrrole, amide and its kin
# (any three-bonded N on an sp2 carbon), triazene, or a charge.
_NO_ACCEPTOR = [
    Chem.MolFromSmarts(s)
    for s in ("[#7X3v3]-,:[a]", "[#7X3v3]-,:[#6X3v4]", "[#7X3v3]-,:[#7X2]=,:[*]", "[#7;+1]")
]
_AMIDE = Chem.MolFromSmarts("[NX3]-[CX3]=[O,N,S]")
_TERTIARY_AMIDE = Chem.MolFromSmarts("[NX3]([!#1])([!#1])-[CX3]=[O,N,S]")
_TRIPLE = Chem.MolFromSmarts("[*]-[*]#[*]")


def _nitrogen(donor: bool, acceptor: bool) -> int:
    return _KIND["N_" + ("D" * donor + "A" * acceptor or "P")]


def ligand_types(mol: Chem.Mol) -> np.ndarray:
    """Kind of each heavy atom, (N,) int64, from a sanitised molecule."""
    taken = {
        match[0] for q in _NO_ACCEPTOR for match in mol.GetSubstructMatches(q, maxMatches=10_000)
    }
    kinds = []
    for atom in mol.GetAtoms():
        donor = atom.GetTotalNumHs(includeNeighbors=True) > 0
        symbol = atom.GetSymbol().upper()
        if symbol == "C":
            polar = any(n.GetSymbol() not in ("C", "H") for n in atom.GetNeighbors())
            kinds.append(_KIND["C_P" if polar else "C_H"])
        elif symbol == "N":
            kinds.append(_nitrogen(donor, atom.GetIdx() not in taken))
        elif symbol == "O":
            kinds.append(_KIND["O_DA" if donor else "O_A"])
        else:
            kinds.append(_KIND[_OF_ELEMENT.get(symbol, "metal")])
    return np.asarray(kinds, dtype=np.int64)


def active_torsions(mol: Chem.Mol) -> float:
    """Vina's torsion count: bonds that turn; one half where one end has no other heavy neighbour.

    Amides and amidines are held unless both other substituents of the nitrogen are heavy and
    differ; bonds beside a triple bond are held; rings do not turn.
    """
    held = {frozenset(m[:2]) for m in mol.GetSubstructMatches(_AMIDE, maxMatches=10_000)}
    ranks = list(Chem.CanonicalRankAtoms(mol, breakTies=False))
    for n, a, b, c, _ in (
        (m[0], m[1], m[2], m[3], m[4])
        for m in mol.GetSubstructMatches(_TERTIARY_AMIDE, maxMatches=10_000)
    ):
        if ranks[a] != ranks[b]:
            held.discard(frozenset((n, c)))
    held |= {frozenset(m[:2]) for m in mol.GetSubstructMatches(_TRIPLE, maxMatches=10_000)}
    count = 0.0
    for bond in mol.GetBonds():
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        if bond.GetBondType() != Chem.BondType.SINGLE or bond.IsInRing():
            continue
        if frozenset(a.GetIdx() for a in ends) in held:
            continue
        terminal = [a for a in ends if a.GetDegree() == 1]
        if not terminal:
            count += 1.0
        elif (
            len(terminal) == 1
            and terminal[0].GetSymbol() in ("N", "O", "S")
            and (terminal[0].GetTotalNumHs() > 0)
        ):
            count += 0.5
    return count


# Amino acids are typed by name, as at pH 7.4 with histidine's hydrogen on ND1; other groups by
# the lengths of their bonds.
_AMINO_ACIDS = frozenset(
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()
)
_HYDROXYL = {("SER", "OG"), ("THR", "OG1"), ("TYR", "OH")}
_ALCOHOL = 1.36  # Å: a C-O bond longer than this, to an oxygen with no other bond, is a hydroxyl
_AZA = 1.355  # Å: mean of the two bonds of an aromatic nitrogen, below which it has no hydrogen
_NONMETALS = frozenset("C N O".split()) | frozenset(_OF_ELEMENT)
_COVALENT = {"C": 0.77, "N": 0.75, "O": 0.73, "P": 1.06, "S": 1.02, "SE": 1.02, "F": 0.71,
             "CL": 0.99, "BR": 1.14, "I": 1.33, "SI": 1.11, "B": 0.84, "MG": 1.30, "MN": 1.39,
             "ZN": 1.31, "CA": 1.74, "FE": 1.25}  # fmt: skip
_METAL_RADIUS = 1.75
_ALLOWANCE = 1.1  # two atoms are bonded below this times the sum of their covalent radii


def receptor_types(
    coords: np.ndarray,
    elements: Sequence[str],
    atom_names: Sequence[str],
    residue_index: np.ndarray,
    residue_names: Sequence[str],
) -> np.ndarray:
    """Kind of each receptor atom, (A,) int64, from heavy atoms alone (see `receptor.Receptor`)."""
    symbols = [e.upper() for e in elements]
    coords = np.asarray(coords, dtype=np.float64)
    bonded = _bonded(coords, symbols)
    kinds = np.empty(len(symbols), dtype=np.int64)
    for i, symbol in enumerate(symbols):
        residue, name = residue_names[residue_index[i]], atom_names[i]
        covalent = [j for j in bonded[i] if symbols[j] in _NONMETALS]
        lengths = np.linalg.norm(coords[covalent] - coords[i], axis=1)
        on_metal = len(covalent) < len(bonded[i])
        if symbol == "C":
            kinds[i] = _KIND["C_P" if any(symbols[j] != "C" for j in bonded[i]) else "C_H"]
        elif symbol == "N" and (len(covalent) > 2 or on_metal or residue == "PRO"):
            kinds[i] = _KIND["N_P"]
        elif symbol == "N":
            if residue == "HIS" and name == "NE2":
                donor = False
            elif residue in _AMINO_ACIDS or name == "N" or len(covalent) < 2:
                donor = True
            else:
                donor = bool(lengths.mean() > _AZA)
            kinds[i] = _nitrogen(donor, not donor)
        elif symbol == "O":
            if residue in _AMINO_ACIDS:
                donor = (residue, name) in _HYDROXYL
            else:
                alone = len(covalent) == 1 and not on_metal and symbols[covalent[0]] == "C"
                donor = alone and bool(lengths[0] > _ALCOHOL)
            kinds[i] = _KIND["O_DA" if donor else "O_A"]
        else:
            kinds[i] = _KIND[_OF_ELEMENT.get(symbol, "metal")]
    return kinds


def _bonded(coords: np.ndarray, symbols: Sequence[str]) -> list[list[int]]:
    """Neighbours of each atom by distance, as Vina finds its bonds."""
    radius = np.array([_COVALENT.get(s, _METAL_RADIUS) for s in symbols])
    pairs = cKDTree(coords).query_pairs(2 * _METAL_RADIUS * _ALLOWANCE, output_type="ndarray")
    i, j = pairs.T
    close = np.linalg.norm(coords[i] - coords[j], axis=1) < _ALLOWANCE * (radius[i] + radius[j])
    neighbours: list[list[int]] = [[] for _ in symbols]
    for a, b in pairs[close]:
        neighbours[a].append(int(b))
        neighbours[b].append(int(a))
    return neighbours
