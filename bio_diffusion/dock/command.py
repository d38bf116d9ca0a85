"""What `python -m bio_diffusion.dock` does: plan, dock, write.

Everything that can be wrong with the inputs as a whole (protein, site, settings, checkpoint,
folder) is found before any work and ends the run with status 2; a ligand that cannot be docked
costs only itself.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

import bio_diffusion
from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.command import Progress, exit_status, keep_trace, libraries
from bio_diffusion.config import ConfigError, compose, dump, merge
from bio_diffusion.files import one_line

from . import ahead
from .complex import Failure, InputError, Ligand, slug
from .ligand_records import named_files
from .parallel import Crash, Outcome, Outcomes, require_dask, run_dask, run_here, run_pool
from .pipeline import Settings
from .plan import Job, Plan, Session
from .report import Report
from .results import ResultFolder, job_key
from .target import Place, facts

__all__ = ["run"]

log = logging.getLogger("bio_diffusion.dock")


def run(options: argparse.Namespace) -> int:
    """Runs the command for parsed options and returns the exit status."""
    return exit_status(options, log, _Run, (ConfigError, CheckpointError))


class _Run:
    """One run: reads and checks everything when made, docks when executed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.options = options
        names = ("num_poses", "seed", "steps", "schedule", "prepare", "minimize")
        flags = {name: getattr(options, name) for name in names}
        self.config = merge(compose("dock", options.overrides, options.config), flags)
        if options.workers is not None and options.workers < 1:
            raise InputError("setting", f"--workers is {options.workers}; it must be 1 or more")
        timeout = self.config["timeout"]
        if timeout is None or timeout <= 0:
            raise InputError("setting", f"timeout is {timeout}; it must be more than 0")
        if options.scheduler:
            require_dask()
        self.session = Session(options.checkpoint, options.device, Settings.of(self.config))
        self.session.docker  # noqa: B018 - a checkpoint that cannot be used ends the run here
        self.plan = Plan(
            self.session,
            options.protein,
            Place(
                options.autobox_ligand,
                options.center,
                options.size,
                options.pocket_residues,
                options.blind,
            ),
            self.config["prepare"],
            options.ligand,
            options.ligands,
        )
        name = slug(self.plan.main.receptor.name) or "protein"
        path = Path(options.out) if options.out else Path("docking-results") / name
        given = [*options.ligand, *filter(None, [options.ligands])]
        named = chain.from_iterable(map(named_files, map(Path, given)))
        inputs = options.protein, options.autobox_ligand, *given, *named
        self.folder = ResultFolder.open(path, options.resume, options.overwrite, inputs)
        self.progress = Progress(log, options.quiet, "ligands")
        self.reused = 0
        self.seconds: list[float] = []

    @property
    def place(self) -> Path:
        return self.folder.path

    def execute(self) -> int:
        """Docks everything and returns the exit status."""
        for warning in self.plan.warnings:
            log.warning("%s", warning)
        status = "complete"
        try:
            self.folder.write_text("config.yaml", dump(self.config))
            if self.options.resume:  # so that no table ever loses what an earlier run had done
                jobs = map(self._known, self.plan.items())
                if stale := sum(
                    j is not None and self.folder.has_docked(j.ligand.id) for j in jobs
                ):
                    log.warning(
                        "%s: of another molecule, protein, site, setting or version and docked "
                        "anew: %d",
                        self.folder.path,
                        stale,
                    )
            outcomes = self._outcomes(self._jobs())
            try:
                with self.progress:
                    for outcome in outcomes:
                        self._take(outcome)
                        if self.folder.write_tables():
                            self._write_summary("running")
            except KeyboardInterrupt:
                status = "interrupted"
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last tables are written whole
                outcomes.close()
            self._finish(status)
        except OSError as error:
            log.error(
                "%s: cannot be written: %s; %d ligands are kept, make room and say --resume",
                self.folder.path,
                error.strerror or one_line(error),
                len(self.folder),
            )
            return 3
        if status == "interrupted":
            log.error("interrupted: %s holds what is done, --resume goes on", self.folder.path)
            return 130
        return 3 if self.folder.failures() else 0

    def _known(self, item: Ligand | Failure) -> Job | None:
        """Notes a ligand that needs no docking; gives the job of one that does."""
        if isinstance(item, Failure):
            self._fail(item.ligand_id, item.code, item.reason)
            return None
        try:
            job = self.plan.job(item)
        except InputError as error:
            self._fail(item.id, error.code, one_line(f"{item.source}: {error}", 400))
            return None
        if self.folder.reuse(item.id, job.key):
            self.reused += 1
            return None
        return job

    def _jobs(self) -> Iterator[Job]:
        for item in self.plan.items():
            name = item.ligand_id if isinstance(item, Failure) else item.id
            if name not in self.folder and (job := self._known(item)) is not None:
                yield job

    def _outcomes(self, jobs: Iterator[Job]) -> Outcomes[Job]:
        options, docker = self.options, self.session.docker
        if options.scheduler:
            name = job_key(self.config, self._made_by())
            return run_dask(self.session, jobs, options.scheduler, name)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = options.workers or (1 if docker.device == "cuda" else cores or 1)
        first = list(islice(jobs, 2))  # one ligand needs no pool
        jobs = chain(first, jobs)
        if workers == 1 or len(first) < 2:
            return run_here(self.session, jobs)
        ahead.wait()  # or each worker would compile for itself
        return run_pool(self.session, jobs, workers, float(self.config["timeout"]))

    def _take(self, outcome: Outcome[Job]) -> None:
        """Stores what came of a job."""
        ligand, result = outcome.job.ligand, outcome.result
        if isinstance(result, Crash):
            if result.trace:
                keep_trace(log, result.trace, self.options.log_file, self.folder.path)
            self._fail(ligand.id, result.code, result.reason)
            return
        self.folder.add(ligand.id, outcome.job.key, result)
        if "failure" in result:
            log.error("%s: %s: %s", ligand.id, *result["failure"])
            return
        best = result["rows"][0]
        self.seconds.append(best["seconds"])
        rmsd = "" if best["rmsd"] is None else f", RMSD {best['rmsd']:.2f} Å"
        self.progress.step(
            f"{ligand.id}: {len(result['rows'])} poses, best {best['energy']:.2f} kcal/mol"
            f"{rmsd} ({best['seconds']:.1f} s)"
        )

    def _fail(self, ligand_id: str, code: str, reason: str) -> None:
        self.folder.fail(ligand_id, code, reason)
        log.error("%s: %s: %s", ligand_id, code, reason)

    def _finish(self, status: str) -> None:
        """Writes the last tables, the report and the summary, and says where they are."""
        folder = self.folder
        folder.write_tables(force=True)
        report = Report(
            title=f"Docking into {self.plan.main.receptor.name}",
            proteins=self.plan.receptors(),
            settings={
                **self.config,
                "site": [site.how for site in self.plan.main_sites],
                **self._made_by(),
            },
            warnings=self.plan.warnings,
        )
        for record in folder.records():
            report.add(record)
        failures = folder.failures()
        if report.poses:
            folder.write_text("report.html", report.html(failures))
        self._write_summary(status)
        many = "s" * (report.ligands != 1)
        lines = [f"{report.ligands} ligand{many} docked, {report.poses} poses"]
        if self.reused:
            lines[0] += f"; {self.reused} ligands were done before"
        if failures:
            lines.append(f"{len(failures)} not docked, see {folder.path / 'failures.csv'}")
        if report.poses:
            lines += [
                f"poses   {folder.path / 'poses.sdf'}",
                f"report  {folder.path / 'report.html'}",
            ]
        log.info("%s", "\n".join(lines))

    def _made_by(self) -> dict[str, Any]:
        docker = self.session.docker
        return {
            "version": bio_diffusion.__version__,
            "checkpoint": docker.checkpoint,
            "confidence": docker.confidence.name if docker.confidence else "none",
            "poses_from": docker.source.name,
            "device": docker.device,
        }

    def _write_summary(self, status: str) -> None:
        options, plan = self.options, self.plan
        with Path(options.protein).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        codes = Counter(code for _, code, _ in self.folder.failures())
        sites = [
            {
                "site": number,
                "how": site.how,
                "center": np.round(site.center, 3).tolist(),
                "size": np.round(site.size, 3).tolist(),
            }
            for number, site in enumerate(plan.main_sites, start=1)
        ]
        summary = {
            "status": status,
            **self._made_by(),
            "inputs": {
                "protein": options.protein,
                "protein_sha256": digest,
                "ligand": options.ligand,
                "ligands": options.ligands,
            },
            "settings": self.config,
            "protein": facts(plan.main.receptor),
            "sites": sites,
            "warnings": plan.warnings,
            "counts": self.folder.counts,
            "failures": dict(sorted(codes.items())),
            "ligand_notes": self.folder.notes,
            "timings": {
                "seconds": round(time.monotonic() - self.began, 2),
                "reused_ligands": self.reused,
                "median_seconds_a_ligand": (
                    round(statistics.median(self.seconds), 2) if self.seconds else None
                ),
            },
            "libraries": libraries("torch", "rdkit", "numpy"),
        }
        self.folder.write_json("summary.json", summary)
