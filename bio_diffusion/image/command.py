"""What `python -m bio_diffusion.image` does: check, draw, measure, write.

Everything that can be wrong is found before any work.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch

import bio_diffusion
from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.command import Progress, exit_status, libraries
from bio_diffusion.config import ConfigError, dump
from bio_diffusion.files import InputError, one_line, rounded
from bio_diffusion.image.measure import Measurement
from bio_diffusion.image.pipeline import CHUNK, ImageSampler
from bio_diffusion.image.results import ResultFolder

__all__ = ["run"]

log = logging.getLogger("bio_diffusion.image")

MOST_STEPS = 100_000


def run(options: argparse.Namespace) -> int:
    """Runs the command for parsed options and returns the exit status."""
    return exit_status(options, log, _Run, (ConfigError, CheckpointError, FileNotFoundError))


class _Run:
    """One run: checked when made, does its work when executed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.measures = options, options.verb == "evaluate"
        self.place = Path(options.out or f"image-results/{options.verb}")
        self.sampler = sampler = ImageSampler.load(options.model or "mnist", options.device)
        self.settings: dict[str, Any] = {
            "verb": options.verb,
            "model": options.model or "mnist",
            "n": _or(options.n, 1000 if self.measures else 64),
            "steps": _or(options.steps, sampler.steps),
            "schedule": options.schedule or sampler.usual_schedule,
            "sampler": options.sampler or sampler.samplers[0],
            "guidance": _or(options.guidance, 0.0),
            "seed": _or(options.seed, 0),
        }
        if self.measures:
            self.settings |= {
                "data": options.data or sampler.data,
                "classifier": options.classifier or "mnist_classifier",
                "bits_n": _or(options.bits_n, 256),
                "inception": options.inception,
                "fid_reference": options.fid_reference,
            }
        self.notes: list[str] = []
        try:
            self._check()
        except InputError:
            raise
        except ValueError as error:
            if isinstance(error, CheckpointError | ConfigError):
                raise
            raise InputError("setting", one_line(error, 400)) from None
        ResultFolder.check(self.place, options.resume, options.overwrite)

    def _check(self) -> None:
        settings, sampler = self.settings, self.sampler
        least = {"n": 2 if self.measures else 1, "steps": 1, "seed": 0, "bits_n": 1}
        for name, value in least.items():
            if settings.get(name, value) < value:
                raise ValueError(f"{name} is {settings[name]}; it must be {value} or more")
        if settings["steps"] > MOST_STEPS:
            raise ValueError(f"steps is {settings['steps']}; it must be {MOST_STEPS} or less")
        if not math.isfinite(settings["guidance"]) or settings["guidance"] < 0:
            raise ValueError(f"guidance is {settings['guidance']:g}; it must be 0 or more")
        self.times = sampler.times(settings["steps"], settings["schedule"])
        sampler.check(settings["sampler"], settings["guidance"])
        if sampler.model.encoder is not None:
            sampler.check_prior()
        if self.measures:
            named = self.options.classifier is not None
            self.measurement = Measurement(settings, named, sampler)
            self.notes += self.measurement.notes

    def execute(self) -> int:
        """Draws the pictures, measures them if asked to, and writes everything."""
        began, settings, options = time.monotonic(), self.settings, self.options
        for note in self.notes:
            log.warning("%s", note)
        sampler = self.sampler
        drawn_by = ("model", "steps", "schedule", "sampler", "guidance", "seed")
        key = {name: settings[name] for name in drawn_by}  # so that evaluate goes on with sample's
        key |= {"checkpoint": sampler.sha256, "version": bio_diffusion.__version__}
        key |= {"device": str(sampler.device)}
        key["time grid"] = self.times.tolist()  # its file may have changed
        self.folder = ResultFolder.open(
            self.place, key, sampler.shape, CHUNK, options.resume, options.overwrite
        )
        measured: dict[str, Any] = {"bits_per_dim": None, "frechet_distance": None}
        status, drawn = "complete", began
        try:
            self.folder.write_text("config.yaml", dump(settings))
            try:
                self._draw()
                drawn = time.monotonic()
                if self.measures:
                    drawn_pixels = torch.from_numpy(self.folder.pixels[: settings["n"]].copy())
                    measured |= self.measurement(drawn_pixels)
            except KeyboardInterrupt:
                status, drawn = "interrupted", time.monotonic()
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last files are written whole
            self._write(status, measured, drawn - began, time.monotonic() - began)
        except OSError as error:
            log.error(
                "%s: cannot be written: %s; make room and say --resume",
                self.place,
                error.strerror or one_line(error),
            )
            return 3
        if status == "interrupted":
            log.error("interrupted: %s holds what is done, --resume goes on", self.place)
            return 130
        return 0

    def _draw(self) -> None:
        n, settings = self.settings["n"], self.settings
        done = min(len(self.folder.pixels), n)
        with Progress(log, self.options.quiet, "pictures", n) as progress:
            if done:
                progress.step(f"{done} of {n} pictures were drawn before", done)
            for batch in self.sampler.draw(
                math.ceil(n / CHUNK) * CHUNK,  # whole batches: a longer run can go on with them
                times=self.times,
                sampler=settings["sampler"],
                seed=settings["seed"],
                guidance=settings["guidance"],
                first=len(self.folder.pixels),
            ):
                self.folder.add(batch.numpy())
                now = min(len(self.folder.pixels), n)
                progress.step(f"{now} of {n} pictures", now - done)
                done = now

    def _write(
        self, status: str, measured: dict[str, Any], sampling: float, seconds: float
    ) -> None:
        settings, folder = self.settings, self.folder
        count = min(len(folder.pixels), settings["n"])
        folder.write_pictures(count)
        calls = 2 * settings["steps"] - 1 if settings["sampler"] == "heun" else settings["steps"]
        data = {
            "status": status,
            "version": bio_diffusion.__version__,
            "model": {"name": self.sampler.name, "sha256": self.sampler.sha256},
            "settings": settings,
            "steps": settings["steps"],
            "network_calls": calls * (2 if settings["guidance"] else 1),
            "counts": {"asked": settings["n"], "given": count},
            **{k: rounded(v) if isinstance(v, float) else v for k, v in measured.items()},
            "notes": self.notes,
            "timings": {"seconds": round(seconds, 2), "sampling_seconds": round(sampling, 2)},
            "libraries": libraries("torch", "numpy"),
        }
        if self.measures:
            data |= self.measurement.about()
        folder.write_json("summary.json", data)
        lines = [f"{count} pictures of {settings['n']}"]
        if measured["bits_per_dim"] is not None:
            lines += self.measurement.lines(measured)
        lines += [f"{name:13}{self.place / name}" for name in ("grid.png", "samples.npy")]
        log.info("%s", "\n".join(lines))


def _or(given: Any, usual: Any) -> Any:
    return usual if given is None else given
