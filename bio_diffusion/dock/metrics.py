"""How good poses are: distance to the crystal pose, and rates with their uncertainty.

Shapes: B poses, N heavy atoms, P permutations, C complexes. Distances in Å.

The RMSD is the one that docking papers report: heavy atoms, no superposition, the least over the
graph automorphisms of the ligand (element and connectivity, as spyrmsd finds them).

Source: Meli and Biggin, "spyrmsd", J. Cheminform. 2020 (symmetry correction); Wilson, JASA 1927
(interval of a rate); McNemar, Psychometrika 1947 (paired rates, here the exact binomial form).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np
from rdkit import Chem
from spyrmsd import graph

__all__ = [
    "Rate",
    "Symmetry",
    "centroid_distance",
    "mcnemar",
    "rate",
    "success_rate",
    "successes",
    "symmetric_rmsd",
    "symmetry",
    "wilson",
]

TIME_LIMIT = 10.0
"""Seconds given to the search for a ligand's automorphisms."""

_BLOCK = 4_000_000  # entries of the largest temporary array


@dataclass(frozen=True)
class Symmetry:
    """The atom renamings that leave a ligand's graph as it is.

    Attributes:
        heavy: (N,) long, indices of the heavy atoms.
        permutations: (P, N) long among the heavy atoms; the identity is one of them.
        note: Why symmetry could not be accounted for; empty where it was.
    """

    heavy: np.ndarray
    permutations: np.ndarray
    note: str = ""


class _Element:
    """An atom's element as a vertex label whose comparisons run out of time.

    Graph matching calls nothing of ours but this comparison, in either backend of spyrmsd, so it is
    the place where a search that would take for ever can be ended without a thread or a process.
    """

    def __init__(self, number: int, deadline: float) -> None:
        self.number = number
        self.deadline = deadline

    def __eq__(self, other: object) -> bool:
        if time.monotonic() > self.deadline:
            raise TimeoutError
        return isinstance(other, _Element) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)


def symmetry(mol: Chem.Mol, time_limit: float = TIME_LIMIT) -> Symmetry:
    """Finds the automorphisms of a ligand, once for each ligand.

    Args:
        mol: Sanitised molecule; hydrogens are left out.
        time_limit: Seconds after which the search ends and only the identity is kept.
    """
    heavy = np.array([a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1], dtype=np.int64)
    if len(heavy) == 0:
        raise ValueError("the ligand has no heavy atoms, so no RMSD")
    numbers = tuple(mol.GetAtomWithIdx(int(i)).GetAtomicNum() for i in heavy)
    place = {int(atom): i for i, atom in enumerate(heavy)}
    bonds = tuple(
        (place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()])
        for b in mol.GetBonds()
        if b.GetBeginAtomIdx() in place and b.GetEndAtomIdx() in place
    )
    permutations, note = _automorphisms(numbers, bonds, time_limit)
    return Symmetry(heavy, permutations, note)


