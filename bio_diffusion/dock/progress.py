"""Telling the user: log lines, a progress bar on a terminal, and tracebacks kept in a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .files import InputError, one_line

__all__ = ["Progress", "keep_trace", "logging_into", "logging_to"]

log = logging.getLogger("bio_diffusion.dock")


@contextmanager
def logging_to(quiet: bool) -> Iterator[None]:
    """Warnings and errors to stderr, progress to stdout unless quiet."""
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR if quiet else logging.WARNING)
    handlers: list[logging.Handler] = [errors]
    if not quiet:
        told = logging.StreamHandler(sys.stdout)
        told.addFilter(lambda record: record.levelno == logging.INFO)
        handlers.append(told)
    before = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        for handler in handlers:
            log.addHandler(handler)
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.level, log.propagate = before


@contextmanager
def logging_into(file: str) -> Iterator[None]:
    """Everything, tracebacks too, into a file as well.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        reason = f"{one_line(file)}: cannot be written: {error.strerror}"
        raise InputError("log_file", reason) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def keep_trace(trace: str, file: str | None, folder: Path | None = None) -> str:
    """Leaves a traceback in the log file, else in `fault.log` of the folder; says where."""
    log.debug("%s", trace)
    if file:
        return f"traceback in {file}"
    if folder is not None:
        path = folder / "fault.log"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(trace + "\n")
            return f"traceback in {path}"
        except OSError:
            pass
    return "name a file with --log-file to keep the traceback"


class Progress:
    """Counts finished ligands: a bar on a terminal, else a line each.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._bar: Any = None
        self._done = 0
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("0 ligands", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, line: str) -> None:
        """One more ligand is done."""
        self._done += 1
        if self._bar is None:
            log.info("%s", line)
        else:
            from rich.markup import escape

            self._bar.update(self._task, description=escape(f"{self._done} ligands  {line}"))
