"""Time grids of models: measured by a named length, followed in training, kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from bio_diffusion.checkpoint import Checkpoint, CheckpointError
from bio_diffusion.diffusion import information, lengths
from bio_diffusion.diffusion.categorical import Absorbing, Tokens
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.information import Reading
from bio_diffusion.diffusion.lengths import Length
from bio_diffusion.diffusion.online import LossCurve, Online, fit_losses
from bio_diffusion.diffusion.process import Brownian, Denoiser, Process, State
from bio_diffusion.diffusion.schedule import Curve, fit_curve, karras
from bio_diffusion.diffusion.training import Step, keyed_generator

__all__ = ["Follower", "Probe", "kept", "lengths_named", "measure", "usual_length"]


class Probe(NamedTuple):
    """What a schedule is measured on: batches of (x_0, cond) for a trained denoiser."""

    process: Process
    denoiser: Denoiser
    batches: Iterable[tuple[State, Any]]


def usual_length(process: Process) -> str:
    """The length that a process is fitted with unless another is asked for."""

    if isinstance(process, Tokens):
        return "unmasking" if isinstance(process, Absorbing) else "path"
    if not isinstance(process, Brownian):
        return "corrector"
    return "truncation" if isinstance(process, GaussianDiffusion) else "velocity"


def lengths_named(
    name: str, process: Process, generator: torch.Generator
) -> list[Length | Reading]:
    """What `name` measures of a process; of several the curves are mixed evenly.

    Raises:
        ValueError: there is no such length, or it does not suit the process.
    """

    # lengths that ask for less come first: the corrector's suits whatever has a score
    suited: dict[str, list[Length | Reading]] = {}
    if not isinstance(process, Tokens):
        suited["corrector"] = [lengths.CorrectorOptimised()]
    if isinstance(process, Brownian):
        ancestral = information.AncestralDivergence(generator)
        suited["velocity"] = [lengths.VelocityNormalised()]
        suited["truncation"] = [lengths.TruncationError()]
        suited["heun"] = [lengths.TruncationError(2)]
        suited["ancestral"] = [ancestral]
        if isinstance(process, GaussianDiffusion):
            entropic = information.RescaledEntropic()
            suited["terminal"] = [lengths.TruncationError(1, process.sigma_data)]
            suited["heun-terminal"] = [lengths.TruncationError(2, process.sigma_data)]
            tail = karras(process, 40)
            suited["walked"] = [lengths.TerminalError(tail)]
            suited["heun-walked"] = [lengths.TerminalError(tail, 2)]
            suited["entropic"] = [entropic]
            suited["mixture"] = [ancestral, entropic]
    if isinstance(process, Tokens):
        suited["path"] = [information.PathDivergence(generator)]
    if isinstance(process, Absorbing):
        suited["unmasking"] = [information.Unmasking()]
    if name not in suited:
        raise ValueError(
            f"the length {name!r} does not suit this model; there are {', '.join(suited)}"
        )
    return suited[name]


def measure(probe: Probe, length: str, intervals: int) -> Curve:
    """The curve of a model by a named length, on all of the probe's data.

    Raises:
        ValueError: the length does not suit, or there are no data.
    """

    generator = torch.Generator().manual_seed(0)
    wanted = lengths_named(length, probe.process, generator)
    batches = list(probe.batches) if len(wanted) > 1 else probe.batches
    curves = []
    for each in wanted:
        engine: Callable[..., Curve] = fit_losses if _is_reading(each) else fit_curve
        curves.append(engine(probe.process, probe.denoiser, each, batches, intervals, generator))
    return curves[0] if len(curves) == 1 else Curve.mixture(*curves)


def kept(model: Checkpoint) -> Curve | None:
    """The time grid that is kept beside a model's weights, where there is one.

    Raises:
        CheckpointError: it has knots that do not fall, or no knots.
    """
    try:
        return None if model.grid is None else Curve.from_dict(model.grid)
    except ValueError as error:
        raise CheckpointError(
            f"the time grid in the {model.kind} checkpoint {model.sha256[:12]} is none: {error}; "
            "copy or download it again, or name another file"
        ) from error


class Follower:
    """A time grid that follows a training run, and is kept in its model.

    A length read off the losses is free. Another is measured every tenth step, oftener in a short
    run so that half of it is enough, one interval of the probe grid at a time, on a batch of the
    run: two network calls without gradients.

    Args:
        name: of the length.
        experiment: see `train.Experiment`.
        seed: of the run.
        steps: of the run.
        intervals: of the probe grid.

    Raises:
        ValueError: the length does not suit the experiment, or mixes several.
    """

    def __init__(
        self, name: str, experiment: Any, seed: int, steps: int, intervals: int = 40
    ) -> None:
        self.experiment, self.seed = experiment, seed
        self.generator = torch.Generator()
        found = lengths_named(name, experiment.process, self.generator)
        if len(found) > 1:
            raise ValueError(f"the length {name!r} mixes several, which no run can follow")
        follows = LossCurve if _is_reading(found[0]) else Online
        self.grid: LossCurve | Online = follows(experiment.process, found[0], intervals)  # type: ignore[arg-type]
        needed = intervals * self.grid.visits if isinstance(self.grid, Online) else 1
        self.every = min(10, max(1, steps // (2 * needed)))

    def after(self, step: Step) -> None:
        """Takes in a step of training."""
        if isinstance(self.grid, LossCurve):
            if not step.skipped:
                self.grid.update(step.t, step.losses)
        elif step.index % self.every == 0:
            generator = keyed_generator(self.seed, step.index, 3)
            self.generator.manual_seed(generator.initial_seed())
            x_0, cond = next(iter(self.experiment.batches(step.index, 0, 1)))
            if self.experiment.condition is not None:
                with torch.no_grad():
                    cond = self.experiment.condition(x_0, cond, generator)
            device = self.experiment.device
            self.grid.update(self.experiment.denoiser, x_0, cond, generator, device)

    @property
    def curve(self) -> Curve | None:
        """What is known by now; None before every interval has been seen often enough."""
        visits = self.grid.visits if isinstance(self.grid, Online) else 1
        return self.grid.curve if min(self.grid.seen) >= visits else None

    def state_dict(self) -> dict[str, Any]:
        return self.grid.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.grid.load_state_dict(state)


def _is_reading(length: Length | Reading) -> bool:
    return hasattr(length, "monotone")
