"""Checkpoints: what is written comes back, and what is damaged is refused in one line."""

import dataclasses
import hashlib
import json
import random
import re

import pytest
import torch
from safetensors.torch import save as serialise

from bio_diffusion import checkpoint as ckpt
from bio_diffusion.checkpoint import Checkpoint, CheckpointError

CONFIG = {"experiment": {"name": "toy", "widths": [8, 8]}, "path": "${oc.env:HOME}"}


def example() -> Checkpoint:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    weights = module.state_dict()
    return Checkpoint(
        kind="toy",
        config=CONFIG,
        weights=weights,
        ema={name: tensor + 0.5 for name, tensor in weights.items()},
        grid={"times": [1.0, 0.25, 0.0]},
        info={"steps": 7, "split": "train"},
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    ckpt.save(path, example())
    return path


def equal(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def refused(path, kind="toy") -> str:
    with pytest.raises(CheckpointError) as caught:
        ckpt.load(path, kind)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_round_trip(saved):
    before, after = example(), ckpt.load(saved, "toy")
    assert (after.config, after.grid, after.info) == (before.config, before.grid, before.info)
    assert equal(after.weights, before.weights) and equal(after.ema, before.ema)
    assert after.best is after.ema
    assert dataclasses.replace(after, ema=None).best is after.weights


def test_same_content_gives_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    digest = ckpt.save(again, example())
    assert again.read_bytes() == saved.read_bytes()
    assert ckpt.load(again, "toy").sha256 == digest


def test_digest_is_over_every_byte(saved):
    """The documented rule, applied without our code: sha256 of the file with the digest zeroed."""
    raw = saved.read_bytes()
    stated = ckpt.header(saved)["sha256"]
    assert hashlib.sha256(raw.replace(stated.encode(), b"0" * 64)).hexdigest() == stated


def test_any_flipped_bit_is_refused(saved):
    raw = saved.read_bytes()
    header_end = 8 + int.from_bytes(raw[:8], "little")
    places = [*range(0, header_end, 7), *range(8), *range(header_end, len(raw), 5), len(raw) - 1]
    choose = random.Random(0)
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << choose.randrange(8)
        saved.write_bytes(damaged)
        refused(saved)


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1, -40])
def test_truncated_file_is_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refused(saved)


def test_longer_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert "damaged" in refused(saved)


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.safetensors")
    assert "cannot be read" in refused(tmp_path)


def test_other_kind_is_refused(saved):
    assert "'toy' file, not 'dock'" in refused(saved, "dock")


def rewritten(path, tensors, change) -> None:
    """A file whose header was changed and whose checksum is right all the same."""
    raw = path.read_bytes()
    layout = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header = json.loads(layout["__metadata__"]["bio_diffusion"])
    change(header)
    header["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":"))
    raw = serialise(tensors, {"bio_diffusion": text})
    path.write_bytes(raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode()))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda h: h.update(format=2), "format 2"),
        (lambda h: h.pop("dtypes"), "dtypes"),
        (lambda h: h["data"].pop("config"), "config"),
        (lambda h: h["data"]["weights"].update(new={"$tensor": "weights.new"}), "weights.new"),
        (lambda h: h.update(dtypes={"weights.0.bias": "os.system"}), "os.system"),
    ],
)
def test_wrong_header_is_refused(saved, change, word):
    from safetensors.torch import load_file

    rewritten(saved, load_file(saved), change)
    assert word in refused(saved)


def test_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(serialise({"a": torch.zeros(2)}))
    assert "no bio_diffusion checkpoint" in refused(path)


def test_into_module_names_the_tensor_that_does_not_fit(saved):
    loaded = ckpt.load(saved, "toy")
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    assert equal(dict(loaded.into(module).state_dict()), loaded.ema)
    other = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 4))
    with pytest.raises(CheckpointError, match=r"1\.bias has shape \(2,\)"):
        loaded.into(other)
    with pytest.raises(CheckpointError, match=r"holds 1\.bias, which the model lacks"):
        loaded.into(torch.nn.Sequential(torch.nn.Linear(3, 5)))
    with pytest.raises(CheckpointError, match=r"lacks 2\.bias"):
        loaded.into(torch.nn.Sequential(*module, torch.nn.Linear(2, 1)))


