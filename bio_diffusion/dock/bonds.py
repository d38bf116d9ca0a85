"""Bond orders of a ligand of which a file gives heavy atoms in space only (PDB records).

Crystal ligands carry no hydrogens, so valences cannot be counted. Their geometry still tells much:
a carbon that is flat, open-angled and has short bonds is unsaturated. Each carbon i gets log-odds
`v_i` of being so, each bond b between atoms that may be unsaturated log-odds `w_b` of being the
double one; the orders are then the integer solution x_b (order minus one) of

    maximise  sum_b x_b (w_b + v_i + v_j) - c sum_n q_n
    subject to  sum_{b at i} x_b <= free valence of i (+ q_n at a three-bonded nitrogen)

with q_n in {0, 1} the cations, such as the pyridinium of NAD. Phosphorus, sulphur and nitro groups
follow rules. Tautomers cannot be told apart by heavy atoms: either may come out.

The log-odds are those of `bond_odds`; how often the result is right on complexes that they were not
fitted to is held by a test. The way of thinking is the usual one of programs that read PDB ligands
(geometry, then a valence-consistent choice); the model and the numbers are ours.

Shapes: N atoms, E bonds. Coordinates in Å.
"""

from __future__ import annotations

from collections.abc import Sequence

import gemmi
import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D
from rdkit.rdBase import BlockLogs
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.spatial import cKDTree

from .bond_odds import (
    carbon_odds,
    double_odds,
    flat_bonds,
    is_linear,
    nitrogen_odds,
    puckering_of,
)
from .ligand import MAX_HEAVY_ATOMS, Refused

_REACH = 0.40  # Å beyond the sum of covalent radii within which two atoms are bonded
_FREE = {"C": 4, "N": 3, "O": 2, "S": 2, "Se": 2}
_AROMATIC = 1.5  # log-odds added to a double bond within a flat ring of five or six
_CATION = 2.5  # c: log-odds that a cation must earn

ORDERS = {
    "sing": Chem.BondType.SINGLE,
    "doub": Chem.BondType.DOUBLE,
    "trip": Chem.BondType.TRIPLE,
    "arom": Chem.BondType.AROMATIC,
}
"""Bond orders as component dictionaries write them, by their first four letters."""


def perceive(
    elements: Sequence[str], coords: np.ndarray, bonds: np.ndarray | None = None
) -> Chem.Mol:
    """Builds a molecule from heavy atoms in space.

    Args:
        elements: (N,) symbols.
        coords: (N, 3) Å.
        bonds: (E, 2) atom pairs where they are known, else bonded by distance.

    Returns:
        A molecule with orders, charges and one conformer, not sanitised. Its property `doubt` is
        the negative log-likelihood (nats) of the carbons; `prepare` refuses too high a one.

    Raises:
        Refused: `fragments`, `too_large`, or `bonds` where no choice of orders is consistent.
    """
    xyz = np.asarray(coords, dtype=np.float64)
    if len(elements) > 4 * MAX_HEAVY_ATOMS:
        raise Refused("too_large", f"{len(elements)} heavy atoms, limit {MAX_HEAVY_ATOMS}")
    pairs = near_pairs(elements, xyz) if bonds is None else np.asarray(bonds).reshape(-1, 2)
    mol = _single_bonded(elements, xyz, pairs)
    if len(Chem.GetMolFrags(mol)) > 1:
        raise Refused("fragments", "the atoms do not hang together as one molecule; give it alone")
    taken = _groups(mol, xyz)
    _solve(mol, xyz, taken)
    return mol


def near_pairs(elements: Sequence[str], coords: np.ndarray, reach: float = _REACH) -> np.ndarray:
    """(E, 2) atom pairs within the sum of their covalent radii and `reach` Å."""
    radius = np.array([gemmi.Element(e).covalent_r for e in elements])
    found = cKDTree(coords).query_pairs(2 * radius.max() + reach, output_type="ndarray")
    length = np.linalg.norm(coords[found[:, 0]] - coords[found[:, 1]], axis=1)
    return found[length < radius[found[:, 0]] + radius[found[:, 1]] + reach]


