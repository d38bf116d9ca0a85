"""Time grids that follow a network while it trains.

    curve = Online(process, length);   curve.update(denoiser, x_0, cond)      two calls an update
    curve = LossCurve(process, reading);   curve.update(step.t, step.losses)  free, after each step

Both keep moving averages over a fixed, fine probe grid, from which the curve of now is made. To
train where the work is, hand `quantile=lambda u: grid.curve.at(u)` to `training.fit`.

Shapes: B batch, K probe intervals.

Source: Williams et al. 2024, Algorithm 2 (there the knots in use are moved; see `schedule` for why
    not here).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.information import Reading
from bio_diffusion.diffusion.lengths import Length
from bio_diffusion.diffusion.process import Denoiser, Source, State, evaluating
from bio_diffusion.diffusion.schedule import Curve, mean_cost, probe_grid

__all__ = ["LossCurve", "Online", "fit_losses", "isotonic"]


class Online:
    """A curve that follows a network while it trains.

    Every `update` measures the interval that has been seen least, keeps a moving average of each
    interval's cost, and once all have been seen often enough moves the curve a little towards what
    the averages say. The probe grid stays fixed and fine; only the curve moves.

    Args:
        process: gives the default probe grid.
        length: what a step costs.
        probe: rising times (K + 1,), or K.
        decay: of the moving averages, per visit.
        gamma: share of the way the curve moves at an update; an average of the last 1 / gamma.
        visits: how often every interval must have been seen before the curve moves at all.
    """

    def __init__(
        self,
        process: Any,
        length: Length,
        probe: Tensor | int = 64,
        decay: float = 0.9,
        gamma: float = 0.05,
        visits: int = 8,
    ) -> None:
        grid = probe_grid(process, probe) if isinstance(probe, int) else probe
        self.process, self.length = process, length
        self.times = tuple(grid.tolist())
        self.decay, self.gamma, self.visits = decay, gamma, visits
        self.seen = [0] * (len(self.times) - 1)
        self.costs = [0.0] * (len(self.times) - 1)
        self.curve = Curve.from_costs(self.times, [1.0] * len(self.costs), 1)

    def update(
        self,
        denoiser: Denoiser,
        x_0: State,
        cond: Any = None,
        generator: Source = None,
        device: torch.device | str = "cpu",
    ) -> Curve:
        """Measure one interval on one batch (two network calls) and return the curve of now."""
        i = self.seen.index(min(self.seen))
        s, t = (torch.full((len(x_0),), self.times[j], device=device) for j in (i, i + 1))
        with evaluating(denoiser):
            cost = mean_cost(self.process, denoiser, self.length, x_0, cond, t, s, generator)
        if not math.isfinite(cost):
            return self.curve
        # As many equal weights as visits at first, then a moving average: no bias from a start at
        # 0.
        weight = max(1 - self.decay, 1 / (self.seen[i] + 1))
        self.costs[i] += weight * (cost - self.costs[i])
        self.seen[i] += 1
        if min(self.seen) >= self.visits:
            measured = Curve.from_costs(self.times, self.costs, self.length.order)
            self.curve = self.curve.toward(measured, self.gamma)
        return self.curve

    def state_dict(self) -> dict[str, Any]:
        return {
            "times": self.times,
            "seen": list(self.seen),
            "costs": list(self.costs),
            "curve": self.curve.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.times = tuple(state["times"])
        self.seen, self.costs = list(state["seen"]), list(state["costs"])
        self.curve = Curve.from_dict(state["curve"])


class LossCurve:
    """A curve read off the losses of training, with no network call of its own.

    Args:
        process: whose losses they are; gives the default probe grid.
        reading: what an interval costs by its errors.
        probe: rising times (K + 1,), or K.
        decay: of an interval's moving average, for each batch that reaches it.
    """

    def __init__(
        self, process: Any, reading: Reading, probe: Tensor | int = 64, decay: float = 0.99
    ) -> None:
        grid = probe_grid(process, probe) if isinstance(probe, int) else probe
        self.process, self.reading, self.decay = process, reading, decay
        self.times = tuple(grid.tolist())
        self.seen = [0.0] * (len(self.times) - 1)  # trust
        self.errors = [0.0] * (len(self.times) - 1)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Takes in a step of training: `Step.t` and `Step.losses`, (B,) each."""
        errors = self.reading.error(self.process, t, losses.double()).tolist()
        cells = torch.bucketize(t.double(), torch.tensor(self.times[1:-1]).double()).tolist()
        trust = self.reading.trust(self.process, t.double()).tolist()
        found: dict[int, tuple[float, float]] = {}
        for cell, error, weight in zip(cells, errors, trust, strict=True):
            if math.isfinite(error):
                total, mass = found.get(cell, (0.0, 0.0))
                found[cell] = total + weight * error, mass + weight
        for i, (total, mass) in found.items():
            self.seen[i] += mass
            share = max(1 - self.decay, mass / self.seen[i])
            self.errors[i] += share * (total / mass - self.errors[i])

    @property
    def curve(self) -> Curve:
        """The curve of now.

        Raises:
            ValueError: an interval has not been seen yet.
        """
        if not min(self.seen):
            raise ValueError("there are intervals of which no loss has been seen yet")
        errors = torch.tensor(self.errors, dtype=torch.float64)
        if self.reading.monotone:
            errors = isotonic(errors, torch.tensor(self.seen, dtype=torch.float64))
        if self.reading.order > 1:  # made of differences: of steps, were they not smoothed
            rises = _running_mean(errors.diff(), len(errors) // 16)
            errors = errors[0] + torch.cat([rises.new_zeros(1), rises.cumsum(0)])
        steps = errors.diff() / 2
        ends = errors[:1] - steps[:1], errors[:-1] + steps, errors[-1:] + steps[-1:]
        edges = torch.cat(ends).clamp(min=0)
        grid = torch.tensor(self.times, dtype=torch.float64)
        costs = self.reading.cost(self.process, grid[1:], grid[:-1], edges[1:], edges[:-1])
        return Curve.from_costs(self.times, costs.tolist(), self.reading.order)

    def state_dict(self) -> dict[str, Any]:
        return {"times": self.times, "seen": list(self.seen), "errors": list(self.errors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.times = tuple(state["times"])
        self.seen, self.errors = list(state["seen"]), list(state["errors"])


def fit_losses(
    process: Any,
    denoiser: Denoiser,
    reading: Reading,
    batches: Iterable[tuple[State, Any]],
    probe: Tensor | int = 64,
    generator: Source = None,
) -> Curve:
    """The curve of a trained model by its losses on data, K network calls a batch; see
    `schedule.fit_curve`.

    Raises:
        ValueError: if there are no batches.
    """
    found = LossCurve(process, reading, probe, decay=1.0)
    grid = torch.tensor(found.times, dtype=torch.float64)
    with evaluating(denoiser):
        for x_0, cond in batches:
            # a time in every interval for each state, at another place each: no point is missed
            for i in range(len(grid) - 1):
                places = (torch.arange(len(x_0)) + 0.5).double() / len(x_0)
                t = torch.lerp(grid[i], grid[i + 1], places).to(torch.get_default_dtype())
                noised = process.perturb(x_0, t, generator)
                loss = process.loss(denoiser(noised.x_t, t, cond), noised, x_0, t)
                found.update(t, loss)
    if not max(found.seen):
        raise ValueError("no batches to measure on")
    return found.curve


def _running_mean(values: Tensor, reach: int) -> Tensor:
    """Mean over up to `reach` neighbours on either side, (K,)."""
    near = (torch.arange(len(values))[:, None] - torch.arange(len(values))).abs() <= reach
    return (near * values).sum(1) / near.sum(1)


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The rising sequence nearest to `values` in weighted squares, (K,): pools its violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, mass, count = blocks.pop()
            total = mass + block[1]
            pooled = (mean * mass + block[0] * block[1]) / total
            block = (pooled, total, count + block[2])
        blocks.append(block)
    return torch.tensor([v for v, _, count in blocks for _ in range(count)], dtype=torch.float64)
