"""Settings: composed from `configs/`, then overridden as plain data; and names turned into objects.

Order, later wins: defaults < file < `key=value` words < flags. Hydra reads only the files that
ship with the package and the choice among them (`experiment=dock/disco`). A user's values, paths
and SMILES among them, never pass its grammar or an interpolation: `${...}` in a value stays those
characters. Overriding and building need neither hydra nor yaml, so that a resolved configuration
also runs where neither is installed.

Objects are chosen by registered name, `{name: karras, rho: 7}`; the registry is this module's
code, never a file.
"""

import difflib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bio_diffusion import yaml12

_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_OPEN = "???"  # what a file leaves to its user
_LARGEST_FILE = 1 << 20  # bytes; a configuration is short

# kind -> name -> what builds it, "module:attribute" until its first use
_REGISTRY: dict[str, dict[str, Callable[..., Any] | str]] = {
    "experiment": {
        "dock": "bio_diffusion.dock.experiment:Docking",
        "dock/prior": "bio_diffusion.dock.prior:PointerPriorFit",
        "dock/confidence": "bio_diffusion.dock.confidence_fit:ConfidenceFit",
        "dock/ranker": "bio_diffusion.dock.ranker_fit:RankerFit",
        "design": "bio_diffusion.design.experiment:Design",
        "design/oracle": "bio_diffusion.design.oracle:OracleFit",
        "design/predictor": "bio_diffusion.design.experiment:DesignPredictor",
        "design/value": "bio_diffusion.design.experiment:DesignValue",
        "image": "bio_diffusion.image.experiment:Images",
        "image/classifier": "bio_diffusion.image.fits:ClassifierFit",
        "image/prior": "bio_diffusion.image.fits:CodePriorFit",
        "toy/mixture": "bio_diffusion.toy:Mixture",
    },
}


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line with the remedy."""


def directory() -> Path:
    """The folder of the shipped configurations, in an installation or a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def choices(group: str) -> list[str]:
    """What `group=...` may choose: the files in its folder."""
    root = directory() / group
    return sorted(
        file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml")
    )


def compose(
    name: str, overrides: Iterable[str] = (), file: str | Path | None = None
) -> dict[str, Any]:
    """The configuration `name` with a user's file and words laid over it, as plain data.

    Args:
        name: of a file in `configs/`, without its ending.
        overrides: words `key=value`, keys dotted. A key that names a group (a folder) chooses
            among its files.
        file: YAML (or JSON) with any part of the same tree.

    Raises:
        ConfigError: for an unknown key or choice, a value of another type, or an unreadable file.
    """
    words = list(overrides)
    given = read(file) if file is not None else {}
    groups = {path.name for path in directory().iterdir() if path.is_dir()}
    chosen = {key: given.pop(key) for key in groups if isinstance(given.get(key), str)}
    chosen |= {key: value for key, value in map(split, words) if key in groups}
    config = _merged(_defaults(name, chosen), given, f"{file}: ")
    return override(config, (word for word in words if split(word)[0] not in groups))


