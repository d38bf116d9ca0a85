"""Unpacking an archive that a stranger made: nothing outside the folder, nothing without end.

Kinds, told apart by content: ``.tar.xz``, ``.tar.gz``, ``.zip``. Only plain files and folders come
out. A member is refused, and with it the whole archive, when its path is absolute, has ``..`` in
it or a character that paths do not carry, when it is a link, a device or a sparse file, when it is
there twice or encrypted, or when it breaks one of the `Limits`. Bytes are counted as they come out,
whatever the archive says of itself.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from bio_diffusion.files import InputError, one_line

__all__ = ["Limits", "unpack"]

_BLOCK = 2**20
_HEADER = 2**23  # bytes of a tar header read at once: long names take a few kB


@dataclass(frozen=True)
class Limits:
    """The most that an archive may unpack to.

    Args:
        members: files and folders.
        member: bytes of one file.
        total: bytes of all files.
        ratio: unpacked to packed bytes. Structures shrink to a tenth or so, zeros to a thousandth.
        slack: bytes that may come out whatever the ratio; small archives shrink more.
    """

    members: int = 500_000
    member: int = 2**29
    total: int = 2**36
    ratio: float = 100.0
    slack: int = 2**24


def unpack(
    archive: str | Path,
    folder: str | Path,
    limits: Limits | None = None,
    check: Callable[[Path], None] = lambda _: None,
) -> int:
    """Unpacks an archive into a folder that appears whole or not at all.

    The files are written beside `folder` and renamed when all are there. A single folder at the top
    that holds further folders, such as ``refined-set/``, is passed over.

    Args:
        archive: the file.
        folder: must not exist, or be empty; its parent folders are made.
        limits: the default ones when None.
        check: sees the files before they get their place; raises what it has against them.

    Returns:
        The number of files.

    Raises:
        InputError: `out_exists`, `unwritable`, or `archive` when it is refused or damaged. Nothing
            is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    name = one_line(archive.name)
    require_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            top = Path(beside) / "set"
            top.mkdir()
            writer = _Writer(top, name, limits or Limits(), archive.stat().st_size)
            with archive.open("rb") as stream:
                _members(stream, name)(stream, writer)
            inner = list(top.iterdir())
            if (
                len(inner) == 1
                and inner[0].is_dir()
                and any(p.is_dir() for p in inner[0].iterdir())
            ):
                top = inner[0]
            check(top)
            if folder.exists():
                folder.rmdir()
            top.rename(folder)
    except _DAMAGED as error:
        raise InputError(
            "archive", f"{name}: damaged archive ({one_line(error, 80)}); fetch it again"
        ) from None
    except OSError as error:
        raise InputError(
            "unwritable", f"{one_line(folder)}: cannot be written: {error.strerror or error}"
        ) from None
    return writer.files


def require_free(folder: Path) -> None:
    """Raises `InputError` unless nothing or an empty folder stands at `folder`."""
    try:
        taken = any(folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError("out_exists", f"{one_line(folder)}: is a file; name a folder") from None
    except OSError as error:
        raise InputError("unwritable", f"{one_line(folder)}: {error.strerror}") from None
    if taken:
        raise InputError(
            "out_exists", f"{one_line(folder)}: already holds files; name a new folder"
        )


class _Refused(InputError):
    """Why an archive is not unpacked. Not among `_DAMAGED`, so it passes through."""

    def __init__(self, archive: str, member: str, reason: str) -> None:
        where = f"{one_line(member, 80)} " if member else ""
        super().__init__("archive", f"{archive}: refused: {where}{reason}; nothing was unpacked")


_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    UnicodeError,
    NotImplementedError,  # a kind of compression that zipfile lacks
)


