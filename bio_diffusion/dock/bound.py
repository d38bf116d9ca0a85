"""The ligand that a structure file already holds: found, taken out, and given bond orders.

What counts as one: a hetero group, or several bonded to each other, that is no water, ion,
additive, metal complex, part of a chain, or sugar bonded to the protein, with at least six heavy
atoms of which at least a third touch the protein. Of several, cofactors and lipids come last, then
the one with the most atoms in touch wins.

Its bond orders come from a SMILES that the caller gives, else as `components` finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from rdkit import Chem
from scipy.spatial import cKDTree

from bio_diffusion.files import InputError, one_line, read_text, slug

from .bonds import near_pairs
from .components import with_bonds
from .ligand import MAX_HEAVY_ATOMS, Ligand, Refused, prepare
from .ligand_formats import parse_smiles
from .receptor import Receptor, assemble
from .residues import Group, parse_structure, read_groups

MIN_ATOMS = 6
"""Fewest heavy atoms of a bound ligand."""

LAST = frozenset(
    """
    HEM HEA HEB HEC HDD NAD NAI NAP NDP NAJ FAD FDA FMN PLP PMP TPP TDP TD6 SAM SAH SFG COA ACO CAA
    ATP ADP AMP ANP ACP APC AGS GTP GDP GNP GSP GCP CTP UTP UDP H4B HBI BIO BTN B12 COB MGD MTE PQQ
    TPQ LPA ASC GSH CLA CHL BCL BPH PQ9 PQN U10 UQ1 UQ2 BCR LUT NEX XAT RET CLR OLA OLB OLC PLM MYR
    STE PEE PTY PCW LHG LMG SQD CDL PEF PGV PLC NAG NDG BMA MAN FUC GAL GLC BGC
    """.split()
)
"""Cofactors, lipids and sugars: taken as the ligand only where nothing else is bound."""

_TOUCH = 4.5  # Å from a ligand atom to the protein within which it is in touch
_BURIED = 1 / 3


@dataclass(frozen=True)
class _Candidate:
    """One molecule of one or more groups."""

    groups: tuple[Group, ...]
    touching: int

    @property
    def name(self) -> str:
        return "-".join(group.name for group in self.groups)

    @property
    def atoms(self) -> list[gemmi.Atom]:
        return [atom for group in self.groups for atom in group.atoms]

    @property
    def coords(self) -> np.ndarray:
        return np.concatenate([group.coords for group in self.groups])


def bound_ligand(path: str | Path, smiles: str | None = None) -> tuple[Ligand, Receptor] | None:
    """Finds the ligand bound in a protein's file and takes it out.

    Args:
        path: PDB or mmCIF, also gzipped.
        smiles: Its bond orders, where the caller knows them; also says which group is meant.

    Returns:
        The ligand with its crystal coordinates and the receptor without it and without further
        copies of it, or None where the file holds no such group.

    Raises:
        InputError: The file cannot be used; or a ligand is there whose bond orders cannot be
            told: the remedy is to give its SMILES.
    """
    text = read_text(path)
    structure = parse_structure(text, one_line(path))
    assemble(structure, path)  # says first what is wrong with the protein itself
    candidates = _candidates(read_groups(structure, Counter()))
    if not candidates:
        return None
    template = None if smiles is None else _template(smiles)
    refusal: InputError | None = None
    for candidate in candidates if template is not None else candidates[:1]:
        where = f"{one_line(path)}: bound ligand {candidate.name} at {candidate.groups[0].label}"
        try:
            mol = with_bonds(candidate.groups, text, template)
            stem = Path(path).name.split(".")[0]
            name = slug(f"{stem}_{candidate.name}") or "bound"
            ligand = prepare(mol, name, where)
        except Refused as error:
            refusal = refusal or InputError(
                error.code, f"{where}: {error}; give --ligand with its SMILES"
            )
            continue
        copies = [c for c in candidates if c.name == candidate.name]
        labels = [group.label for copy in copies for group in copy.groups]
        return ligand, assemble(structure, path, leave_out=labels)
    assert refusal is not None
    raise refusal


def _template(smiles: str) -> Chem.Mol:
    try:
        return parse_smiles(smiles)
    except Refused as error:
        raise InputError(error.code, f"the ligand's SMILES: {error}") from None


def _candidates(groups: list[Group]) -> list[_Candidate]:
    """Molecules that may be a ligand, best first."""
    polymer = [g for g in groups if g.kind in ("protein", "nucleic", "modified") and g.atoms]
    hetero = [g for g in groups if g.kind == "group" and g.atoms]
    if not polymer or not hetero:
        return []
    protein = cKDTree(np.concatenate([g.coords for g in polymer]))
    symbols = [a.element.name for g in polymer for a in g.atoms]
    found = []
    for members in _joined(hetero):
        pieces = tuple(hetero[i] for i in members)
        coords = np.concatenate([g.coords for g in pieces])
        elements = [a.element.name for g in pieces for a in g.atoms]
        if not may_be_ligand(elements, coords, protein, symbols):
            continue
        touching = int((protein.query(coords)[0] < _TOUCH).sum())
        if touching >= _BURIED * len(elements):
            found.append(_Candidate(pieces, touching))
    return sorted(found, key=lambda c: (all(g.name in LAST for g in c.groups), -c.touching))


def may_be_ligand(
    elements: Sequence[str], coords: np.ndarray, chains: cKDTree, symbols: Sequence[str]
) -> bool:
    """Whether a group has a ligand's size, carbon, no metal, and no bond to a chain.

    Args:
        elements: (n,) of its heavy atoms.
        coords: (n, 3) Å.
        chains: Atoms of protein and nucleic acid.
        symbols: Their elements.
    """
    if not MIN_ATOMS <= len(elements) <= MAX_HEAVY_ATOMS or "C" not in elements:
        return False
    if any(gemmi.Element(e).is_metal for e in elements):
        return False
    distance, nearest = chains.query(coords)
    # bonded to the chain: a glycan or a covalent inhibitor
    return all(
        d >= _bond_limit(e, symbols[k]) for d, k, e in zip(distance, nearest, elements, strict=True)
    )


def _bond_limit(first: str, second: str) -> float:
    """Å below which two atoms are bonded, tighter than within a ligand: contacts are no bonds."""
    return gemmi.Element(first).covalent_r + gemmi.Element(second).covalent_r + 0.25


def _joined(groups: list[Group]) -> list[list[int]]:
    """Sets of groups that bonds join, each in the order of the file."""
    owner = [i for i, g in enumerate(groups) for _ in g.atoms]
    symbols = [a.element.name for g in groups for a in g.atoms]
    pairs = near_pairs(symbols, np.concatenate([g.coords for g in groups]), reach=0.25)
    root = list(range(len(groups)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for a, b in pairs:
        low, high = sorted((find(owner[a]), find(owner[b])))
        root[high] = low
    sets: dict[int, list[int]] = {}
    for i in range(len(groups)):
        sets.setdefault(find(i), []).append(i)
    return list(sets.values())
