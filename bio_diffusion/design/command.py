"""What `python -m bio_diffusion.design` does: check, draw, keep what satisfies everything, write.

Everything that can be wrong is found before any work. Then sequences are drawn in a fixed order,
and the first n that satisfy all objectives and constraints are the designs: the same ones whether
the run was broken off and resumed or not.
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import bio_diffusion
from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.command import Progress, exit_status, libraries, one_thread
from bio_diffusion.config import ConfigError, dump, read
from bio_diffusion.design import summary
from bio_diffusion.design.pipeline import Designer
from bio_diffusion.design.plan import Plan, Start, settings_of
from bio_diffusion.design.properties import canonical, has_radicals, known_names, measure
from bio_diffusion.design.report import Report
from bio_diffusion.design.results import ResultFolder
from bio_diffusion.files import InputError, one_line, rounded, slug

__all__ = ["run"]

log = logging.getLogger("bio_diffusion.design")


def run(options: argparse.Namespace) -> int:
    """Runs the command for parsed options and returns the exit status."""
    return exit_status(options, log, _Runs, (ConfigError, CheckpointError))


class _Runs:
    """The runs of one command: one, or those of a job file, all checked before the first."""

    def __init__(self, options: argparse.Namespace) -> None:
        place = Path(options.out) if options.out else None
        models: dict[str, Designer] = {}
        self.runs = []
        for name, given in _jobs(options):
            try:
                settings = settings_of(given)
                if settings["model"] not in models:
                    models[settings["model"]] = Designer.load(settings["model"], options.device)
                out = place or Path("design-results") / (name or settings["domain"])
                if name and place:
                    out = place / name
                self.runs.append(_Run(settings, models[settings["model"]], out, options))
            except (ConfigError, CheckpointError, InputError) as error:
                if not options.job:
                    raise
                where = f"{options.job}: run {name}" if name else options.job
                raise InputError("job", f"{where}: {error}") from None
        self.place = self.runs[0].path

    def execute(self) -> int:
        """Does all runs; 3 when one of them came short, and none after an interrupt."""
        status = 0
        for each in self.runs:
            self.place = each.path
            with one_thread():
                done = each.execute()
            if done not in (0, 3):
                return done
            status = max(status, done)
        return status


def _jobs(
    options: argparse.Namespace,
) -> Iterator[tuple[str, argparse.Namespace | Mapping[str, Any]]]:
    """Name of each run, empty where there is one alone, and what was asked of it."""
    if not options.job:
        yield "", options
        return
    tree = read(options.job)
    jobs = tree.get("jobs", [tree])
    if not isinstance(jobs, list) or not jobs or not all(isinstance(j, dict) for j in jobs):
        raise InputError("job", f"{options.job}: jobs must be a list of runs: - domain: dna")
    if "jobs" in tree and len(tree) > 1:
        other = next(key for key in tree if key != "jobs")
        raise InputError("job", f"{options.job}: {other!r} stands beside jobs; put it into each")
    seen = set()
    for number, job in enumerate(jobs, 1):
        given = dict(job)
        name = slug(given.pop("name", "")) or (str(number) if "jobs" in tree else "")
        if name in seen:
            raise InputError("job", f"{options.job}: two runs are called {name!r}; rename one")
        seen.add(name)
        yield name, given


class _Run:
    """One run: checked when made, does its work when executed."""

    def __init__(
        self, settings: dict[str, Any], designer: Designer, path: Path, options: argparse.Namespace
    ) -> None:
        self.settings, self.designer, self.path, self.options = settings, designer, path, options
        self.plan = Plan(settings, designer)
        if settings["guidance"] == "cbg":
            designer.predictor  # noqa: B018 - a model without one ends the run here
        ResultFolder.check(path, options.resume, options.overwrite)
        self.properties = [*known_names(self.plan.domain, self.plan.oracles)]
        self.properties = [name for name in self.properties if not name.endswith(":")]
        asked = (objective.name for objective in self.plan.objectives)
        self.properties += [name for name in dict.fromkeys(asked) if name not in self.properties]
        self.text = "sequence" if self.plan.domain == "dna" else "smiles"
        begun = ["id", self.text, "valid", "novel", *self.properties]
        self.columns = [*begun, "start", "seed", "draw"] if settings.get("start") else [
            *begun, "seed", "draw"
        ]  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        self.drawn: list[str] = []
        self.kept: set[str] = set()
        self.began = time.monotonic()
        self._next_tables = 0.0

    @property
    def wanted(self) -> int:
        return self.settings["n"] * len(self.plan.starts)

    def execute(self) -> int:
        """Draws until there are enough designs or the budget is spent."""
        self.began = time.monotonic()
        for warning in self.plan.warnings:
            log.warning("%s", warning)
        key = {**self.settings, "checkpoint": self.designer.sha256}
        key |= {"version": bio_diffusion.__version__, "device": str(self.designer.device)}
        key["times"] = self.plan.times  # the files of a schedule and of starts may have changed
        if self.plan.records:
            key["start_sequences"] = self.plan.records
        options, status = self.options, "complete"
        self.folder = ResultFolder.open(
            self.path, key, len(self.plan.starts), options.resume, options.overwrite
        )
        self.training = self._training()
        self.known = None if self.training is None else frozenset(self.training)
        try:
            self.folder.write_text("config.yaml", dump(self.settings))
            self._write_tables(force=True)
            try:
                with Progress(log, options.quiet, "designs", self.wanted) as progress:
                    for number, start in enumerate(self.plan.starts):
                        self._complete(number, start, progress)
            except KeyboardInterrupt:
                status = "interrupted"
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last files are written whole
            if status == "complete" and len(self.rows) < self.wanted:
                status = "short"
            self._finish(status)
        except OSError as error:
            log.error(
                "%s: cannot be written: %s; make room and say --resume",
                self.path,
                error.strerror or one_line(error),
            )
            return 3
        if status == "interrupted":
            log.error("interrupted: %s holds what is done, --resume goes on", self.path)
            return 130
        if status == "short":
            log.error("%s: %s", self.path, self._shortfall())
            return 3
        return 0

    def _complete(self, number: int, start: Start, progress: Progress) -> None:
        """Draws designs for one start until it has its n."""
        settings, target = self.settings, len(self.rows) + self.settings["n"]
        budget, drawn = settings["max_draws"] * settings["n"], 0
        for batch in self.folder.drawn[number]:
            self._take(batch, drawn, start, target)
            drawn += len(batch)
        if len(self.rows) >= target or drawn >= budget:
            return
        batches = self.designer.design(
            budget - drawn,
            targets=self.plan.targets,
            guidance=settings["guidance"],
            gamma=settings["gamma"],
            steps=settings["steps"],
            schedule=settings["schedule"] or None,
            seed=start.seed,
            constraints=start.guides,
            first=drawn,
        )
        for batch in batches:
            self.folder.draw(number, batch)
            before = len(self.rows)
            self._take(batch, drawn, start, target)
            drawn += len(batch)
            name = f"{start.id}: " if start.id else ""
            progress.step(
                f"{name}{len(self.rows)} of {self.wanted} designs, {len(self.drawn)} drawn",
                len(self.rows) - before,
            )
            self._write_tables()
            if len(self.rows) >= target:
                return

    def _take(self, batch: list[str], drawn: int, start: Start, target: int) -> None:
        """Keeps the strings of a batch that satisfy everything, up to the target."""
        values = measure(self.properties, batch, self.plan.oracles)
        holds = np.ones(len(batch), dtype=bool)
        for objective in self.plan.objectives:
            holds &= objective.holds(values[objective.name])
        for i, text in enumerate(batch):
            if len(self.rows) == target:
                return
            self.drawn.append(text)
            name = self._identity(text)
            if name is None or not holds[i] or not self._legal(text, start):
                continue
            if self.settings["unique"] and name in self.kept:
                continue
            self.kept.add(name)
            prefix = start.id or "design"
            count = 1 + len(self.rows) - (target - self.settings["n"])
            self.rows.append(
                {
                    "id": f"{prefix}_{count}",
                    self.text: text,
                    "valid": True,
                    "novel": None if self.known is None else name not in self.known,
                    **{key: _rounded(v[i]) for key, v in values.items()},
                    "start": start.id,
                    "seed": self.settings["seed"],
                    "draw": drawn + i,
                }
            )

    def _identity(self, text: str) -> str | None:
        """What tells designs apart; None for a string that is no design."""
        if self.text == "sequence":
            return text or None
        return None if has_radicals(text) else canonical(text)

    def _legal(self, text: str, start: Start) -> bool:
        if self.plan.scaffold is not None:
            return self.plan.scaffold.matches(text)
        return start.language is None or text in start.language

    def _training(self) -> list[str] | None:
        """The training set; molecules as canonical SMILES. None where the data are not at hand."""
        try:
            training = self.designer.training
        except (FileNotFoundError, ValueError) as error:
            log.warning("novelty is not known: %s", one_line(error))
            return None
        if self.text == "smiles" and any(canonical(s) != s for s in training[:200]):
            log.info("writing %d training molecules the one way", len(training))
            return [c for s in training if (c := canonical(s)) is not None]
        return training

    def _write_tables(self, force: bool = False) -> None:
        """Writes the designs so far, at most 5 % of the time."""
        now = time.monotonic()
        if not force and now < self._next_tables:
            return
        self.folder.write_designs(self.columns, self.rows)
        spent = time.monotonic() - now
        self._next_tables = time.monotonic() + 20 * spent

    def _shortfall(self) -> str:
        missing = self.wanted - len(self.rows)
        return (
            f"{len(self.rows)} of {self.wanted} designs after {len(self.drawn)} draws, {missing} "
            "missing; raise --max-draws, guide more or ask for less"
        )

    def _finish(self, status: str) -> None:
        """Writes the last tables, the summary and the report, and says where they are.

        An interrupted run is not compared with anything, which would keep the user waiting.
        """
        self._write_tables(force=True)
        sampled = time.monotonic() - self.began
        table = None if status == "interrupted" else summary.compare(
            self.plan.domain,
            self.rows,
            self.drawn,
            self.training,
            self.properties,
            self.plan.oracles,
            self.settings["seed"],
        )  # fmt: skip
        languages = [s.language for s in self.plan.starts if s.language is not None]
        data = {
            "status": status,
            "shortfall": self._shortfall() if status == "short" else None,
            "version": bio_diffusion.__version__,
            "model": {"name": self.designer.name, "sha256": self.designer.sha256},
            "settings": self.settings,
            "targets": {
                name: self.designer.properties[name][place]
                for name, place in self.plan.targets.items()
            },
            "constraints": [str(c) for c in self.plan.constraints],
            "sequences_that_satisfy_them": [str(lang.size) for lang in languages],
            "warnings": self.plan.warnings,
            "counts": {
                "asked": self.wanted,
                "given": len(self.rows),
                "drawn": len(self.drawn),
                "accepted_share": _rounded(len(self.rows) / max(1, len(self.drawn))),
            },
            **(table.summary if table else {}),
            "timings": {
                "seconds": round(time.monotonic() - self.began, 2),
                "sampling_seconds": round(sampled, 2),
            },
            "libraries": libraries("torch", "rdkit", "numpy"),
        }
        self.folder.write_json("summary.json", data)
        files = ["designs.fasta" if self.text == "sequence" else "designs.csv"]
        if table:
            report = Report(self.plan.domain, self.rows, data, table)
            self.folder.write_text("report.html", report.html())
            files.append("report.html")
        lines = [f"{len(self.rows)} designs of {len(self.drawn)} drawn"]
        lines += [f"{name:14}{self.path / name}" for name in files]
        log.info("%s", "\n".join(lines))


def _rounded(value: float) -> float | None:
    """Six digits, whole numbers as such; None for no value."""
    short = rounded(value)
    return int(short) if short is not None and short.is_integer() else short
