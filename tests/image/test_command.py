"""`python -m bio_diffusion.image` from end to end on a model of a few weights."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from bio_diffusion import checkpoint
from bio_diffusion.image.__main__ import main
from bio_diffusion.image.fits import CodePriorFit
from bio_diffusion.image.inception import FEATURES, Inception
from bio_diffusion.image.model import ImageModel
from bio_diffusion.image.pipeline import ImageSampler, load_classifier
from bio_diffusion.schedule import main as schedule_main
from tests.image.test_inception import closed_form
from tests.image.test_model import LATENTS, SMALL, noisy


def settings(data, process="gaussian", **more):
    found = {"data": data, "shape": [1, 8, 8], "process": process, "levels": 8, "network": SMALL}
    return {**found, "latents": None, **more}


def save(path, given):
    model = noisy(
        ImageModel(
            given["shape"], given["process"], given["levels"], SMALL, given["latents"],
            given.get("prior"),
        )
    )  # fmt: skip
    checkpoint.save(path, checkpoint.Checkpoint("image", {"experiment": given}, model.state_dict()))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set and a model of each kind."""
    path = tmp_path_factory.mktemp("image")
    array = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path / "set.npz", x_train=array[:40], x_val=array[40:50], x_test=array[50:])
    data = str(path / "set.npz")
    save(path / "gaussian.safetensors", settings(data))
    save(path / "uniform.safetensors", settings(data, "uniform"))
    save(path / "absorbing.safetensors", settings(data, "absorbing"))
    save(path / "malda.safetensors", settings(data, "malda"))
    save(path / "disco.safetensors", settings(data, latents=LATENTS, prior={"width": 8}))
    save(path / "unfinished.safetensors", settings(data, latents=LATENTS))
    return path


def draw(folder, out, *words, model="gaussian", verb="sample"):
    return main(
        [verb, "--model", str(folder / f"{model}.safetensors"), "--out", str(out), "--steps", "2",
         "--device", "cpu", *words]
    )  # fmt: skip


def told(out):
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("model", ["gaussian", "uniform", "absorbing", "malda", "disco"])
def test_sample_writes_pictures_a_grid_and_a_summary(folder, tmp_path, model):
    assert draw(folder, tmp_path / "out", "--n", "5", model=model) == 0
    found = np.load(tmp_path / "out" / "samples.npy")
    assert found.shape == (5, 8, 8) and found.dtype == np.uint8
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        sheet = np.asarray(grid)
    assert sheet.shape == (2 * 10 + 2, 3 * 10 + 2)
    assert np.array_equal(sheet[2:10, 12:20], found[1])
    summary = told(tmp_path / "out")
    assert summary["status"] == "complete" and summary["counts"] == {"asked": 5, "given": 5}
    assert summary["steps"] == 2 and {"bits_per_dim", "frechet_distance"} <= summary.keys()
    assert summary["network_calls"] == (3 if model in ("gaussian", "disco") else 2)
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "steps: 2" in config and "schedule: " in config


@pytest.mark.parametrize("sampler", ["ancestral", "flow", "sscs", "em"])
def test_multivariate_models_are_drawn_from_and_fitted_a_grid(folder, tmp_path, sampler):
    model = str(folder / "malda.safetensors")
    fitted = str(tmp_path / "malda.safetensors")
    words = ["--probes", "2", "--intervals", "4", "--out", fitted]
    assert schedule_main(["fit", "--model", model, *words]) == 0
    words = ["--n", "3", "--sampler", sampler]
    assert draw(tmp_path, tmp_path / "out", *words, model="malda") == 0
    assert "schedule: adaptive" in (tmp_path / "out" / "config.yaml").read_text()
    assert draw(folder, tmp_path / "other", "--n", "3", "--sampler", "heun", model="malda") == 2


def test_the_same_seed_gives_the_same_bytes_whatever_n(folder, tmp_path):
    assert draw(folder, tmp_path / "a", "--n", "35") == 0
    assert draw(folder, tmp_path / "b", "--n", "35") == 0
    assert draw(folder, tmp_path / "c", "--n", "3") == 0
    assert draw(folder, tmp_path / "d", "--n", "3", "--seed", "1") == 0
    for name in ("samples.npy", "grid.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, c, d = (np.load(tmp_path / name / "samples.npy") for name in "acd")
    assert np.array_equal(a[:3], c) and not np.array_equal(c, d)


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    real, out = ImageSampler.draw, tmp_path / "out"

    def broken(self, n, **given):
        batches = real(self, n, **given)
        yield next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageSampler, "draw", broken)
    assert draw(folder, out, "--n", "70") == 130
    assert len(np.load(out / "samples.npy")) == 32 and told(out)["status"] == "interrupted"
    monkeypatch.setattr(ImageSampler, "draw", real)
    assert draw(folder, out, "--n", "70") == 2
    assert draw(folder, out, "--n", "70", "--seed", "3", "--resume") == 2
    with (out / ".journal").open("ab") as journal:
        journal.write(b"cut by a kill")
    assert draw(folder, out, "--n", "70", "--resume") == 0
    assert draw(folder, tmp_path / "whole", "--n", "70") == 0
    assert (out / "samples.npy").read_bytes() == (tmp_path / "whole" / "samples.npy").read_bytes()
    assert draw(folder, out, "--n", "2", "--seed", "3", "--overwrite") == 0
    assert len(np.load(out / "samples.npy")) == 2


