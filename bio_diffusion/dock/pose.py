"""Poses of a ligand and how they move: the state space T(3) x SO(3) x T^M of docking.

Notation: B poses, N ligand atoms, M rotatable bonds. A *tangent* is a mapping with ``tr`` (B, 3) in
Å, ``rot`` (B, 3) axis-angle in radians and ``tor`` (B, M) in radians. Bond (u, v) turns the piece
that holds v, right-handed about the axis from u to v.

Source of the composition order and of the alignment that removes the rigid part of a torsion move:
Corso et al., "DiffDock", ICLR 2023, section 4.2 (rigid move first, torsions after, then Kabsch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Pose", "TorsionTree", "align", "project", "rotation_matrix", "twist"]


@dataclass(frozen=True)
class TorsionTree:
    """The rotatable bonds of a ligand.

    Args:
        bonds: (M, 2) long, pairs (u, v); v lies in the piece that turns.
        moving: (M, N) bool, the atoms that turn about bond (u, v); the smaller piece.
    """

    bonds: Tensor
    moving: Tensor

    @classmethod
    def rigid(cls, num_atoms: int) -> TorsionTree:
        """The tree of a ligand without rotatable bonds."""
        return cls(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, num_atoms, dtype=torch.bool))

    @classmethod
    def from_bonds(cls, bonds: Tensor, rotatable: Tensor, num_atoms: int) -> TorsionTree:
        """Keep the rotatable bonds whose removal splits the graph and moves two atoms or more.

        Args:
            bonds: (E, 2) long, every covalent bond once.
            rotatable: (E,) bool, the candidates (single, acyclic).
            num_atoms: N.
        """
        neighbours: list[list[int]] = [[] for _ in range(num_atoms)]
        pairs = [(int(i), int(j)) for i, j in bonds.tolist()]
        for i, j in pairs:
            neighbours[i].append(j)
            neighbours[j].append(i)
        kept: list[tuple[int, int]] = []
        masks: list[Tensor] = []
        for (i, j), candidate in zip(pairs, rotatable.tolist(), strict=True):
            if not candidate:
                continue
            piece = _reachable(neighbours, start=j, without=i)
            if i in piece:
                continue
            if 2 * len(piece) > num_atoms:
                i, j, piece = j, i, set(range(num_atoms)) - piece
            if len(piece) < 2:
                continue
            mask = torch.zeros(num_atoms, dtype=torch.bool)
            mask[list(piece)] = True
            kept.append((i, j))
            masks.append(mask)
        if not kept:
            return cls.rigid(num_atoms)
        return cls(torch.tensor(kept, dtype=torch.long), torch.stack(masks))

    def __len__(self) -> int:
        return self.bonds.shape[0]

    def to(self, device: Any) -> TorsionTree:  # noqa: ANN401 - whatever Tensor.to takes
        return TorsionTree(self.bonds.to(device), self.moving.to(device))


def _reachable(neighbours: list[list[int]], start: int, without: int) -> set[int]:
    """Atoms connected to `start` when the bond from `start` to `without` is cut."""
    seen, stack = {start}, [start]
    while stack:
        atom = stack.pop()
        for other in neighbours[atom]:
            if atom == start and other == without:
                continue
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return seen


@dataclass(frozen=True)
class Pose:
    """B poses of one ligand: a State in the sense of `diffusion.process`.

    Args:
        coords: (B, N, 3) Å.
        tree: the rotatable bonds, shared by all poses.
    """

    coords: Tensor
    tree: TorsionTree

    def __len__(self) -> int:
        return self.coords.shape[0]

    def __getitem__(self, index: Tensor | slice | list[int]) -> Pose:
        return Pose(self.coords[index], self.tree)

    def repeat(self, copies: int) -> Pose:
        """Each pose `copies` times, next to each other."""
        return Pose(self.coords.repeat_interleave(copies, dim=0), self.tree)

    def to(self, device: Any) -> Pose:  # noqa: ANN401 - whatever Tensor.to takes
        return Pose(self.coords.to(device), self.tree.to(device))

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        batch = len(self)
        return {"tr": (batch, 3), "rot": (batch, 3), "tor": (batch, len(self.tree))}

    def moved(self, tangent: Mapping[str, Tensor]) -> Pose:
        """Apply a tangent: rotate about the centroid and translate, turn bonds, align back.

        The last step superposes the turned ligand on the rigidly moved one, so that torsions carry
        no net rotation or translation. A zero tangent is the identity.
        """
        centroid = self.coords.mean(1, keepdim=True)
        turned = (self.coords - centroid) @ rotation_matrix(tangent["rot"]).transpose(-1, -2)
        rigid = turned + centroid + tangent["tr"][:, None]
        if len(self.tree) == 0:
            return Pose(rigid, self.tree)
        return Pose(align(twist(rigid, self.tree, tangent["tor"]), rigid), self.tree)


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula, (..., 3) rad -> (..., 3, 3); exact to second order at angle 0."""
    angle = axis_angle.norm(dim=-1)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    half = 0.5 * angle
    sine = torch.sinc(angle / torch.pi)
    versine = 0.5 * torch.sinc(half / torch.pi).square()
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + sine * cross + versine * (cross @ cross)


