"""How unsaturated the geometry of heavy atoms says that a carbon, a nitrogen or a bond is.

Log-odds of logistic regressions on the 1,368 training complexes of the docking set. Features are
bond angles, the pucker of rings, the height of an atom over its neighbours' plane, and shortness:
the sum of the lengths of single bonds less that of the bonds that are there.

Coordinates (N, 3) in Å, angles in degrees.
"""

from __future__ import annotations

import numpy as np
from rdkit import Chem

__all__ = [
    "carbon_odds",
    "double_odds",
    "flat_bonds",
    "is_linear",
    "nitrogen_odds",
    "puckering_of",
]

_SINGLE_N = {"C": 1.47, "N": 1.42, "O": 1.40}
_SINGLE = {"C": 1.53, "N": 1.47, "O": 1.43, "S": 1.81, "F": 1.37, "Cl": 1.77, "Br": 1.95, "I": 2.1}
"""Lengths of single bonds at an sp3 carbon, Å; others count as 1.80."""

# Log-odds of an unsaturated carbon: constant, then the weight of each feature (see `carbon_odds`).
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
_TRIPLE = {"CC": 1.27, "CN": 1.22, "NN": 1.17}  # Å below which a bond may be triple


def carbon_odds(atom: Chem.Atom, xyz: np.ndarray, puckering: dict[int, float]) -> float:
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


def nitrogen_odds(atom: Chem.Atom, xyz: np.ndarray, puckering: dict[int, float]) -> float:
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


def flat_bonds(mol: Chem.Mol, puckering: dict[int, float]) -> set[int]:
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


def is_linear(atom: Chem.Atom, xyz: np.ndarray) -> bool:
    """A two-bonded atom whose bonds lie in line, within 25 degrees."""
    if atom.GetDegree() != 2:
        return False
    return (
        _angle(np.array([xyz[n.GetIdx()] - xyz[atom.GetIdx()] for n in atom.GetNeighbors()])) > 155
    )


def double_odds(bond: Chem.Bond, xyz: np.ndarray) -> tuple[float, bool]:
    """Log-odds w_b of a double bond, and whether the length allows a triple one."""
    ends = (bond.GetBeginAtom(), bond.GetEndAtom())
    names = sorted(a.GetSymbol() + "1" * (a.GetDegree() == 1) for a in ends)
    key = "".join(names)
    plain = key.replace("1", "")
    length = float(np.linalg.norm(xyz[ends[0].GetIdx()] - xyz[ends[1].GetIdx()]))
    constant, weight = _DOUBLE.get(key, _DOUBLE.get(plain, (-3.0, 0.0)))
    return constant + weight * length, length < _TRIPLE.get(plain, 0.0)


def puckering_of(mol: Chem.Mol, xyz: np.ndarray) -> dict[int, float]:
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