class _Writer:
    """Writes members below a folder of ours, and holds them to the limits."""

    def __init__(self, root: Path, archive: str, limits: Limits, packed: int) -> None:
        self.root, self.archive, self.limits = root, archive, limits
        self.most = min(limits.total, limits.slack + int(limits.ratio * packed))
        self.members = self.files = self.written = 0

    def refuse(self, member: str, reason: str) -> _Refused:
        return _Refused(self.archive, member, reason)

    def place(self, member: str, size: int) -> Path:
        """Where a member goes, once its name, number and stated size are in order."""
        self.members += 1
        if self.members > self.limits.members:
            raise self.refuse("", f"more than {self.limits.members} members")
        parts = PurePosixPath(member).parts
        if member.startswith("/") or re.match(r"[A-Za-z]:", member) or "\\" in member:
            raise self.refuse(member, "is an absolute path or has a backslash")
        if ".." in parts:
            raise self.refuse(member, "points outside with ..")
        if not member.isprintable() or any(len(part.encode()) > 255 for part in parts):
            raise self.refuse(member, "is no usable name")
        self._count(member, size, self.written + size)
        return self.root.joinpath(*parts)

    def _count(self, member: str, size: int, total: int) -> None:
        if not 0 <= size <= self.limits.member:
            raise self.refuse(member, f"is larger than {self.limits.member / 2**20:.0f} MiB")
        if total > self.most:
            raise self.refuse(
                "", f"unpacks to more than {self.most / 2**20:.0f} MiB, out of proportion"
            )

    def folder(self, member: str) -> None:
        """Makes a folder; one that is there is well."""
        path = self.place(member, 0)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self.refuse(member, "is a file and a folder") from None

    def file(self, member: str, size: int, stream: IO[bytes]) -> None:
        """Writes a file from its stream, at most as much as the limits allow."""
        path = self.place(member, size)
        done = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                while block := stream.read(_BLOCK):
                    done += len(block)
                    self._count(member, done, self.written + done)
                    out.write(block)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise self.refuse(member, "is there twice") from None
        if done != size:
            raise EOFError(f"{one_line(member, 60)} ends too soon")
        self.written += done
        self.files += 1


def _members(stream: BinaryIO, name: str) -> Callable[[BinaryIO, _Writer], None]:
    """The function that unpacks a stream, by its first bytes."""
    start = stream.read(6)
    stream.seek(0)
    for magic, unpacker in (
        (b"\xfd7zXZ\0", _tar_xz),
        (b"\x1f\x8b", _tar_gz),
        (b"PK\x03\x04", _zip),
    ):
        if start.startswith(magic):
            return unpacker
    raise _Refused(name, "", "no .tar.xz, .tar.gz or .zip")


def _tar_xz(stream: BinaryIO, writer: _Writer) -> None:
    with lzma.open(stream) as plain:
        _tar(plain, writer)


def _tar_gz(stream: BinaryIO, writer: _Writer) -> None:
    with gzip.open(stream) as plain:
        _tar(plain, writer)


def _tar(plain: IO[bytes] | gzip.GzipFile, writer: _Writer) -> None:
    metered = _Metered(plain, writer)
    with tarfile.open(fileobj=metered, mode="r:", errorlevel=2) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep half a million
            if member.issparse():
                raise writer.refuse(member.name, "is a sparse file")
            if member.isdir():
                writer.folder(member.name)
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                writer.file(member.name, member.size, content)
            else:
                raise writer.refuse(member.name, "is a link or a device")


class _Metered(io.RawIOBase):
    """What tarfile reads: it takes a header's word for its own length, and reads that at once."""

    def __init__(self, plain: IO[bytes] | gzip.GzipFile, writer: _Writer) -> None:
        self._plain, self._writer = plain, writer

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise self._writer.refuse("", "a header of impossible length")
        return self._plain.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if not 0 <= offset <= 2 * self._writer.most + _HEADER:
            raise self._writer.refuse("", "a header that points nowhere")
        return self._plain.seek(offset, whence)

    def tell(self) -> int:
        return self._plain.tell()


def _zip(stream: BinaryIO, writer: _Writer) -> None:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refuse(member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise writer.refuse(member.filename, "is encrypted")
            if member.is_dir():
                writer.folder(member.filename)
                continue
            with archive.open(member) as content:
                writer.file(member.filename, member.file_size, content)
