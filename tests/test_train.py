"""Training runs: they go on bit for bit, agree across processes, stop in good order."""

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bio_diffusion import checkpoint, toy
from bio_diffusion.config import compose, override
from bio_diffusion.runs import Run, Table, rate
from bio_diffusion.train import main

ROOT = Path(__file__).parents[1]
SMALL = ["experiment.width=16", "experiment.batch=32", "fit.max_steps=24", "fit.log_every=5"]


@pytest.fixture
def settings(tmp_path):
    """Settings of a short run, plain data."""
    words = ["experiment=toy/mixture", *SMALL, f"run={tmp_path / 'run'}", "device=cpu"]
    return compose("train", words)


@pytest.fixture(autouse=True)
def quick_evaluation(monkeypatch):
    monkeypatch.setattr(toy.Mixture, "evaluate", lambda self: {"figure": 1.0})


def run(config, folder) -> int:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return Run(config, folder)()


def model(folder) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / "model.safetensors", "toy")


def rows(folder) -> list[dict[str, str]]:
    """The log without its clock."""
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_equal_runs(left, right):
    for part in ("weights", "ema"):
        one, two = getattr(model(left), part), getattr(model(right), part)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), part
    (_, one), (_, two) = checkpoint.load_state(left), checkpoint.load_state(right)
    for number, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(v, two["optimizer"]["state"][number][k]) for k, v in moments.items())
    assert rows(left) == rows(right)


