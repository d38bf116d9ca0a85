"""The pool of processes: every job has one outcome, whatever happens to its worker."""

import multiprocessing
import os
import signal
import time

from bio_diffusion.dock.parallel import Crash, run_here, run_pool


def work(number):
    if number == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -2:
        time.sleep(60)
    if number == -3:
        raise MemoryError
    if number == 0:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if number == -4:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
    return number * number


def test_every_job_has_one_outcome_even_if_workers_die():
    jobs = iter([2, -1, 3, -2, 4, -3, 5, -4])
    outcomes = list(run_pool(work, jobs, 2, 3.0))
    found = {outcome.job: outcome.result for outcome in outcomes}
    assert len(outcomes) == len(found) == 8
    assert {job: result for job, result in found.items() if job > 0} == {2: 4, 3: 9, 4: 16, 5: 25}
    assert found[-1].code == "crash" and "SIGKILL" in found[-1].reason
    assert found[-2].code == "timeout"
    assert found[-3].code == found[-4].code == "memory"


def test_no_worker_hears_of_an_interrupt_while_it_starts():
    heard = [outcome.result for outcome in run_pool(work, iter([0, 0]), 2, 30.0)]
    assert all(signal.SIGINT in masked for masked in heard)


class Deadly:
    """Work that ends a process as soon as it comes there."""

    def __call__(self, job):
        return job

    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_dies_at_once_costs_its_job_however_large():
    outcomes = list(run_pool(Deadly(), iter(["x", "x" * 3_000_000]), 2, 30.0))
    assert [outcome.result.code for outcome in outcomes] == ["crash", "crash"]


def test_a_worker_that_dies_idle_is_replaced():
    def jobs():
        yield 2
        yield 3
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        yield 4

    crew = run_pool(work, jobs(), 1, 30.0)
    assert [outcome.result for outcome in crew] == [4, 9, 16]


def test_jobs_are_drawn_only_when_a_worker_is_free():
    drawn = []
    jobs = (drawn.append(i) or i for i in range(100))
    outcomes = run_pool(work, jobs, 2, 30.0)
    next(outcomes)
    assert len(drawn) <= 3
    outcomes.close()  # leaves no process behind


def test_a_fault_is_an_outcome_with_its_traceback():
    (outcome,) = run_here(lambda job: job["missing"], iter([{}]))
    assert isinstance(outcome.result, Crash) and outcome.result.code == "fault"
    assert "KeyError" in outcome.result.reason and "Traceback" in outcome.result.trace
