"""Trained models and interrupted runs on disk: safetensors and JSON, checked byte for byte.

A file is an ordinary safetensors file whose metadata holds one entry, a JSON header:

    {"format": 1, "kind": "dock", "sha256": ..., "data": ..., "dtypes": {...}}

`sha256` is taken over the whole file with its own 64 digits written as zeros, so a byte that flips
anywhere, a cut or an added one is noticed before a tensor is used (safetensors itself loads a
flipped byte of a tensor). No pickle, and nothing in a file is ever imported or called: a header
holds names, which `config` looks up.

A model (`save`, `load`) and a training state (`save_state`, `load_state`) are the same kind of
file. Writing is atomic: a temporary file in the same folder, fsync, rename, fsync of the folder.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bio_diffusion.files import unfinished, write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
_ENTRY = "bio_diffusion"
_FIELDS = ("format", "kind", "sha256", "data", "dtypes")
_ZEROS = "0" * 64
_STATE = "state-{step:09d}.safetensors"
_REMEDY = "copy or download it again, or name another file"

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file that cannot be used; the message is one line that names it and the remedy."""


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
                raise CheckpointError(f"the {self.kind} checkpoint lacks {name}; {_REMEDY}")
            if name not in wanted:
                raise CheckpointError(
                    f"the {self.kind} checkpoint holds {name}, which the model lacks; {_REMEDY}"
                )
            if wanted[name].shape != self.best[name].shape:
                raise CheckpointError(
                    f"in the {self.kind} checkpoint {name} has shape "
                    f"{tuple(self.best[name].shape)}, in the model {tuple(wanted[name].shape)}; "
                    f"{_REMEDY}"
                )
        module.load_state_dict(self.best)
        return module


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
    return _write(Path(path), checkpoint.kind, data, half=half)


def load(path: str | Path, kind: str) -> Checkpoint:
    """Reads a model that `save` wrote, on the CPU.

    Raises:
        CheckpointError: when the file is missing, damaged, of another format or kind, or lacks a
            part.
    """
    header, data = _read(Path(path), kind)
    wanted = ("config", "weights", "ema", "grid", "info")
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise CheckpointError(f"{path}: its header does not hold {', '.join(wanted)}; {_REMEDY}")
    return Checkpoint(kind=kind, sha256=header["sha256"], **data)


def save_state(folder: str | Path, step: int, state: Any, *, keep: int = 2) -> Path:
    """Writes the state of a training run after `step` steps and removes all but the newest `keep`.

    Args:
        folder: of the run.
        step: number of steps done.
        state: nested dicts, lists and tuples of tensors and plain values, such as optimisers give.
    """
    path = Path(folder) / _STATE.format(step=step)
    _write(path, "state", {"step": step, "state": state})
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
            _, data = _read(path, "state")
            return data["step"], data["state"]
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"{folder}: holds no intact training state; start without --resume")


