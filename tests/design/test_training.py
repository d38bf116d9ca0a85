"""Experiments, checkpoints and the `Designer` on a tiny table."""

import csv
import gzip
import json
import random

import pytest
import torch

from bio_diffusion import runs, schedule
from bio_diffusion.checkpoint import CheckpointError, load
from bio_diffusion.config import ConfigError, build
from bio_diffusion.design.dataset import SequenceSet, cut, open_sets
from bio_diffusion.design.oracle import auroc, oracles, spearman
from bio_diffusion.design.pipeline import CHUNK, Designer
from bio_diffusion.design.tokenizer import DnaTokenizer

LENGTH = 8
SMALL = {"kind": "attention", "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """GC-rich sequences are of class "rich" and of high strength."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "toy.csv.gz"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "kind", "strength", "split"])
        for i in range(600):
            rich = i % 2
            sequence = "".join(
                draw.choices("ACGT", weights=(1, 9, 9, 1) if rich else (9, 1, 1, 9), k=LENGTH)
            )
            strength = f"{1 + sequence.count('G')}" if i % 5 else ""
            split = "train" if i < 500 else "val" if i < 550 else "test"
            writer.writerow([sequence, ("poor", "rich")[rich], strength, split])
    return path


def settings(table, name="design", **changes):
    spec = {
        "name": name,
        "data": str(table),
        "column": "sequence",
        "letters": "ACGT",
        "length": LENGTH,
        "process": "uniform",
        "properties": {"kind": ["poor", "rich"], "strength": [0.5]},
        "batch": 64,
        "bf16": False,
        "lr": 1e-2,
        "backbone": SMALL,
    }
    return spec | changes


def run(folder, experiment, steps=120):
    folder.mkdir(parents=True)
    fit = {
        "max_steps": steps, "max_minutes": None, "accumulate": 1, "clip": 1.0, "ema": 0.9,
        "warmup": 0, "final_rate": 1.0, "log_every": 50, "save_minutes": 9, "evaluate_every": None,
    }  # fmt: skip
    config = {"run": str(folder), "seed": 0, "device": "cpu", "experiment": experiment, "fit": fit}
    assert runs.Run(config, folder)() == 0
    return folder / "model.safetensors"


@pytest.fixture(scope="session", params=["uniform", "absorbing", "autoregressive"])
def model(request, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    experiment = settings(table, process=request.param)
    file = run(folder / "run", experiment)
    predictor = settings(table, "design/predictor", process=request.param)
    made = run(folder / "predictor", predictor)
    made.rename(file.with_name("model_predictor.safetensors"))
    return file


def gc(sequences):
    return sum(s.count("G") + s.count("C") for s in sequences) / (LENGTH * len(sequences))


def drawn(designer, n=2 * CHUNK, **arguments):
    return [s for part in designer.design(n, steps=8, **arguments) for s in part]


def test_labels_steer(model):
    designer = Designer.load(str(model))
    assert designer.domain == "dna" and designer.length == LENGTH
    rich, poor = (drawn(designer, targets={"kind": name}) for name in ("rich", "poor"))
    assert gc(rich) > 0.7 and gc(poor) < 0.3
    assert 0.35 < gc(drawn(designer)) < 0.65


def test_guidance_sharpens(model):
    designer = Designer.load(str(model))
    plain = gc(drawn(designer, targets={"kind": "rich"}))
    assert gc(drawn(designer, targets={"kind": 1}, guidance="cfg", gamma=3.0)) > plain - 0.02
    # a predictor steers the unconditioned model
    assert gc(drawn(designer, targets={"kind": 1}, guidance="cbg", gamma=2.0)) > 0.65


def test_a_control_predictor_learns_from_labels_that_say_nothing(table):
    def made(**changes):
        spec = settings(table, "design/predictor", **changes)
        return build("experiment", spec, device=torch.device("cpu")).train

    told, dealt = made(), made(shuffled=True)
    assert torch.equal(told.x, dealt.x)
    assert torch.equal(told.labels.unique(dim=0, return_counts=True)[1],
                       dealt.labels.unique(dim=0, return_counts=True)[1])  # fmt: skip
    rich = (dealt.labels[:, 0] == 1).float()
    bases = ((dealt.x == 1) | (dealt.x == 2)).float().mean(1)  # of C and G
    assert abs(torch.corrcoef(torch.stack([rich, bases]))[0, 1]) < 0.2


def test_row_by_row_the_same_whatever_is_asked_for(model):
    designer = Designer.load(str(model))
    all_of_them = drawn(designer, n=CHUNK + 10, seed=3)
    assert drawn(designer, n=7, seed=3) == all_of_them[:7]
    assert drawn(designer, n=12, seed=3, first=CHUNK - 6) == all_of_them[CHUNK - 6 : CHUNK + 6]
    assert drawn(designer, n=7, seed=4) != all_of_them[:7]


def test_unknown_targets_and_guidance_are_named(model):
    designer = Designer.load(str(model))
    with pytest.raises(ValueError, match="not taught 'colour'; it knows kind, strength"):
        designer.labels({"colour": 1})
    with pytest.raises(ValueError, match=r"kind has no class 'middling'; there are 0 \(poor\)"):
        designer.labels({"kind": "middling"})
    with pytest.raises(ValueError, match="no guidance is called 'magic'"):
        next(designer.design(1, guidance="magic"))


def test_a_predictor_of_another_model_is_refused(model, table, tmp_path):
    other = run(tmp_path / "other", settings(table, properties={"kind": ["poor", "rich"]}), 1)
    with pytest.raises(CheckpointError, match="needs a predictor"):
        _ = Designer.load(str(other)).predictor
    (tmp_path / "other" / "model_predictor.safetensors").write_bytes(
        model.with_name("model_predictor.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="not trained for the model"):
        _ = Designer.load(str(other)).predictor


def test_a_fitted_grid_is_drawn_from_wherever_it_is_kept(model, tmp_path):
    designer, fitted, saved = Designer.load(str(model)), tmp_path / "model.safetensors", "grid.json"
    if designer.settings["process"] == "autoregressive":
        with pytest.raises(ValueError, match="one site a step, from left to right"):
            designer.times(4, "sine")
        return
    words = ["--model", str(model), "--out", str(fitted), "--save", str(tmp_path / saved)]
    assert schedule.main(["fit", *words, "--intervals", "8", "--probes", "64"]) == 0
    times = Designer.load(str(fitted)).times(4, "adaptive")
    assert torch.equal(designer.times(4, str(tmp_path / saved)), times)
    assert torch.equal(Designer.load(str(fitted)).times(4), times)  # the default where one is kept
    assert torch.equal(designer.times(4), designer.times(4, "uniform"))
    assert designer.times(4, "sine")[1] < 0.75 < designer.times(4, "cosine")[1]
    drawn = next(designer.design(8, steps=4, schedule=str(tmp_path / saved)))
    assert drawn == next(Designer.load(str(fitted)).design(8, steps=4, schedule="adaptive"))
    assert drawn != next(designer.design(8, steps=4))
    with pytest.raises(ValueError, match="no fitted time grid"):
        designer.times(4, "adaptive")
    other = json.loads((tmp_path / saved).read_text()) | {"model": "0" * 64}
    (tmp_path / saved).write_text(json.dumps(other))
    with pytest.raises(ValueError, match="was fitted to another model"):
        designer.times(4, str(tmp_path / saved))


def test_hidden_states_are_moved_towards_a_class(model, tmp_path):
    designer = Designer.load(str(model))
    spec = {"name": "design/value", "generator": str(model), "batch": 64, "bf16": False, "lr": 1e-2}
    if designer.settings["process"] == "autoregressive":
        with pytest.raises(ValueError, match="writes from left to right"):
            build("experiment", spec, device=torch.device("cpu"))
        return
    with pytest.raises(CheckpointError, match="no such file; train one"):
        _ = designer.value
    made = run(tmp_path / "value", spec)
    assert load(made, "value").info["evaluation"]["kind_t0"] < 0.4
    made.rename(model.with_name("model_value.safetensors"))
    try:
        plain, gentle, strong = (
            gc(drawn(designer, network=designer.steered({"kind": "rich"}, size=size)))
            for size in (0.0, 0.1, 0.3)
        )
        assert plain + 0.03 < gentle < strong
        twin = tmp_path / "twin.safetensors"
        twin.write_bytes(model.read_bytes())
        twin.with_name("twin_value.safetensors").write_bytes(
            model.with_name("model_value.safetensors").read_bytes()
        )
        with pytest.raises(CheckpointError, match="not trained for the model twin"):
            _ = Designer.load(str(twin)).value
    finally:
        model.with_name("model_value.safetensors").unlink()


def test_models_are_found_by_name_or_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no model is called 'nonsense'"):
        Designer.load("nonsense")
    monkeypatch.setattr("bio_diffusion.checkpoint.WEIGHTS", tmp_path)
    assert Designer.names() == ()


def test_training_goes_on_bit_for_bit(table, tmp_path):
    whole = run(tmp_path / "whole", settings(table), 6)
    run(tmp_path / "half", settings(table), 3)
    config = load(whole, "design").config | {"run": str(tmp_path / "half")}
    assert runs.Run(config, tmp_path / "half", resume=True)() == 0
    ours = load(tmp_path / "half" / "model.safetensors", "design")
    theirs = load(whole, "design")
    assert all(torch.equal(ours.weights[k], theirs.weights[k]) for k in theirs.weights)


def test_numbers_are_cut_at_quantiles_and_gaps_are_not_told(table):
    _, val, (kind, strength) = open_sets(
        str(table), "sequence", DnaTokenizer(LENGTH), {"kind": ["poor", "rich"], "strength": [0.5]}
    )
    assert kind.classes == strength.classes == 2
    assert strength.label("") == 2 and strength.label("1") == 0 and strength.label("9") == 1
    middle = f"{strength.edges[0]:g}"
    assert strength.describe() == (f"strength <= {middle}", f"{middle} < strength")
    assert (val.labels[:, 1] == 2).float().mean() == pytest.approx(0.2)
    assert cut("x", [0.9], [str(i) for i in range(100)]).edges == (90.0,)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("sequence,kind\nACGTACGT,rich\n", "no column split"),
        ("sequence,kind,split\nACGTACGT,odd,train\n", "'odd' is none of poor, rich"),
        ("sequence,kind,split\nACG,rich,train\n", "no usable sequence in its split train"),
    ],
)
def test_bad_tables_are_named(rows, reason, tmp_path):
    path = tmp_path / "bad.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(rows)
    kind = cut("kind", ["poor", "rich"], [])
    with pytest.raises(ValueError, match=reason):
        SequenceSet(path, "train", "sequence", DnaTokenizer(LENGTH), [kind])
    path.write_text("no gzip")
    with pytest.raises(ValueError, match="no gzipped CSV"):
        SequenceSet(path, "train", "sequence", DnaTokenizer(LENGTH), [kind])


def test_unknown_process_is_refused(table):
    with pytest.raises((ConfigError, ValueError), match="no process is called 'magic'"):
        build("experiment", settings(table, process="magic"), device=torch.device("cpu"))


def test_an_oracle_learns_and_scores(table, tmp_path):
    spec = {
        "name": "design/oracle", "data": str(table), "column": "sequence", "targets": ["strength"],
        "length": LENGTH, "width": 16, "batch": 64, "lr": 1e-2, "weight_decay": 0.0,
    }  # fmt: skip
    file = run(tmp_path / "oracle", spec, 120)
    assert load(file, "oracle").info["evaluation"]["strength_test"] > 0.6
    score = oracles(file)["strength"]
    low, high, unreadable = score(["ATATATAT", "GGGGGGGG", "GG"])
    assert high > low and unreadable != unreadable


def test_rank_figures_agree_with_scipy():
    from scipy.stats import mannwhitneyu, spearmanr

    a = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0)).double()
    b = a + torch.randint(4, (60,), generator=torch.Generator().manual_seed(1))
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    label = (b > b.median()).double()
    u = mannwhitneyu(a[label == 1], a[label == 0]).statistic
    assert auroc(a, label) == pytest.approx(u / (label.sum() * (1 - label).sum()).item())