def override(config: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """`config` with words `key=value` laid over it; a value is read as the type that it
    replaces."""
    tree: dict[str, Any] = {}
    for word in words:
        key, value = split(word)
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{word!r} contradicts an earlier word that sets {parent!r}")
        node[leaf] = _parse(value, _at(config, key), key)
    return _merged(config, tree, "")


def merge(config: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with flags laid over it as plain data; a flag that is None was not given."""
    return _merged(config, _given(flags), "")


def split(word: str) -> tuple[str, str]:
    """("fit.max_steps", "5") of "fit.max_steps=5"."""
    key, equals, value = word.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"{word!r} is not a setting: write key=value, such as seed=1")
    return key, value


def read(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, as plain data.

    Plain scalars follow YAML 1.2 (`NO` is text, `1e-3` a number); aliases and repeated keys are
    refused.
    """
    path = Path(file)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path}: larger than a configuration can be (1 MiB)")
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else yaml12.load(text)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is no configuration ({reason})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: is no configuration (write key: value lines)")
    return tree


def dump(config: Mapping[str, Any]) -> str:
    """`config` as YAML text that `read` gives back unchanged."""
    return yaml12.dump(dict(config))


def register(
    kind: str, name: str, target: Callable[..., Any] | str | None = None
) -> Callable[..., Any]:
    """Makes `target` (or the decorated function or class) what `{name: ...}` of this kind builds.

    Args:
        kind: "experiment", ...
        name: what configurations call it.
        target: a callable, or "module:attribute" to be imported on first use; written in code,
            never read from a file.
    """

    def record(found: Callable[..., Any] | str) -> Any:
        known = _REGISTRY.setdefault(kind, {})
        if known.get(name, found) != found:
            raise ValueError(f"{kind} {name!r} is registered already, as {known[name]}")
        known[name] = found
        return found

    return record if target is None else record(target)


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind, in alphabetical order."""
    return tuple(sorted(_REGISTRY.get(kind, ())))


def build(kind: str, spec: Mapping[str, Any], **given: Any) -> Any:
    """The object that `spec` = `{name: ..., argument: ...}` names.

    Args:
        kind: of the registry.
        spec: plain data; everything beside `name` is passed by keyword.
        given: further arguments that no configuration holds (a device, a module).

    Raises:
        ConfigError: for an unknown name or argument, a missing argument or one left at `???`, or a
            `_target_` anywhere in `spec`.
    """
    _refuse_targets(spec, "")
    arguments = dict(spec)
    name = arguments.pop("name", None)
    known = names(kind)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"no {kind} is called {name!r}{_near(str(name), known)}")
    target = _REGISTRY[kind][name]
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = _REGISTRY[kind][name] = getattr(import_module(module), attribute)
    accepted = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for key in arguments:
            if key not in accepted:
                raise ConfigError(f"{kind} {name!r} has no argument {key!r}{_near(key, accepted)}")
    for key, value in arguments.items():
        if value == _OPEN:
            raise ConfigError(f"{kind}.{key} is not set yet: add {kind}.{key}=...")
    try:
        inspect.signature(target).bind(**arguments, **given)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r}: {error}") from error
    return target(**arguments, **given)


def _defaults(name: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """What the shipped files say, given a choice for each group. Only these reach hydra."""
    try:
        from hydra import compose as compose_files
        from hydra import initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ConfigError(
            "hydra-core is not installed: install it, or give a whole configuration by --config"
        ) from error
    root = directory()
    options = {group.name: choices(group.name) for group in root.iterdir() if group.is_dir()}
    for group, choice in chosen.items():
        if choice not in options[group]:
            raise ConfigError(f"no {group} is called {choice!r}{_near(choice, options[group])}")
    words = [f"{group}={choice}" for group, choice in chosen.items()]
    try:
        with initialize_config_dir(str(root.resolve()), version_base="1.3"):
            tree = OmegaConf.to_container(compose_files(name, words), resolve=False)
    except HydraException as error:
        missing = [group for group in options if f"'{group}'" in str(error) and group not in chosen]
        if missing:
            listed = ", ".join(options[missing[0]])
            raise ConfigError(f"which {missing[0]}? Say {missing[0]}=NAME, of {listed}") from error
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _merged(
    config: Mapping[str, Any], new: Mapping[str, Any], where: str, at: str = ""
) -> dict[str, Any]:
    """`config` with `new` laid over it; every key must be there already.

    An empty mapping takes any key. A node `{name: ...}` that gets another name is replaced whole,
    since its other arguments belong to the former class.
    """
    _refuse_targets(new, where)
    result = dict(config)
    for key, value in new.items():
        path = f"{at}{key}"
        if config and key not in config:
            raise ConfigError(f"{where}unknown setting {path!r}{_near(key, _paths(config), at)}")
        old = config.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in old and value.get("name", old["name"]) != old["name"]
            result[key] = dict(value) if renamed else _merged(old, value, where, path + ".")
        elif _fits(old, value):
            result[key] = float(value) if isinstance(old, float) and value is not None else value
        else:
            raise ConfigError(f"{where}{path} must be {_kind(old)}, not {value!r}")
    return result


def _fits(old: Any, value: Any) -> bool:
    if old is None or value is None:
        return True
    if isinstance(old, bool) or isinstance(value, bool):
        return isinstance(old, bool) and isinstance(value, bool)
    if isinstance(old, float):
        return isinstance(value, int | float)
    return isinstance(value, type(old))


def _kind(old: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return kinds.get(type(old), "a list" if isinstance(old, list) else "a mapping")


def _parse(text: str, old: Any, key: str) -> Any:
    """The value that a word holds: text where text stood, else JSON, else the text itself."""
    if isinstance(old, str):
        return text
    lowered = text.lower()
    if lowered in ("true", "false", "null", "none", ""):
        return {"true": True, "false": False}.get(lowered)
    for reader in (json.loads, float):  # float also reads ".5" and "1.", which JSON does not
        try:
            value = reader(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, float) or math.isfinite(value):
            return value
    if isinstance(old, list):  # [a, b] or a,b
        inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [item.strip() for item in inside.split(",")]
    return text


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in flags.items()
        if value is not None
    }


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _paths(config: Mapping[str, Any]) -> Iterator[str]:
    """Every dotted key of a tree."""
    for key, value in config.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _paths(value))


def _near(word: str, options: Iterable[str], at: str = "") -> str:
    """What may have been meant, of dotted paths below `at`; else what there is on their level."""
    options = list(options)
    leaves = [option.rpartition(".")[2] for option in options]
    found = difflib.get_close_matches(word, options, 1) or difflib.get_close_matches(
        word, leaves, 1
    )
    if not found:
        known = [at + option for option in options if "." not in option]
        return f"; there are: {', '.join(known)}" if known else ""
    full = next(option for option in options if option in found or option.endswith("." + found[0]))
    return f"; did you mean {at + full!r}?"


def _refuse_targets(tree: Any, where: str) -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}the key {key!r} is not text")
            if key.startswith("_"):
                raise ConfigError(f"{where}{key!r} is not accepted: say which by registered name")
            _refuse_targets(value, where)
    elif isinstance(tree, list):
        for value in tree:
            _refuse_targets(value, where)
