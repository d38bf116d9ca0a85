"""Docking many ligands at once: in this process, in a pool of processes, or on a Dask cluster.

Each runner takes an iterator of jobs and yields outcomes as they finish. Jobs are drawn only when a
worker is free, so a list of any length stays on disk. A worker that dies or hangs costs one job: it
is replaced, and the job's outcome says what happened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeAlias, TypeVar

from bio_diffusion.files import InputError, one_line

__all__ = ["Crash", "Outcome", "Outcomes", "require_dask", "run_dask", "run_here", "run_pool"]

Job = TypeVar("Job")

_READY = "ready"
_MEMORY = "not enough memory for this ligand; use fewer workers"
_FETCH = 64  # jobs underway on a cluster for each worker it may have


@dataclass(frozen=True)
class Crash:
    """A job that gave no result.

    Attributes:
        code: `crash`, `timeout`, `memory` or `fault`.
        reason: One line.
        trace: The traceback of a fault, else empty.
    """

    code: str
    reason: str
    trace: str = ""


@dataclass(frozen=True)
class Outcome(Generic[Job]):
    """A job and what came of it: whatever the work function gave, or a `Crash`."""

    job: Job
    result: Any


Outcomes: TypeAlias = Generator[Outcome[Job], None, None]


def _attempt(work: Callable[[Any], Any], job: Any) -> Any:  # noqa: ANN401 - any job, any result
    try:
        return work(job)
    except MemoryError:
        return Crash("memory", _MEMORY)
    except Exception as error:
        if "not enough memory" in str(error) or "out of memory" in str(error):  # as torch says it
            return Crash("memory", _MEMORY)
        # one ligand's fault must not end the others' run
        kind = type(error).__name__
        return Crash("fault", one_line(f"{kind}: {error}"), traceback.format_exc())


def run_here(work: Callable[[Job], Any], jobs: Iterator[Job]) -> Outcomes[Job]:
    """Does the jobs one by one in this process."""
    for job in jobs:
        yield Outcome(job, _attempt(work, job))


def _serve(work: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker: jobs in, results out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(_READY)
        while True:
            pipe.send(_attempt(work, pipe.recv()))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started within never hear of Ctrl-C: not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # begun by the first process, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    job: Any = None
    since: float = math.inf  # when its job began; a process still starting has not begun


def run_pool(
    work: Callable[[Job], Any], jobs: Iterator[Job], workers: int, timeout: float
) -> Outcomes[Job]:
    """Does the jobs in `workers` processes.

    Args:
        work: Picklable; called with each job.
        jobs: Picklable jobs, drawn when a worker is free.
        workers: Processes, started as they are needed.
        timeout: Seconds after which a job is given up and its process replaced.
    """
    context = multiprocessing.get_context("spawn")  # forked torch threads may deadlock
    crew: list[_Worker] = []

    def hire() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        with _deaf():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        crew.append(worker)
        return worker

    def dismiss(worker: _Worker) -> None:
        crew.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def handed(worker: _Worker, job: Job) -> bool:
        try:
            worker.pipe.send(job)
        except (BrokenPipeError, ConnectionResetError):
            dismiss(worker)
            return False
        worker.job = job
        if worker.since < math.inf:
            worker.since = time.monotonic()
        return True

    try:
        more = True
        while True:
            while more:
                idle = next((w for w in crew if w.job is None), None)
                if idle is None and len(crew) >= workers:
                    break
                try:
                    job = next(jobs)
                except StopIteration:
                    more = False
                    break
                # an idle one may have died with nothing to do
                if not (idle and handed(idle, job)) and not handed(hire(), job):
                    yield Outcome(job, Crash("crash", "the process ended before it could begin"))
            busy = {w.pipe: w for w in crew if w.job is not None}
            if not busy:
                return
            now = time.monotonic()
            patience = min(timeout - (now - w.since) for w in busy.values())
            for pipe in wait(list(busy), max(0.0, patience) if patience < math.inf else None):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    result = worker.pipe.recv()
                    if result == _READY:
                        worker.since = time.monotonic()
                        continue
                    job, worker.job = worker.job, None
                except (EOFError, ConnectionResetError):
                    job, worker.job = worker.job, None
                    worker.process.join(5)
                    code = worker.process.exitcode
                    dismiss(worker)
                    result = Crash("crash", f"the process docking it ended ({_ending(code)})")
                yield Outcome(job, result)
            for worker in [w for w in crew if w.job is not None]:
                if time.monotonic() - worker.since >= timeout and not worker.pipe.poll():
                    job = worker.job
                    dismiss(worker)
                    yield Outcome(job, Crash("timeout", f"not done after {timeout:g} s"))
    finally:
        for worker in list(crew):
            dismiss(worker)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"status {code}"


_work: dict[str, Callable[[Any], Any]] = {}


def _remote(name: str, work: Callable[[Any], Any], job: Any) -> Any:  # noqa: ANN401
    """Runs on a cluster's worker, which keeps the work function and what it has loaded."""
    return _attempt(_work.setdefault(name, work), job)


def require_dask() -> None:
    """Raises `InputError` where Dask is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "extra",
            "--scheduler needs Dask, which is not installed: pip install 'bio_diffusion[cluster]'",
        )


def run_dask(
    work: Callable[[Job], Any], jobs: Iterator[Job], address: str, name: str
) -> Outcomes[Job]:
    """Does the jobs on the workers of a Dask scheduler.

    Args:
        work: Picklable; sent once to each worker.
        jobs: Picklable jobs.
        address: Of the scheduler, such as `tcp://host:8786`.
        name: Of this work, the same for the same work.

    Raises:
        InputError: Dask is not installed, or no scheduler answers.
    """
    require_dask()
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError):
        raise InputError(
            "scheduler", f"{one_line(address)}: no Dask scheduler answers there; check the address"
        ) from None
    with client:
        shared = client.scatter(work, broadcast=True, hash=False)
        underway: dict[Any, Job] = {}
        done = as_completed(loop=client.loop)

        def submit() -> bool:
            job = next(jobs, None)
            if job is None:
                return False
            future = client.submit(_remote, name, shared, job, pure=False, retries=1)
            underway[future] = job
            done.add(future)
            return True

        wanted = max(2, 2 * sum(client.nthreads().values()))
        for _ in range(min(wanted, _FETCH)):
            if not submit():
                break
        for future in done:
            job = underway.pop(future)
            failed = future.exception()
            result = Crash("crash", one_line(failed)) if failed else future.result()
            future.release()
            submit()
            yield Outcome(job, result)