def header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a file whose bytes are intact, each tensor shown as type and shape. Needs
    no torch.

    Raises:
        CheckpointError: as `load`, but for any kind.
    """
    found, layout, _ = _checked(Path(path))
    shapes = {name: f"{entry['dtype']} {entry['shape']}" for name, entry in layout.items()}
    return found | {"data": _unpack(found["data"], shapes)}


def _write(path: Path, kind: str, data: Any, *, half: bool = False) -> str:
    from safetensors.torch import save as serialise

    tensors: dict[str, Tensor] = {}
    skeleton = _pack(data, tensors)
    dtypes = {}
    if half:
        for name, tensor in tensors.items():
            if (small := _halved(tensor)) is not None:
                dtypes[name] = str(tensor.dtype).removeprefix("torch.")
                tensors[name] = small
    fields = {"format": FORMAT, "kind": kind, "sha256": _ZEROS, "data": skeleton, "dtypes": dtypes}
    try:
        text = json.dumps(fields, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not written, not plain data ({error})") from error
    raw = serialise(tensors, {_ENTRY: text})
    digest = hashlib.sha256(raw).hexdigest()
    write_bytes(path, _with_digest(raw, _ZEROS, digest))
    return digest


def _read(path: Path, kind: str) -> tuple[dict[str, Any], Any]:
    """The header and the data, tensors in place, of an intact file of this kind."""
    found, _, raw = _checked(path)
    if found["kind"] != kind:
        raise CheckpointError(f"{path}: is a {found['kind']!r} file, not {kind!r}; name another")
    import torch
    from safetensors.torch import load as deserialise

    tensors = deserialise(raw)
    wide = {"float32": torch.float32, "float64": torch.float64}
    try:
        for name, dtype in found["dtypes"].items():
            tensors[name] = tensors[name].to(wide[dtype])
        return found, _unpack(found["data"], tensors)
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}; {_REMEDY}") from error


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(header, layout of the tensors, all bytes) of a file once its checksum is right."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give the path of a checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); name another") from error
    try:
        layout = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        found = json.loads(layout.pop("__metadata__")[_ENTRY])
        version, stated = found["format"], found["sha256"]
        actual = hashlib.sha256(_with_digest(raw, stated, _ZEROS)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no bio_diffusion checkpoint, or is damaged; {_REMEDY}"
        ) from error
    if actual != stated:
        raise CheckpointError(f"{path}: is damaged (its sha256 is not the stated one); {_REMEDY}")
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: has format {version}, and this is format {FORMAT}; "
            "install the bio_diffusion that wrote it"
        )
    if missing := [name for name in _FIELDS if name not in found]:
        raise CheckpointError(f"{path}: its header lacks {missing[0]!r}; {_REMEDY}")
    return found, layout, raw


def _with_digest(raw: bytes, old: str, new: str) -> bytes:
    """The file with its header's digest replaced; ValueError where there is not exactly one."""
    end = 8 + int.from_bytes(raw[:8], "little")
    marks = [rf"\"sha256\":\"{digest}\"".encode() for digest in (old, new)]
    if len(old) != 64 or raw.count(marks[0], 0, end) != 1:
        raise ValueError("no digest in the header")
    return raw[:end].replace(marks[0], marks[1]) + raw[end:]


def _halved(tensor: "Tensor") -> "Tensor | None":
    """The tensor in float16 where it is float32 and no value leaves the range, else None."""
    import torch

    if tensor.dtype != torch.float32:
        return None
    small = tensor.half()
    return small if torch.isfinite(small).all() else None


def _pack(tree: Any, tensors: "dict[str, Tensor]", name: str = "") -> Any:
    """A JSON skeleton of nested dicts, lists and tuples; tensors go to `tensors`, dotted names."""
    from torch import Tensor

    if isinstance(tree, Tensor):
        while name in tensors:  # {"a.b": ..., "a": {"b": ...}}
            name += "'"
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {"$tensor": name}
    dotted = f"{name}." if name else ""
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: _pack(value, tensors, f"{dotted}{key}") for key, value in tree.items()}
        items = [[key, _pack(value, tensors, f"{dotted}{key}")] for key, value in tree.items()]
        return {"$items": items}
    if isinstance(tree, list | tuple):
        values = [_pack(value, tensors, f"{dotted}{i}") for i, value in enumerate(tree)]
        return {"$tuple": values} if isinstance(tree, tuple) else values
    return tree


def _unpack(tree: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(_unpack(value, tensors) for value in tree["$tuple"])
    if "$items" in tree:
        return {key: _unpack(value, tensors) for key, value in tree["$items"]}
    return {key: _unpack(value, tensors) for key, value in tree.items()}


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
    parser = argparse.ArgumentParser(
        prog="python -m bio_diffusion.checkpoint",
        description="Checks a checkpoint and prints its header.",
    )
    parser.add_argument("file", help="a checkpoint or training state")
    parser.add_argument(
        "--export", metavar="OUT", help="write its averaged weights alone, in half precision"
    )
    args = parser.parse_args(arguments)
    try:
        if args.export:
            print(f"{args.export} sha256 {export(args.file, args.export)}")
        else:
            print(json.dumps(header(args.file), indent=2))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
