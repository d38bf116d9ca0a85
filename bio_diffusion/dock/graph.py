"""What the score network sees of a receptor and of a ligand, as plain tensors.

Nothing here knows file formats: `featurize` fills these from molecules, `dataset` from compact
arrays, and training needs no chemistry package. A receptor atoms, R residues, N ligand atoms, E
directed ligand bonds, F features an atom.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bio_diffusion.dock.amino_acids import BACKBONE, SIDE_CHAINS, STATES
from bio_diffusion.dock.pose import TorsionTree

__all__ = [
    "ATOM_TYPES",
    "BOND_TYPES",
    "LIGAND_FEATURES",
    "RESIDUE_TYPES",
    "LigandGraph",
    "ReceptorGraph",
    "receptor_atom_type",
    "residue_positions",
    "residue_type",
]

_ALIASES = {**STATES, "MSE": "MET"}
_OTHER_ELEMENTS = (
    "C", "N", "O", "S", "P", "SE", "F", "CL", "BR", "I",
    "ZN", "MG", "CA", "MN", "FE", "CO", "NI", "CU", "NA", "K",
)  # fmt: skip

RESIDUE_TYPES: tuple[str, ...] = (*SIDE_CHAINS, "other")
ATOM_TYPES: tuple[str, ...] = (
    *(
        f"{residue} {atom}"
        for residue, side_chain in SIDE_CHAINS.items()
        for atom in (*BACKBONE, "OXT", *side_chain)
    ),
    *_OTHER_ELEMENTS,
    "other",
)
_ATOM_INDEX = {name: i for i, name in enumerate(ATOM_TYPES)}
_RESIDUE_INDEX = {name: i for i, name in enumerate(RESIDUE_TYPES)}

# Name and number of classes of each ligand atom feature; the last class of each means "other".
LIGAND_FEATURES: dict[str, int] = {
    "element": 13,
    "degree": 6,
    "hydrogens": 5,
    "charge": 4,
    "hybridization": 5,
    "aromatic": 2,
    "chirality": 3,
    "rings": 4,
    "smallest_ring": 7,
    "donor": 2,
    "acceptor": 2,
}
BOND_TYPES: tuple[str, ...] = ("single", "double", "triple", "aromatic", "other")


def residue_type(residue: str) -> int:
    """Index into `RESIDUE_TYPES` of a three-letter name."""
    return _RESIDUE_INDEX.get(_ALIASES.get(residue, residue), _RESIDUE_INDEX["other"])


def receptor_atom_type(residue: str, atom: str, element: str) -> int:
    """Index into `ATOM_TYPES`: by name in the twenty amino acids, by element elsewhere."""
    named = _ATOM_INDEX.get(f"{_ALIASES.get(residue, residue)} {atom}")
    if named is not None:
        return named
    return _ATOM_INDEX.get(element.upper(), _ATOM_INDEX["other"])


# Positions of the amino acids' alpha carbons among the atom types.
_ALPHA = torch.tensor([name.endswith(" CA") for name in ATOM_TYPES])


def residue_positions(coords: Tensor, atom_type: Tensor, residue: Tensor, count: int) -> Tensor:
    """(count, 3): the alpha carbon of each residue or, without one, the mean of its atoms."""
    sizes = torch.bincount(residue, minlength=count).clamp(min=1)[:, None]
    position = coords.new_zeros(count, 3).index_add_(0, residue, coords) / sizes
    alpha = _ALPHA[atom_type]
    position[residue[alpha]] = coords[alpha]
    return position


class _OnDevice:
    def to(self, device: Any) -> Self:  # noqa: ANN401 - whatever Tensor.to takes
        """The same graph with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class ReceptorGraph(_OnDevice):
    """Heavy atoms of a receptor and the residues they belong to.

    Args:
        coords: (A, 3) Å.
        atom_type: (A,) long, see `ATOM_TYPES`.
        residue: (A,) long, index of each atom's residue, rising.
        residue_type: (R,) long, see `RESIDUE_TYPES`.
        residue_coords: (R, 3) Å, the alpha carbon or, without one, the mean of the atoms.
    """

    coords: Tensor
    atom_type: Tensor
    residue: Tensor
    residue_type: Tensor
    residue_coords: Tensor

    def crop(self, center: Tensor, radius: float) -> tuple[ReceptorGraph, Tensor]:
        """Whole residues with an atom within `radius` Å of `center` (3,).

        Returns:
            The cropped graph and (R', ) long, the kept residues' indices in this one.
        """
        near = (self.coords - center).square().sum(-1) <= radius**2
        kept = torch.zeros(len(self.residue_type), dtype=torch.bool, device=near.device)
        kept[self.residue[near]] = True
        atoms = kept[self.residue]
        renumbered = torch.cumsum(kept, 0) - 1
        graph = ReceptorGraph(
            coords=self.coords[atoms],
            atom_type=self.atom_type[atoms],
            residue=renumbered[self.residue[atoms]],
            residue_type=self.residue_type[kept],
            residue_coords=self.residue_coords[kept],
        )
        return graph, kept.nonzero()[:, 0]

    def shaken(self, amplitude: float, generator: np.random.Generator) -> ReceptorGraph:
        """The receptor with its atoms moved at random.

        What stands in a crystal fits its own ligand so closely that a network which sees it over
        and over learns the complexes by heart.

        Args:
            amplitude: standard deviation in Å, an axis, of the atoms; residues move as a whole by
                half of it beside.
        """
        whole = torch.from_numpy(generator.normal(0, amplitude / 2, self.residue_coords.shape))
        each = torch.from_numpy(generator.normal(0, amplitude, self.coords.shape))
        atoms = whole[self.residue.cpu()] + each
        return replace(
            self,
            coords=self.coords + atoms.to(self.coords),
            residue_coords=self.residue_coords + whole.to(self.coords),
        )


@dataclass(frozen=True)
class LigandGraph(_OnDevice):
    """The covalent structure of a ligand.

    Args:
        features: (N, F) long, columns as in `LIGAND_FEATURES`.
        bonds: (E, 2) long, every bond in both directions.
        bond_type: (E,) long, see `BOND_TYPES`.
        tree: the rotatable bonds.
    """

    features: Tensor
    bonds: Tensor
    bond_type: Tensor
    tree: TorsionTree
