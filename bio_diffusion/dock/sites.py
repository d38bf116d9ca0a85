"""Where on a protein a ligand may bind, from its shape alone.

A grid point outside the protein is *buried* when most rays that leave it meet protein within a few
Å (the idea of LIGSITE and of PocketPicker). Buried volume, weighted by how greasy its lining is, is
summed over a ball as large as a ligand; the highest peaks of that sum are the candidate sites.
Deterministic: no sampling, ties go to the first grid point.

Source of the ray criterion: Hendlich, Rippmann and Barnickel, "LIGSITE", J. Mol. Graph. Model. 15,
359 (1997). The ball sum, the lining weight and all constants are ours, set on training complexes.

Shapes: A receptor atoms, G grid points, P points kept. Coordinates in Å.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .complex import Receptor, Site

__all__ = ["Pocket", "PocketFinder", "SiteProposer"]

# Lining weight of an atom: greasy side chains bind drugs, charged ones mostly face water.
_GREASY = frozenset("ALA VAL LEU ILE MET PHE TRP TYR PRO CYS HIS".split())
_MAX_POINTS = 8_000_000  # beyond this the grid is made coarser: a ribosome must not take 8 GB


@dataclass(frozen=True)
class Pocket:
    """A candidate binding site.

    Attributes:
        site: The box to search.
        volume: Å³ of buried space within the ball around the peak.
        score: Buried volume weighted by burial and lining, Å³; higher is likelier.
    """

    site: Site
    volume: float
    score: float


class SiteProposer(Protocol):
    """Anything that names likely sites of a receptor, the likeliest first."""

    def propose(self, receptor: Receptor, count: int) -> list[Pocket]: ...


@dataclass(frozen=True)
class PocketFinder:
    """Ranks cavities by buried volume, burial and lining.

    Args:
        spacing: Å between grid points.
        clearance: Å that a grid point keeps from every heavy atom: a ligand atom fits there.
        reach: Å that a ray travels before it counts as free.
        burial: Share of rays that must meet protein.
        ball: Å, standard deviation of the Gaussian ball over which buried volume is summed.
        apart: Å between two sites at least.
        edge: Å, edge length of the box that is returned.
    """

    spacing: float = 1.5
    clearance: float = 2.7
    reach: float = 9.0
    burial: float = 0.8
    ball: float = 2.7
    apart: float = 6.0
    edge: float = 22.5

    def propose(self, receptor: Receptor, count: int) -> list[Pocket]:
        """The `count` likeliest sites, the likeliest first; fewer if the surface has fewer.

        Raises:
            ValueError: `count` is below one.
        """
        if count < 1:
            raise ValueError(f"count is {count}; ask for one site or more")
        origin, spacing, weight, buried = self._field(receptor)
        sigma = self.ball / spacing
        score = ndimage.gaussian_filter(weight, sigma, mode="constant", truncate=2.5)
        # back from a mean to a sum over the ball, in Å^3
        score *= (2 * np.pi) ** 1.5 * self.ball**3
        points = origin + spacing * np.argwhere(buried)
        tree = cKDTree(points) if len(points) else None
        pockets: list[Pocket] = []
        for peak, value in _peaks(score, buried, self.apart / spacing):
            near = tree.query_ball_point(origin + spacing * peak, 2 * self.ball) if tree else []
            cells = np.round((points[near] - origin) / spacing).astype(int)
            mass = weight[tuple(cells.T)]
            center = np.average(points[near], axis=0, weights=mass)
            if any(np.linalg.norm(center - p.site.center) < self.apart for p in pockets):
                continue
            rank = len(pockets) + 1
            site = Site(center=center, size=np.full(3, self.edge), how=f"cavity {rank} (by burial)")
            pockets.append(Pocket(site, volume=len(near) * spacing**3, score=float(value)))
            if len(pockets) == count:
                break
        return pockets

    def _field(self, receptor: Receptor) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
        """Origin (3,), spacing, weight (X, Y, Z) and buried (X, Y, Z) of the grid."""
        coords = np.asarray(receptor.coords, dtype=np.float64)
        low, high = coords.min(0) - 4.5, coords.max(0) + 4.5
        spacing = max(self.spacing, float((np.prod(high - low) / _MAX_POINTS) ** (1 / 3)))
        shape = tuple(np.ceil((high - low) / spacing).astype(int) + 1)
        axes = [low[i] + spacing * np.arange(shape[i]) for i in range(3)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        tree = cKDTree(coords)
        distance, _ = tree.query(grid, distance_upper_bound=8.0, workers=1)
        distance = distance.reshape(shape)
        solid = distance < self.clearance
        # Rays start where a ligand atom fits and that is not out in the solvent.
        candidates = ~solid & (distance < 6.0)
        cells = np.argwhere(candidates)
        hits = np.zeros(len(cells))
        for direction in _DIRECTIONS:
            hits += _meets(solid, cells, direction, self.reach / spacing)
        share = hits / len(_DIRECTIONS)
        keep = share >= self.burial
        buried = np.zeros(shape, dtype=bool)
        buried[tuple(cells[keep].T)] = True
        # single buried points are cracks of the packing, not room for a ligand
        buried &= ndimage.convolve(buried.astype(np.int8), np.ones((3, 3, 3), np.int8)) >= 6
        weight = np.zeros(shape)
        weight[tuple(cells[keep].T)] = (share[keep] - self.burial + 0.1) / (1.1 - self.burial)
        weight[~buried] = 0.0
        inside = np.argwhere(buried)
        if len(inside):
            lining = _lining(receptor, tree, low + spacing * inside)
            weight[tuple(inside.T)] *= lining
        return low, spacing, weight, buried


def _directions() -> np.ndarray:
    """(30, 3) unit vectors spread evenly (golden spiral)."""
    n = 30
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.pi * (1 + 5**0.5) * np.arange(n)
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1)


_DIRECTIONS = _directions()


def _meets(solid: np.ndarray, cells: np.ndarray, direction: np.ndarray, reach: float) -> np.ndarray:
    """(P,) bool: the ray from each cell along `direction` meets a solid one in `reach` cells."""
    met = np.zeros(len(cells), dtype=bool)
    limit = np.array(solid.shape)
    for length in np.arange(1.0, reach + 0.5):
        ahead = cells + np.round(direction * length).astype(int)
        inside = ((ahead >= 0) & (ahead < limit)).all(1)
        met[inside] |= solid[tuple(ahead[inside].T)]
    return met


def _lining(receptor: Receptor, tree: cKDTree, points: np.ndarray) -> np.ndarray:
    """(P,) weight between 0.5 and 1.5: share of greasy atoms among the nearest eight."""
    greasy = np.array(
        [
            element in ("C", "S") and receptor.residue_names[residue] in _GREASY
            for element, residue in zip(receptor.elements, receptor.residue_index, strict=True)
        ]
    )
    _, nearest = tree.query(points, k=min(8, len(greasy)))
    return 0.5 + greasy[np.atleast_2d(nearest.reshape(len(points), -1))].mean(1)


def _peaks(
    score: np.ndarray, allowed: np.ndarray, apart: float
) -> Iterator[tuple[np.ndarray, float]]:
    """Maxima of `score` on `allowed` cells, highest first, at least `apart` cells apart."""
    cells = np.argwhere(allowed)
    values = score[tuple(cells.T)]
    order = np.argsort(-values, kind="stable")
    alive = np.ones(len(cells), dtype=bool)
    for i in order:
        if alive[i]:
            yield cells[i], values[i]
            alive &= ((cells - cells[i]) ** 2).sum(1) > apart**2
