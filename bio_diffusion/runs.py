"""One training run in its folder: what `bio_diffusion.train` does once the settings are known.

A run is a loop over `diffusion.training.fit`: each step is logged, now and then the experiment is
asked for figures and a state is written, from which a later sitting goes on bit for bit.
"""

import csv
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bio_diffusion import __version__
from bio_diffusion.command import choose_device
from bio_diffusion.config import ConfigError, build

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bio_diffusion.diffusion.process import Denoiser, Process, State
    from bio_diffusion.diffusion.training import Step
    from bio_diffusion.grids import Follower

__all__ = ["Experiment", "Run"]

log = logging.getLogger("bio_diffusion.train")

INTERRUPTED = "interrupted"


class Experiment(Protocol):
    """What a domain offers for training; built by registered name, with `device` and its arguments.

    Attributes:
        kind: of the model file ("dock", ...).
        process: noises x_0 and scores predictions.
        denoiser: what predicts; often `module` or a part of it.
        module: holds every weight to train and to keep.
        optimizer: over the parameters of `module`.
        condition: x_0, cond, generator -> cond, or None; where latents are encoded.
        quantile: inverse distribution function of the density of t, or None for uniform.
    """

    kind: str
    process: "Process"
    denoiser: "Denoiser"
    module: "nn.Module"
    optimizer: "torch.optim.Optimizer"
    condition: "Callable[[State, Any, torch.Generator], Any] | None"
    quantile: "Callable[[Tensor], Tensor] | None"

    def batches(self, start: int, rank: int, world: int) -> "Iterator[tuple[State, Any]]":
        """(x_0, cond) from batch `start` on, without end; decided by these three numbers alone."""

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data; called with the averaged weights in `module`."""


class Table:
    """A CSV file that grows by rows and, on resuming, forgets the steps that will be done again."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = -1  # step of the last row
        if path.exists():
            with path.open(newline="") as file:
                self.columns, *rows = list(csv.reader(file)) or [[]]
            kept = [row for row in rows if len(row) == len(self.columns) and int(row[0]) < start]
            self.last = int(kept[-1][0]) if kept else -1
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([self.columns, *kept] if self.columns else [])

    def append(self, row: Mapping[str, float]) -> None:
        self.last = int(row["step"])
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not self.columns:
                self.columns = list(row)
                writer.writerow(self.columns)
            writer.writerow([row.get(column, "") for column in self.columns])


