"""Trained models and interrupted runs on disk, as sealed files (`sealed`): checked byte for byte.

A model (`save`, `load`) and a training state (`save_state`, `load_state`) are the same kind of
file. No pickle, and nothing in a file is ever imported or called: it holds names, which `config`
looks up.
"""

import difflib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bio_diffusion.command import Parser
from bio_diffusion.files import unfinished
from bio_diffusion.sealed import REMEDY, CheckpointError, header, read, write

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
"""Models that ship, a file each."""

_STATE = "state-{step:09d}.safetensors"

__all__ = [
    "WEIGHTS",
    "Checkpoint",
    "CheckpointError",
    "export",
    "find",
    "header",
    "load",
    "load_state",
    "save",
    "save_state",
    "shipped",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model.

    Attributes:
        kind: what the model is for ("dock", ...); `load` refuses another.
        config: the resolved configuration that built it, plain data.
        weights: tensors by name, as `state_dict` gives them.
        ema: their moving average, or None.
        grid: a fitted time grid as plain data, or None.
        info: about the training (steps, data, scores), plain data.
        sha256: of the file, set by `load`; identifies the model in results.
    """

    kind: str
    config: dict[str, Any]
    weights: "dict[str, Tensor]"
    ema: "dict[str, Tensor] | None" = None
    grid: Any = None
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def best(self) -> "dict[str, Tensor]":
        """The averaged weights where there are some."""
        return self.weights if self.ema is None else self.ema

    def into(self, module: "nn.Module") -> "nn.Module":
        """Puts `best` into a module.

        Raises:
            CheckpointError: naming the first tensor that is missing, unknown or of another shape.
        """
        wanted = module.state_dict()
        for name in sorted(wanted.keys() | self.best.keys()):
            if name not in self.best:
                raise CheckpointError(f"the {self.kind} checkpoint lacks {name}; {REMEDY}")
            if name not in wanted:
                raise CheckpointError(
                    f"the {self.kind} checkpoint holds {name}, which the model lacks; {REMEDY}"
                )
            if wanted[name].shape != self.best[name].shape:
                raise CheckpointError(
                    f"in the {self.kind} checkpoint {name} has shape "
                    f"{tuple(self.best[name].shape)}, in the model {tuple(wanted[name].shape)}; "
                    f"{REMEDY}"
                )
        module.load_state_dict(self.best)
        return module


def shipped(kind: str = "") -> tuple[str, ...]:
    """Names of the models that ship, of one kind or all."""
    files = sorted(WEIGHTS.glob("*.safetensors"))
    return tuple(f.stem for f in files if not kind or header(f)["kind"] == kind)


def find(model: str | Path, kind: str = "") -> Path:
    """The file of a model that ships, by name, or of one's own, by path.

    Raises:
        CheckpointError: there is no such file; says which name was meant, or all of this kind.
    """
    by_name = Path(model).name == str(model)  # a path is no name
    if by_name and (path := WEIGHTS / f"{model}.safetensors").is_file():
        return path
    if Path(model).is_file():
        return Path(model)
    if Path(model).is_dir():
        raise CheckpointError(f"{model}: is a folder; name a file in it")
    known = shipped(kind)
    near = difflib.get_close_matches(str(model), known, 1)
    remedy = f"did you mean {near[0]!r}?" if near else f"name a file or one of {', '.join(known)}"
    raise CheckpointError(f"no model is called {str(model)!r}; {remedy}")


def save(path: str | Path, checkpoint: Checkpoint, *, half: bool = False) -> str:
    """Writes a model and returns the file's sha256.

    Args:
        path: of the file; its folder must exist.
        checkpoint: what to write.
        half: store float32 tensors in 16 bits where these can hold their values; `load` gives back
            the former type. What was worth float64, such as the edges of classes, stays.

    Raises:
        CheckpointError: when a tensor holds a value that is not finite, or the plain data is not
            JSON.
    """
    import torch

    data = {
        "config": checkpoint.config,
        "weights": checkpoint.weights,
        "ema": checkpoint.ema,
        "grid": checkpoint.grid,
        "info": checkpoint.info,
    }
    for part in ("weights", "ema"):
        for name, tensor in (data[part] or {}).items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path}: not written, {part} {name} holds NaN or infinity")
    return write(Path(path), checkpoint.kind, data, half=half)


def load(path: str | Path, kind: str) -> Checkpoint:
    """Reads a model that `save` wrote, on the CPU.

    Raises:
        CheckpointError: when the file is missing, damaged, of another format or kind, or lacks a
            part.
    """
    found, data = read(Path(path), kind)
    wanted = ("config", "weights", "ema", "grid", "info")
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise CheckpointError(f"{path}: its header does not hold {', '.join(wanted)}; {REMEDY}")
    return Checkpoint(kind=kind, sha256=found["sha256"], **data)


def save_state(folder: str | Path, step: int, state: Any, *, keep: int = 2) -> Path:
    """Writes the state of a training run after `step` steps and removes all but the newest `keep`.

    Args:
        folder: of the run.
        step: number of steps done.
        state: nested dicts, lists and tuples of tensors and plain values, such as optimisers give.
    """
    path = Path(folder) / _STATE.format(step=step)
    write(path, "state", {"step": step, "state": state})
    old = sorted(path.parent.glob("state-*.safetensors"))[:-keep]
    for left in [*old, *unfinished(path.parent, "state-*")]:
        left.unlink(missing_ok=True)
    return path


def load_state(folder: str | Path) -> tuple[int, Any]:
    """(step, state) of the newest intact training state in a folder; a damaged one is passed over
    with a warning.

    Raises:
        CheckpointError: when there is none.
    """
    for path in sorted(Path(folder).glob("state-*.safetensors"), reverse=True):
        try:
            _, data = read(path, "state")
            return data["step"], data["state"]
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"{folder}: holds no intact training state; start without --resume")


def export(path: str | Path, out: str | Path) -> str:
    """Writes the averaged weights of a model alone, in half precision: the form that ships.

    Of absolute paths in its settings the last part is kept: folders of one machine say nothing.

    Returns:
        The new file's sha256.

    Raises:
        CheckpointError: the file cannot be used.
    """
    loaded = load(path, header(path)["kind"])
    config = _without_folders(loaded.config)
    return save(out, replace(loaded, config=config, weights=loaded.best, ema=None), half=True)


def _without_folders(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, str) and Path(tree).is_absolute():
        return Path(tree).name
    return tree


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m bio_diffusion.checkpoint",
        description="Checks a checkpoint and prints its header.",
        epilog="Exit status: 0 done; 2 the file cannot be used, or OUT cannot be written.",
    )
    parser.add_argument("file", help="a checkpoint, a training state, or the name of a model here")
    parser.add_argument(
        "--export", metavar="OUT", help="write its averaged weights alone, in half precision"
    )
    args = parser.parse_args(arguments)
    try:
        file = find(args.file)
        if args.export:
            print(f"{args.export} sha256 {export(file, args.export)}")
        else:
            print(json.dumps(header(file), indent=2))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{args.export or args.file}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
