"""Bond orders of a ligand of which a file gives heavy atoms in space only (PDB records).

Crystal ligands carry no hydrogens, so valences cannot be counted. Their geometry still tells much:
a carbon that is flat, open-angled and has short bonds is unsaturated. Each carbon i gets log-odds
`v_i` of being so, each bond b between atoms that may be unsaturated log-odds `w_b` of being the
double one; the orders are then the integer solution x_b (order minus one) of

    maximise  sum_b x_b (w_b + v_i + v_j) - c sum_n q_n
    subject to  sum_{b at i} x_b <= free valence of i (+ q_n at a three-bonded nitrogen)

with q_n in {0, 1} the cations, such as the pyridinium of NAD. Phosphorus, sulphur and nitro groups
follow rules. Tautomers cannot be told apart by heavy atoms: either may come out.

The log-odds are logistic regressions on the 1,368 training complexes of the docking set; how often
the result is right on others is held by a test. The way of thinking is the usual one of programs
that read PDB ligands (geometry, then a valence-consistent choice); the model and the numbers are
ours.

Shapes: N atoms, E bonds. Coordinates in Å, angles in degrees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import gemmi
import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D
from rdkit.rdBase import BlockLogs
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.spatial import cKDTree

from .ligand import MAX_HEAVY_ATOMS, Refused
from .residues import parse_structure, read_groups

_REACH = 0.40  # Å beyond the sum of covalent radii within which two atoms are bonded
_SINGLE_N = {"C": 1.47, "N": 1.42, "O": 1.40}
_SINGLE = {"C": 1.53, "N": 1.47, "O": 1.43, "S": 1.81, "F": 1.37, "Cl": 1.77, "Br": 1.95, "I": 2.1}
"""Lengths of single bonds at an sp3 carbon, Å; others count as 1.80."""

# Log-odds of an unsaturated carbon: constant, then the weight of each feature (see `_carbon`).
_CHAIN = (-19.32, 0.1314, 19.51)  # two neighbours: angle, shortness
_RING = (-24.30, 0.2312, -6.77, 12.12)  # two neighbours in a ring: angle, puckering, shortness
_BRANCH = (2.615, -16.73, 9.55)  # three neighbours: height over their plane, shortness
_END = (-20.0, 95.0)  # one neighbour: shortness; few examples, set by hand

# The same for nitrogen. Its angle is narrower where it has no hydrogen.
_N_CHAIN = (-5.70, 0.0101, 10.11)
_N_RING = (21.55, -0.1886, -1.63, 12.99)
_N_FIVE = (15.39, -0.1426, -1.65, 5.50)
_N_END = (-7.40, 32.96)

# Log-odds of a double bond where both ends may have one: constant, weight of the length. The mark
# 1 is a terminal atom, whose hydrogen lengthens the single bond.
_DOUBLE = {
    "CC": (11.32, -8.13),
    "CN": (16.18, -12.64),
    "CO1": (26.50, -20.07),
    "CN1": (35.61, -28.94),
    "CS1": (36.77, -22.39),
    "NN": (17.04, -13.81),
    "NO1": (3.92, -3.53),
    "CC1": (20.0, -14.2),
    "NN1": (17.04, -13.81),
}
_FREE = {"C": 4, "N": 3, "O": 2, "S": 2, "Se": 2}
_AROMATIC = 1.5  # log-odds added to a double bond within a flat ring of five or six
_CATION = 2.5  # c: log-odds that a cation must earn
_TRIPLE = {"CC": 1.27, "CN": 1.22, "NN": 1.17}  # Å below which a bond may be triple


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
        raise Refused("fragments", "the atoms do not hang together as one molecule")
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
    kinds = {
        "doub": Chem.BondType.DOUBLE,
        "trip": Chem.BondType.TRIPLE,
        "arom": Chem.BondType.AROMATIC,
    }
    for (i, j), order in orders.items():
        kind = kinds.get(order, Chem.BondType.SINGLE)
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
    puckering = _puckering(mol, xyz)
    odds: dict[int, float] = {
        atom.GetIdx(): _carbon(atom, xyz, puckering)
        for atom in mol.GetAtoms()
        if atom.GetSymbol() == "C"
    }
    odds_n = {
        atom.GetIdx(): _nitrogen(atom, xyz, puckering)
        for atom in mol.GetAtoms()
        if atom.GetSymbol() == "N" and atom.GetDegree() < 3
    }
    endo = _flat_bonds(mol, puckering)
    room, cations = {}, []
    for atom in mol.GetAtoms():
        i, degree = atom.GetIdx(), atom.GetDegree()
        room[i] = 0 if i in settled else max(0, _FREE.get(atom.GetSymbol(), 0) - degree)
        if atom.GetSymbol() == "C" and not (degree == 1 or _is_linear(atom, xyz)):
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
            w, triple = _bond_odds(bond, xyz)
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


def _carbon(atom: Chem.Atom, xyz: np.ndarray, puckering: dict[int, float]) -> float:
    """Log-odds v_i that a carbon is unsaturated, from the features named beside the weights."""
    i = atom.GetIdx()
    neighbours = list(atom.GetNeighbors())
    arms = np.array([xyz[n.GetIdx()] - xyz[i] for n in neighbours]).reshape(-1, 3)
    lengths = np.linalg.norm(arms, axis=1)
    weights: tuple[float, ...]
    short = sum(_SINGLE.get(n.GetSymbol(), 1.8) for n in neighbours) - float(lengths.sum())
    if len(neighbours) == 3:
        normal = np.cross(arms[1] - arms[0], arms[2] - arms[0])
        height = abs(arms[0] @ normal) / max(float(np.linalg.norm(normal)), 1e-6)
        weights, features = _BRANCH, [height, short]
    elif len(neighbours) == 2:
        angle = _angle(arms)
        if i in puckering:
            weights, features = _RING, [angle, puckering[i], short]
        else:
            weights, features = _CHAIN, [angle, short]
    elif len(neighbours) == 1:
        weights, features = _END, [short]
    else:
        return -20.0
    return float(np.clip(weights[0] + np.dot(weights[1:], features), -20.0, 20.0))


def _nitrogen(atom: Chem.Atom, xyz: np.ndarray, puckering: dict[int, float]) -> float:
    """Log-odds v_i that a nitrogen with one or two neighbours is unsaturated."""
    i = atom.GetIdx()
    neighbours = list(atom.GetNeighbors())
    arms = np.array([xyz[n.GetIdx()] - xyz[i] for n in neighbours]).reshape(-1, 3)
    lengths = np.linalg.norm(arms, axis=1)
    weights: tuple[float, ...]
    short = sum(_SINGLE_N.get(n.GetSymbol(), 1.7) for n in neighbours) - float(lengths.sum())
    if len(neighbours) == 1:
        weights, features = _N_END, [short]
    elif len(neighbours) == 2 and i in puckering:
        five = atom.GetOwningMol().GetRingInfo().IsAtomInRingOfSize(i, 5)
        weights = _N_FIVE if five else _N_RING
        features = [_angle(arms), puckering[i], short]
    elif len(neighbours) == 2:
        weights, features = _N_CHAIN, [_angle(arms), short]
    else:
        return 0.0
    return float(np.clip(weights[0] + np.dot(weights[1:], features), -20.0, 20.0))


def _flat_bonds(mol: Chem.Mol, puckering: dict[int, float]) -> set[int]:
    """Bonds within rings of five or six atoms that are flat."""
    rings = mol.GetRingInfo()
    return {
        k
        for atoms, ring in zip(rings.AtomRings(), rings.BondRings(), strict=True)
        if len(ring) in (5, 6) and max(puckering[i] for i in atoms) < 0.25
        for k in ring
    }


def _angle(arms: np.ndarray) -> float:
    cosine = arms[0] @ arms[1] / np.prod(np.linalg.norm(arms, axis=1) + 1e-9)
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _is_linear(atom: Chem.Atom, xyz: np.ndarray) -> bool:
    """A two-bonded atom whose bonds lie in line, within 25 degrees."""
    if atom.GetDegree() != 2:
        return False
    return (
        _angle(np.array([xyz[n.GetIdx()] - xyz[atom.GetIdx()] for n in atom.GetNeighbors()])) > 155
    )


def _bond_odds(bond: Chem.Bond, xyz: np.ndarray) -> tuple[float, bool]:
    """Log-odds w_b of a double bond, and whether the length allows a triple one."""
    ends = (bond.GetBeginAtom(), bond.GetEndAtom())
    names = sorted(a.GetSymbol() + "1" * (a.GetDegree() == 1) for a in ends)
    key = "".join(names)
    plain = key.replace("1", "")
    length = float(np.linalg.norm(xyz[ends[0].GetIdx()] - xyz[ends[1].GetIdx()]))
    constant, weight = _DOUBLE.get(key, _DOUBLE.get(plain, (-3.0, 0.0)))
    return constant + weight * length, length < _TRIPLE.get(plain, 0.0)


def _puckering(mol: Chem.Mol, xyz: np.ndarray) -> dict[int, float]:
    """Largest |sin| of a torsion in the flattest ring (up to eight atoms) of each ring atom."""
    flat: dict[int, float] = {}
    for ring in map(list, Chem.GetSymmSSSR(mol)):
        if len(ring) > 8:
            continue
        worst = 0.5  # a three-membered ring has no torsion
        if len(ring) > 3:
            worst = max(_sine(xyz[[*ring[k:], *ring[:k]][:4]]) for k in range(len(ring)))
        for i in ring:
            flat[i] = min(flat.get(i, 1.0), worst)
    return flat


def _sine(p: np.ndarray) -> float:
    """|sin| of the torsion of four points (4, 3)."""
    first = np.cross(p[0] - p[1], p[2] - p[1])
    second = np.cross(p[3] - p[2], p[1] - p[2])
    norms = max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9)
    return float(np.sqrt(max(0.0, 1.0 - (float(first @ second) / norms) ** 2)))


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


def molecule_from_pdb(text: str) -> Chem.Mol:
    """The one molecule of a PDB file: all its atoms but water and hydrogens.

    Raises:
        Refused: `empty`, `too_large`, `fragments` or `bonds`.
        InputError: The text cannot be parsed.
    """
    groups = read_groups(parse_structure(text, "the PDB text"), Counter())
    atoms = [a for group in groups if group.kind != "water" for a in group.atoms]
    if not atoms:
        raise Refused("empty", "no heavy atoms")
    coords = np.array([a.pos.tolist() for a in atoms])
    return perceive([a.element.name for a in atoms], coords)
