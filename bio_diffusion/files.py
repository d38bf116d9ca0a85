"""Files that users name and files that they get.

One place for missing, huge, packed and binary inputs, and for tables that are never half written.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "InputError",
    "cell",
    "find_data",
    "one_line",
    "read_text",
    "replacing",
    "require_file",
    "rounded",
    "slug",
    "unfinished",
    "write_atomic",
    "write_bytes",
    "write_json",
    "write_text",
]

MAX_BYTES = 512 * 2**20
"""Most bytes that one input may hold once unpacked: no single structure needs more, a bomb does."""

_BLOCK = 2**20


class InputError(ValueError):
    """An input that cannot be used. One line that names the file, the record and the remedy.

    Args:
        code: Short reason for tables, such as `missing`, `empty`, `parse`.
        message: What is wrong with what, and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(one_line(message, limit=400))
        self.code = code


def one_line(text: object, limit: int = 160) -> str:
    """`text` as one printable line of at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def find_data(name: str, remedy: str) -> Path:
    """A data file or folder by path, or by name in ``data/`` here, in ``BIO_DIFFUSION_DATA``, or
    beside this package as in a clone.

    Raises:
        FileNotFoundError: naming the places that were looked in, and the remedy.
    """
    named = Path(os.environ.get("BIO_DIFFUSION_DATA", "data"))
    for root in (Path(), Path("data"), named, Path(__file__).parents[1] / "data"):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{name}: not here, in data/ or in BIO_DIFFUSION_DATA; {remedy}")


def require_file(path: str | Path) -> None:
    """Raises `InputError` unless a regular file stands at `path`."""
    name = one_line(path)
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # a path with a NUL in it is a ValueError
        raise InputError("missing", f"{name}: no such file; check the path") from None
    if stat.S_ISDIR(mode):
        raise InputError("directory", f"{name}: is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError("unreadable", f"{name}: is not a regular file")


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """Reads a text file, unpacking gzip by its content and not by its name.

    Args:
        path: File to read.
        limit: Most bytes accepted after unpacking.

    Returns:
        The text, line ends as `\\n`. Bytes that are not UTF-8 are read as Latin-1.

    Raises:
        InputError: The file is missing, a folder, unreadable, empty, too large, binary,
            or a damaged gzip archive.
    """
    path = Path(path)
    name = one_line(path)
    require_file(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        reason = error.strerror or error
        raise InputError("unreadable", f"{name}: cannot be read: {reason}") from None
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data, limit, name)
    if len(data) > limit:
        raise InputError("too_large", f"{name}: more than {limit / 2**20:.0f} MiB of text")
    if not data.strip():
        raise InputError("empty", f"{name}: the file is empty")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        raise InputError("binary", f"{name}: binary data; give a text file (or .gz of one)")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _gunzip(data: bytes, limit: int, name: str) -> bytes:
    """Unpacks all members of a gzip archive, stopping beyond `limit` bytes."""
    out = bytearray()
    while data:
        unpack = zlib.decompressobj(wbits=31)
        try:
            while not unpack.eof and len(out) <= limit:
                chunk = unpack.decompress(data, _BLOCK)
                data = unpack.unconsumed_tail or unpack.unused_data
                out += chunk
                if not unpack.eof and not chunk and not data:
                    raise InputError(
                        "gzip", f"{name}: gzip archive ends too soon; fetch the file again"
                    )
        except zlib.error:
            raise InputError(
                "gzip", f"{name}: damaged gzip archive; fetch the file again"
            ) from None
        if len(out) > limit:
            break
        data = data.lstrip(b"\0")
    return bytes(out)


def slug(text: object, limit: int = 80) -> str:
    """An identifier that is safe as a file name and as a cell of a table.

    Only ASCII letters, digits and `._+-` stay, everything else becomes one `_`. It begins with a
    letter or digit, so neither a shell, a path nor a spreadsheet reads it as anything but a name.

    Args:
        text: Any name.
        limit: Most characters kept.

    Returns:
        The name, empty when nothing of it could be kept.
    """
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(text))
    kept = re.sub(r"\.{2,}", "_", kept)
    return kept.lstrip("._+-")[:limit].rstrip("._+-")


def cell(value: Any) -> str:
    """One cell of a table: numbers as they are, text so that no spreadsheet runs it.

    Text that begins with `=`, `+`, `-`, `@`, a tab or a line end gets a leading apostrophe.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    return "'" + text if text[:1] in tuple("=+-@\t\r\n") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", text) is not None


def rounded(value: float) -> float | None:
    """Six digits, as results are written; None for no value, which JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


_PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end; on any fault it is removed.

    Raises:
        OSError: It cannot be written; the old version stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def write_atomic(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is whole and on the disk.

    Raises:
        OSError: It cannot be written; the old version stays.
    """
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """The same for bytes that are whole already.

    Raises:
        OSError: They cannot be written; the old version stays.
    """
    with replacing(path) as beside, beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    with write_atomic(path) as stream:
        stream.write(text)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """The same for JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def unfinished(folder: Path, name: str) -> list[Path]:
    """What kills amid a write left of files called `name`, which may hold `*`."""
    return list(folder.glob(f".{name}.*{_PART}"))
