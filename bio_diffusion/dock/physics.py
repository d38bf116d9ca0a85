"""AutoDock Vina's empirical energy of a ligand in a receptor, batched over poses.

    e(d) = w_1 exp(-(d / 0.5)^2) + w_2 exp(-((d - 3) / 2)^2) + w_3 min(d, 0)^2
           + w_4 [both hydrophobic] ramp(d; 1.5 -> 0.5) + w_5 [donor, acceptor] ramp(d; 0 -> -0.7)

with d = r - R_i - R_j, the distance between the surfaces of two heavy atoms, and r < 8 Å. Energies
and their gradients come from one pass, without a graph of operations; `Vina.energy` is nevertheless
differentiable, because that gradient is handed to torch.

Shapes: B poses, N ligand atoms, M rotatable bonds, A receptor atoms, P pairs of atoms. Coordinates
in Å, energies in kcal/mol.

Source: Trott and Olson, "AutoDock Vina", J. Comput. Chem. 31 (2010), equations 1 to 7, table 1;
Eberhardt et al., J. Chem. Inf. Model. 61 (2021) for version 1.2 (metals donate hydrogen bonds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.dock.compiled import apply, kernels_for
from bio_diffusion.dock.pose import Pose, TorsionTree, project

__all__ = [
    "ATOM_KINDS",
    "CUTOFF",
    "Field",
    "PairField",
    "Vina",
    "flexible_pairs",
    "pair_energy",
    "pair_tables",
]

CUTOFF = 8.0
"""Å beyond which two atoms do not see each other."""

ATOM_KINDS: dict[str, tuple[float, bool, bool, bool]] = {
    "C_H": (1.9, True, False, False),
    "C_P": (1.9, False, False, False),
    "N_P": (1.8, False, False, False),
    "N_D": (1.8, False, True, False),
    "N_A": (1.8, False, False, True),
    "N_DA": (1.8, False, True, True),
    "O_A": (1.7, False, False, True),
    "O_DA": (1.7, False, True, True),
    "S": (2.0, False, False, False),
    "P": (2.1, False, False, False),
    "F": (1.5, True, False, False),
    "Cl": (1.8, True, False, False),
    "Br": (2.0, True, False, False),
    "I": (2.2, True, False, False),
    "Si": (2.2, False, False, False),
    "B": (1.9, False, False, False),
    "metal": (1.2, False, True, False),
}
"""Radius in Å, hydrophobic, donor, acceptor. P: polar carbon; D, A: donor, acceptor."""

_GAUSS_1, _GAUSS_2, _REPULSION = -0.035579, -0.005156, 0.840245
_TERMS = (_GAUSS_1, _GAUSS_2, _REPULSION)
_HYDROPHOBIC, _HYDROGEN, _TORSION = -0.035069, -0.587439, 0.05846
_WALL = 10.0  # kcal/mol/Å^2 on each atom outside the box
_CAP = 1000.0  # kcal/mol, Vina's ceiling on what one atom can cost


def pair_tables(types: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `pair_energy` needs to know of each pair of two lists of kinds.

    Args:
        types: (I,) long, indices into `ATOM_KINDS`.
        others: (J,) long.

    Returns:
        The sum of radii, w_4 where both are hydrophobic, w_5 where one donates and the other
        accepts; each (I, J) float32.
    """
    kinds = torch.tensor([[float(x) for x in kind] for kind in ATOM_KINDS.values()])
    radius, greasy, donor, acceptor = kinds.to(types.device).unbind(1)
    bridge = torch.outer(donor[types], acceptor[others])
    bridge = torch.maximum(bridge, torch.outer(acceptor[types], donor[others]))
    return (
        radius[types][:, None] + radius[others],
        _HYDROPHOBIC * torch.outer(greasy[types], greasy[others]),
        _HYDROGEN * bridge,
    )


