"""What every command does around its work: usage errors, exit statuses, log lines, a progress bar.

Only the standard library loads with this module, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TextIO

from bio_diffusion.files import InputError, one_line

__all__ = [
    "Parser",
    "Progress",
    "Task",
    "choose_device",
    "exit_status",
    "keep_trace",
    "libraries",
    "one_thread",
    "start",
]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage before it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # argparse takes -5. and -1e1 for flags
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.I)

    def error(self, message: str) -> NoReturn:
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            word = words.split()[0].partition("=")[0]
            known = self._options()
            begun = [flag for flag in known if word.startswith("--") and flag.startswith(word)]
            if word in known:
                message = f"{word} belongs to another command than this one"
            elif near := begun or difflib.get_close_matches(word, known, 1):
                message += f"; did you mean {near[0]}?"
        self.exit(2, f"{self.prog}: {message}; --help shows the usage\n")

    def _options(self) -> list[str]:
        """Its flags and those of its commands."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for each in action.choices.values() for flag in each._options()]
        return found


class Task(Protocol):
    """A run of a command: has read and checked everything once it is made."""

    @property
    def place(self) -> Path | None:
        """The folder of its results, if it has one."""

    def execute(self) -> int:
        """Does the work and returns the exit status."""


def start(module: str, options: argparse.Namespace) -> int:
    """Loads a command's module, which may take seconds, and gives the status of its `run`."""
    try:
        run = import_module(module).run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    status: int = run(options)
    return status


def exit_status(
    options: argparse.Namespace,
    log: logging.Logger,
    begin: Callable[[argparse.Namespace], Task],
    refused: tuple[type[Exception], ...],
) -> int:
    """Runs a command; every way that it can end becomes a status and at most one line.

    Args:
        options: What was asked for; of it `quiet` and `log_file` are used here.
        log: The command's logger.
        begin: Reads and checks the inputs, before any work.
        refused: What it raises when they cannot be used: status 2. A log file that cannot be
            written is refused too.

    Returns:
        The task's own status; 2, 130 for an interrupt, 1 for a fault with its traceback kept.
    """
    task: Task | None = None
    refused += (InputError,)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logging_to(log, options.quiet))
        try:
            if options.log_file:
                stack.enter_context(_logging_into(log, options.log_file))
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
            signal.signal(signal.SIGTERM, _interrupt)
            task = begin(options)
            return task.execute()
        except refused as error:
            log.error("%s", one_line(error, 500))
            return 2
        except KeyboardInterrupt:
            log.error("interrupted")
            return 130
        except Exception as error:  # a fault of ours: one line, and the traceback in a file
            trace = traceback.format_exc()
            where = keep_trace(log, trace, options.log_file, task.place if task else None)
            log.error("internal fault: %s: %s; %s", type(error).__name__, one_line(error), where)
            return 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class _Lines(logging.StreamHandler[TextIO]):
    """Lines to a stream; the work goes on when its reader has gone, as after `| head`."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Keeps quiet about a reader that has gone, and only about that."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


@contextmanager
def _logging_to(log: logging.Logger, quiet: bool) -> Iterator[None]:
    """Warnings and errors to stderr, progress to stdout unless quiet."""
    errors = _Lines(sys.stderr)
    errors.setLevel(logging.ERROR if quiet else logging.WARNING)
    handlers: list[logging.Handler] = [errors]
    if not quiet:
        told = _Lines(sys.stdout)
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
def _logging_into(log: logging.Logger, file: str) -> Iterator[None]:
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


def keep_trace(
    log: logging.Logger, trace: str, file: str | None, folder: Path | None = None
) -> str:
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
    """Counts what is finished: a bar on a terminal, else a line each.

    Args:
        log: Where the lines go.
        quiet: Show nothing.
        what: Is counted, such as `ligands`.
        total: How many there will be, if that is known.
    """

    def __init__(
        self, log: logging.Logger, quiet: bool, what: str, total: int | None = None
    ) -> None:
        self._log, self._what = log, what
        self._bar: Any = None
        self._done = 0
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            how = SpinnerColumn() if total is None else BarColumn()
            columns = how, TextColumn("{task.description}"), TimeElapsedColumn()
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"0 {what}", total=total)

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

    def step(self, line: str, count: int = 1) -> None:
        """`count` more are done."""
        self._done += count
        if self._bar is None:
            self._log.info("%s", line)
        else:
            from rich.markup import escape

            text = escape(f"{self._done} {self._what}  {line}")
            self._bar.update(self._task, description=text, completed=self._done)


def libraries(*names: str) -> dict[str, str]:
    """Versions for a summary, Python's first."""
    return {
        "python": sys.version.split()[0],
        **{name: str(import_module(name).__version__) for name in names},
    }


def choose_device(device: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`.

    Raises:
        InputError: There is no such device here.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError("device", f"no device {device!r}; say auto, cpu or cuda")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "no CUDA device here; use cpu or auto")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: sums then have one order, whatever the machine's load or cores.

    Numbers too small for all of their digits count as zero, for all that this thread computes:
    they would take a CPU many times as long, and the tails of Gaussians are full of them.
    """
    import torch

    threads = torch.get_num_threads()
    flushed = bool(torch.tensor(2e-38, dtype=torch.float32) / 4 == 0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
