"""The experiments of the track: they learn, evaluate, and are what the configurations say."""

import json

import numpy as np
import pytest
import torch

from bio_diffusion.config import ConfigError, build, choices, compose
from bio_diffusion.diffusion.training import fit
from bio_diffusion.image.experiment import Images
from bio_diffusion.image.fits import ClassifierFit
from bio_diffusion.train import main
from tests.image.test_model import LATENTS, SMALL

NAMES = [name for name in choices("experiment") if name.startswith("image/")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Light squares in one of two corners, labelled."""
    path = tmp_path_factory.mktemp("data") / "set.npz"
    y = np.arange(120) % 2
    x = np.zeros((120, 8, 8), np.uint8)
    x[y == 0, :4, :4] = 250
    x[y == 1, 4:, 4:] = 250
    parts = {"train": slice(100), "val": slice(100, 120)}
    arrays = {f"{k}_{s}": v[p] for s, p in parts.items() for k, v in (("x", x), ("y", y))}
    np.savez(path, **arrays)
    return str(path)


def losses(experiment, steps):
    running = fit(
        experiment.process, experiment.denoiser, experiment.batches(0, 0, 1), experiment.optimizer,
        condition=experiment.condition, quantile=experiment.quantile,
    )  # fmt: skip
    return [next(running).loss for _ in range(steps)]


@pytest.mark.parametrize("process", ["gaussian", "uniform", "absorbing"])
@pytest.mark.parametrize("latents", [None, LATENTS])
def test_models_learn_and_evaluate(data, process, latents):
    torch.manual_seed(0)
    experiment = Images(
        torch.device("cpu"), data, [1, 8, 8], process, 4, SMALL, latents, batch=16, lr=5e-3,
        noise=(0.0, 1.0), bonus=0.01,
    )  # fmt: skip
    seen = losses(experiment, 30)
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])
    with torch.no_grad():
        figures = experiment.evaluate()
    wanted = {"oracle", "shuffled", "null", "information"} if latents else {"loss"}
    assert wanted <= figures.keys() and all(np.isfinite(list(figures.values())))


def test_an_unknown_process_is_refused_by_its_setting(data):
    with pytest.raises(ConfigError, match=r"experiment.process is 'clx'.*malda"):
        Images(torch.device("cpu"), data, [1, 8, 8], "clx")


def test_a_multivariate_process_is_learned_with_its_network(data):
    torch.manual_seed(0)
    experiment = Images(
        torch.device("cpu"), data, [1, 8, 8], "learned-2", 4, SMALL, batch=16, lr=5e-3
    )
    before = experiment.process.recipe.Q.detach().clone()
    seen = losses(experiment, 40)
    assert sum(seen[-10:]) < sum(seen[:10])
    assert not torch.equal(experiment.process.recipe.Q, before)
    with torch.no_grad():
        assert np.isfinite(experiment.evaluate()["loss"])


def test_the_classifier_learns(data):
    torch.manual_seed(0)
    experiment = ClassifierFit(torch.device("cpu"), data, features=8, batch=16, lr=5e-3)
    losses(experiment, 15)
    experiment.module.eval()
    with torch.no_grad():
        assert experiment.evaluate()["accuracy"] > 0.9


def test_batches_follow_from_their_number(data):
    experiment = Images(torch.device("cpu"), data, [1, 8, 8], network=SMALL, batch=4, flip=True)
    walk = experiment.batches(0, 0, 1)
    skipped = [next(walk) for _ in range(3)][-1]
    assert torch.equal(skipped[0], next(experiment.batches(2, 0, 1))[0])
    assert not torch.equal(skipped[0], next(experiment.batches(2, 1, 2))[0])


@pytest.mark.parametrize("name", NAMES)
def test_shipped_settings_build(name):
    """Every shipped configuration names what exists; those of sets that do not ship say so."""
    config = compose("train", [f"experiment={name}"])
    with torch.device("meta"):
        if name.endswith("_prior"):
            disco = compose("train", [f"experiment={name.removesuffix('prior')}disco"])
            for key in ("data", "shape", "network", "latents", "sigma_data"):
                assert config["experiment"].get(key) == disco["experiment"].get(key)
        elif config["experiment"]["data"] != "mnist.npz":
            with pytest.raises(FileNotFoundError):
                build("experiment", config["experiment"], device=torch.device("meta"))


def test_a_run_trains_saves_and_goes_on(data, tmp_path):
    words = [
        "experiment=image/mnist", f"experiment.data={data}", "experiment.shape=[1,8,8]",
        "experiment.network.widths=[8,16]", "experiment.batch=8", "fit.max_steps=4",
        f"run={tmp_path / 'run'}", "device=cpu",
    ]  # fmt: skip
    assert main(words) == 0
    assert main(["--resume", str(tmp_path / "run"), "fit.max_steps=6"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["fit"]["max_steps"] == 6


def test_another_shape_is_refused(data, tmp_path, capsys):
    words = ["experiment=image/mnist", f"experiment.data={data}", f"run={tmp_path / 'run'}"]
    assert main(words) == 2
    assert "[1, 8, 8]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word, said",
    [
        ("experiment.batch=0", "experiment.batch is 0"),
        ("experiment.noise=[1]", "experiment.noise is [1]"),
        ("experiment.network.patch=3", "patches of 3"),
        ("experiment.network.attention=[4]", "attention names level 4"),
    ],
)
def test_a_setting_that_cannot_be_used_is_status_2(data, tmp_path, capsys, word, said):
    words = ["experiment=image/mnist", f"experiment.data={data}", "experiment.shape=[1,8,8]"]
    assert main([*words, word, f"run={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]


def test_two_held_out_pictures_are_enough(data, tmp_path):
    with np.load(data) as found:
        np.savez(tmp_path / "few.npz", **{k: v[:2] if "val" in k else v for k, v in found.items()})
    settings = [1, 8, 8], "gaussian", 4, SMALL
    experiment = Images(torch.device("cpu"), str(tmp_path / "few.npz"), *settings, batch=4)
    with torch.no_grad():
        assert np.isfinite(list(experiment.evaluate().values())).all()