@pytest.mark.parametrize("model", ["gaussian", "uniform", "disco"])
def test_evaluate_measures_bits_and_says_why_no_distance(folder, tmp_path, model):
    words = ("--n", "4", "--bits-n", "4")
    assert draw(folder, tmp_path / "out", *words, model=model, verb="evaluate") == 0
    summary = told(tmp_path / "out")
    assert summary["bits_per_dim"] > 0 and summary["bits_per_dim_se"] > 0
    assert summary["frechet_distance"] is None and "taught mnist.npz" in summary["notes"][0]


def test_evaluate_goes_on_with_pictures_that_were_sampled(folder, tmp_path):
    assert draw(folder, tmp_path / "out", "--n", "4") == 0
    before = (tmp_path / "out" / "samples.npy").read_bytes()
    words = ("--n", "4", "--bits-n", "2", "--resume")
    assert draw(folder, tmp_path / "out", *words, verb="evaluate") == 0
    assert (tmp_path / "out" / "samples.npy").read_bytes() == before
    assert told(tmp_path / "out")["bits_per_dim"] > 0


def test_evaluate_measures_the_distance_where_there_is_a_classifier(folder, tmp_path):
    words = ("--n", "4", "--bits-n", "2", "--classifier", "mnist_classifier")
    assert draw(folder, tmp_path / "out", *words, verb="evaluate") == 0
    summary = told(tmp_path / "out")
    assert summary["frechet_distance"] > 0 and summary["notes"] == []
    assert summary["classifier_sure"] <= 1 and summary["classifier_sure_of_held_out"] <= 1
    assert summary["frechet_distance_of_training_pictures"] > 0


@pytest.fixture(scope="module")
def inception(folder):
    """Weights of Inception by a formula, and statistics."""
    with torch.device("meta"):
        like = Inception().state_dict()
    torch.save(closed_form(like), folder / "inception.pth")
    np.savez(folder / "reference.npz", mu=np.ones(FEATURES), sigma=np.eye(FEATURES))
    return folder


def test_evaluate_measures_the_fid_for_who_has_the_weights(inception, tmp_path):
    words = ("--n", "2", "--bits-n", "2", "--inception", str(inception / "inception.pth"))
    words += ("--fid-reference", str(inception / "reference.npz"))
    assert draw(inception, tmp_path / "out", *words, verb="evaluate") == 0
    summary = told(tmp_path / "out")
    assert summary["fid"] > 0 and summary["fid_of_training_pictures"] > 0
    assert summary["frechet_distance"] is None  # the classifier that ships knows digits alone
    assert summary["inception"]["reference"].endswith("reference.npz")
    assert len(summary["notes"]) == 2 and "6726825d" in summary["notes"][0]


