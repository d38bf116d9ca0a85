"""`python -m bio_diffusion.schedule`, and grids that follow a training run."""

import json
from dataclasses import replace

import pytest
import torch

from bio_diffusion import checkpoint, grids, schedule
from bio_diffusion.config import ConfigError, compose
from bio_diffusion.diffusion.categorical import Absorbing
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.grids import Follower
from bio_diffusion.runs import Run


def trained(folder, *words):
    folder.mkdir()
    small = ["experiment.width=8", "experiment.batch=32", "experiment.samples=8", "device=cpu"]
    config = compose("train", ["experiment=toy/mixture", *small, *words])
    assert Run(config, folder)() == 0
    return folder / "model.safetensors"


@pytest.fixture
def model(tmp_path):
    return trained(tmp_path / "run", "fit.max_steps=2")


def run(*words):
    return schedule.main(list(map(str, words)))


def refused(capsys, *words):
    """The one line that a command ends with, status 2."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_every_named_length_is_known_to_some_process():
    generator = torch.Generator()
    processes = [GaussianDiffusion(EDM()), Absorbing(4)]
    for name in schedule.LENGTHS:
        found = 0
        for process in processes:
            try:
                found += len(grids.lengths_named(name, process, generator))
            except ValueError as error:
                assert name in str(error)
        assert found


def test_a_model_in_half_precision_stays_so(model, tmp_path):
    small, grid, out = (tmp_path / name for name in ("small", "grid.json", "out"))
    checkpoint.export(model, small)
    grid.write_text('{"knots": [1, 0.5, 0]}')
    assert run("set", "--grid", grid, "--model", small, "--out", out) == 0
    assert checkpoint.header(out)["dtypes"] == checkpoint.header(small)["dtypes"] != {}
    kept, former = (checkpoint.load(file, "toy").best for file in (out, small))
    assert all(torch.equal(kept[name], former[name]) for name in former)


def test_fit_keeps_the_curve_and_show_prints_it(model, capsys):
    words = ["--model", model, "--steps", 5]
    assert run("fit", *words, "--length", "mixture", "--probes", 64, "--intervals", 12) == 0
    printed = capsys.readouterr().out.splitlines()[0]
    assert run("show", *words) == 0
    told, knots = capsys.readouterr().out.splitlines()
    assert told.startswith("length mixture") and knots == printed
    assert grids.kept(checkpoint.load(model, "toy")).total == pytest.approx(1)


def test_a_grid_travels_in_a_file_of_its_own(model, tmp_path, capsys):
    grid, other = tmp_path / "grid.json", tmp_path / "other.safetensors"
    run("fit", "--model", model, "--length", "heun", "--probes", 64, "--save", grid, "--out", other)
    assert run("set", "--model", model, "--grid", grid) == 0
    assert checkpoint.load(model, "toy").grid == checkpoint.load(other, "toy").grid
    grid.write_text(json.dumps({"knots": [1, 0.5, 0.2, 0]}))
    assert run("set", "--model", model, "--grid", grid) == 0
    capsys.readouterr()
    run("show", "--model", model, "--steps", 3)
    assert capsys.readouterr().out.splitlines()[1] == "1.0000 0.5000 0.2000 0.0000"


def test_bad_grids_are_refused_in_one_line(model, tmp_path, capsys):
    grid, other = tmp_path / "grid.json", tmp_path / "other.safetensors"
    words = ["set", "--model", model, "--grid", grid]
    assert "no such file" in refused(capsys, *words)
    assert "holds no time grid" in refused(capsys, "show", "--model", model)
    for text, why in [
        ("{", "want JSON"),
        ("[1, 0]", "want JSON"),
        ('{"knots": [1, 0.2, 0.5, 0]}', "0.5 follows 0.2"),
        ('{"knots": [1, 0.5]}', "from 1 to 0"),
        ('{"knots": [1, null, 0]}', "numbers"),
        ('{"knots": 3}', "numbers"),
        ('{"knots": "abc"}', "numbers"),
        ('{"times": [0, 0.5], "lengths": [0, 1]}', "end there"),
        ('{"times": [0, 0.5, 1], "lengths": [1, 2, 3]}', "begin with 0"),
        ('{"times": [0, 1]}', "lengths"),
        ('{"times": [0, 0.5, 0.4], "lengths": [0, 1, 2]}', "rise strictly"),
        ('{"times": [0, 0.5, 1.5], "lengths": [0, 1, 2]}', "between 0 and 1"),
    ]:
        grid.write_text(text)
        line = refused(capsys, *words)
        assert str(grid) in line and why in line
    loaded = checkpoint.load(model, "toy")
    shifted = {name: tensor + 1 for name, tensor in loaded.best.items()}
    checkpoint.save(other, replace(loaded, weights=shifted, ema=None))
    run("fit", "--model", other, "--length", "velocity", "--probes", 64, "--save", grid)
    capsys.readouterr()
    assert "another model" in refused(capsys, *words)
    assert "does not suit" in refused(capsys, "fit", "--model", model, "--length", "path")


def test_a_model_whose_grid_is_none_says_so(model, capsys):
    loaded = checkpoint.load(model, "toy")
    bad = {"times": [0.0, 0.9, 0.4, 1.0], "lengths": [0.0, 1.0, 2.0, 3.0]}
    checkpoint.save(model, replace(loaded, grid=bad))
    assert "time grid in the toy checkpoint" in refused(capsys, "show", "--model", model)


def test_missing_data_are_told_as_such(model, capsys, monkeypatch):
    def gone(*_):
        raise FileNotFoundError("gone.npz: not here; name it")

    monkeypatch.setattr("bio_diffusion.toy.schedule_probe", gone)
    assert refused(capsys, "fit", "--model", model) == "gone.npz: not here; name it"


@pytest.mark.parametrize("length", ["velocity", "entropic"])
def test_a_grid_follows_a_run_and_survives_resuming(tmp_path, length, monkeypatch):
    monkeypatch.setattr(grids.Follower.__init__, "__defaults__", (4,))  # intervals: every step
    words, steps = [f"fit.grid={length}"], 40  # each interval must have been seen eight times
    whole = trained(tmp_path / "whole", *words, f"fit.max_steps={steps}")
    trained(tmp_path / "broken", *words, f"fit.max_steps={steps - 15}")
    config = json.loads(json.dumps(compose("train", [
        "experiment=toy/mixture", "experiment.width=8", "experiment.batch=32",
        "experiment.samples=8", "device=cpu", *words, f"fit.max_steps={steps}",
    ])))  # fmt: skip
    assert Run(config, tmp_path / "broken", resume=True)() == 0
    found = [
        checkpoint.load(path, "toy") for path in (whole, tmp_path / "broken/model.safetensors")
    ]
    assert found[0].grid is not None and found[0].grid == found[1].grid
    assert found[0].info["grid"] == {"length": length}


@pytest.mark.parametrize("length", ["velocity", "entropic"])
def test_a_run_may_train_at_the_times_of_its_grid(tmp_path, length, monkeypatch):
    monkeypatch.setattr(grids.Follower.__init__, "__defaults__", (4,))
    config = compose("train", [
        "experiment=toy/mixture", "experiment.width=8", "experiment.batch=32", "device=cpu",
        "experiment.samples=8", f"fit.grid={length}", "fit.times=grid", "fit.max_steps=40",
    ])  # fmt: skip
    seen, plain = [], Follower.after

    def after(self, step):
        seen.append((self.curve, step.t))
        plain(self, step)

    monkeypatch.setattr(Follower, "after", after)
    assert Run(config, tmp_path)() == 0
    curve, t = seen[-1]
    assert curve is not None
    cells = torch.bucketize(t.double(), curve.knots(16).flip(0))  # stratified draws: 2 a step
    assert torch.bincount(cells, minlength=18)[1:17].tolist() == [2] * 16
    for bad, said in (
        (["fit.times=even"], "must be grid"),
        (["fit.times=grid", "fit.grid=null"], "needs the grid's length"),
    ):
        with pytest.raises(ConfigError, match=said):
            Run(compose("train", ["experiment=toy/mixture", "device=cpu", *bad]), tmp_path)


def test_a_short_run_is_measured_oftener(tmp_path):
    config = compose("train", ["experiment=toy/mixture", "fit.grid=velocity", "device=cpu"])
    every = {}
    for steps in (100, 1280, 10**5):
        follower = Run({**config, "fit": {**config["fit"], "max_steps": steps}}, tmp_path).grid
        every[steps] = follower.every
    assert every == {100: 1, 1280: 2, 10**5: 10}


def test_too_few_steps_for_a_grid_are_told(tmp_path, caplog):
    file = trained(tmp_path / "run", "fit.max_steps=2", "fit.grid=velocity")
    assert checkpoint.load(file, "toy").grid is None
    assert "too few steps for a time grid" in caplog.text


def test_a_run_refuses_lengths_that_it_cannot_follow(tmp_path):
    for name in ("path", "mixture"):
        config = compose("train", ["experiment=toy/mixture", f"fit.grid={name}", "device=cpu"])
        with pytest.raises(ConfigError, match=f"fit.grid={name}"):
            Run(config, tmp_path)
