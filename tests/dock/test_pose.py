"""Poses: rigid moves, torsions, alignment, and forces pulled back to degrees of freedom."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from bio_diffusion.dock.pose import Pose, TorsionTree, align, project, rotation_matrix, twist

# A chain of six atoms with a branch on the third: bonds 1-2, 2-3 and 3-4 can turn.
BONDS = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [2, 6]])
TURNING = torch.tensor([False, True, True, True, False, False])


@pytest.fixture
def pose() -> Pose:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64).cumsum(1)
    return Pose(walk, TorsionTree.from_bonds(BONDS, TURNING, 7))


def tangent(pose: Pose, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in pose.tangent_shapes().items()
    }


def test_tree_turns_the_smaller_piece(pose: Pose) -> None:
    tree = pose.tree
    assert len(tree) == 3
    assert tree.moving.sum(1).max() <= 7 / 2
    for (u, v), moving in zip(tree.bonds.tolist(), tree.moving, strict=True):
        assert moving[v] and not moving[u]


def test_tree_drops_ring_bonds_and_lone_atoms() -> None:
    ring = torch.tensor([[0, 1], [1, 2], [2, 0], [2, 3]])
    tree = TorsionTree.from_bonds(ring, torch.ones(4, dtype=torch.bool), 4)
    assert len(tree) == 0 and tree.moving.shape == (0, 4)


def test_rotation_matrix_agrees_with_scipy() -> None:
    vectors = torch.randn(20, 3, dtype=torch.float64) * torch.logspace(-8, 0.4, 20)[:, None]
    expected = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    torch.testing.assert_close(rotation_matrix(vectors), expected, rtol=0, atol=1e-12)


def test_zero_tangent_is_the_identity(pose: Pose) -> None:
    moved = pose.moved(tangent(pose, 0.0))
    torch.testing.assert_close(moved.coords, pose.coords, rtol=0, atol=1e-12)


def test_torsions_keep_bonds_and_angles(pose: Pose) -> None:
    moved = pose.moved(tangent(pose))
    i, j = BONDS.unbind(1)

    def lengths(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x[:, a] - x[:, b]).norm(dim=-1)

    torch.testing.assert_close(lengths(moved.coords, i, j), lengths(pose.coords, i, j))
    # 1-3 distances fix the bond angles
    a, b = torch.tensor([[0, 2], [1, 3], [2, 4], [3, 5], [1, 6], [3, 6]]).unbind(1)
    torch.testing.assert_close(lengths(moved.coords, a, b), lengths(pose.coords, a, b))


def test_torsions_change_by_their_angle(pose: Pose) -> None:
    u, v = pose.tree.bonds[1].tolist()
    quartet = (1, 2, 3, 4) if u == 2 else (4, 3, 2, 1)
    assert quartet[1:3] == (u, v)
    angles = torch.zeros(4, 3, dtype=torch.float64)
    angles[:, 1] = torch.tensor([0.1, -1.0, 2.0, 3.0])

    def dihedral(x: torch.Tensor) -> torch.Tensor:
        p, q, r, s = (x[:, k] for k in quartet)
        axis = torch.nn.functional.normalize(r - q, dim=-1)
        first, second = torch.linalg.cross(axis, p - q), torch.linalg.cross(axis, s - r)
        return torch.atan2(
            (torch.linalg.cross(first, second) * axis).sum(-1), (first * second).sum(-1)
        )

    change = dihedral(twist(pose.coords, pose.tree, angles)) - dihedral(pose.coords) - angles[:, 1]
    wrapped = torch.remainder(change + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(wrapped, torch.zeros_like(wrapped), rtol=0, atol=1e-10)


def test_torsion_moves_carry_no_rigid_motion(pose: Pose) -> None:
    moved = pose.moved(tangent(pose) | {k: torch.zeros(4, 3).double() for k in ("tr", "rot")})
    torch.testing.assert_close(moved.coords.mean(1), pose.coords.mean(1))
    # no rotation is left over: aligning once more changes nothing
    torch.testing.assert_close(align(moved.coords, pose.coords), moved.coords)


def test_alignment_recovers_a_rigid_motion(pose: Pose) -> None:
    turned = pose.coords @ rotation_matrix(torch.randn(4, 3, dtype=torch.float64)) + 5.0
    torch.testing.assert_close(align(turned, pose.coords), pose.coords)


def test_moves_are_equivariant(pose: Pose) -> None:
    turn = rotation_matrix(torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64))
    u = tangent(pose)
    turned = {"tr": u["tr"] @ turn.T, "rot": u["rot"] @ turn.T, "tor": u["tor"]}
    there = Pose(pose.coords @ turn.T, pose.tree).moved(turned).coords
    torch.testing.assert_close(there, pose.moved(u).coords @ turn.T)


def test_project_is_the_gradient_of_the_moves(pose: Pose) -> None:
    force = torch.randn_like(pose.coords)
    zero = {k: v.requires_grad_() for k, v in tangent(pose, 0.0).items()}
    rigid = (pose.coords - pose.coords.mean(1, keepdim=True)) @ rotation_matrix(
        zero["rot"]
    ).transpose(1, 2) + zero["tr"][:, None]
    moved = twist(rigid, pose.tree, zero["tor"])
    gradient = torch.autograd.grad((moved * force).sum(), list(zero.values()))
    projected = project(force, pose)
    for name, expected in zip(zero, gradient, strict=True):
        torch.testing.assert_close(projected[name], expected)