def twist(coords: Tensor, tree: TorsionTree, angles: Tensor) -> Tensor:
    """Turn every rotatable bond by its angle; bond lengths and bond angles stay.

    Args:
        coords: (B, N, 3) Å.
        angles: (B, M) rad, added to the present torsions.

    Returns:
        (B, N, 3), not aligned to the input.
    """
    for bond, (u, v) in enumerate(tree.bonds.tolist()):
        origin = coords[:, v : v + 1]
        axis = torch.nn.functional.normalize(coords[:, v] - coords[:, u], dim=-1)
        turn = rotation_matrix(axis * angles[:, bond, None]).transpose(-1, -2)
        turned = (coords - origin) @ turn + origin
        coords = torch.where(tree.moving[bond][:, None], turned, coords)
    return coords


def align(coords: Tensor, target: Tensor) -> Tensor:
    """Superpose `coords` on `target` by the rotation of least squares (Kabsch 1976), (B, N, 3).

    The singular value decomposition runs in float64: symmetric ligands give nearly equal singular
    values, on which the float32 routine is known to fail.
    """
    center, target_center = coords.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    covariance = ((coords - center).transpose(-1, -2) @ (target - target_center)).double()
    left, _, right = torch.linalg.svd(covariance)
    sign = torch.linalg.det(left @ right).sign()
    left = torch.cat([left[..., :2], left[..., 2:] * sign[..., None, None]], -1)
    rotation = (left @ right).to(coords.dtype)
    return (coords - center) @ rotation + target_center


def project(vectors: Tensor, pose: Pose) -> dict[str, Tensor]:
    """Pull per-atom vectors back to the pose's own degrees of freedom: J^T f.

    With f the forces on the atoms, the result is the total force, the torque about the centroid and
    the torque about each rotatable bond.

    Args:
        vectors: (B, N, 3).

    Returns:
        A tangent: ``tr`` (B, 3), ``rot`` (B, 3), ``tor`` (B, M).
    """
    coords, tree = pose.coords, pose.tree
    arms = coords - coords.mean(1, keepdim=True)
    torques = torch.linalg.cross(arms, vectors)
    u, v = tree.bonds.unbind(1)
    moving = tree.moving.to(vectors.dtype)
    axis = torch.nn.functional.normalize(coords[:, v] - coords[:, u], dim=-1)
    about_hinge = moving @ torques - torch.linalg.cross(arms[:, v], moving @ vectors)
    return {"tr": vectors.sum(1), "rot": torques.sum(1), "tor": (axis * about_hinge).sum(-1)}
