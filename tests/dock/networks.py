"""A small random complex and networks with random heads, for tests of what a network must obey."""

import torch
from torch import nn

from bio_diffusion.dock.graph import (
    ATOM_TYPES,
    LIGAND_FEATURES,
    LigandGraph,
    ReceptorGraph,
    residue_positions,
)
from bio_diffusion.dock.layers import Size
from bio_diffusion.dock.pose import Pose, TorsionTree

SIZE = Size(scalars=12, vectors=6, hidden=8, layers=2, neighbours=5, receptor_neighbours=4)


def receptor(residues: int = 12, seed: int = 0) -> ReceptorGraph:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(4, 9, (residues,), generator=generator)
    residue = torch.repeat_interleave(torch.arange(residues), sizes)
    centers = 8 * torch.randn(residues, 3, generator=generator)
    coords = centers[residue] + 2 * torch.randn(len(residue), 3, generator=generator)
    atom_type = torch.randint(len(ATOM_TYPES), (len(residue),), generator=generator)
    return ReceptorGraph(
        coords=coords,
        atom_type=atom_type,
        residue=residue,
        residue_type=torch.randint(20, (residues,), generator=generator),
        residue_coords=residue_positions(coords, atom_type, residue, residues),
    )


def ligand(atoms: int = 9, seed: int = 0) -> LigandGraph:
    """A chain, all of whose inner bonds turn."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.tensor([[i, i + 1] for i in range(atoms - 1)], dtype=torch.long).reshape(-1, 2)
    columns = [torch.randint(k, (atoms,), generator=generator) for k in LIGAND_FEATURES.values()]
    return LigandGraph(
        features=torch.stack(columns, 1),
        bonds=torch.stack([half, half.flip(1)], 1).reshape(-1, 2),
        bond_type=torch.zeros(2 * len(half), dtype=torch.long),
        tree=TorsionTree.from_bonds(half, torch.ones(len(half), dtype=torch.bool), atoms),
    )


def poses(graph: LigandGraph, count: int = 3, seed: int = 0) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    walk = 1.5 * torch.randn(count, len(graph.features), 3, generator=generator)
    return Pose(walk.cumsum(1), graph.tree)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, its zero-initialised layers filled, so that they hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3, generator=generator)
    return module.double()
