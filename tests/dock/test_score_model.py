"""The score network: its symmetries, its sharing of the receptor, and its product against e3nn."""

from dataclasses import fields, replace

import pytest
import torch

from bio_diffusion.diffusion.latents import Latents
from bio_diffusion.dock.experiment import DockingModel
from bio_diffusion.dock.graph import ReceptorGraph
from bio_diffusion.dock.layers import Features, Message, Neighbours
from bio_diffusion.dock.pose import Pose, rotation_matrix
from bio_diffusion.dock.score_model import ScoreModel
from tests.dock import networks

TURN = rotation_matrix(torch.tensor([0.4, -2.0, 0.9], dtype=torch.float64))
SHIFT = torch.tensor([3.0, -7.0, 1.0], dtype=torch.float64)


def in_double(graph: ReceptorGraph) -> ReceptorGraph:
    return replace(
        graph, coords=graph.coords.double(), residue_coords=graph.residue_coords.double()
    )


def moved(graph: ReceptorGraph) -> ReceptorGraph:
    return replace(
        graph,
        coords=graph.coords @ TURN.T + SHIFT,
        residue_coords=graph.residue_coords @ TURN.T + SHIFT,
    )


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "latents"])
def setting(
    request: pytest.FixtureRequest,
) -> tuple[ScoreModel, ReceptorGraph, Pose, Latents | None]:
    torch.manual_seed(0)
    size = replace(networks.SIZE, latents=request.param)
    model = networks.randomised(DockingModel(size).score)
    receptor, graph = in_double(networks.receptor()), networks.ligand()
    pose = networks.poses(graph)
    pose = Pose(pose.coords.double(), pose.tree)
    latents = None
    if request.param:
        z = torch.rand(3, 2, len(receptor.residue_type) + 9, dtype=torch.float64).softmax(-1)
        latents = Latents(z, torch.tensor([False, False, True]))
    return model, receptor, pose, latents


