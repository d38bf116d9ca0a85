"""Ligand atoms of many poses in the field of one encoded receptor, and of pointer latents.

Legend: B poses, N ligand atoms, R residues, m latents, K neighbours, n nodes of any kind; lengths
in Å.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bio_diffusion.dock.encoders import PAIR_TYPES, ReceptorFeatures
from bio_diffusion.dock.graph import LigandGraph
from bio_diffusion.dock.layers import (
    Cached,
    Features,
    Message,
    Neighbours,
    Size,
    Update,
    edges_between,
    nearest,
    start,
)

if TYPE_CHECKING:
    from bio_diffusion.diffusion.latents import Latents

__all__ = ["Complex", "Interaction", "PoseTrunk", "Senders"]

Senders = tuple[tuple[Cached, Cached], ...]
"""For each interaction layer, the receptor's atoms and residues as its messages read them."""


@dataclass(frozen=True)
class Complex:
    """What the denoiser is conditioned on: everything that no pose changes.

    Args:
        receptor: encoded receptor.
        ligand: the ligand's graph.
        ligand_scalars: (N, C), the ligand's atoms after message passing over bonds.
        pair_type: (N, N) long, covalent relation of each atom pair.
        senders: the receptor as the score network's layers read it.
        latents: z (B, m, R + N) and null (B,), residues first; None for a model without.
    """

    receptor: ReceptorFeatures
    ligand: LigandGraph
    ligand_scalars: Tensor
    pair_type: Tensor
    senders: Senders
    latents: Latents | None = None

    def with_latents(self, latents: Latents | None) -> Complex:
        return replace(self, latents=latents)

    def without_latents(self) -> Complex:
        """The same with its latents hidden, as in a part of the training."""
        return self.with_latents(None if self.latents is None else self.latents.hidden())


class Interaction(nn.Module):
    """One layer: ligand atoms hear ligand atoms, receptor atoms, residues and latents."""

    LIGAND_CUTOFF, ATOM_CUTOFF, RESIDUE_CUTOFF, LATENT_CUTOFF = 12.0, 10.0, 24.0, 30.0

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.from_ligand = Message(size, PAIR_TYPES)
        self.from_atoms = Message(size)
        self.from_residues = Message(size)
        self.from_latents = Message(size) if size.latents else None
        self.update = Update(size, 3 + bool(size.latents))

    def cache(self, receptor: ReceptorFeatures) -> tuple[Cached, Cached]:
        """The receptor as this layer reads it."""
        return self.from_atoms.cache(receptor.atoms), self.from_residues.cache(receptor.residues)

    def forward(
        self,
        ligand: Features,
        receptor: tuple[Cached, Cached],
        near: Surroundings,
        pointers: Pointers | None,
    ) -> Features:
        own = ligand.scalars
        heard = [
            self.from_ligand(own, ligand, near.ligand, near.pair_type),
            self.from_atoms(own, receptor[0], near.atoms),
            self.from_residues(own, receptor[1], near.residues),
        ]
        if self.from_latents is not None and pointers is not None:
            told = self.from_latents(own, pointers.features, pointers.edges)
            # A null latent has no place, so it says nothing that has a direction.
            heard.append(Features(told.scalars, told.vectors * pointers.present))
        return self.update(ligand, heard)


class Surroundings(NamedTuple):
    """Whom the ligand atoms of B poses hear, and how they are bonded to their own kind (n, K)."""

    ligand: Neighbours
    pair_type: Tensor
    atoms: Neighbours
    residues: Neighbours


class Pointers(NamedTuple):
    """Latents as senders; present (n, 1, 1) is 0 where they are hidden."""

    features: Features
    edges: Neighbours
    present: Tensor


