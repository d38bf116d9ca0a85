"""What docking reads: protein, ligands and site. The one door of this package for input files.

Shapes: A receptor atoms, N ligand atoms, R residues. Coordinates in Å.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bio_diffusion.files import InputError, one_line, slug

from .bound import bound_ligand
from .ligand import Failure, Ligand
from .ligand_files import as_ligands, read_ligands, reference_coords
from .receptor import Receptor, read_receptor

__all__ = [
    "Failure",
    "InputError",
    "Ligand",
    "Receptor",
    "Site",
    "as_ligands",
    "bound_ligand",
    "read_ligands",
    "read_receptor",
    "site_from_center",
    "site_from_ligand",
    "site_from_residues",
    "slug",
]

SITE_SIZE = 22.5
"""Default edge of a box in Å: docking's usual one, room for a drug to turn."""

SITE_PADDING = 4.0
"""Å added on each side of a reference ligand or of chosen residues."""

_TOUCH = 4.0  # Å between box and protein within which a ligand in the box still makes contact


@dataclass(frozen=True)
class Site:
    """An upright box in which to dock.

    Attributes:
        center: (3,) float64, Å.
        size: (3,) float64, edge lengths in Å.
        how: Where it came from, for the summary.
    """

    center: np.ndarray
    size: np.ndarray
    how: str

    def distance(self, coords: np.ndarray) -> np.ndarray:
        """Distance from the box of each point of `coords` (..., 3), Å; 0 inside."""
        outside = np.abs(np.asarray(coords) - self.center) - self.size / 2
        return np.linalg.norm(np.maximum(outside, 0.0), axis=-1)

    def require_near(self, receptor: Receptor) -> Site:
        """Returns itself if the box lies at the protein.

        Raises:
            InputError: Every atom is more than 4 Å away from the box.
        """
        gap = float(self.distance(receptor.coords).min())
        if gap > _TOUCH:
            middle = ", ".join(f"{x:.1f}" for x in self.center)
            raise InputError(
                "site_away",
                f"the site box around ({middle}) is {gap:.1f} Å away from the protein "
                f"{receptor.name}; give a center in the coordinates of that file",
            )
        return self


def site_from_center(center: Sequence[float], size: float | Sequence[float] = SITE_SIZE) -> Site:
    """A box by its middle and edge length.

    Args:
        center: (3,) Å.
        size: One edge length or three, Å.

    Raises:
        InputError: Not three finite numbers, or a size outside 1 to 500 Å.
    """
    middle = np.asarray(center, dtype=np.float64)
    edges = np.broadcast_to(np.asarray(size, dtype=np.float64), (3,)).copy()
    if middle.shape != (3,) or not np.isfinite(middle).all():
        raise InputError("site", f"a center needs three finite numbers, not {one_line(center)}")
    if not ((edges >= 1) & (edges <= 500)).all():
        raise InputError("site", f"a site size must lie between 1 and 500 Å, not {one_line(size)}")
    return Site(middle, edges, "center")


def site_from_ligand(ligand: str | Path | np.ndarray, padding: float = SITE_PADDING) -> Site:
    """The box around a reference ligand, `padding` Å larger on each side.

    Args:
        ligand: A file with coordinates (SDF, MOL, MOL2, PDB, mmCIF), or (N, 3) coordinates in Å.
        padding: Å.

    Raises:
        InputError: The file cannot be read or holds no coordinates in space.
    """
    if isinstance(ligand, np.ndarray):
        return _box(ligand, padding, "ligand coordinates")
    path = Path(ligand)
    return _box(reference_coords(path), padding, f"ligand {one_line(path.name)}")


def _box(coords: np.ndarray, padding: float, how: str) -> Site:
    low, high = coords.min(axis=0), coords.max(axis=0)
    center, size = (low + high) / 2, high - low + 2 * padding
    return Site(center.astype(np.float64), size.astype(np.float64), how)


def site_from_residues(receptor: Receptor, residues: str, padding: float = SITE_PADDING) -> Site:
    """The box around chosen residues, `padding` Å larger on each side, at least the default size.

    Args:
        receptor: Where they are looked up.
        residues: Such as `A:45,A:102B`; the chain may be left out where the protein has one.
        padding: Å.

    Raises:
        InputError: An unknown residue; the nearest known ones are named.
    """
    known: dict[str, list[int]] = {}
    for index, key in enumerate(receptor.residue_ids):
        known.setdefault(key, []).append(index)
    chains = list(dict.fromkeys(key.rsplit(":", 1)[0] for key in known))
    chosen: list[int] = []
    for wish in (part.strip() for part in residues.split(",")):
        if not wish:
            continue
        key = wish if ":" in wish or len(chains) != 1 else f"{chains[0]}:{wish}"
        if key not in known:
            raise InputError("residue", _unknown(receptor, wish, list(known), chains))
        chosen += known[key]
    if not chosen:
        raise InputError("residue", "no residue named; write for example A:45,A:102")
    box = _box(receptor.coords[np.isin(receptor.residue_index, chosen)], padding, "")
    size = np.maximum(box.size, SITE_SIZE)
    return Site(box.center, size, f"residues {one_line(residues)}")


def _unknown(receptor: Receptor, wish: str, known: list[str], chains: list[str]) -> str:
    """The message for a residue that is not there: the likeliest meant ones, or the chains."""
    number = wish.rsplit(":", 1)[-1]
    same = [key for key in known if key.rsplit(":", 1)[-1] == number]
    near = (same or difflib.get_close_matches(wish, known, n=3, cutoff=0.5))[:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"its chains are {', '.join(chains[:8])}"
    return f"no residue {one_line(wish, 30)} in {receptor.name}; {hint}"
