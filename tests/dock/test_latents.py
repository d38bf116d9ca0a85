"""Pointer latents: encoder and prior are proper distributions over one complex's nodes."""

from dataclasses import replace

import pytest
import torch

from bio_diffusion.dock.experiment import DockingModel
from bio_diffusion.dock.latents import PointerPrior, pointer_mask
from bio_diffusion.dock.pose import Pose, rotation_matrix
from bio_diffusion.dock.trunk import Complex
from tests.dock import networks

SIZE = replace(networks.SIZE, latents=2)
RESIDUES, ATOMS = 12, 9


@pytest.fixture(scope="module")
def model() -> DockingModel:
    torch.manual_seed(0)
    return networks.randomised(DockingModel(SIZE, PointerPrior(SIZE))).float()


@pytest.fixture(scope="module")
def given(model: DockingModel) -> Complex:
    return model.score.encode(networks.receptor(RESIDUES), networks.ligand(ATOMS))


def enumerate_pairs(model: DockingModel, given: Complex) -> torch.Tensor:
    """q(z_1, z_2) for all pairs of nodes, (R + N, R + N)."""
    nodes, total = model.prior.nodes(given), RESIDUES + ATOMS
    first = model.prior.logits(given, nodes, torch.zeros(1, 0, total))[0].softmax(-1)
    second = model.prior.logits(given, nodes, torch.eye(total)[:, None]).softmax(-1)
    return first[:, None] * second


def test_first_pointer_names_a_residue(model: DockingModel, given: Complex) -> None:
    joint = enumerate_pairs(model, given)
    torch.testing.assert_close(joint.sum(), torch.tensor(1.0))
    assert joint[RESIDUES:].sum() == 0
    assert (joint[:RESIDUES] > 0).all()  # the second may point anywhere


def test_second_pointer_depends_on_the_first(model: DockingModel, given: Complex) -> None:
    joint = enumerate_pairs(model, given)[:RESIDUES]
    conditional = joint / joint.sum(1, keepdim=True)
    assert (conditional - conditional[:1]).abs().max() > 1e-4


def test_encoder_is_invariant_and_sees_the_pose(model: DockingModel) -> None:
    receptor, graph = networks.receptor(RESIDUES), networks.ligand(ATOMS)
    pose = networks.poses(graph)
    logits = model.point(model.score.encode(receptor, graph), pose)
    assert logits.shape == (2, RESIDUES + ATOMS)
    mask = pointer_mask(2, RESIDUES, ATOMS, logits.device)
    assert torch.equal(logits.isfinite(), mask)
    turn = rotation_matrix(torch.tensor([1.0, 0.2, -0.5]))
    turned = replace(
        receptor, coords=receptor.coords @ turn.T, residue_coords=receptor.residue_coords @ turn.T
    )
    moved = Pose(pose.coords @ turn.T, pose.tree)
    same = model.point(model.score.encode(turned, graph), moved)
    torch.testing.assert_close(
        same[mask], logits[mask], rtol=1e-3, atol=1e-4
    )  # float32, two layers
    other = model.point(model.score.encode(receptor, graph), pose[1:])
    assert (other[mask] - logits[mask]).abs().max() > 1e-3


def test_gradients_reach_the_encoder_through_the_latents(model: DockingModel) -> None:
    from bio_diffusion.diffusion.latents import Latents, gumbel_softmax

    receptor, graph = networks.receptor(RESIDUES), networks.ligand(ATOMS)
    pose = networks.poses(graph)
    given = model.score.encode(receptor, graph)
    logits = model.point(given, pose).expand(3, -1, -1)
    z = gumbel_softmax(logits, 1.0, True, torch.Generator().manual_seed(0))
    shown = given.with_latents(Latents(z, torch.zeros(3, dtype=torch.bool)))
    scores = model.score(pose, torch.full((3,), 0.5), shown)
    last = model.encoder.residue[-1].weight
    (gradient,) = torch.autograd.grad(scores["tr"].square().sum(), last)
    assert gradient.abs().max() > 0


def test_untrained_encoder_points_evenly() -> None:
    fresh = DockingModel(SIZE)
    graph = networks.ligand(ATOMS)
    given = fresh.score.encode(networks.receptor(RESIDUES), graph)
    p = fresh.point(given, networks.poses(graph)).softmax(-1)
    torch.testing.assert_close(p[0, :RESIDUES], torch.full((RESIDUES,), 1 / RESIDUES))
    torch.testing.assert_close(p[1], torch.full((RESIDUES + ATOMS,), 1 / (RESIDUES + ATOMS)))


def test_all_logits_at_once_look_back_only(model: DockingModel, given: Complex) -> None:
    torch.manual_seed(1)
    z = torch.rand(2, 2, RESIDUES + ATOMS).softmax(-1)
    logits = model.prior(z, given)
    changed = z.clone()
    changed[:, 1] = 1 / (RESIDUES + ATOMS)
    torch.testing.assert_close(model.prior(changed, given), logits, rtol=0, atol=0)
    changed[:, 0] = z[:, 1]
    assert (model.prior(changed, given)[:, 1] - logits[:, 1]).abs().max() > 1e-4