class Interrupt:
    """Inside, the first SIGINT or SIGTERM is only noted, so that the step ends and is saved."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.caught = False

    def __enter__(self) -> "Interrupt":
        self.former = {int(s): signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.caught = True
        signal.signal(number, self.former[number])  # a second one acts as usual


def rate(step: int, warmup: int, final_rate: float, max_steps: int) -> float:
    """Factor on the learning rate: a linear warm-up, then half a cosine down to `final_rate`."""
    done = min(1.0, max(0, step - warmup) / max(1, max_steps - warmup))
    cosine = final_rate + (1 - final_rate) * (1 + math.cos(math.pi * done)) / 2
    return cosine * min(1.0, (step + 1) / max(1, warmup))


class Run:
    """One training run in its folder.

    Args:
        config: as `configs/train.yaml` lays it out.
        folder: of the run; must exist.
        resume: go on from the newest intact state in `folder`.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, *, resume: bool = False) -> None:
        import torch

        from bio_diffusion import checkpoint
        from bio_diffusion.diffusion.training import EMA

        self.config, self.folder, self.fit = dict(config), folder, config["fit"]
        self.accelerator = _accelerator(config["device"])
        self.rank = self.accelerator.process_index if self.accelerator else 0
        self.world = self.accelerator.num_processes if self.accelerator else 1
        if self.accelerator:
            self.device = self.accelerator.device
        else:
            self.device = torch.device(choose_device(config["device"]))
        torch.manual_seed(config["seed"])  # the first weights; later draws are keyed by the step
        self.experiment: Experiment = build("experiment", config["experiment"], device=self.device)
        self.ema = EMA(self.experiment.module, self.fit["ema"])
        for group in self.experiment.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.grid = self._follower(self.fit.get("grid"))
        self._check_times()
        self.steps, self.seconds = 0, 0.0  # done, over all sittings
        self.sums: dict[str, float] = {}  # of what is logged, since the last line
        self.found: dict[str, float] = {}  # by the last evaluation
        if resume:
            self.steps, state = checkpoint.load_state(folder)
            self.experiment.module.load_state_dict(state["module"])
            self.experiment.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.seconds, self.sums, self.found = state["seconds"], state["sums"], state["found"]
            if self.grid and state.get("grid"):
                self.grid.load_state_dict(state["grid"])
        if self.rank == 0:
            self.lines = Table(folder / "log.csv", self.steps)
            self.evaluations = Table(folder / "evaluation.csv", self.steps)

    def __call__(self) -> int:
        """Trains until steps or minutes are used up. Returns the exit status."""
        from bio_diffusion.diffusion.training import fit

        experiment, settings = self.experiment, self.fit
        self._say("%s, %d weights, from step %d", self.device, self._count(), self.steps)
        running = fit(
            experiment.process,
            experiment.denoiser,
            experiment.batches(self.steps * settings["accumulate"], self.rank, self.world),
            experiment.optimizer,
            start=self.steps,
            condition=experiment.condition,
            accelerator=self.accelerator,
            accumulate=settings["accumulate"],
            ema=self.ema,
            clip=settings["clip"],
            quantile=self._quantile if settings.get("times") else experiment.quantile,
            seed=self.config["seed"],
        )
        experiment.module.train()
        began = saved = time.monotonic()
        before = self.seconds
        with Interrupt() as interrupt:
            while not (reason := self._reason(interrupt.caught)):
                current = self._set_rate()
                step = next(running)
                self.steps = step.index + 1
                self.seconds = before + time.monotonic() - began
                if self.grid:
                    self.grid.after(step)
                self._log(step, current)
                if settings["evaluate_every"] and self.steps % settings["evaluate_every"] == 0:
                    self.evaluate()
                if time.monotonic() - saved > 60 * settings["save_minutes"]:
                    self.save()
                    saved = time.monotonic()
            self.save()
        if reason == INTERRUPTED:
            self._say("interrupted after %d steps; go on with --resume %s", self.steps, self.folder)
            return 130
        self.evaluate()
        self.save()
        model = self.folder / "model.safetensors"
        if self.grid and self.grid.curve is None:
            log.warning(
                "too few steps for a time grid of %s; one is fitted by "
                "python -m bio_diffusion.schedule fit --model %s",
                self.fit["grid"],
                model,
            )
        self._say("%s; the model is %s", reason, model)
        return 0

    def evaluate(self) -> None:
        """Asks the experiment, with the averaged weights, unless that was done at this step."""
        import torch

        if self.rank or self.evaluations.last == self.steps - 1:
            return
        with self.ema.applied() as module, torch.no_grad():
            module.eval()
            self.found = self.experiment.evaluate()
        module.train()
        self.evaluations.append({"step": self.steps - 1, **self.found})
        self._say("step %d  %s", self.steps - 1, _figures(self.found))

    def save(self) -> None:
        """Writes the training state and the model."""
        from bio_diffusion import checkpoint

        if self.rank:
            return
        weights, average = self.experiment.module.state_dict(), self.ema.state_dict()
        state = {
            "module": weights,
            "optimizer": self.experiment.optimizer.state_dict(),
            "ema": average,
            "seconds": self.seconds,
            "sums": self.sums,
            "found": self.found,
            "grid": self.grid and self.grid.state_dict(),
        }
        checkpoint.save_state(self.folder, self.steps, state)
        info = {
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "processes": self.world,
            "evaluation": self.found,
            "version": __version__,
        }
        curve = self.grid.curve if self.grid else None
        model = checkpoint.Checkpoint(
            self.experiment.kind,
            self.config,
            weights,
            average["average"],
            grid=None if curve is None else curve.to_dict(),
            info=info if curve is None else info | {"grid": {"length": self.fit["grid"]}},
        )
        checkpoint.save(self.folder / "model.safetensors", model)

    def _follower(self, length: str | None) -> "Follower | None":
        """What fits a time grid as the run goes on: the first process alone."""
        if length is None or self.rank:
            return None
        from bio_diffusion.grids import Follower

        try:
            return Follower(length, self.experiment, self.config["seed"], self.fit["max_steps"])
        except ValueError as error:
            raise ConfigError(f"fit.grid={length}: {error}") from error

    def _check_times(self) -> None:
        from bio_diffusion.diffusion.categorical import Tokens
        from bio_diffusion.diffusion.linear import LinearDiffusion

        times = self.fit.get("times")
        if times not in (None, "grid"):
            raise ConfigError(f"fit.times is {times!r}; it must be grid or null")
        if times and self.fit.get("grid") is None:
            raise ConfigError("fit.times=grid needs the grid's length: say fit.grid=NAME, too")
        if times and self.world > 1:
            raise ConfigError("fit.times=grid is for one process: the grid follows the first alone")
        if times and isinstance(self.experiment.process, Tokens | LinearDiffusion):
            raise ConfigError("fit.times=grid: the loss is a bound, which wants its own times")

    def _quantile(self, u: "Tensor") -> "Tensor":
        """Times even in the grid's length; those of the experiment until it is known."""
        curve = self.grid.curve if self.grid else None
        if curve is not None:
            return curve.at(u).to(u)
        return u if self.experiment.quantile is None else self.experiment.quantile(u)

    def _set_rate(self) -> float:
        factor = rate(self.steps, *(self.fit[k] for k in ("warmup", "final_rate", "max_steps")))
        for group in self.experiment.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.experiment.optimizer.param_groups[0]["lr"]

    def _log(self, step: "Step", current: float) -> None:
        seen = {"loss": step.loss, "grad_norm": step.grad_norm, **step.parts}
        if not step.skipped:
            for key, value in ({"count": 1} | seen).items():
                self.sums[key] = self.sums.get(key, 0.0) + value
        if self.steps % self.fit["log_every"] or not self.sums:
            return
        means = {key: self.sums[key] / self.sums["count"] for key in seen}
        self.sums = {}
        if self.rank == 0:
            spent = {"rate": current, "seconds": round(self.seconds, 2)}
            self.lines.append({"step": step.index, **means, **spent})
            self._say("step %d  %s  %.0f s", step.index, _figures(means), self.seconds)

    def _reason(self, caught: bool) -> str:
        """Why to stop now, "" for not; all processes give the same answer."""
        minutes = self.fit["max_minutes"]
        flags = [caught, minutes is not None and self.seconds >= 60 * minutes]
        if self.accelerator:
            import torch

            flags = self.accelerator.reduce(torch.tensor(flags, device=self.device).int()).tolist()
        if flags[0]:
            return INTERRUPTED
        if self.steps >= self.fit["max_steps"]:
            return f"{self.steps} steps done"
        return f"{minutes} minutes used up after {self.steps} steps" if flags[1] else ""

    def _count(self) -> int:
        return sum(p.numel() for p in self.experiment.module.parameters())

    def _say(self, message: str, *values: object) -> None:
        if self.rank == 0:
            log.info(message, *values)


def _accelerator(device: str) -> Any:
    """What joins the processes that a launcher started; None for a single one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu")


def _figures(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())