def test_the_fid_is_refused_without_its_weights(inception, tmp_path, capsys):
    reference = str(inception / "reference.npz")
    for words, said in (
        (("--fid-reference", reference), "needs --inception"),
        (("--inception", reference), "no readable weights"),
        (("--inception", str(inception / "none.pth")), "no such file"),
    ):
        assert draw(inception, tmp_path / "out", *words, verb="evaluate") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "model", "said"),
    [
        (("--n", "0"), "gaussian", "n is 0"),
        (("--guidance", "1", "--sampler", "euler"), "gaussian", "no latents"),
        (("--guidance", "1"), "disco", "not with heun"),
        (("--schedule", "adaptive"), "gaussian", "no time grid"),
        (("--schedule", "karras"), "uniform", "no grid 'karras'"),
        (("--schedule", "adaptve"), "gaussian", "no grid 'adaptve'"),
        (("--schedule", __file__), "gaussian", "is no grid"),
        (("--sampler", "heun"), "uniform", "no sampler 'heun'"),
        ((), "unfinished", "no prior yet"),
        ((), "nothing", "no model is called"),
        ((), "set", "no model is called"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    folder, tmp_path, capsys, words, model, said
):
    assert draw(folder, tmp_path / "out", *words, model=model) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_shape_are_refused(folder, tmp_path, capsys):
    assert draw(folder, tmp_path / "out", "--data", "mnist.npz", verb="evaluate") == 2
    assert "[1, 28, 28]" in capsys.readouterr().err


def test_guidance_moves_pictures(folder, tmp_path):
    words = ("--n", "2", "--sampler", "euler")
    assert draw(folder, tmp_path / "a", *words, model="disco") == 0
    assert draw(folder, tmp_path / "b", *words, "--guidance", "2", model="disco") == 0
    a, b = (np.load(tmp_path / name / "samples.npy") for name in "ab")
    assert not np.array_equal(a, b) and told(tmp_path / "b")["network_calls"] == 4


@pytest.mark.parametrize("model", ["gaussian", "uniform", "disco"])
def test_a_grid_can_be_fitted_and_is_then_used(folder, tmp_path, model):
    words = ["fit", "--model", str(folder / f"{model}.safetensors"), "--steps", "3"]
    words += ["--out", str(tmp_path / "fitted.safetensors"), "--probes", "4", "--intervals", "6"]
    assert schedule_main(words) == 0
    assert draw(tmp_path, tmp_path / "out", "--n", "1", model="fitted") == 0
    assert told(tmp_path / "out")["settings"]["schedule"] == "adaptive"


def test_a_grid_in_a_file_serves_its_model_and_no_other(folder, tmp_path, capsys):
    saved = tmp_path / "grid.json"
    words = ["fit", "--model", str(folder / "gaussian.safetensors"), "--save", str(saved)]
    words += ["--out", str(tmp_path / "fitted.safetensors"), "--probes", "4", "--intervals", "6"]
    assert schedule_main(words) == 0
    shared = ("--n", "1", "--steps", "3")
    named = ("--schedule", str(saved))
    assert draw(folder, tmp_path / "file", *shared, *named) == 0
    assert draw(tmp_path, tmp_path / "kept", *shared, model="fitted") == 0
    a, b = (np.load(tmp_path / name / "samples.npy") for name in ("file", "kept"))
    np.testing.assert_array_equal(a, b)
    capsys.readouterr()
    assert draw(folder, tmp_path / "other", *shared, *named, model="disco") == 2
    assert "another model" in capsys.readouterr().err
    saved.write_text('{"knots": [1, 0.5, 0]}')
    assert draw(folder, tmp_path / "file", "--resume", *shared, *named) == 2
    assert "another time grid" in capsys.readouterr().err


def test_a_prior_is_fitted_to_a_frozen_model(folder, tmp_path):
    given = settings(str(folder / "set.npz"), latents=LATENTS)
    words = {k: given[k] for k in ("data", "shape", "process", "levels", "network", "latents")}
    model = str(folder / "unfinished.safetensors")
    fit = CodePriorFit(torch.device("cpu"), model, **words, prior={"width": 8}, batch=16)
    before = {k: v.clone() for k, v in fit.module.state_dict().items()}
    first, cond = next(fit.batches(0, 0, 1))
    generator = torch.Generator().manual_seed(0)
    loss = fit.denoiser(first, torch.rand(16), fit.condition(first, cond, generator))
    torch.testing.assert_close(loss, torch.full((16,), 4 * np.log(3)).float())  # even at first
    loss.mean().backward()
    fit.optimizer.step()
    changed = {k for k, v in fit.module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(name.startswith("prior.") for name in changed)
    with torch.no_grad():
        figures = fit.evaluate()
    assert figures["entropy"] <= figures["nll"] and figures["log_k"] == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="experiment.levels differs"):
        CodePriorFit(torch.device("cpu"), model, **{**words, "levels": 4})


def test_logging_is_put_back(folder, tmp_path):
    logger = logging.getLogger("bio_diffusion.image")
    before = list(logger.handlers)
    draw(folder, tmp_path / "out", "--n", "1", "--quiet", "--log-file", str(tmp_path / "log"))
    assert logger.handlers == before and (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["mnist", "mnist_disco"])
def test_shipped_models_draw_digits_that_the_classifier_is_sure_of(name):
    """Of 32 digits in 6 steps of Heun more than half are called one digit with chance 0.9."""
    sampler = ImageSampler.load(name, "cpu")
    classifier, _, _ = load_classifier("mnist_classifier", torch.device("cpu"))
    pixels = next(sampler.draw(32, times=sampler.times(6)))
    assert pixels.shape == (32, 1, 28, 28)
    assert classifier.sure(classifier.describe(pixels)) > 0.5