def with_orders(
    elements: Sequence[str], coords: np.ndarray, orders: dict[tuple[int, int], str]
) -> Chem.Mol:
    """Builds a molecule from heavy atoms and a component's own table of bonds.

    Args:
        elements: (N,) symbols.
        coords: (N, 3) Å.
        orders: `sing`, `doub`, `trip` or `arom` by atom pair.

    Returns:
        A molecule with one conformer, not sanitised; nitrogens of four bonds are charged.
    """
    mol = _single_bonded(elements, np.asarray(coords, dtype=np.float64), np.array(list(orders)))
    for (i, j), order in orders.items():
        kind = ORDERS.get(order, Chem.BondType.SINGLE)
        mol.GetBondBetweenAtoms(i, j).SetBondType(kind)
        if kind == Chem.BondType.AROMATIC:
            mol.GetBondBetweenAtoms(i, j).SetIsAromatic(True)
            for k in (i, j):
                mol.GetAtomWithIdx(k).SetIsAromatic(True)
    for atom in mol.GetAtoms():
        if atom.GetSymbol() == "N" and sum(b.GetBondTypeAsDouble() for b in atom.GetBonds()) == 4:
            _cation(atom)
    return mol


def _single_bonded(elements: Sequence[str], coords: np.ndarray, pairs: np.ndarray) -> Chem.Mol:
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(elements))
    for i, symbol in enumerate(elements):
        mol.AddAtom(Chem.Atom(gemmi.Element(symbol).atomic_number))
        conformer.SetAtomPosition(i, Point3D(*map(float, coords[i])))
    for i, j in sorted({tuple(sorted(map(int, pair))) for pair in pairs}):
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    conformer.Set3D(True)
    mol.AddConformer(conformer, assignId=True)
    return mol


def _groups(mol: Chem.Mol, xyz: np.ndarray) -> set[int]:
    """Sets phosphorus, sulphur and nitro groups by rule; returns the atoms that are settled."""
    settled: set[int] = set()
    for atom in mol.GetAtoms():
        symbol, degree, i = atom.GetSymbol(), atom.GetDegree(), atom.GetIdx()
        # sulphur first, then by length: P=S is written before P=O, and the double bond is short
        ranked = sorted(
            (n.GetSymbol() == "O", float(np.linalg.norm(xyz[n.GetIdx()] - xyz[i])), n.GetIdx())
            for n in atom.GetNeighbors()
            if n.GetDegree() == 1 and n.GetSymbol() in ("O", "S")
        )
        ends = [mol.GetAtomWithIdx(k) for _, _, k in ranked]
        if symbol in ("P", "As") and degree == 4:
            doubles = 1
        elif symbol in ("S", "Se") and degree in (3, 4) and ends:
            doubles = degree - 2
        elif symbol in ("S", "Se") and degree == 3:
            atom.SetFormalCharge(1)
            continue
        elif symbol == "N" and degree == 3 and len(ends) == 2:
            doubles = 1
            atom.SetFormalCharge(1)
            ends[1].SetFormalCharge(-1)
        elif symbol == "N" and degree == 4:
            atom.SetFormalCharge(1)
            continue
        else:
            continue
        for end in ends[:doubles]:
            mol.GetBondBetweenAtoms(i, end.GetIdx()).SetBondType(Chem.BondType.DOUBLE)
        settled |= {i, *(n.GetIdx() for n in ends)}
    return settled