@lru_cache(maxsize=4096)
def _automorphisms(
    numbers: tuple[int, ...], bonds: tuple[tuple[int, int], ...], time_limit: float
) -> tuple[np.ndarray, str]:
    adjacency = np.zeros((len(numbers), len(numbers)))
    for i, j in bonds:
        adjacency[i, j] = adjacency[j, i] = 1
    deadline = time.monotonic() + time_limit
    labels = [_Element(number, deadline) for number in numbers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spyrmsd warns of graphs in several pieces, such as salts
        vertices = graph.graph_from_adjacency_matrix(adjacency, labels)
        try:
            found = graph.match_graphs(vertices, vertices)
        except TimeoutError:
            note = f"symmetry not accounted for: more than {time_limit:g} s to find it"
            return np.arange(len(numbers))[None], note
    permutations = np.empty((len(found), len(numbers)), dtype=np.int64)
    for row, (left, right) in zip(permutations, found, strict=True):
        row[left] = right
    return permutations, ""


def symmetric_rmsd(
    coords: np.ndarray, crystal: np.ndarray, ligand: Chem.Mol | Symmetry
) -> np.ndarray:
    """Symmetry-corrected heavy-atom RMSD of poses to the crystal pose, without superposition.

    Args:
        coords: (B, M, 3) poses, all atoms of the molecule (hydrogens, if any, are left out).
        crystal: (M, 3), same atom order.
        ligand: The molecule, or its `symmetry` (whose `note` says whether it was found in time).

    Returns:
        (B,) Å.
    """
    known = ligand if isinstance(ligand, Symmetry) else symmetry(ligand)
    poses, target = np.asarray(coords, dtype=np.float64), np.asarray(crystal, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != target.shape or target.shape[-1] != 3:
        raise ValueError(f"coords {poses.shape} and crystal {target.shape}: need (B, M, 3), (M, 3)")
    poses, target = poses[:, known.heavy], target[known.heavy]
    count = len(known.heavy)
    atoms = np.arange(count)
    best = np.full(len(poses), np.inf)
    for start in range(0, len(poses), block := max(1, _BLOCK // count**2)):
        part = slice(start, start + block)
        square = np.square(poses[part, :, None] - target).sum(-1)
        for first in range(
            0, len(known.permutations), step := max(1, _BLOCK // square[..., 0].size)
        ):
            chosen = square[:, atoms, known.permutations[first : first + step]].sum(-1)
            best[part] = np.minimum(best[part], chosen.min(1))
    return np.sqrt(best / count)


def centroid_distance(coords: np.ndarray, crystal: np.ndarray) -> np.ndarray:
    """(B, N, 3), (N, 3) -> (B,) Å between the centroids of poses and crystal pose."""
    return np.linalg.norm(np.asarray(coords).mean(1) - np.asarray(crystal).mean(0), axis=-1)


@dataclass(frozen=True)
class Rate:
    """A share of successes with its interval.

    Attributes:
        successes: Number of successes.
        total: Number of trials.
        low: Lower end of the interval.
        high: Upper end.
    """

    successes: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.successes / self.total if self.total else float("nan")

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.share:.1f} % [{low:.1f}, {high:.1f}] ({self.successes}/{self.total})"


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate; (0, 1) where nothing was tried."""
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}: need 0 <= successes <= total")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    # at 0 and 1 the ends are exact, which rounding would miss
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == total else center + half
    return low, high


def rate(outcomes: Sequence[bool] | np.ndarray, confidence: float = 0.95) -> Rate:
    """The share of true outcomes (C,) with Wilson's interval."""
    won = np.asarray(outcomes, dtype=bool)
    low, high = wilson(int(won.sum()), won.size, confidence)
    return Rate(int(won.sum()), won.size, low, high)


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """Two-sided exact p-value that two methods do equally well on the same complexes.

    Args:
        first: (C,) outcomes of one method.
        second: (C,) outcomes of the other on the same complexes, in the same order.
    """
    from scipy.stats import binomtest  # slow to import, and a docking needs it not

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"outcomes {a.shape} and {b.shape}: need one each for the same complexes")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def successes(
    rmsds: Sequence[np.ndarray],
    top: int = 1,
    within: float = 2.0,
    valid: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Whether each complex has a good pose among its first `top`.

    Args:
        rmsds: C arrays (B,) Å in ranked order; B may differ. An empty one, from a failed run, or a
            NaN is a failure.
        top: Poses looked at.
        within: RMSD below which a pose is good, Å.
        valid: C arrays (B,) bool; where given, a good pose must also be valid.

    Returns:
        (C,) bool.
    """
    good = [np.asarray(values, dtype=float)[:top] < within for values in rmsds]
    if valid is not None:
        checks = [np.asarray(flags, dtype=bool)[:top] for flags in valid]
        good = [near & sound for near, sound in zip(good, checks, strict=True)]
    return np.array([near.any() for near in good], dtype=bool)


def success_rate(
    rmsds: Sequence[np.ndarray],
    top: int = 1,
    within: float = 2.0,
    valid: Sequence[np.ndarray] | None = None,
) -> Rate:
    """The share of complexes with a good pose among the first `top`; see `successes`."""
    return rate(successes(rmsds, top, within, valid))
