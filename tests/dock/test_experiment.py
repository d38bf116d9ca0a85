"""Training on a tiny set: the loss falls, latents are used, and the prior learns to guess them."""

import itertools
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bio_diffusion import checkpoint
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.training import fit
from bio_diffusion.dock.dataset import Example, write_compact
from bio_diffusion.dock.experiment import Docking, find_data, open_set
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.prepare import rotatable_bonds
from bio_diffusion.dock.prior import PointerPriorFit
from bio_diffusion.dock.trunk import Complex
from bio_diffusion.files import InputError
from tests.dock import networks

SIZE = asdict(replace(networks.SIZE, latents=2))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three complexes whose ligands sit in the middle of their receptors."""
    examples = []
    for seed in range(3):
        graph, receptor = networks.ligand(7, seed), networks.receptor(12, seed)
        pose = networks.poses(graph, 1, seed).coords[0]
        pose = pose - pose.mean(0) + receptor.coords.mean(0)
        examples.append(
            Example(
                id=f"c{seed}",
                receptor=receptor,
                ligand=graph,
                rotatable=rotatable_bonds(graph),
                crystal=pose,
                conformers=pose[None],
            )
        )
    path = tmp_path_factory.mktemp("set") / "tiny.safetensors"
    write_compact(path, examples)
    return path


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Docking, list[float]]:
    torch.manual_seed(0)
    experiment = Docking(CPU, str(data), str(data), poses=6, lr=3e-3, size=SIZE)
    steps = fit(
        experiment.process,
        experiment.denoiser,
        experiment.batches(0, 0, 1),
        experiment.optimizer,
        condition=experiment.condition,
        quantile=experiment.quantile,
    )
    return experiment, [next(steps).loss for _ in range(120)]


def test_loss_falls(trained: tuple[Docking, list[float]]) -> None:
    _, losses = trained
    # a network that says nothing has loss 1 in expectation
    assert sum(losses[-30:]) / 30 < 0.85 * sum(losses[:10]) / 10


def test_evaluation_names_its_figures(trained: tuple[Docking, list[float]]) -> None:
    experiment, _ = trained
    with torch.no_grad():
        figures = experiment.evaluate()
        assert figures == experiment.evaluate()  # the same noise every time
    for name in ("oracle", "shuffled", "null"):
        thirds = [figures[f"{name}_t{i}"] for i in range(3)]
        assert min(thirds) <= figures[name] <= max(thirds)
    kinds = torch.cat([e.receptor.residue_type for e in experiment._val.examples]).unique()
    for latent, most in ((0, len(kinds)), (1, len(kinds) + 1)):  # the second may point to atoms
        assert 0 <= figures[f"certainty_{latent}"] <= 1
        # seven poses of each complex
        assert -1e-9 <= figures[f"information_{latent}"] <= math.log(7)
        assert 1 <= figures[f"kinds_{latent}"] <= most + 1e-6


def test_information_counts_the_poses_that_an_encoder_tells_apart(
    trained: tuple[Docking, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, _ = trained
    calls = itertools.count()

    def one_code_a_pose(given: Complex, pose: Pose) -> torch.Tensor:
        residues, atoms = len(given.receptor.graph.residue_type), pose.coords.shape[1]
        logits = torch.full((2, residues + atoms), -50.0)
        logits[0, next(calls) % 7] = 50.0  # another residue for each of seven poses
        logits[1, 0] = 50.0  # always the same one
        return logits

    monkeypatch.setattr(experiment.model.encoder, "forward", one_code_a_pose)
    example = experiment._val.examples[0]
    pose, pocket = experiment._val.pocket(example, np.random.default_rng(0))
    with torch.no_grad():
        given = experiment.denoiser.encode(*pocket)
        certainty, information, kinds = experiment._pointers(given, pose, pose)
    torch.testing.assert_close(information, torch.tensor([math.log(7), 0.0]).double())
    torch.testing.assert_close(certainty, torch.ones(2).double())
    first = int(example.receptor.residue_type[0])
    torch.testing.assert_close(kinds[:, first], torch.ones(2).double())


def test_prior_learns_the_encoders_pointers(
    trained: tuple[Docking, list[float]], data: Path, tmp_path: Path
) -> None:
    experiment, _ = trained
    with torch.no_grad():  # an encoder that has made up its mind
        for readout in (experiment.model.encoder.residue, experiment.model.encoder.atom):
            readout[-1].weight.normal_(0, 20.0, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.safetensors"
    config = {"experiment": {"size": SIZE}}
    checkpoint.save(path, checkpoint.Checkpoint("dock", config, experiment.module.state_dict()))
    prior = PointerPriorFit(CPU, str(path), str(data), str(data), SIZE, lr=3e-3)
    before = {k: v.clone() for k, v in prior.model.score.state_dict().items()}
    with torch.no_grad():
        first = prior.evaluate()
    steps = fit(
        prior.process,
        prior.denoiser,
        prior.batches(0, 0, 1),
        prior.optimizer,
        condition=prior.condition,
    )
    for _ in range(150):
        next(steps)
    with torch.no_grad():
        last = prior.evaluate()
    for where in ("pocket", "all"):
        # cross-entropy can not pass below the entropy of what it imitates
        assert last[f"{where}_nll_0"] > last[f"{where}_entropy_0"] - 1e-4
        gap = first[f"{where}_nll_0"] - first[f"{where}_entropy_0"]
        assert last[f"{where}_nll_0"] - last[f"{where}_entropy_0"] < 0.7 * gap
    for name, value in prior.model.score.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was trained with the prior"


def test_prior_needs_a_model_with_latents_of_its_size(data: Path, tmp_path: Path) -> None:
    plain = asdict(networks.SIZE)
    experiment = Docking(CPU, str(data), str(data), size=plain)
    path = tmp_path / "plain.safetensors"
    config = {"experiment": {"size": plain}}
    checkpoint.save(path, checkpoint.Checkpoint("dock", config, experiment.module.state_dict()))
    with pytest.raises(ConfigError, match="size differs"):
        PointerPriorFit(CPU, str(path), str(data), str(data), SIZE)
    with pytest.raises(ConfigError, match="no latents"):
        PointerPriorFit(CPU, str(path), str(data), str(data), plain)


def test_a_run_begins_with_a_trained_models_weights_but_its_prior(
    trained: tuple[Docking, list[float]], data: Path, tmp_path: Path
) -> None:
    experiment, _ = trained
    weights = experiment.module.state_dict()
    config = {"experiment": {"size": SIZE}}
    prior = {"prior.x": torch.zeros(1)}
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint("dock", config, weights | prior))
    begun = Docking(CPU, str(data), str(data), begin=str(path), size=SIZE)
    assert all(torch.equal(x, weights[name]) for name, x in begun.module.state_dict().items())
    with pytest.raises(ConfigError, match="size differs from that of"):
        Docking(CPU, str(data), str(data), begin=str(path), size=SIZE | {"hidden": 3})


def test_a_second_set_and_shaken_receptors_are_learned_from(data: Path) -> None:
    plain = Docking(CPU, str(data), str(data), size=SIZE)
    made = Docking(CPU, str(data), str(data), more=str(data), shake=0.3, size=SIZE)
    assert len(made._train.examples) == 2 * len(plain._train.examples)
    example = plain._train.examples[0]
    draws = [
        experiment._train.pocket(example, np.random.default_rng(0)) for experiment in (plain, made)
    ]
    (still, (own, _)), (_, (other, _)) = draws
    assert torch.equal(still.coords, draws[1][0].coords)
    assert float((own.residue_coords.mean(0) - other.residue_coords.mean(0)).norm()) > 0
    evaluated = [e._val.pocket(example, np.random.default_rng(0))[1][0] for e in (plain, made)]
    assert torch.equal(evaluated[0].coords, evaluated[1].coords)  # held-out ones stand still
    with pytest.raises(InputError, match="shake is -1"):
        Docking(CPU, str(data), str(data), shake=-1.0, size=SIZE)


def test_missing_data_names_the_places() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: not here, in data/"):
        find_data("nowhere.safetensors")


def test_a_folder_trains_like_a_compact_set(tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "data" / "demo"
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file in ("protein.pdb", "ligand.sdf"):
            shutil.copy(demo / file, tmp_path / "mine" / name / file)
    (tmp_path / "mine" / "manifest.csv").write_text("id,split\na,train\nb,val\n")
    assert [e.id for e in open_set(str(tmp_path / "mine"), "train")] == ["a"]
    assert [e.id for e in open_set(str(tmp_path / "mine"), "val")] == ["b"]
    kept = tmp_path / "mine.train.safetensors"
    written = kept.stat().st_mtime_ns
    assert len(open_set(str(tmp_path / "mine"), "train")) == 1
    assert kept.stat().st_mtime_ns == written  # prepared once


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no complex in it could be prepared"):
        open_set(str(tmp_path / "mine"), "train")
