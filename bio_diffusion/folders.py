"""Result folders: whether one may be used, one run at a time, and journals to go on from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bio_diffusion.files import InputError, one_line, unfinished, write_json, write_text

__all__ = ["Folder", "append", "check_folder", "open_journal", "same_run", "spare_inputs"]


class Folder:
    """A folder whose files are never half written.

    Args:
        path: It exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_text(self, name: str, text: str) -> None:
        """Writes one file of the folder whole."""
        write_text(self.path / name, text)

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes one file of the folder as JSON."""
        write_json(self.path / name, data)


def check_folder(path: Path, journal: str, resume: bool, overwrite: bool) -> None:
    """Refuses a result folder that cannot be used; changes nothing.

    Args:
        path: Of the folder, which need not exist.
        journal: File name by which a run is known.
        resume: Go on with the run in it.
        overwrite: Replace what is in it.

    Raises:
        InputError: It or a part of its path is a file, or it holds something and neither `resume`
            nor `overwrite` was said, or `resume` was and it holds no run.
    """
    name = one_line(path)
    there: list[str] = []
    try:
        if path.is_dir():
            there = [p.name for p in path.iterdir()]
        elif path.exists():
            raise InputError("out_file", f"{name}: is a file; name a folder with --out")
        elif not next(p for p in path.absolute().parents if p.exists()).is_dir():
            raise InputError("out_file", f"{name}: a part of this path is a file; mend --out")
    except OSError as error:
        raise _unwritable(name, error) from None
    if there and not (resume or overwrite):
        raise InputError(
            "out_exists", f"{name}: already holds files; say --resume, --overwrite or another --out"
        )
    if resume and there and journal not in there:
        raise InputError(
            "out_exists", f"{name}: holds no run to go on with; say --overwrite or another --out"
        )


def spare_inputs(path: Path, results: Iterable[str], inputs: Iterable[str | None]) -> None:
    """Refuses a result folder in which a run would replace what it reads.

    Args:
        path: Of the folder.
        results: File names that the run writes.
        inputs: File names, other words, or None.

    Raises:
        InputError: An input is one of the results.
    """
    written = {os.path.realpath(path / name) for name in results}
    for each in inputs:
        place = None
        with contextlib.suppress(OSError, ValueError):  # a word that can be no file name
            place = each and os.path.realpath(each)
        if place in written:
            raise InputError(
                "out_exists", f"{one_line(each)}: this run would replace it; use another --out"
            )


def open_journal(path: Path, journal: str, results: Iterable[str], overwrite: bool) -> BinaryIO:
    """Makes a result folder and opens its journal, locked against other runs.

    Args:
        path: Of the folder; parents are made.
        journal: File name of the journal.
        results: File names of the results; half-written ones are removed, all with `overwrite`.
        overwrite: Empty the journal, too; other files stay.

    Raises:
        InputError: It cannot be written, or another run writes there.
    """
    name = one_line(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        stream = (path / journal).open("a+b")
        _lock(stream, name)
        if overwrite:
            stream.truncate(0)
        for file in results:
            for left in unfinished(path, file):
                left.unlink(missing_ok=True)
            if overwrite:
                (path / file).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(name, error) from None
    return stream


def append(journal: BinaryIO, data: bytes) -> None:
    """Adds to the end of a journal for good.

    Raises:
        OSError: The disk is full or failing; what was there before stays as it was.
    """
    end = journal.seek(0, os.SEEK_END)
    try:
        journal.write(data)
        journal.flush()
        os.fsync(journal.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(journal.fileno(), end)
        raise


def same_run(path: Path, former: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises `InputError` naming the settings in which the run in a folder differs from this."""
    differing = sorted(k for k in {*known, *former} if known.get(k) != former.get(k))
    if differing:
        raise InputError(
            "changed",
            f"{one_line(path)}: holds a run with another {', '.join(differing)}; "
            "say --overwrite or another --out",
        )


def _lock(journal: BinaryIO, name: str) -> None:
    with contextlib.suppress(ImportError):  # no such locks on this system
        import fcntl

        try:
            fcntl.flock(journal.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "busy", f"{name}: another run writes there; wait or use --out"
            ) from None


def _unwritable(name: str, error: OSError) -> InputError:
    reason = error.strerror or one_line(error)
    return InputError("out_unwritable", f"{name}: cannot be written: {reason}; use another --out")
