"""How much of a ligand's volume lies inside a receptor, as RDKit's shape encoding measures it.

A shape is a grid of spacing 0.5 Å on which each atom leaves 3 inside its scaled van der Waals
sphere, 2 in the quarter Å around it, 1 in the next quarter, 0 beyond; the largest value stays. The
overlap is the sum over the grid of the lesser of the two shapes, as a share of the ligand's sum
(Tversky index with alpha 1, beta 0). The grid starts at the corner of the box around both, in the
ligand's principal frame.

RDKit encodes every receptor atom of the neighbourhood on that grid. Here only those atoms that
reach the ligand's shape are, on the ligand's part of the grid: the same numbers, sooner.

Shapes: N ligand atoms, A receptor atoms. Coordinates in Å.

Source: RDKit, `ShapeTverskyIndex`; the neighbourhood and scales are those of PoseBusters 0.6.5
(Buttenschoen, Morris and Deane, Chem. Sci. 2024).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdMolTransforms import ComputeCanonicalTransform

__all__ = ["volume_overlap"]

_SPACING = 0.5
_PADDING = 2.0
_LAYER = 0.25  # Å, thickness of one level of occupancy outside the sphere
_LEVELS = 3
_REACH = (_LEVELS - 1) * _LAYER  # the outermost of the three layers has level 0


def volume_overlap(
    ligand: np.ndarray,
    ligand_radii: np.ndarray,
    receptor: np.ndarray,
    receptor_radii: np.ndarray,
    nearest: np.ndarray,
    scale: float,
) -> float:
    """The share of the ligand's volume inside the receptor.

    Args:
        ligand: (N, 3) one pose.
        ligand_radii: (N,) van der Waals radii, Å.
        receptor: (A, 3) the atoms of the neighbourhood; with the pose they set the grid's corner.
        receptor_radii: (A,) Å.
        nearest: (A,) distance of each to the nearest ligand atom, Å.
        scale: What the radii are multiplied with.

    Returns:
        Between 0 and 1; 0 for an empty neighbourhood.
    """
    if len(receptor) == 0:
        return 0.0
    frame = _principal_frame(ligand)
    turn, shift = frame[:3, :3], frame[:3, 3]
    inside, around = ligand @ turn.T + shift, receptor @ turn.T + shift
    both = np.concatenate([inside, around])
    corner = both.min(0) - _PADDING
    size = np.floor((both.max(0) + _PADDING - corner) / _SPACING + 0.5).astype(np.int64)
    inside, around = (inside - corner) / _SPACING, (around - corner) / _SPACING
    touching = nearest < scale * (receptor_radii + ligand_radii.max()) + 2 * _REACH
    reach = (scale * ligand_radii.max() + _REACH) / _SPACING
    low = np.maximum(np.ceil(inside.min(0) - reach).astype(np.int64), 0)
    high = np.minimum(np.floor(inside.max(0) + reach).astype(np.int64), size - 1)
    shape = high - low + 1
    own = _occupancy(inside - low, scale * ligand_radii, shape)
    other = _occupancy((around - low)[touching], scale * receptor_radii[touching], shape)
    return float(np.minimum(own, other).sum(dtype=np.int64) / own.sum(dtype=np.int64))


def _principal_frame(coords: np.ndarray) -> np.ndarray:
    """(4, 4) transform that puts the centroid of (N, 3) at 0 and the main axes along x, y, z.

    RDKit's own routine, for its choice of the axes' signs.
    """
    mol = Chem.Mol(_atoms(len(coords)))
    conformer = Chem.Conformer(len(coords))
    conformer.SetPositions(coords)
    mol.AddConformer(conformer)
    return np.array(ComputeCanonicalTransform(mol.GetConformer()))


@lru_cache(maxsize=256)
def _atoms(count: int) -> Chem.Mol:
    """A molecule of `count` atoms to carry coordinates."""
    mol = Chem.RWMol()
    for _ in range(count):
        mol.AddAtom(Chem.Atom(6))
    return mol.GetMol()


def _occupancy(centers: np.ndarray, radii: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Encodes spheres: (K, 3) in grid units and (K,) Å -> levels of the flattened grid."""
    grid = np.zeros(int(shape.prod()), dtype=np.uint8)
    if len(centers) == 0:
        return grid
    reach = (radii.max() + _REACH) / _SPACING
    steps = np.arange(int(np.floor(2 * reach)) + 1)
    index = np.ceil(centers - reach).astype(np.int64)[..., None] + steps
    square = (index - centers[..., None]) ** 2
    distance = (
        square[:, 0, :, None, None] + square[:, 1, None, :, None] + square[:, 2, None, None, :]
    )
    bounds = (radii[:, None] + _LAYER * np.arange(_LEVELS)) / _SPACING
    level = np.zeros(distance.shape, dtype=np.uint8)
    for bound in bounds.T:
        level += distance < (bound**2)[:, None, None, None]
    # points beyond the grid's edge do not count
    level *= ((index[:, 0] >= 0) & (index[:, 0] < shape[0]))[:, :, None, None]
    level *= ((index[:, 1] >= 0) & (index[:, 1] < shape[1]))[:, None, :, None]
    level *= ((index[:, 2] >= 0) & (index[:, 2] < shape[2]))[:, None, None, :]
    flat = (
        (index[:, 0] * shape[1] * shape[2])[:, :, None, None]
        + (index[:, 1] * shape[2])[:, None, :, None]
        + index[:, 2][:, None, None, :]
    )
    filled = level > 0
    np.maximum.at(grid, flat[filled], level[filled])
    return grid