def pair_energy(d: Tensor, hydrophobic: Tensor, hydrogen: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of pairs and its derivative along r.

    Args:
        d: distance between surfaces, Å; any shape.
        hydrophobic: weight of the hydrophobic term, as in `pair_tables`.
        hydrogen: weight of the hydrogen bond.

    Returns:
        e (kcal/mol) and de/dr (kcal/mol/Å), shaped like `d`.
    """
    further = d - 3.0
    first = d.square().mul_(-4.0).exp_().mul_(_GAUSS_1)
    second = further.square().mul_(-0.25).exp_().mul_(_GAUSS_2)
    overlap = d.clamp(max=0.0)
    grease = (1.5 - d).clamp_(0.0, 1.0)
    bond = (d * (-1 / 0.7)).clamp_(0.0, 1.0)
    slope = (first * d).mul_(-8.0)
    slope.addcmul_(second, further, value=-0.5).add_(overlap, alpha=2 * _REPULSION)
    slope.addcmul_(hydrophobic, ((grease > 0) & (grease < 1)).to(d.dtype), value=-1.0)
    slope.addcmul_(hydrogen, ((bond > 0) & (bond < 1)).to(d.dtype), value=-1 / 0.7)
    energy = first.add_(second).addcmul_(overlap, overlap, value=_REPULSION)
    energy.addcmul_(hydrophobic, grease).addcmul_(hydrogen, bond)
    return energy, slope


def capped(energy: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Positive energies bent below a ceiling, e cap / (e + cap), and the derivative of that."""
    factor = cap / (energy.clamp(min=0.0) + cap)
    return energy * factor, torch.where(energy > 0, factor * factor, torch.ones_like(factor))


class Field(Protocol):
    """What each ligand atom feels of the receptor."""

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B, N) of the atoms at `coords` (B, N, 3), and its gradient (B, N, 3)."""
        ...


class PairField:
    """The sum over receptor atoms, exact.

    Args:
        receptor_coords: (A, 3) Å, all that lie within `CUTOFF` of where poses may be.
        receptor_types: (A,) long.
        ligand_types: (N,) long.
    """

    def __init__(
        self, receptor_coords: Tensor, receptor_types: Tensor, ligand_types: Tensor
    ) -> None:
        self.receptor_coords = receptor_coords
        self.tables = tuple(table.flatten() for table in pair_tables(ligand_types, receptor_types))

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        if kernels := kernels_for(coords):
            found, gradient = coords.new_empty(coords.shape[:2]), coords.new_empty(coords.shape)
            others = self.receptor_coords.T
            tables = (table.view(coords.shape[1], others.shape[1]) for table in self.tables)
            apply(kernels.receptor_sums, coords, others, *tables, _TERMS, CUTOFF, found, gradient)
            return found, gradient
        batch, count, _ = coords.shape
        flat, others = coords.flatten(0, 1), self.receptor_coords
        # The cheap estimate only chooses pairs; chosen distances are computed anew, without loss.
        estimate = torch.addmm(others.square().sum(1), flat, others.T, alpha=-2)
        near = estimate < (CUTOFF**2 + 0.05) - flat.square().sum(1, keepdim=True)
        chosen = near.flatten().nonzero()[:, 0]
        row = torch.div(chosen, len(others), rounding_mode="floor")
        column = chosen - row * len(others)
        pair = torch.remainder(chosen, count * len(others))
        difference = flat.index_select(0, row) - others.index_select(0, column)
        square = difference.square().sum(1)
        r = square.clamp(min=1e-6).sqrt_()
        radii, hydrophobic, hydrogen = (table.index_select(0, pair) for table in self.tables)
        energy, slope = pair_energy(r - radii, hydrophobic, hydrogen)
        inside = (square < CUTOFF**2).to(r.dtype)
        slope.mul_(inside).div_(r)
        total = r.new_zeros(len(flat)).index_add_(0, row, energy.mul_(inside))
        gradient = torch.zeros_like(flat).index_add_(0, row, difference.mul_(slope[:, None]))
        return total.view(batch, count), gradient.view_as(coords)


def flexible_pairs(bonds: Tensor, tree: TorsionTree) -> Tensor:
    """Pairs more than three bonds apart whose distance some rotatable bond changes, (P, 2) long.

    Args:
        bonds: (E, 2) long; one or both directions.
        tree: the rotatable bonds over N atoms.
    """
    count = tree.moving.shape[1]
    linked = torch.eye(count, dtype=torch.bool, device=bonds.device)
    linked[bonds[:, 0], bonds[:, 1]] = True
    linked[bonds[:, 1], bonds[:, 0]] = True
    hop = linked.float()
    apart = (hop @ hop @ hop) == 0
    on_axis = torch.zeros_like(tree.moving)
    on_axis.scatter_(1, tree.bonds, True)
    moving, still = (tree.moving & ~on_axis).float(), (~tree.moving & ~on_axis).float()
    changes = (moving.T @ still) > 0
    return ((changes | changes.T) & apart).triu(1).nonzero()


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coords: Tensor, vina: Vina) -> Tensor:  # noqa: ANN401 - torch's own
        energy, gradient = vina.energy_and_force(coords)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return upstream[:, None, None] * gradient, None


@dataclass(frozen=True)
class Vina:
    """The energy of one ligand in one site.

    Args:
        field: what the receptor does to each ligand atom.
        types: (N,) long, kinds of the ligand's atoms.
        pairs: (P, 2) long, atoms of the ligand that see each other.
        torsions: Vina's count of active torsions, for `affinity`; terminal ones count one half.
        center: (3,) Å of the box, None for none.
        size: (3,) Å, edge lengths of the box.
        cap: ceiling in kcal/mol on one atom's repulsion; a low one lets poses slip past clashes.
    """

    field: Field
    types: Tensor
    pairs: Tensor
    torsions: float = 0.0
    center: Tensor | None = None
    size: Tensor | None = None
    cap: float = _CAP

    def __post_init__(self) -> None:
        i, j = self.pairs.unbind(1)
        tables = [table[i, j, None] for table in pair_tables(self.types, self.types)]
        # Row p of the incidence has +1 at i and -1 at j: differences and forces are products.
        incidence = torch.zeros(len(i), len(self.types), device=self.types.device)
        incidence.scatter_(1, i[:, None], 1.0).scatter_(1, j[:, None], -1.0)
        object.__setattr__(self, "_intra", (*tables, incidence))

    @classmethod
    def for_site(
        cls,
        receptor_coords: Tensor,
        receptor_types: Tensor,
        ligand_types: Tensor,
        bonds: Tensor,
        tree: TorsionTree,
        center: Tensor,
        size: Tensor,
        torsions: float | None = None,
    ) -> Vina:
        """The exact energy in a box, with the receptor cropped to what the box can see.

        Args:
            receptor_coords: (A, 3) Å.
            receptor_types: (A,) long, see `ATOM_KINDS`.
            ligand_types: (N,) long.
            bonds: (E, 2) long, the ligand's covalent bonds.
            tree: its rotatable bonds.
            center: (3,) Å.
            size: (3,) Å, edge lengths.
            torsions: Vina's count (`atom_types.active_torsions`); without it, M.

        Raises:
            ValueError: no receptor atom is within 8 Å of the box.
        """
        reach = CUTOFF + 1.0  # walls are soft: an atom may stand a little outside
        beyond = ((receptor_coords - center).abs() - 0.5 * size).clamp(min=0.0)
        near = beyond.square().sum(1) <= reach**2
        if not bool(near.any()):
            raise ValueError("no receptor atom is within 8 Å of the box: move it or enlarge it")
        return cls(
            field=PairField(receptor_coords[near], receptor_types[near], ligand_types),
            types=ligand_types,
            pairs=flexible_pairs(bonds, tree),
            torsions=float(len(tree)) if torsions is None else torsions,
            center=center,
            size=size,
        )

    def softened(self, cap: float) -> Vina:
        """The same energy with another ceiling on repulsion."""
        return replace(self, cap=cap)

    def inter(self, coords: Tensor) -> Tensor:
        """Energy between ligand and receptor, (B,), without walls."""
        return capped(self.field(coords)[0], self.cap)[0].sum(1)

    def intra(self, coords: Tensor) -> Tensor:
        """Energy within the ligand, (B,)."""
        return self._within(coords)[0]

    def affinity(self, coords: Tensor) -> Tensor:
        """What Vina reports for a single pose, (B,): inter / (1 + 0.05846 torsions).

        The energy within the ligand counts as that of the unbound state and cancels.
        """
        return self.inter(coords) / (1.0 + _TORSION * self.torsions)

    def energy(self, coords: Tensor) -> Tensor:
        """inter + intra + walls of the box, (B,); differentiable once."""
        result: Tensor = _Energy.apply(coords, self)
        return result

    def energy_and_force(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """`energy` (B,) and its gradient (B, N, 3): minus the force."""
        atoms, gradient = self.field(coords)
        atoms, factor = capped(atoms, self.cap)
        energy, within = self._within(coords)
        gradient = torch.addcmul(within, gradient, factor[..., None])
        energy = energy + atoms.sum(1)
        if self.center is not None and self.size is not None:
            offset = coords - self.center
            outside = offset - torch.minimum(
                torch.maximum(offset, -0.5 * self.size), 0.5 * self.size
            )
            energy = energy + _WALL * outside.square().sum((1, 2))
            gradient = gradient.add_(outside, alpha=2 * _WALL)
        return energy, gradient

    def energy_and_gradient(self, pose: Pose) -> tuple[Tensor, Mapping[str, Tensor]]:
        """`energy` (B,) and its gradient along the pose's own freedoms, a tangent."""
        energy, gradient = self.energy_and_force(pose.coords)
        return energy, project(gradient, pose)

    def _within(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        radii, hydrophobic, hydrogen, incidence = self._intra  # type: ignore[attr-defined]
        if kernels := kernels_for(coords):
            total, by_atom = coords.new_empty(len(coords)), coords.new_empty(coords.shape)
            tables = (table.view(-1) for table in (radii, hydrophobic, hydrogen))
            apply(
                kernels.within,
                coords,
                self.pairs,
                *tables,
                _TERMS,
                CUTOFF,
                self.cap,
                total,
                by_atom,
            )
            return total, by_atom
        batch, count, _ = coords.shape
        # Axes before poses: one product gives all differences, and sums run along poses.
        columns = coords.permute(1, 2, 0).reshape(count, 3 * batch)
        difference = (incidence @ columns).view(-1, 3, batch)
        r = difference.square().sum(1).clamp_(min=1e-6).sqrt_()
        energy, slope = pair_energy(r - radii, hydrophobic, hydrogen)
        inside = (r < CUTOFF).to(r.dtype)
        energy, factor = capped(energy.mul_(inside), self.cap)
        slope.mul_(inside).mul_(factor).div_(r)
        gradient = incidence.T @ difference.mul_(slope[:, None]).view(-1, 3 * batch)
        return energy.sum(0), gradient.view(count, 3, batch).permute(2, 0, 1)
