"""Finding low energies: batched quasi-Newton descent and Monte Carlo with minimisation.

Every pose of the batch is moved at once. The unit of cost is one evaluation of energy and gradient
for one pose, so that different starts compare at equal work.

A move is a rigid motion about the centroid, then the torsions, without the alignment that
`Pose.moved` does: cheaper, and its tangent at zero is exactly `pose.project`.

Shapes: B poses (chains), N ligand atoms, M rotatable bonds, D = 6 + M freedoms. Å, rad, kcal/mol.

Source: Trott and Olson, J. Comput. Chem. 31 (2010): mutation of one freedom, BFGS, Metropolis
criterion. The batched line search, where a pose that must step back does so while the others go on,
is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bio_diffusion.dock.compiled import apply, kernels_for
from bio_diffusion.dock.physics import Vina
from bio_diffusion.dock.pose import Pose, TorsionTree, rotation_matrix

__all__ = ["Kinematics", "Minimized", "anneal", "distinct", "gaps", "minimize", "random_poses"]

_ARMIJO = 1e-4
_STIFFNESS = 1.0  # kcal/mol/Å^2 an atom: scales the first step only
_LONGEST = 1.0  # Å or rad: no freedom moves further in one step


@dataclass(frozen=True)
class Minimized:
    """Poses at the end of a descent or a search.

    Args:
        pose: B poses.
        energy: (B,) kcal/mol, `Vina.energy`.
        evaluations: energies and gradients computed, counted for each pose alone.
    """

    pose: Pose
    energy: Tensor
    evaluations: int


class Kinematics:
    """Moves of a ligand by a flat step (B, D): translation, rotation, torsions in the tree's order.

    Each piece of the ligand between rotatable bonds turns about its own bond in the coordinates
    before the move; the maps of a piece and of the pieces that carry it are composed by doubling,
    in as many products as the tree's depth has binary digits.
    """

    def __init__(self, tree: TorsionTree) -> None:
        bonds, count = tree.bonds, tree.moving.shape[1]
        self.axis = bonds.flatten()
        everything = torch.ones(1, count, dtype=torch.bool, device=bonds.device)
        moving = torch.cat([everything, tree.moving])
        self.moving = moving.float()
        sizes = moving.sum(1)
        # The pieces are nested or apart: the innermost that holds an atom is the smallest.
        cost = torch.where(moving, sizes[:, None], count + 1)
        self.piece = cost.argmin(0)
        holds = (moving.float() @ moving.float().T) == sizes
        holds &= ~torch.eye(len(moving), dtype=torch.bool, device=bonds.device)
        parent = torch.where(holds, sizes[:, None], 2 * count).argmin(0)
        self.pieces = bonds, self.piece, parent.clone(), sizes.argsort(descending=True)
        parent[0] = len(moving)  # one more piece, which never moves, ends every chain
        parent = torch.cat([parent, parent.new_tensor([len(moving)])])
        self.jumps: list[Tensor] = []
        while bool((parent != len(moving)).any()):
            self.jumps.append(parent)
            parent = parent[parent]
        self.still = torch.eye(4, device=bonds.device)[None, None]

    def __call__(self, coords: Tensor, step: Tensor) -> Tensor:
        """Moved coordinates (B, N, 3)."""
        if kernels := kernels_for(coords):
            moved = coords.new_empty(coords.shape)
            apply(kernels.move, coords, step, *self.pieces, moved)
            return moved
        batch = len(coords)
        centroid = coords.mean(1, keepdim=True)
        ends = coords.index_select(1, self.axis).view(batch, -1, 2, 3)
        hinge = torch.cat([centroid, ends[:, :, 1]], 1)
        axes = torch.nn.functional.normalize(ends[:, :, 1] - ends[:, :, 0], dim=-1)
        turn = rotation_matrix(torch.cat([step[:, None, 3:6], axes * step[:, 6:, None]], 1))
        shift = hinge - (turn @ hinge[..., None])[..., 0]
        shift[:, 0] += step[:, :3]
        rigid = self.still.repeat(batch, turn.shape[1] + 1, 1, 1)
        rigid[:, :-1, :3, :3] = turn
        rigid[:, :-1, :3, 3] = shift
        for jump in self.jumps:
            rigid = rigid.index_select(1, jump) @ rigid
        rigid = rigid.index_select(1, self.piece)
        return (rigid[..., :3, :3] * coords[:, :, None]).sum(-1) + rigid[..., :3, 3]

    def pull(self, coords: Tensor, gradient: Tensor) -> Tensor:
        """Gradient along the step (B, D) at zero from one on atoms (B, N, 3): J^T g."""
        if kernels := kernels_for(coords):
            along = coords.new_empty(len(coords), 5 + len(self.moving))
            apply(kernels.pull, coords, gradient, *self.pieces, along)
            return along
        batch = len(coords)
        centroid = coords.mean(1, keepdim=True)
        ends = coords.index_select(1, self.axis).view(batch, -1, 2, 3)
        hinge = torch.cat([centroid, ends[:, :, 1]], 1)
        torques = torch.linalg.cross(coords - centroid, gradient)
        total, about = (self.moving @ torch.cat([gradient, torques], 2)).split(3, 2)
        about = about - torch.linalg.cross(hinge - centroid, total)
        axes = torch.nn.functional.normalize(ends[:, :, 1] - ends[:, :, 0], dim=-1)
        return torch.cat([total[:, 0], about[:, 0], (axes * about[:, 1:]).sum(-1)], 1)

    def inertia(self, coords: Tensor) -> Tensor:
        """Square of the atoms' motion for each freedom, the diagonal of J^T J, (B, D) Å^2."""
        batch, count, _ = coords.shape
        ends = coords.index_select(1, self.axis).view(batch, -1, 2, 3)
        axes = torch.nn.functional.normalize(ends[:, :, 1] - ends[:, :, 0], dim=-1)
        arms = coords[:, None] - ends[:, :, 1, None]
        reach = torch.linalg.cross(axes[:, :, None].expand_as(arms), arms).square().sum(-1)
        turning = (reach * self.moving[1:]).sum(-1)
        centred = coords - coords.mean(1, keepdim=True)
        square = centred.square().sum(1)
        rotating = square.sum(1, keepdim=True) - square
        shifting = torch.full_like(rotating, float(count))
        return torch.cat([shifting, rotating, turning], 1)