def _solve(mol: Chem.Mol, xyz: np.ndarray, settled: set[int]) -> None:
    """Sets the orders of all other bonds by the integer programme of the module."""
    puckering = puckering_of(mol, xyz)
    odds: dict[int, float] = {
        atom.GetIdx(): carbon_odds(atom, xyz, puckering)
        for atom in mol.GetAtoms()
        if atom.GetSymbol() == "C"
    }
    odds_n = {
        atom.GetIdx(): nitrogen_odds(atom, xyz, puckering)
        for atom in mol.GetAtoms()
        if atom.GetSymbol() == "N" and atom.GetDegree() < 3
    }
    endo = flat_bonds(mol, puckering)
    room, cations = {}, []
    for atom in mol.GetAtoms():
        i, degree = atom.GetIdx(), atom.GetDegree()
        room[i] = 0 if i in settled else max(0, _FREE.get(atom.GetSymbol(), 0) - degree)
        if atom.GetSymbol() == "C" and not (degree == 1 or is_linear(atom, xyz)):
            room[i] = min(room[i], 1)
        if atom.GetSymbol() == "N" and degree == 3 and i not in settled:
            cations.append(i)
    open_bonds = [
        b
        for b in mol.GetBonds()
        if all(room[k] or k in cations for k in (b.GetBeginAtomIdx(), b.GetEndAtomIdx()))
    ]
    if open_bonds:
        gain, upper = [], []
        for bond in open_bonds:
            w, triple = double_odds(bond, xyz)
            ends = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
            w += _AROMATIC * (bond.GetIdx() in endo)
            gain.append(w + sum(odds.get(k, odds_n.get(k, 0.0)) for k in ends))
            upper.append(2 if triple else 1)
        rows = np.zeros((mol.GetNumAtoms(), len(open_bonds) + len(cations)))
        for column, bond in enumerate(open_bonds):
            rows[bond.GetBeginAtomIdx(), column] = rows[bond.GetEndAtomIdx(), column] = 1
        for column, i in enumerate(cations):
            rows[i, len(open_bonds) + column] = -1
        best = milp(
            -np.array(gain + [-_CATION] * len(cations)),
            integrality=np.ones(rows.shape[1]),
            bounds=Bounds(0, np.array(upper + [1] * len(cations))),
            constraints=LinearConstraint(rows, ub=[room[i] for i in range(mol.GetNumAtoms())]),
            options={"time_limit": 5.0},
        )
        if best.x is None:
            raise Refused("bonds", "no consistent choice of bond orders")
        chosen = np.rint(best.x).astype(int)
        orders = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
        for bond, x in zip(open_bonds, chosen, strict=False):
            bond.SetBondType(orders[x])
        for i, q in zip(cations, chosen[len(open_bonds) :], strict=True):
            if q:
                _cation(mol.GetAtomWithIdx(i))
    doubt = 0.0
    for i, v in odds.items():
        carbon = mol.GetAtomWithIdx(i)
        unsaturated = any(b.GetBondTypeAsDouble() > 1 for b in carbon.GetBonds())
        doubt += float(np.logaddexp(0.0, -v if unsaturated else v))
    mol.SetDoubleProp("doubt", doubt)


def _cation(atom: Chem.Atom) -> None:
    """Charges a nitrogen, and its terminal oxygen where it is an N-oxide."""
    atom.SetFormalCharge(1)
    for neighbour in atom.GetNeighbors():
        if neighbour.GetSymbol() == "O" and neighbour.GetDegree() == 1:
            neighbour.SetFormalCharge(-1)


def apply_template(mol: Chem.Mol, template: Chem.Mol) -> Chem.Mol:
    """Bond orders and charges of `template` on the atoms and coordinates of `mol`.

    Args:
        mol: Coordinates; its own orders do not count.
        template: The same connectivity with the right orders, such as from a SMILES.

    Returns:
        A molecule in the atom order of `mol`.

    Raises:
        Refused: `template`, where the two do not have the same heavy-atom skeleton.
    """
    heavy = Chem.RemoveAllHs(template, sanitize=False)
    plain = Chem.RemoveAllHs(mol, sanitize=False)
    plain.ClearProp("doubt")
    if plain.GetNumAtoms() != heavy.GetNumAtoms():
        raise Refused(
            "template",
            f"{plain.GetNumAtoms()} heavy atoms in the coordinates, {heavy.GetNumAtoms()} in the "
            "SMILES; give the SMILES of the whole ligand, without salt",
        )
    with BlockLogs():
        try:
            Chem.SanitizeMol(heavy)
            return AllChem.AssignBondOrdersFromTemplate(heavy, plain)
        except (ValueError, RuntimeError):
            raise Refused(
                "template", "the SMILES and the coordinates are not the same molecule"
            ) from None
