"""What no pose changes, encoded once: the receptor's atoms and residues, the ligand's graph.

Legend: N ligand atoms, A receptor atoms, R residues, n nodes of any kind; lengths in Å.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.dock.graph import (
    ATOM_TYPES,
    BOND_TYPES,
    LIGAND_FEATURES,
    RESIDUE_TYPES,
    LigandGraph,
    ReceptorGraph,
)
from bio_diffusion.dock.layers import (
    Features,
    Message,
    Neighbours,
    Size,
    Update,
    bounded,
    edges_between,
    nearest,
    start,
)

__all__ = ["PAIR_TYPES", "LigandEncoder", "ReceptorEncoder", "ReceptorFeatures", "pair_types"]

PAIR_TYPES = len(BOND_TYPES) + 3  # see `pair_types`


@dataclass(frozen=True)
class ReceptorFeatures:
    """An encoded receptor, shared by poses, steps and ligands."""

    graph: ReceptorGraph
    atoms: Features
    residues: Features


class ReceptorEncoder(nn.Module):
    """Atoms hear atoms, residues gather their atoms and hear residues, atoms hear their residue."""

    ATOM_CUTOFF, RESIDUE_CUTOFF = 6.0, 20.0

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.atom = nn.Embedding(len(ATOM_TYPES), size.scalars)
        self.residue = nn.Embedding(len(RESIDUE_TYPES), size.scalars)
        self.atom_messages = nn.ModuleList(Message(size) for _ in range(size.receptor_layers))
        self.atom_updates = nn.ModuleList(Update(size, 1) for _ in range(size.receptor_layers))
        self.residue_messages = nn.ModuleList(Message(size) for _ in range(size.receptor_layers))
        self.residue_updates = nn.ModuleList(Update(size, 1) for _ in range(size.receptor_layers))
        self.gather = nn.Linear(size.scalars, size.scalars)
        self.gather_vectors = nn.Linear(size.vectors, size.vectors, bias=False)
        self.arms = nn.Linear(size.scalars, size.vectors)
        self.spread = nn.Linear(size.scalars, size.scalars)

    def forward(self, graph: ReceptorGraph) -> ReceptorFeatures:
        atoms = start(self.atom(graph.atom_type), self.size)
        edges = self._edges(graph.coords, self.ATOM_CUTOFF)
        for message, update in zip(self.atom_messages, self.atom_updates, strict=True):
            atoms = update(atoms, [message(atoms.scalars, atoms, edges)])
        residues = self._pool(graph, atoms)
        if len(graph.residue_type) > 1:
            edges = self._edges(graph.residue_coords, self.RESIDUE_CUTOFF)
            for message, update in zip(self.residue_messages, self.residue_updates, strict=True):
                heard = message(residues.scalars, residues, edges)
                residues = update(residues, [heard])
        spread = self.spread(residues.scalars)[graph.residue]
        return ReceptorFeatures(graph, Features(atoms.scalars + spread, atoms.vectors), residues)

    def _edges(self, coords: Tensor, cutoff: float) -> Neighbours:
        index = nearest(coords, coords, self.size.receptor_neighbours, skip_self=True)
        return edges_between(coords, coords, index, cutoff)

    def _pool(self, graph: ReceptorGraph, atoms: Features) -> Features:
        """Mean over a residue's atoms, with each atom's arm from the residue's position."""
        arms = graph.coords - graph.residue_coords[graph.residue]
        vectors = self.gather_vectors(atoms.vectors)
        vectors = vectors + arms[..., None] * self.arms(atoms.scalars)[:, None]
        count = len(graph.residue_type)
        sizes = torch.bincount(graph.residue, minlength=count).clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            total = values.new_zeros(count, *values.shape[1:])
            weight = sizes.view(-1, *[1] * (values.dim() - 1))
            return total.index_add(0, graph.residue, values) / weight

        scalars = self.residue(graph.residue_type) + mean(self.gather(atoms.scalars))
        return Features(scalars, bounded(mean(vectors)))


class LigandEncoder(nn.Module):
    """Atom features after a few rounds of message passing over bonds; knows no coordinates."""

    def __init__(self, size: Size, rounds: int = 3) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Embedding(classes, size.scalars) for classes in LIGAND_FEATURES.values()
        )
        self.bond = nn.Embedding(len(BOND_TYPES), size.scalars)
        self.rounds = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(2 * size.scalars),
                nn.Linear(2 * size.scalars, size.scalars),
                nn.SiLU(),
                nn.Linear(size.scalars, size.scalars),
            )
            for _ in range(rounds)
        )

    def forward(self, graph: LigandGraph) -> Tensor:
        columns = zip(self.features, graph.features.unbind(1), strict=True)
        scalars = torch.stack([table(column) for table, column in columns]).sum(0)
        sender, receiver = graph.bonds.unbind(1)
        bond = self.bond(graph.bond_type)
        for update in self.rounds:
            heard = torch.zeros_like(scalars)
            heard = heard.index_add(0, receiver, F.silu(scalars[sender] + bond))
            scalars = scalars + update(torch.cat([scalars, heard], -1))
        return scalars


def pair_types(graph: LigandGraph) -> Tensor:
    """(N, N) long: 0 unrelated, 1 + bond type, then two bonds apart, three bonds apart."""
    n = graph.features.shape[0]
    bonded = torch.zeros(n, n, dtype=torch.bool, device=graph.features.device)
    i, j = graph.bonds.unbind(1)
    bonded[i, j] = True
    adjacent = bonded.float()
    two = (adjacent @ adjacent) > 0
    three = (adjacent @ two.float()) > 0
    kinds = torch.zeros(n, n, dtype=torch.long, device=bonded.device)
    kinds[three] = len(BOND_TYPES) + 2
    kinds[two] = len(BOND_TYPES) + 1
    kinds[i, j] = 1 + graph.bond_type
    return kinds