class _Descent:
    """BFGS on B poses, one evaluation each a step; each pose searches its own line."""

    def __init__(self, vina: Vina, kinematics: Kinematics, coords: Tensor) -> None:
        self.vina, self.kinematics = vina, kinematics
        self.coords = coords
        self.energy, self.gradient = self._evaluate(coords)
        self.inverse = torch.diag_embed(1.0 / (_STIFFNESS * (kinematics.inertia(coords) + 1.0)))
        self.fresh = torch.ones_like(self.energy, dtype=torch.bool)
        self._aim()

    def _evaluate(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = self.vina.energy_and_force(coords)
        return energy, self.kinematics.pull(coords, gradient)

    def _aim(self) -> None:
        """Newton's direction, shortened to the longest step allowed."""
        direction = -(self.inverse @ self.gradient[..., None])[..., 0]
        longest = direction.abs().amax(1, keepdim=True)
        self.direction = direction * (_LONGEST / longest.clamp(min=_LONGEST))
        self.decline = (self.direction * self.gradient).sum(1)
        self.length = torch.ones_like(self.energy)

    def advance(self) -> None:
        """One evaluation: poses whose energy falls enough step, the others shorten their step."""
        step = self.direction * self.length[:, None]
        coords = self.kinematics(self.coords, step)
        energy, gradient = self._evaluate(coords)
        accepted = energy <= self.energy + _ARMIJO * self.length * self.decline
        # Where the step was too long, the minimum of the parabola through what is known.
        promised = self.length * self.decline
        excess = (energy - self.energy - promised).clamp(min=1e-12)
        shorter = self.length * (-0.5 * promised / excess).clamp(0.1, 0.5)
        change = gradient - self.gradient
        curvature = (step * change).sum(1)
        usable = accepted & (curvature > 1e-8)
        self._update(step, change, curvature, usable)
        # A line that has come to nothing: forget the curvature and go downhill.
        lost = ~accepted & (shorter < 1e-3)
        keep = accepted[:, None]
        self.coords = torch.where(keep[..., None], coords, self.coords)
        self.energy = torch.where(accepted, energy, self.energy)
        self.gradient = torch.where(keep, gradient, self.gradient)
        direction, decline = self.direction, self.decline
        self._aim()
        again = ~accepted & ~lost
        self.direction = torch.where(again[:, None], direction, self.direction)
        self.decline = torch.where(again, decline, self.decline)
        self.length = torch.where(again, shorter, self.length)

    def _update(self, s: Tensor, y: Tensor, curvature: Tensor, usable: Tensor) -> None:
        """BFGS's update of the inverse Hessian, two outer products a pose."""
        curvature = torch.where(usable, curvature, 1.0)
        hy = (self.inverse @ y[..., None])[..., 0]
        yhy = (y * hy).sum(1)
        # The first curvature seen sets the scale of the initial guess.
        scale = torch.where(self.fresh & usable, curvature / yhy.clamp(min=1e-12), 1.0)
        scale = scale.clamp(0.05, 20.0)
        self.inverse.mul_(scale[:, None, None])
        hy, yhy = hy * scale[:, None], yhy * scale
        self.fresh &= ~usable
        rho = torch.where(usable, 1.0 / curvature, 0.0)[:, None]
        w = (0.5 * rho * (1.0 + rho * yhy[:, None])) * s - rho * hy
        self.inverse.baddbmm_(torch.stack([s, w], 2), torch.stack([w, s], 1))


def minimize(pose: Pose, vina: Vina, evaluations: int = 100, tolerance: float = 1e-3) -> Minimized:
    """Descend from each pose to the nearest minimum of `Vina.energy`.

    Args:
        pose: B poses.
        vina: the energy.
        evaluations: at most this many energies and gradients a pose.
        tolerance: kcal/mol; stop when no pose has gained more in the last ten evaluations.
    """
    with torch.inference_mode():
        descent = _Descent(vina, Kinematics(pose.tree), pose.coords)
        spent, before = 1, descent.energy
        while spent < evaluations:
            descent.advance()
            spent += 1
            if spent % 10 == 0:
                if bool((before - descent.energy).max() < tolerance):
                    break
                before = descent.energy
    return Minimized(Pose(descent.coords.clone(), pose.tree), descent.energy.clone(), spent)


def random_poses(
    template: Pose, center: Tensor, size: Tensor, count: int, generator: torch.Generator
) -> Pose:
    """Uniform placements in a box: centroid, orientation and torsions.

    Args:
        template: K conformers to use in turn; rings keep the shapes they have there.
        center: (3,) Å of the box.
        size: (3,) Å, edge lengths.
        count: poses.
        generator: random numbers.
    """
    tree, device = template.tree, template.coords.device
    coords = template.coords[torch.arange(count, device=device) % len(template)]
    angles = (torch.rand(count, len(tree), generator=generator, device=device) * 2 - 1) * math.pi
    where = (torch.rand(count, 3, generator=generator, device=device) - 0.5) * size + center
    step = torch.cat([torch.zeros(count, 6, device=device), angles], 1)
    coords = Kinematics(tree)(coords, step)
    # A uniform rotation is a uniform unit quaternion.
    q = torch.nn.functional.normalize(
        torch.randn(count, 4, generator=generator, device=device), dim=1
    )
    angle = 2 * torch.atan2(q[:, 1:].norm(dim=1), q[:, 0])
    spin = rotation_matrix(torch.nn.functional.normalize(q[:, 1:], dim=1) * angle[:, None])
    centred = coords - coords.mean(1, keepdim=True)
    return Pose(centred @ spin.transpose(1, 2) + where[:, None], tree)


def _mutate(coords: Tensor, kinematics: Kinematics, generator: torch.Generator) -> Tensor:
    """Change one thing of each pose: position, orientation or one torsion, at random."""
    batch, freedoms = len(coords), 6 + len(kinematics.axis) // 2
    device = coords.device
    which = torch.randint(0, freedoms - 4, (batch,), generator=generator, device=device)
    ball = torch.randn(batch, 3, generator=generator, device=device)
    ball = torch.nn.functional.normalize(ball, dim=1)
    ball = ball * torch.rand(batch, 1, generator=generator, device=device) ** (1 / 3)
    angle = (torch.rand(batch, generator=generator, device=device) * 2 - 1) * math.pi
    gyration = (coords - coords.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    step = torch.zeros(batch, freedoms, device=device)
    step[:, :3] = torch.where((which == 0)[:, None], 2.0 * ball, 0.0)
    spin = ball * (2.0 / gyration.clamp(min=1.0))[:, None]
    step[:, 3:6] = torch.where((which == 1)[:, None], spin, 0.0)
    torsion = (which >= 2).nonzero()[:, 0]
    step[torsion, which[torsion] + 4] = angle[torsion]
    return kinematics(coords, step)


def anneal(
    start: Pose,
    vina: Vina,
    generator: torch.Generator,
    rounds: int = 20,
    evaluations: int = 25,
    temperature: float = 1.2,
    cap: float = 10.0,
) -> Minimized:
    """Monte Carlo with minimisation, one chain from each starting pose.

    In each round every chain changes one freedom, descends, and keeps the result by Metropolis's
    criterion.

    Args:
        start: B poses.
        vina: the energy; best with a `maps.MapField`.
        generator: random numbers; the search is repeatable.
        rounds: mutations of each chain after the first descent.
        evaluations: of each descent.
        temperature: kcal/mol.
        cap: ceiling on repulsion during the search.

    Returns:
        Every minimum visited, (rounds + 1) * B poses, by rising energy.
    """
    kinematics = Kinematics(start.tree)
    soft = vina.softened(cap)
    with torch.inference_mode():

        def descend(coords: Tensor) -> tuple[Tensor, Tensor]:
            descent = _Descent(soft, kinematics, coords)
            for _ in range(evaluations - 1):
                descent.advance()
            return descent.coords, descent.energy

        coords, energy = descend(start.coords)
        seen, energies = [coords], [energy]
        for _ in range(rounds):
            trial, trial_energy = descend(_mutate(coords, kinematics, generator))
            chance = torch.rand(len(energy), generator=generator, device=energy.device)
            keep = chance < ((energy - trial_energy) / temperature).exp()
            coords = torch.where(keep[:, None, None], trial, coords)
            energy = torch.where(keep, trial_energy, energy)
            seen.append(trial)
            energies.append(trial_energy)
        everything, total = torch.cat(seen), torch.cat(energies)
        order = total.argsort()
    return Minimized(
        Pose(everything[order].clone(), start.tree),
        total[order].clone(),
        (rounds + 1) * evaluations,
    )


def gaps(pose: Tensor, others: Tensor, same: Tensor | None = None) -> Tensor:
    """RMSD of a pose (N, 3) to others (K, N, 3), without superposition: (K,) Å.

    Args:
        same: (P, N) long, orders of the atoms that are alike (`ligand.atom_orders`): the least over
            these counts. None: the order as it is.
    """
    renamed = pose[None] if same is None else pose[same]
    flat = renamed.flatten(1), others.flatten(1)
    apart = torch.cdist(*flat, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.amin(0) / math.sqrt(len(pose))


def distinct(
    found: Minimized, count: int, apart: float = 1.0, same: Tensor | None = None
) -> Minimized:
    """The lowest poses of which no two are closer than `apart` Å, see `gaps`."""
    coords, left = found.pose.coords, found.energy.argsort()
    kept: list[Tensor] = []
    while len(left) and len(kept) < count:
        lowest, left = left[0], left[1:]
        kept.append(lowest)
        left = left[gaps(coords[lowest], coords[left], same) >= apart]
    index = torch.stack(kept)
    return Minimized(found.pose[index], found.energy[index], found.evaluations)
