"""Poses from a network: repeatable, at the site, with and without latents; how it judges them."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bio_diffusion import checkpoint, schedule
from bio_diffusion.diffusion.schedule import Curve
from bio_diffusion.dock.complex import InputError, Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.experiment import DockingModel
from bio_diffusion.dock.latents import PointerPrior
from bio_diffusion.dock.network import NetworkPoses, load_model
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.sources import PreparedLigand, PreparedReceptor
from tests.dock import networks

DEMO = Path(__file__).parents[2] / "data" / "demo"


@pytest.fixture(scope="module")
def receptor() -> PreparedReceptor:
    return PreparedReceptor.of(read_receptor(DEMO / "protein.pdb"))


@pytest.fixture(scope="module")
def ligand() -> PreparedLigand:
    read = next(iter(read_ligands([str(DEMO / "ligand.sdf")])))
    assert isinstance(read, Ligand)
    return PreparedLigand.of(read, 2, 0)


@pytest.fixture(scope="module")
def site(ligand: PreparedLigand) -> Site:
    return Site(ligand.ligand.crystal.mean(0), np.full(3, 20.0), "test")


def saved(folder: Path, latents: int, prior: bool) -> Path:
    torch.manual_seed(0)
    size = replace(networks.SIZE, latents=latents)
    model = networks.randomised(DockingModel(size, PointerPrior(size) if prior else None)).float()
    config = {"experiment": {"size": asdict(size)}}
    path = folder / f"m{latents}{prior}.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint("dock", config, model.state_dict()))
    return path


@pytest.fixture(scope="module", params=[(0, False), (2, False), (2, True)], ids=str)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> NetworkPoses:
    path = saved(tmp_path_factory.mktemp("model"), *request.param)
    model, _ = load_model(path, torch.device("cpu"))
    return NetworkPoses(model, steps=3, schedule="uniform")


def draw(source: NetworkPoses, *where: object, seed: int = 0) -> Pose:
    return source.poses(*where, 5, torch.Generator().manual_seed(seed))


def test_poses_are_repeatable_and_at_the_site(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
) -> None:
    first = draw(source, receptor, ligand, site)
    assert first.coords.shape == (5, len(ligand.types), 3)
    assert torch.equal(draw(source, receptor, ligand, site).coords, first.coords)
    assert not torch.equal(draw(source, receptor, ligand, site, seed=1).coords, first.coords)
    # a few noise levels (5 Å an axis at the start) from the centre
    away = (first.coords.mean(1) - torch.as_tensor(site.center)).norm(dim=1)
    assert away.max() < 40
    bonds = ligand.graph.bonds
    lengths = (first.coords[:, bonds[:, 0]] - first.coords[:, bonds[:, 1]]).norm(dim=-1)
    start = ligand.conformers[torch.arange(5) % 2]
    expected = (start[:, bonds[:, 0]] - start[:, bonds[:, 1]]).norm(dim=-1)
    torch.testing.assert_close(lengths, expected, rtol=0, atol=1e-3)


def test_guidance_lowers_the_energy(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
) -> None:
    steered = NetworkPoses(source.model, steps=10, schedule="uniform", guidance=2.0)
    plain = NetworkPoses(source.model, steps=10, schedule="uniform")
    energy = ligand.energy(receptor, site).softened(1.0).energy
    means = [
        energy(chosen.poses(receptor, ligand, site, 24, torch.Generator().manual_seed(0)).coords)
        for chosen in (steered, plain)
    ]
    assert means[0].mean() < means[1].mean()


def test_a_low_temperature_sharpens_the_steps_of_this_source_alone(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
) -> None:
    trained = source.model.process.bridge
    cold = NetworkPoses(source.model, steps=3, schedule="uniform", inverse_temperature=4.0)
    assert source.model.process.bridge is trained and source.process.bridge is trained
    assert set(cold.process.bridge) == {"tr", "rot", "tor"}
    plain = draw(source, receptor, ligand, site).coords
    assert not torch.allclose(draw(cold, receptor, ligand, site).coords, plain, atol=1e-2)
    # what judges poses is the model as it was trained
    pose = draw(source, receptor, ligand, site)
    judged = [each.losses(receptor, ligand, site, pose) for each in (source, cold)]
    assert torch.equal(*judged)


def test_guidance_on_latents_follows_them_away_from_the_hidden_ones(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
) -> None:
    if source.model.prior is None:
        with pytest.raises(InputError, match="draws no latents"):
            NetworkPoses(source.model, schedule="uniform", latent_guidance=1.0)
        return

    def guided(w: float) -> torch.Tensor:
        chosen = NetworkPoses(source.model, steps=3, schedule="uniform", latent_guidance=w)
        return draw(chosen, receptor, ligand, site).coords

    plain, minus, strong = guided(0.0), guided(-1.0), guided(1.0)
    assert torch.equal(plain, draw(source, receptor, ligand, site).coords)
    assert not torch.allclose(strong, plain, atol=1e-2)
    hidden = NetworkPoses(source.model, steps=3, schedule="uniform")
    drawn = hidden.draw
    hidden.draw = lambda *of: drawn(*of).hidden()  # type: ignore[method-assign,union-attr]
    # w = -1 is the unconditioned model
    unconditioned = draw(hidden, receptor, ligand, site).coords
    torch.testing.assert_close(minus, unconditioned, rtol=0, atol=1e-3)


def test_judgement_depends_on_the_pose_alone(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
) -> None:
    pose = draw(source, receptor, ligand, site)
    together = source.losses(receptor, ligand, site, pose)
    assert together.shape == (5, 3) and together.mean(1).unique().numel() == 5
    alone = source.losses(receptor, ligand, site, pose[2:3])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-4, atol=1e-5)


def test_schedules(tmp_path: Path) -> None:
    model, _ = load_model(saved(tmp_path, 0, False), torch.device("cpu"))
    with pytest.raises(InputError, match="no fitted time grid"):
        NetworkPoses(model)
    with pytest.raises(InputError, match="no schedule 'sideways'"):
        NetworkPoses(model, schedule="sideways")
    curve = Curve.from_costs([0.0, 0.5, 1.0], [1.0, 4.0], 2)
    times = NetworkPoses(model, curve, steps=6).times
    # roots of the costs: a third of the length below 0.5, two thirds above
    torch.testing.assert_close(times.float(), torch.tensor([1, 0.875, 0.75, 0.625, 0.5, 0.25, 0.0]))
    for name in ("uniform", "karras", "log_snr", "cosine"):
        times = NetworkPoses(model, steps=4, schedule=name).times
        assert times[0] == 1 and times[-1] == 0 and (times[1:] < times[:-1]).all()


def test_schedule_command_keeps_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BIO_DIFFUSION_DATA", str(DEMO.parent))
    path = saved(tmp_path, 2, True)
    fit = ["fit", "--model", str(path), "--probes", "1", "--intervals", "4", "--steps", "5"]
    assert schedule.main(fit) == 0
    printed = [float(t) for t in capsys.readouterr().out.splitlines()[0].split()]
    model, loaded = load_model(path, torch.device("cpu"))
    times = NetworkPoses(model, Curve.from_dict(loaded.grid), steps=5).times
    assert printed == pytest.approx(times.tolist(), abs=1e-4)
    assert schedule.main(["fit", "--model", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_network_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 0, False)
    loaded = checkpoint.load(path, "dock")
    for size in ({**loaded.config["experiment"]["size"], "scalars": 16}, {"breadth": 3}):
        changed = replace(loaded, config={"experiment": {"size": size}})
        checkpoint.save(path, changed)
        with pytest.raises(checkpoint.CheckpointError, match=f"^{path}: holds another network"):
            load_model(path, torch.device("cpu"))


def test_a_site_away_from_the_surface_still_sees_protein(
    source: NetworkPoses, receptor: PreparedReceptor, ligand: PreparedLigand
) -> None:
    away = receptor.graph.coords.amax(0).numpy() + 10.0
    given = source.complex(receptor, ligand, Site(away, np.full(3, 22.5), "test"))
    assert len(given.receptor.graph.residue_type) > 0