def test_a_killed_run_goes_on_bit_for_bit(settings, tmp_path):
    """kill -9 amid a run that saves at every step, the newest state cut short as well."""
    config = override(settings, ["fit.warmup=6", "fit.final_rate=0.1", "fit.accumulate=2"])
    assert run(config, tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    words = override(config, ["fit.save_minutes=0", "fit.max_steps=1000000"])
    broken.mkdir()
    (tmp_path / "broken.json").write_text(json.dumps(words | {"run": str(broken)}))
    command = ["-m", "bio_diffusion.train", "--config", str(tmp_path / "broken.json")]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not list(broken.glob("state-*[3-9].safetensors")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    states = sorted(broken.glob("state-*.safetensors"))
    assert int(states[-1].stem[6:]) < 24, "killed too late to show anything"
    if len(states) > 1:
        states[-1].write_bytes(states[-1].read_bytes()[:-7])
    assert main(["--resume", str(broken), "fit.max_steps=24", "fit.save_minutes=10"]) == 0
    assert_equal_runs(tmp_path / "whole", broken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on(settings, tmp_path, monkeypatch, number):
    assert run(settings, tmp_path / "whole") == 0
    batches = toy.Mixture.batches

    def interrupting(self, start, rank, world):
        for k, batch in enumerate(batches(self, start, rank, world), start):
            if k == 7:
                os.kill(os.getpid(), number)
            yield batch

    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(toy.Mixture, "batches", interrupting)
        assert run(settings, tmp_path / "broken") == 130
    assert signal.getsignal(number) is handler
    assert checkpoint.load_state(tmp_path / "broken")[0] == 8  # the step was finished
    assert model(tmp_path / "broken").info["steps"] == 8
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_end_with_the_same_weights(settings, tmp_path):
    """Two ranks over gloo, as a launcher starts them; each with its own data."""
    script = (
        "import hashlib, json, sys\n"
        "from pathlib import Path\n"
        "from bio_diffusion.runs import Run\n"
        "run = Run(json.loads(sys.argv[1]), Path(sys.argv[2]))\n"
        "first = next(run.experiment.batches(0, run.rank, run.world))[0]\n"
        "assert run() == 0\n"
        "def digest(tensors):\n"
        "    return hashlib.sha256(b''.join(t.numpy().tobytes() for t in tensors)).hexdigest()\n"
        "weights = run.experiment.module.state_dict().values()\n"
        "print(run.world, run.steps, digest([first]), digest(weights),"
        " digest(run.ema.average.values()))\n"
    )
    folder = tmp_path / "two"
    folder.mkdir()
    config = json.dumps(override(settings, ["fit.max_steps=6", "experiment.samples=10"]))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, config, str(folder)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ends[0][1] + ends[1][1]
    one, two = (out.splitlines()[-1].split() for out, _ in ends)
    assert one[:2] == two[:2] == ["2", "6"]
    assert one[2] != two[2]  # not the same data
    assert one[3:] == two[3:]  # the same weights and averages
    assert model(folder).info["processes"] == 2


def test_a_whole_configuration_runs_without_hydra_or_yaml(settings, tmp_path, monkeypatch):
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(settings))
    for name in ("hydra", "omegaconf", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["--config", str(file), "fit.max_steps=2", f"run={tmp_path / 'mine'}"]) == 0
    assert model(tmp_path / "mine").info["steps"] == 2
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["fit"]["max_steps"] == 2


def test_minutes_end_a_run_over_all_sittings(settings, tmp_path):
    config = override(settings, ["fit.max_minutes=1e-9"])
    assert run(config, tmp_path / "short") == 0
    assert model(tmp_path / "short").info["steps"] == 1
    assert main(["--resume", str(tmp_path / "short")]) == 0  # used up already
    assert model(tmp_path / "short").info["steps"] == 1


def test_evaluation_uses_the_averaged_weights_once_a_step(settings, tmp_path, monkeypatch):
    seen = []

    def evaluate(self):
        seen.append([p.clone() for p in self.module.parameters()])
        assert not self.module.training
        return {"figure": float(len(seen))}

    monkeypatch.setattr(toy.Mixture, "evaluate", evaluate)
    folder = tmp_path / "evaluated"
    assert run(override(settings, ["fit.evaluate_every=12"]), folder) == 0
    assert len(seen) == 2  # at 12 and at 24, not again at the end
    last = model(folder)
    assert all(torch.equal(p, last.ema[n]) for p, n in zip(seen[-1], last.ema, strict=True))
    assert last.info["evaluation"] == {"figure": 2.0}
    with (folder / "evaluation.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["11", "23"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "which experiment?"),
        (["experiment=toy/mixtur"], "did you mean 'toy/mixture'"),
        (["experiment=toy/mixture", "fit.max_step=1"], "did you mean 'fit.max_steps'"),
        (["experiment=toy/mixture", "experiment.width=wide"], "whole number"),
        (["experiment=toy/mixture", "device=tpu"], "no device 'tpu'"),
        (["experiment=toy/mixture", "--config", "none.json"], "cannot be read"),
        (["--resume", "nowhere"], "holds no run"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


def test_folders_are_not_mixed_up(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(settings, folder) == 0
    file = tmp_path / "again.json"
    file.write_text(json.dumps(settings))
    assert main(["--config", str(file)]) == 2
    assert f"--resume {folder}" in capsys.readouterr().err
    for state in folder.glob("state-*"):
        state.unlink()
    assert main(["--resume", str(folder)]) == 2
    assert "no intact training state" in capsys.readouterr().err
    file.write_text(json.dumps({"run": None, "fit": {}}))
    assert main(["--config", str(file)]) == 2
    assert "lack 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["design/qm9", "image/mnist", "dock/plain"])
def test_data_that_cannot_be_used_are_one_line_and_no_run_begins(name, tmp_path, capsys):
    key = "train" if name == "dock/plain" else "data"
    for data, said in (("nowhere", "nowhere"), (tmp_path / "text", "text")):
        (tmp_path / "text").write_text("no data")
        words = [f"experiment={name}", f"experiment.{key}={data}", f"run={tmp_path / 'run'}"]
        for _ in range(2):  # a second try is not told that a run is there
            assert main(words) == 2
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1 and "--resume" not in error, error


def test_a_run_that_broke_before_its_first_state_begins_anew(settings, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    file = tmp_path / "again.json"
    file.write_text(json.dumps(settings | {"run": str(folder)}))
    assert main(["--config", str(file)]) == 0
    assert json.loads((folder / "config.json").read_text())["run"] == str(folder)
    assert main(["--config", str(file)]) == 2


def test_a_fault_is_one_line_and_its_traceback_in_the_log(settings, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("of a test")
        yield

    monkeypatch.setattr(toy.Mixture, "batches", broken)
    file = tmp_path / "fault.json"
    file.write_text(json.dumps(settings))
    assert main(["--config", str(file)]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: of a test" in error and error.count("\n") == 1
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_rate_warms_up_and_falls_by_a_cosine():
    assert [rate(k, 4, 1.0, 10) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate(0, 0, 0.1, 10) == 1.0
    assert math.isclose(rate(5, 0, 0.1, 10), 0.55)  # half way: the mean of 1 and 0.1
    assert math.isclose(rate(10, 0, 0.1, 10), 0.1) and math.isclose(rate(99, 0, 0.1, 10), 0.1)


def test_table_forgets_steps_to_be_done_again(tmp_path):
    path = tmp_path / "log.csv"
    table = Table(path, 0)
    for step in (4, 9, 14):
        table.append({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write("19")  # cut off by a kill
    again = Table(path, 10)
    assert again.last == 9
    again.append({"step": 14, "loss": 7.5})
    assert path.read_text().split() == ["step,loss", "4,2.0", "9,4.5", "14,7.5"]
    path.write_text("")
    assert Table(path, 3).last == -1


def test_the_folder_is_named_after_the_experiment_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment=toy/mixture", "fit.max_steps=1", "device=cpu"]) == 0
    folder = Path("runs/toy-mixture")
    assert model(folder).config["run"] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "evaluation.csv", "model.safetensors", "state-000000001.safetensors",
        "train.log",
    ]  # fmt: skip