def test_half_precision_halves_the_file_and_gives_back_the_type(tmp_path):
    weights = {"w": torch.randn(100, 100), "big": torch.tensor([1e6, 1.0]), "n": torch.arange(3)}
    path = tmp_path / "half.safetensors"
    ckpt.save(path, Checkpoint("toy", {}, weights), half=True)
    found = ckpt.load(path, "toy").weights
    assert path.stat().st_size < 22_000
    # float16 keeps 11 significant bits: a relative error of at most 2^-11 (absolute 2^-25 where
    # subnormal).
    torch.testing.assert_close(found["w"], weights["w"], rtol=2**-11, atol=2**-25)
    assert found["w"].dtype == torch.float32
    assert torch.equal(found["big"], weights["big"])  # out of float16's range: kept as it was
    assert torch.equal(found["n"], weights["n"])


def test_values_that_are_not_finite_or_not_plain_are_not_written(tmp_path):
    path = tmp_path / "bad.safetensors"
    with pytest.raises(CheckpointError, match="weights w holds NaN"):
        ckpt.save(path, Checkpoint("toy", {}, {"w": torch.tensor([float("nan")])}))
    with pytest.raises(CheckpointError, match="plain data"):
        ckpt.save(path, Checkpoint("toy", {"f": len}, {}))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_former_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bio_diffusion.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        ckpt.save(saved, Checkpoint("toy", {}, {}))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def optimiser_state():
    module = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.8, 0.9))
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }


def assert_same(left, right):
    assert type(left) is type(right) or {type(left), type(right)} <= {dict, type(left)}
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right) and left.dtype == right.dtype
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    else:
        assert left == right


def test_training_state_round_trip_keeps_types_and_keys(tmp_path):
    state = optimiser_state()
    ckpt.save_state(tmp_path, 12, state)
    step, found = ckpt.load_state(tmp_path)
    assert step == 12
    assert list(found["optimizer"]["state"]) == [0, 1]  # keys stay numbers
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    assert_same({**state, "model": dict(state["model"])}, found)


def test_last_two_states_are_kept_and_the_newest_intact_one_is_used(tmp_path, caplog):
    (tmp_path / ".state-000000001.safetensors.99.part").write_bytes(b"cut off by a kill")
    for step in (1, 2, 10):
        ckpt.save_state(tmp_path, step, {"x": torch.tensor(step)})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["state-000000002.safetensors", "state-000000010.safetensors"]
    newest = tmp_path / kept[1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert ckpt.load_state(tmp_path)[0] == 2
    assert "damaged" in caplog.text
    (tmp_path / kept[0]).unlink()
    with pytest.raises(CheckpointError, match="no intact training state"):
        ckpt.load_state(tmp_path)


def test_models_are_found_by_name_or_path(saved):
    names = ckpt.shipped("design")
    assert "yeast" in names and "dock" not in names and set(names) < set(ckpt.shipped())
    assert ckpt.find("yeast", "design") == ckpt.WEIGHTS / "yeast.safetensors"
    assert ckpt.find(saved) == saved
    for model, said in (
        ("yeats", "did you mean 'yeast'?"),
        ("nonsense", "name a file or one of "),
        (str(saved.parent), "is a folder"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(said)):
            ckpt.find(model, "design")


def test_the_command_refuses_in_one_line(saved, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "no" / "x.safetensors", tmp_path / "file" / "x"):
        assert ckpt.main([str(saved), "--export", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "cannot be written" in error
    assert ckpt.main(["dok"]) == 2 and "did you mean 'dock'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        ckpt.main([])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_command_prints_the_header(saved, capsys):
    assert ckpt.main([str(saved)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "toy" and shown["data"]["config"] == CONFIG
    assert shown["data"]["weights"]["0.weight"] == "F32 [5, 3]"
    saved.write_bytes(b"nothing")
    assert ckpt.main([str(saved)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_export_keeps_the_averaged_weights_in_half_precision(tmp_path) -> None:
    weights, ema = {"w": torch.randn(64, 64)}, {"w": torch.randn(64, 64)}
    model = Checkpoint(
        "dock",
        {"a": {"train": "/x/y/set.safetensors", "name": "dock/disco"}},
        weights,
        ema,
        grid={"g": [1.0]},
        info={"b": 2},
    )
    ckpt.save(tmp_path / "run", model)
    assert ckpt.main([str(tmp_path / "run"), "--export", str(tmp_path / "shipped")]) == 0
    shipped = ckpt.load(tmp_path / "shipped", "dock")
    # 11 bits of mantissa
    torch.testing.assert_close(shipped.best["w"], ema["w"], rtol=2**-11, atol=1e-6)
    assert shipped.config == {"a": {"train": "set.safetensors", "name": "dock/disco"}}
    assert shipped.ema is None and shipped.grid == {"g": [1.0]} and shipped.info == {"b": 2}
    assert (tmp_path / "shipped").stat().st_size < 0.3 * (tmp_path / "run").stat().st_size
