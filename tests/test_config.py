"""Settings: the order in which they win, what is refused, and that a user's text stays text."""

import json
import subprocess
import sys

import pytest

from bio_diffusion import config
from bio_diffusion.config import ConfigError, build, compose, merge, override, register

BASE = {
    "seed": 0,
    "rate": 0.5,
    "name": "a",
    "flag": False,
    "layers": [8, 8],
    "any": None,
    "open": {},
    "schedule": {"name": "adaptive", "order": 1},
    "fit": {"max_steps": 10},
}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A stand-in for the shipped folder."""
    root = tmp_path / "configs"
    (root / "experiment" / "dock").mkdir(parents=True)
    (root / "train.yaml").write_text(
        "defaults:\n  - _self_\n  - experiment: ???\n"
        "seed: 0\nfit: {max_steps: 1, clip: 1.0}\nligand: null\n"
    )
    for name, width in (("dock/disco", 3), ("tiny", 4)):
        (root / "experiment" / f"{name}.yaml").write_text(
            "# @package _global_\n"
            f"experiment: {{name: {name}, width: {width}}}\nfit: {{max_steps: 20}}\n"
        )
    monkeypatch.setattr(config, "directory", lambda: root)
    return root


def message(call, *arguments, **named) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_order_is_defaults_file_words_flags(shipped, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("experiment: dock/disco\nfit: {clip: 2, max_steps: 30}\nseed: 5\n")
    found = compose("train", ["seed=6", "experiment.width=9"], file)
    assert found == {
        "seed": 6,
        "fit": {"max_steps": 30, "clip": 2.0},
        "ligand": None,
        "experiment": {"name": "dock/disco", "width": 9},
    }
    assert merge(found, {"seed": 7, "fit": {"clip": None}})["seed"] == 7
    assert compose("train", ["experiment=tiny"], file)["experiment"]["width"] == 4  # word over file


def test_missing_and_unknown_choice_name_the_choices(shipped):
    assert "dock/disco, tiny" in message(compose, "train")
    assert "did you mean 'dock/disco'" in message(compose, "train", ["experiment=dock/disko"])
    assert "no experiment is called '../../secret'" in message(
        compose, "train", ["experiment=../../secret"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "${seed}",
        "C(=O)[C@H](N)C",
        "[Na+].[Cl-]",
        "[O-]C(=O)C#N",
        "a=b.pdb",
        "~/x.pdb",
        "x,y.pdb",
        "!!python/object/apply:os.system [true]",
        "NO",
        "nan",
        "it's #1 \\ 'quoted'",
    ],
)
def test_text_of_a_user_stays_as_it_is(shipped, tmp_path, text):
    assert compose("train", ["experiment=tiny", f"ligand={text}"])["ligand"] == text
    assert override({"ligand": "C"}, [f"ligand={text}"])["ligand"] == text
    assert merge({"ligand": None}, {"ligand": text})["ligand"] == text
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"ligand": text}))
    assert compose("train", ["experiment=tiny"], file)["ligand"] == text
    written = tmp_path / "config.yaml"
    written.write_text(config.dump({"ligand": text}))
    assert config.read(written) == {"ligand": text}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=3", 3),
        ("rate=1e-3", 1e-3),
        ("rate=.5", 0.5),
        ("rate=2", 2.0),
        ("name=7", "7"),
        ("flag=True", True),
        ("layers=[1, 2]", [1, 2]),
        ("layers=A:45,A:102", ["A:45", "A:102"]),
        ("any=3", 3),
        ("any=null", None),
        ('any={"a": [1]}', {"a": [1]}),
        ("seed=null", None),
        ("open.new=4", {"new": 4}),
    ],
)
def test_words_are_read_as_the_type_they_replace(word, expected):
    found = override(BASE, [word])[word.split("=")[0].split(".")[0]]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("sed=3", "did you mean 'seed'"),
        ("fit.max_step=3", "did you mean 'fit.max_steps'"),
        ("max_steps=3", "did you mean 'fit.max_steps'"),
        ("zzzz=3", "there are: seed, rate"),
        ("fit.zzzz=3", "there are: fit."),
        ("fit.seed=3", "there are: fit."),  # like in the parent's name alone
        ("seed=1.5", "seed must be a whole number, not 1.5"),
        ("seed=true", "whole number"),
        ("flag=1", "true or false"),
        ("rate=fast", "rate must be a number"),
        ("fit=3", "fit must be a mapping"),
        ("fit.max_steps.x=3", "fit.max_steps must be a whole number"),
        ("seed", "write key=value"),
        ("+seed=3", "write key=value"),
        ("seed.=3", "write key=value"),
        ("open._target_=os.system", "write key=value"),
        ('open={"_target_": "os.system"}', "'_target_' is not accepted"),
    ],
)
def test_wrong_words_are_one_line(word, part):
    assert part in message(override, BASE, [word])


def test_contradicting_words():
    assert "contradicts" in message(override, BASE, ["any=3", "any.x=4"])


def test_another_name_drops_the_arguments_of_the_former():
    found = override(BASE, ["schedule.rho=7", "schedule.name=karras"])
    assert found["schedule"] == {"name": "karras", "rho": 7}
    assert override(BASE, ["schedule.order=2"])["schedule"] == {"name": "adaptive", "order": 2}
    assert "schedule.rho" in message(override, BASE, ["schedule.rho=7"])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("seed: 1\nseed: 2\n", "given twice"),
        ("seed: [1\n", "is no configuration"),
        ("- 1\n", "write key: value"),
        ("seed: !!python/object/apply:os.system [true]\n", "is no configuration"),
        ("experiment: {_target_: os.system}\n", "_target_"),
        ("sed: 1\n", "did you mean 'seed'"),
        ("seed: word\n", "whole number"),
        ("1: 2\n", "the key 1 is not text"),
        ("a: " + "[" * 3000 + "\n", "is no configuration"),
        ("#" * (1 << 20) + "\nseed: 1\n", "larger"),
    ],
)
def test_wrong_files_are_one_line_with_the_file(shipped, tmp_path, content, part):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    found = message(compose, "train", ["experiment=tiny"], file)
    assert part in found and str(file) in found


def test_unreadable_files(shipped, tmp_path):
    assert "cannot be read" in message(compose, "train", [], tmp_path / "none.yaml")
    assert "cannot be read" in message(compose, "train", [], tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\0")
    assert "is no configuration" in message(compose, "train", [], tmp_path / "binary.yaml")


def test_yaml_follows_version_1_2_and_comes_back(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: NO\nb: 1e-3\nc: 2020-01-01\nd: 010\ne: yes\nf:\ng: 1_000\nh: .5\n")
    found = config.read(file)
    assert found == {
        "a": "NO",
        "b": 1e-3,
        "c": "2020-01-01",
        "d": "010",
        "e": "yes",
        "f": None,
        "g": "1_000",
        "h": 0.5,
    }
    text = ["1e-3", "true", "null", "0x1", "~", "a: b", ""]
    tree = found | {"text": text, "tiny": 1e-300, "big": 1e30, "empty": [None]}
    file.write_text(config.dump(tree))
    assert config.read(file) == tree


def test_build_by_name():
    @register("toy kind", "box")
    def box(width, *, color="red", device=None):
        return width, color, device

    assert build("toy kind", {"name": "box", "width": 2}, device="cpu") == (2, "red", "cpu")
    register("toy kind", "lazy", "collections:Counter")
    assert build("toy kind", {"name": "lazy", "a": 2})["a"] == 2
    assert config.names("toy kind") == ("box", "lazy")
    assert "did you mean 'box'" in message(build, "toy kind", {"name": "bax"})
    assert "did you mean 'width'" in message(build, "toy kind", {"name": "box", "widht": 2})
    assert "toy kind.width is not set" in message(
        build, "toy kind", {"name": "box", "width": "???"}
    )
    assert "missing a required argument: 'width'" in message(build, "toy kind", {"name": "box"})
    assert "_target_" in message(build, "toy kind", {"_target_": "os.system"})
    assert "_target_" in message(build, "toy kind", {"name": "box", "width": [{"_target_": "x"}]})
    assert "no toy kind is called None" in message(build, "toy kind", {})
    assert "no toy kind is called 'os:system'" in message(build, "toy kind", {"name": "os:system"})
    with pytest.raises(ValueError, match="registered already"):
        register("toy kind", "box", "os:getcwd")


@pytest.mark.parametrize("experiment", config.choices("experiment"))
def test_shipped_experiments_compose_and_name_what_is_registered(experiment):
    found = compose("train", [f"experiment={experiment}"])
    assert found["experiment"]["name"] in config.names("experiment")
    assert override(json.loads(json.dumps(found)), []) == found


def test_shipped_files_hold_no_interpolation():
    """Overrides are laid over the composed tree, so an interpolation would miss them."""
    files = list(config.directory().rglob("*.yaml"))
    assert files and not [file for file in files if "${" in file.read_text()]


def test_overriding_needs_neither_hydra_nor_yaml():
    script = (
        "import sys; sys.modules['hydra'] = sys.modules['omegaconf'] = sys.modules['yaml'] = None\n"
        "from bio_diffusion import config\n"
        "print(config.override({'seed': 0}, ['seed=3']))\n"
        "try: config.compose('train', ['experiment=toy/mixture'])\n"
        "except config.ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "{'seed': 3}"
    assert "--config" in done.stdout.splitlines()[1]
