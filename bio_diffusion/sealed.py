"""Sealed files: nested data with tensors as safetensors and JSON, checked byte for byte.

A file is an ordinary safetensors file whose metadata holds one entry, a JSON header:

    {"format": 1, "kind": "dock", "sha256": ..., "data": ..., "dtypes": {...}}

`sha256` is taken over the whole file with its own 64 digits written as zeros, so a byte that flips
anywhere, a cut or an added one is noticed before a tensor is used (safetensors itself loads a
flipped byte of a tensor). Writing is atomic (`files.write_bytes`).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bio_diffusion.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMAT", "REMEDY", "CheckpointError", "header", "read", "write"]

FORMAT = 1
REMEDY = "copy or download it again, or name another file"
_ENTRY = "bio_diffusion"
_FIELDS = ("format", "kind", "sha256", "data", "dtypes")
_ZEROS = "0" * 64


class CheckpointError(ValueError):
    """A file that cannot be used; the message is one line that names it and the remedy."""


def write(path: Path, kind: str, data: Any, *, half: bool = False) -> str:
    """Writes nested dicts, lists and tuples of tensors and plain values; returns the sha256.

    Args:
        path: of the file; its folder must exist.
        kind: what the data are; `read` refuses another.
        data: keys may be numbers too, as in the states of optimisers.
        half: store float32 tensors in 16 bits where these can hold their values; `read` gives back
            the former type.

    Raises:
        CheckpointError: a value that is neither a tensor nor JSON.
    """
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


def header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a file whose bytes are intact, each tensor shown as type and shape. Needs
    no torch.

    Raises:
        CheckpointError: as `read`, but for any kind.
    """
    found, layout, _ = _checked(Path(path))
    shapes = {name: f"{entry['dtype']} {entry['shape']}" for name, entry in layout.items()}
    return found | {"data": _unpack(found["data"], shapes)}


def read(path: Path, kind: str) -> tuple[dict[str, Any], Any]:
    """The header and the data, tensors in place, of an intact file of this kind.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format or kind.
    """
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
        raise CheckpointError(f"{path}: lacks {error}; {REMEDY}") from error


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
            f"{path}: is no bio_diffusion checkpoint, or is damaged; {REMEDY}"
        ) from error
    if actual != stated:
        raise CheckpointError(f"{path}: is damaged (its sha256 is not the stated one); {REMEDY}")
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: has format {version}, and this is format {FORMAT}; "
            "install the bio_diffusion that wrote it"
        )
    if missing := [name for name in _FIELDS if name not in found]:
        raise CheckpointError(f"{path}: its header lacks {missing[0]!r}; {REMEDY}")
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
