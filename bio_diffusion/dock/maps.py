"""The receptor's field on a lattice: built once for a site, then the same cost for any receptor.

Within the box of a search, `MapField` stands in for `physics.PairField` at a small fraction of its
time. A map holds, for one kind of ligand atom, the energy at the nodes of a cubic lattice; between
nodes energy and gradient are interpolated with cubic splines, continuous to first order.

Shapes: B poses, N ligand atoms, A receptor atoms, K kinds of ligand atom, (X, Y, Z) nodes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bio_diffusion.dock.compiled import apply, kernels_for
from bio_diffusion.dock.physics import CUTOFF, Vina, pair_energy, pair_tables

__all__ = ["MapField", "SiteMaps", "mapped"]

_BINS = 32  # a square Å; the energy of a pair is tabulated on the square of its distance
_BLOCK = 8  # nodes along the edge of the blocks in which maps are built
_CEILING = 1000.0  # kcal/mol: bounded so that splines do not swing beside a clash


class SiteMaps:
    """Maps of one receptor around one box, made for kinds of atom when first asked for.

    Args:
        receptor_coords: (A, 3) Å.
        receptor_types: (A,) long, see `physics.ATOM_KINDS`.
        center: (3,) Å of the box.
        size: (3,) Å, edge lengths.
        spacing: Å between nodes.
    """

    def __init__(
        self,
        receptor_coords: Tensor,
        receptor_types: Tensor,
        center: Tensor,
        size: Tensor,
        spacing: float = 0.375,
    ) -> None:
        self.spacing = spacing
        # Two nodes of margin for the spline, and a little for atoms that lean on the walls.
        self.shape = tuple(int(n) for n in (size / spacing).ceil().long() + 5)
        extent = (torch.tensor(self.shape, device=center.device) - 1) * spacing
        self.origin = center - 0.5 * extent
        beyond = ((receptor_coords - center).abs() - 0.5 * extent).clamp(min=0.0)
        near = beyond.square().sum(1) <= CUTOFF**2
        self.receptor_coords, self.receptor_types = receptor_coords[near], receptor_types[near]
        self._maps: dict[int, Tensor] = {}

    def stack(self, kinds: Tensor) -> Tensor:
        """Maps of the given kinds (K,) long, as (K, X * Y * Z)."""
        missing = [kind for kind in kinds.tolist() if kind not in self._maps]
        if missing:
            made = self._build(torch.tensor(missing, device=kinds.device))
            self._maps.update(zip(missing, made, strict=True))
        return torch.stack([self._maps[kind] for kind in kinds.tolist()])

    def _build(self, kinds: Tensor) -> Tensor:
        present, receptor_class = self.receptor_types.unique(return_inverse=True)
        bins = int(CUTOFF**2) * _BINS
        r = ((torch.arange(bins, device=kinds.device) + 0.5) / _BINS).sqrt()
        radii, hydrophobic, hydrogen = (t[:, None] for t in pair_tables(present, kinds))
        table = pair_energy(r[:, None] - radii, hydrophobic, hydrogen)[0]
        # One row of zeros past the cutoff for each class of receptor atom.
        table = torch.cat([table, torch.zeros_like(table[:, :1])], 1).flatten(0, 1)
        maps = table.new_zeros(*self.shape, len(kinds))
        half = 0.5 * (_BLOCK - 1) * self.spacing
        steps = [torch.arange(n, device=kinds.device) * self.spacing for n in self.shape]
        for i in range(0, self.shape[0], _BLOCK):
            for j in range(0, self.shape[1], _BLOCK):
                for k in range(0, self.shape[2], _BLOCK):
                    axes = [a[s : s + _BLOCK] for a, s in zip(steps, (i, j, k), strict=True)]
                    block = maps[i : i + _BLOCK, j : j + _BLOCK, k : k + _BLOCK]
                    nodes = torch.cartesian_prod(*axes) + self.origin
                    middle = nodes[0] + half
                    beyond = ((self.receptor_coords - middle).abs() - half).clamp(min=0.0)
                    near = (beyond.square().sum(1) < CUTOFF**2).nonzero()[:, 0]
                    if len(near) == 0:
                        continue
                    others = self.receptor_coords[near] - middle
                    nodes = nodes - middle
                    square = torch.addmm(others.square().sum(1), nodes, others.T, alpha=-2)
                    square.add_(nodes.square().sum(1, keepdim=True)).clamp_(0, CUTOFF**2)
                    rows = (square * _BINS).long()
                    rows += receptor_class[near] * (bins + 1)
                    block.copy_(embedding_bag(rows, table, mode="sum").view_as(block))
        bounded = torch.where(maps > 0, maps * (_CEILING / (maps + _CEILING)), maps)
        return bounded.permute(3, 0, 1, 2).flatten(1).contiguous()


class MapField:
    """The field of a receptor for one ligand, interpolated; constant outside the lattice.

    Args:
        maps: the site's maps.
        ligand_types: (N,) long.
    """

    def __init__(self, maps: SiteMaps, ligand_types: Tensor) -> None:
        kinds, self._row = ligand_types.unique(return_inverse=True)
        self._values = maps.stack(kinds).flatten()
        self._origin, self._scale = maps.origin, 1.0 / maps.spacing
        nx, ny, nz = maps.shape
        self._shape = torch.tensor(maps.shape)
        device = ligand_types.device
        self._row = self._row * (nx * ny * nz)
        self._top = torch.tensor([[nx - 2.0], [ny - 2.0], [nz - 2.0]], device=device)
        self._stride = (ny * nz, nz, 1)
        tap = torch.arange(-1, 3, device=device)
        self._taps = (tap[:, None, None] * (ny * nz) + tap[:, None] * nz + tap).view(64, 1)

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        if kernels := kernels_for(coords):
            energy, gradient = coords.new_empty(coords.shape[:2]), coords.new_empty(coords.shape)
            apply(
                kernels.interpolate, coords, self._row, self._values, self._origin, self._scale,
                self._shape, energy, gradient,
            )  # fmt: skip
            return energy, gradient
        batch, count, _ = coords.shape
        # Axes first, so that every operation runs along many atoms.
        place = ((coords - self._origin) * self._scale).view(-1, 3).T.contiguous()
        held = torch.minimum(place.clamp(min=1.0), self._top)
        node = torch.minimum(held.floor(), self._top - 1.0)
        fraction = held - node
        x, y, z = node.long()
        base = x * self._stride[0] + y * self._stride[1] + z + self._row.repeat(batch)
        values = self._values.index_select(0, (base + self._taps).view(-1)).view(16, 4, -1)
        weight, slope = _cubic(fraction)
        along_z = _contract(values, weight[:, 2]), _contract(values, slope[:, 2])
        value, by_z = (v.view(4, 4, -1) for v in along_z)
        by_y = _contract(value, slope[:, 1])
        value, by_z = _contract(value, weight[:, 1]), _contract(by_z, weight[:, 1])
        gradient = torch.stack(
            [
                (value * slope[:, 0]).sum(0),
                (by_y * weight[:, 0]).sum(0),
                (by_z * weight[:, 0]).sum(0),
            ]
        )
        gradient *= (place == held) * self._scale
        energy = (value * weight[:, 0]).sum(0)
        return energy.view(batch, count), gradient.T.reshape(coords.shape)


def mapped(vina: Vina, maps: SiteMaps) -> Vina:
    """The same energy, with what the receptor does read off `maps`."""
    return replace(vina, field=MapField(maps, vina.types))


def _cubic(t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of four nodes at the fraction t (...) between the middle two, and their slopes."""
    u = 1.0 - t
    tt, uu = t * t, u * u
    weight = torch.stack(
        [
            -0.5 * t * uu,
            1.0 + tt * (1.5 * t - 2.5),
            1.0 + uu * (1.5 * u - 2.5),
            -0.5 * u * tt,
        ]
    )
    slope = torch.stack(
        [
            u * (1.5 * t - 0.5),
            t * (4.5 * t - 5.0),
            -u * (4.5 * u - 5.0),
            -t * (1.5 * u - 0.5),
        ]
    )
    return weight, slope


def _contract(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over the second axis of (S, 4, P) with weights (4, P)."""
    total = values[:, 0] * weight[0]
    for k in (1, 2, 3):
        total.addcmul_(values[:, k], weight[k])
    return total