class PoseTrunk(nn.Module):
    """Ligand atoms of B poses in the field of one encoded receptor, through L interactions."""

    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(Interaction(size) for _ in range(layers))
        if size.latents:
            self.null = nn.Parameter(torch.zeros(size.latents, size.scalars))
            self.slot = nn.Parameter(0.1 * torch.randn(size.latents, size.scalars))
            self.pointed = nn.Linear(size.latents, size.scalars, bias=False)

    def senders(self, receptor: ReceptorFeatures) -> Senders:
        """What the layers read of a receptor: made once, used for every pose and step."""
        return tuple(layer.cache(receptor) for layer in self.layers)  # type: ignore[operator]

    def forward(
        self, scalars: Tensor, coords: Tensor, given: Complex, senders: Senders
    ) -> Features:
        """Run the layers.

        Args:
            scalars: (B * N, C), initial scalars of the ligand atoms.
            coords: (B, N, 3) Å.
            given: the encoded complex.
            senders: its receptor, as `senders` of this trunk returned it; as many layers run as
                there are of them, so that the first ones can be had alone.

        Returns:
            Features of the B * N ligand atoms.
        """
        near = self.surroundings(coords, given)
        pointers = None
        if given.latents is not None:
            pointers = self._pointers(coords, given, given.latents)
            scalars = scalars + self._flags(given.latents, coords.shape[1])
        ligand = start(scalars, self.size)
        for layer, receptor in zip(self.layers, senders, strict=False):
            ligand = layer(ligand, receptor, near, pointers)
        return ligand

    def surroundings(self, coords: Tensor, given: Complex) -> Surroundings:
        """Whom the ligand atoms of poses (B, N, 3) Å hear."""
        batch, atoms, _ = coords.shape
        flat, graph, k = coords.reshape(-1, 3), given.receptor.graph, self.size.neighbours
        own = self._within_ligand(coords)
        row = torch.arange(batch * atoms, device=flat.device)[:, None] % atoms
        place = graph.residue_coords
        near_atoms, near_residues = nearest(flat, graph.coords, k), nearest(flat, place, k)
        return Surroundings(
            own,
            given.pair_type[row, own.sender % atoms],
            edges_between(flat, graph.coords, near_atoms, Interaction.ATOM_CUTOFF),
            edges_between(flat, place, near_residues, Interaction.RESIDUE_CUTOFF),
        )

    def _within_ligand(self, coords: Tensor) -> Neighbours:
        batch, atoms, _ = coords.shape
        distance = torch.cdist(coords, coords)
        distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
        k = max(1, min(self.size.neighbours, atoms - 1))
        index = distance.topk(k, dim=-1, largest=False, sorted=False).indices
        offset = atoms * torch.arange(batch, device=coords.device)[:, None, None]
        flat = coords.reshape(-1, 3)
        return edges_between(flat, flat, (index + offset).view(-1, k), Interaction.LIGAND_CUTOFF)

    def _pointers(self, coords: Tensor, given: Complex, latents: Latents) -> Pointers:
        """Latents as senders: m a pose, at the mean place and with the mean features of z."""
        receptor = given.receptor
        batch, atoms, _ = coords.shape
        m = self.size.latents
        to_residues, to_atoms = latents.z.split([len(receptor.graph.residue_type), atoms], -1)
        place = to_residues @ receptor.graph.residue_coords + to_atoms @ coords
        scalars = to_residues @ receptor.residues.scalars + to_atoms @ given.ligand_scalars
        vectors = torch.einsum("bmr,rxc->bmxc", to_residues, receptor.residues.vectors)
        present = (~latents.null).to(coords.dtype)[:, None, None]
        scalars = self.slot + present * scalars + (1 - present) * self.null
        vectors = present[..., None] * vectors
        index = torch.arange(batch * m, device=coords.device).view(batch, 1, m)
        index = index.expand(batch, atoms, m).reshape(-1, m)
        edges = edges_between(
            coords.reshape(-1, 3), place.flatten(0, 1), index, Interaction.LATENT_CUTOFF
        )
        seen = present.expand(batch, atoms, 1).reshape(-1, 1, 1)
        return Pointers(
            Features(scalars.flatten(0, 1), vectors.flatten(0, 1)),
            edges._replace(radial=edges.radial * seen),
            seen,
        )

    def _flags(self, latents: Latents, atoms: int) -> Tensor:
        """(B * N, C): tells the ligand atoms which latents point to them."""
        flags = latents.z[..., -atoms:].transpose(1, 2) * (~latents.null)[:, None, None]
        return self.pointed(flags).flatten(0, 1)