T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def test_scores_turn_with_the_complex(setting: tuple) -> None:
    model, receptor, pose, latents = setting
    graph = networks.ligand()
    plain = model(pose, T, model.encode(receptor, graph).with_latents(latents))
    elsewhere = Pose(pose.coords @ TURN.T + SHIFT, pose.tree)
    turned = model(elsewhere, T, model.encode(moved(receptor), graph).with_latents(latents))
    for name in ("tr", "rot"):
        torch.testing.assert_close(turned[name], plain[name] @ TURN.T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(turned["tor"], plain["tor"], rtol=1e-6, atol=1e-8)
    assert all(score.abs().min() > 1e-8 for score in plain.values())  # nothing is zero by design


def test_a_mirror_image_scores_differently(setting: tuple) -> None:
    """Chirality matters to docking, so the network must be able to see it."""
    model, receptor, pose, latents = setting
    graph = networks.ligand()
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    mirrored = replace(
        receptor, coords=receptor.coords @ flip, residue_coords=receptor.residue_coords @ flip
    )
    plain = model(pose, T, model.encode(receptor, graph).with_latents(latents))["tor"]
    given = model.encode(mirrored, graph).with_latents(latents)
    other = model(Pose(pose.coords @ flip, pose.tree), T, given)["tor"]
    assert (plain.abs() - other.abs()).abs().max() > 1e-4


def test_poses_do_not_see_each_other(setting: tuple) -> None:
    model, receptor, pose, latents = setting
    given = model.encode(receptor, networks.ligand()).with_latents(latents)
    together = model(pose, T, given)
    for i in range(3):
        own = (
            given.with_latents(Latents(latents.z[i : i + 1], latents.null[i : i + 1]))
            if latents
            else given
        )
        alone = model(pose[i : i + 1], T[i : i + 1], own)
        for name, score in alone.items():
            torch.testing.assert_close(score[0], together[name][i], rtol=1e-9, atol=1e-10)


def test_a_shared_receptor_gives_the_same_scores(setting: tuple) -> None:
    model, receptor, pose, latents = setting
    encoded = model.encode_receptor(receptor)
    shared = model.pair(encoded, networks.ligand()).with_latents(latents)
    own = model.encode(receptor, networks.ligand()).with_latents(latents)
    for name, score in model(pose, T, shared).items():
        torch.testing.assert_close(score, model(pose, T, own)[name], rtol=0, atol=0)


def test_null_latents_hide_the_pointers() -> None:
    model = networks.randomised(DockingModel(replace(networks.SIZE, latents=2)).score)
    receptor, graph = in_double(networks.receptor()), networks.ligand()
    pose = networks.poses(graph)
    pose = Pose(pose.coords.double(), pose.tree)
    given = model.encode(receptor, graph)
    nodes = len(receptor.residue_type) + 9
    hidden = torch.ones(3, dtype=torch.bool)

    def scores(seed: int, null: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.rand(3, 2, nodes, generator=generator, dtype=torch.float64).softmax(-1)
        return model(pose, T, given.with_latents(Latents(z, null)))["tr"]

    torch.testing.assert_close(scores(0, hidden), scores(1, hidden), rtol=0, atol=0)
    assert (scores(0, ~hidden) - scores(1, ~hidden)).abs().max() > 1e-6


def test_untrained_network_is_the_zero_score() -> None:
    model = DockingModel(networks.SIZE)
    graph = networks.ligand()
    pose = networks.poses(graph)
    scores = model.score(pose, T.float(), model.score.encode(networks.receptor(), graph))
    assert all(not score.any() for score in scores.values())


@pytest.mark.parametrize(("atoms", "residues"), [(1, 12), (2, 1), (40, 2)])
def test_odd_sizes_run(atoms: int, residues: int) -> None:
    """One atom, no torsion, one residue, fewer senders than neighbours wanted."""
    model = DockingModel(replace(networks.SIZE, latents=2))
    graph, receptor = networks.ligand(atoms), networks.receptor(residues)
    pose = networks.poses(graph)
    given = model.score.encode(receptor, graph)
    z = model.encoder(given, pose).softmax(-1).expand(3, -1, -1)
    latents = Latents(z, torch.zeros(3, dtype=torch.bool))
    scores = model.score(pose, T.float(), given.with_latents(latents))
    assert scores["tor"].shape == (3, len(graph.tree))
    assert all(torch.isfinite(score).all() for score in scores.values())


def test_message_is_a_depthwise_product_of_e3nn() -> None:
    # "none" leaves the 3j symbols of e3nn, of norm 1: 1 / sqrt(3) on V.r, on s r and on V
    o3 = pytest.importorskip("e3nn.o3")
    torch.manual_seed(0)
    size = replace(networks.SIZE, vectors=networks.SIZE.scalars)  # uvu needs equal multiplicities
    message = networks.randomised(Message(size))
    n, k, c = 7, 5, size.scalars
    senders = Features(torch.randn(n, c).double(), torch.randn(n, 3, c).double())
    receivers = torch.randn(n, c).double()
    unit = torch.nn.functional.normalize(torch.randn(n, k, 3).double(), dim=-1)
    edges = Neighbours(torch.randint(n, (n, k)), torch.rand(n, k, 16).double(), unit)
    cached = message.cache(senders)
    ours = message(receivers, cached, edges)

    key, value, along = cached.scalars[edges.sender].split([size.hidden, c, c], -1)
    hidden = message.radial(edges.radial) + message.receiver(receivers)[:, None] + key
    w_ss, w_vs, w_sv, w_vv = message.weights(torch.nn.functional.silu(hidden)).chunk(4, -1)
    irreps = o3.Irreps(f"{c}x0e + {c}x0e + {c}x1e")  # value, along, vectors
    product = o3.TensorProduct(
        irreps,
        o3.Irreps("1x0e + 1x1e"),
        o3.Irreps(f"{c}x0e + {c}x0e + {c}x1e + {c}x1e"),
        [
            (0, 0, 0, "uvu", True),
            (2, 1, 1, "uvu", True),
            (1, 1, 2, "uvu", True),
            (2, 0, 3, "uvu", True),
        ],
        shared_weights=False,
        internal_weights=False,
        irrep_normalization="none",
        path_normalization="none",
    ).double()
    vectors = cached.vectors[edges.sender].transpose(-1, -2).flatten(-2)
    left = torch.cat([value, along, vectors], -1).flatten(0, 1)
    right = torch.cat([torch.ones(n, k, 1).double(), unit], -1).flatten(0, 1)
    weights = torch.cat([w_ss, w_vs, w_sv, w_vv], -1).flatten(0, 1)
    out = product(left, right, weights).view(n, k, -1).sum(1) / k**0.5
    ss, vs, sv, vv = out.split([c, c, 3 * c, 3 * c], -1)
    # "none" leaves e3nn's 3j symbols, of norm 1: 1/sqrt(3) on V.r, on s r and on V
    root = 3**0.5
    torch.testing.assert_close(ours.scalars, torch.cat([ss, root * vs], -1))
    theirs = root * (sv + vv).view(n, c, 3).transpose(1, 2)
    torch.testing.assert_close(ours.vectors, theirs)


def test_graphs_move_between_devices_whole() -> None:
    graph = networks.receptor().to("cpu")
    assert {f.name for f in fields(graph)} == {f.name for f in fields(networks.receptor())}
