"""When to look: fixed time grids, and the one fitted to the work a sampler has to do.

What a step costs is in `lengths` and `information`; a grid that follows training, in `online`.

A grid is times (N + 1,), falling from 1 to 0: N steps. Fixed grids are even in some function of the
noise level. The adaptive grid puts its knots so that every step costs the same. For a cost of a
step that is L(t, s) ~ c(t) |t - s|^p, of order p,

    ell_i = E[L(t_{i+1}, t_i)]^(1 / p),   Lambda_j = sum_{i < j} ell_i,   knots = Lambda^{-1}(even)

is the choice with the least total cost: the path is walked at constant speed. ell belongs to the
path and not to the grid it is measured on, so it is measured once on a fine probe grid, and kept as
a curve from which any number of knots can be drawn. Fitting on the few knots in use and iterating
would collapse: a wide last interval looks cheap and grows wider.

Shapes: B batch, K probe intervals, N steps.

Source: Williams, Campbell, Doucet & Syed 2024 (the machinery and the corrector's cost); Karras et
    al. 2022 and Sabour et al. 2024 (fixed grids).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.lengths import Length
from bio_diffusion.diffusion.process import (
    Denoiser,
    Source,
    State,
    evaluating,
)

__all__ = [
    "Curve",
    "cosine",
    "fit_curve",
    "karras",
    "mean_cost",
    "log_snr",
    "probe_grid",
    "quarter",
    "sine",
    "times_at",
    "uniform",
]


# --- fixed grids ---------------------------------------------------------------------------------


class HasLevel(Protocol):
    """A process with one noise level that rises with t: Brownian ones, and multivariate ones."""

    def level(self, t: Tensor) -> Tensor: ...


def uniform(n: int) -> Tensor:
    """N + 1 even times from 1 to 0."""
    return torch.linspace(1, 0, n + 1)


def sine(n: int) -> Tensor:
    """N + 1 times with 1 - t on a sine: short steps at low noise, as tokens under uniform noise
    need them, where an early mistake is repaired and a late one is not."""
    times = 1 - torch.sin(torch.pi / 2 * torch.linspace(0, 1, n + 1, dtype=torch.float64))
    return times.to(torch.get_default_dtype())


def quarter(n: int) -> Tensor:
    """N + 1 times with t on a quarter of a cosine: short steps at high noise, so that few masked
    sites are written at once while little is known of the others.

    Source: Chang et al. 2022 (MaskGIT).
    """
    times = torch.cos(torch.pi / 2 * torch.linspace(0, 1, n + 1))
    times[-1] = 0.0
    return times


def log_snr(process: HasLevel, n: int, t_min: float | None = None) -> Tensor:
    """Even in the logarithm of the noise level (geometric)."""
    return _between(process, n, torch.log, torch.exp, t_min)


def karras(process: HasLevel, n: int, rho: float = 7.0, t_min: float | None = None) -> Tensor:
    """Even in level^(1 / rho): denser at low noise as rho grows, geometric as rho -> infinity.

    Source: Karras et al. 2022, Eq. 5.
    """
    return _between(process, n, lambda a: a ** (1 / rho), lambda x: x**rho, t_min)


def cosine(process: HasLevel, n: int, scale: float = 1.0, t_min: float | None = None) -> Tensor:
    """Even in arctan(level / scale); with the data's standard deviation as scale, the best grid
    for the probability flow of a Gaussian.

    Source: Nichol & Dhariwal 2021 (scale 1); Sabour et al. 2024, Section 3.1.
    """
    return _between(
        process, n, lambda a: torch.atan(a / scale), lambda x: scale * torch.tan(x), t_min
    )


def _between(
    process: HasLevel,
    n: int,
    forth: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    t_min: float | None,
) -> Tensor:
    """N + 1 times, even in forth(level) from t = 1 to t_min; the last then goes to 0, the data."""
    if n < 1:
        raise ValueError(f"a grid needs at least one step, got {n}")
    ends = torch.tensor([1.0, _lowest(process) if t_min is None else t_min], dtype=torch.float64)
    high, low = forth(process.level(ends))
    times = times_at(process, back(torch.lerp(high, low, torch.linspace(0, 1, n + 1).double())))
    times[0], times[-1] = 1.0, 0.0
    return times.to(torch.get_default_dtype())


def _lowest(process: HasLevel) -> float:
    """The lowest time that has noise: 0 where the clock starts above zero, else 0.001."""
    return 0.0 if float(process.level(torch.zeros(1, dtype=torch.float64))) > 0 else 1e-3


def times_at(process: HasLevel, level: Tensor) -> Tensor:
    """Times at which the process has the given noise levels, by bisection; float64."""
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        below = process.level(middle) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


# --- the engine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Cumulative length along the path: any number of equally costly steps can be read off it.

    Attributes:
        times: (K + 1,) rising probe times, the last 1.
        lengths: (K + 1,) cumulative length from times[0]; the last is Lambda, the length of the
            path.
    """

    times: tuple[float, ...]
    lengths: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.lengths) or len(self.times) < 2:
            raise ValueError(f"{len(self.times)} times beside {len(self.lengths)} lengths")
        for name, values in (("times", self.times), ("lengths", self.lengths)):
            rises = all(a < b for a, b in zip(values, values[1:], strict=False))
            if not rises or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} of a curve must be finite and rise strictly")
        if self.times[0] < 0 or self.times[-1] != 1:
            ends = f"{self.times[0]:g} to {self.times[-1]:g}"
            raise ValueError(f"times of a curve lie between 0 and 1 and end there, not {ends}")
        if self.lengths[0] != 0:
            raise ValueError(f"lengths of a curve begin with 0, not with {self.lengths[0]:g}")

    @classmethod
    def from_costs(
        cls, times: Sequence[float], costs: Sequence[float], order: int, floor: float = 1e-6
    ) -> Curve:
        """The curve of mean costs measured on the K intervals of a probe grid.

        Args:
            times: (K + 1,) rising.
            costs: (K,) mean cost of each interval, >= 0.
            order: root to take, see `Length`.
            floor: least length of an interval as a share of the longest, so that the curve rises.

        Raises:
            ValueError: if a cost is negative or not finite, or all are zero.
        """
        ell = torch.as_tensor(costs, dtype=torch.float64)
        if not bool(torch.isfinite(ell).all()) or bool((ell < 0).any()):
            raise ValueError(
                f"costs must be finite and not negative; got {float(ell.min()):g} to "
                f"{float(ell.max()):g}"
            )
        if float(ell.max()) == 0:
            raise ValueError("all costs are zero: the network has learned nothing yet; train it")
        ell = ell ** (1 / order)
        ell = ell.clamp(min=floor * float(ell.max()))
        lengths = torch.cat([ell.new_zeros(1), ell.cumsum(0)])
        return cls(tuple(map(float, times)), tuple(lengths.tolist()))

    @property
    def total(self) -> float:
        """Lambda."""
        return self.lengths[-1]

    def at(self, u: Tensor) -> Tensor:
        """Times at shares u in [0, 1] of the whole length, from the clean end; float64.

        Also the quantile function for training times with as many draws where there is more work.
        """
        shares = [length / self.total for length in self.lengths]
        return _interpolate(u, shares, self.times)

    def shares(self, times: Tensor) -> Tensor:
        """The inverse of `at`: shares of the whole length that lie below times; float64."""
        return _interpolate(times, self.times, [length / self.total for length in self.lengths])

    def knots(self, n: int) -> Tensor:
        """N + 1 falling times with equally long steps between; the last put at 0, the data."""
        if n < 1:
            raise ValueError(f"a grid needs at least one step, got {n}")
        times = self.at(torch.linspace(1, 0, n + 1, dtype=torch.float64))
        times[0], times[-1] = self.times[-1], 0.0
        return times.to(torch.get_default_dtype())

    def toward(self, other: Curve, gamma: float) -> Curve:
        """The curve whose knots lie gamma of the way from mine to the other's; gamma in [0, 1]."""
        count = max(len(self.times), len(other.times))
        u = torch.linspace(0, 1, count, dtype=torch.float64)
        times = torch.lerp(self.at(u), other.at(u), gamma)
        total = self.total + gamma * (other.total - self.total)
        return Curve(tuple(times.tolist()), tuple((total * u).tolist()))

    @classmethod
    def mixture(cls, *curves: Curve) -> Curve:
        """The mean of curves, each of total 1: no step is more than k times as long, for any of k
        lengths, as it is on that length's own grid."""
        times = sorted({time for curve in curves for time in curve.times})
        shares = [curve.shares(torch.tensor(times, dtype=torch.float64)) for curve in curves]
        return cls(tuple(times), tuple(torch.stack(shares).mean(0).tolist()))

    @classmethod
    def through(cls, knots: Sequence[float]) -> Curve:
        """The curve whose own knots these are, falling to 0: for grids made elsewhere."""
        return cls(tuple(reversed(knots)), tuple(map(float, range(len(knots)))))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data for JSON."""
        return {"times": list(self.times), "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]]) -> Curve:
        """Raises: ValueError if the data are no curve."""
        try:
            parts = [tuple(map(float, data[key])) for key in ("times", "lengths")]
        except (KeyError, TypeError) as error:
            raise ValueError(f"a curve has times and lengths, both lists ({error!r})") from error
        return cls(*parts)


def _interpolate(x: Tensor, known: Sequence[float], values: Sequence[float]) -> Tensor:
    """values at x, linear between the known points and constant beyond; float64."""
    xs, ys = (torch.tensor(v, dtype=torch.float64, device=x.device) for v in (known, values))
    x = x.double().clamp(known[0], known[-1])
    cell = torch.searchsorted(xs, x.contiguous(), right=True).clamp(1, len(xs) - 1) - 1
    return torch.lerp(ys[cell], ys[cell + 1], (x - xs[cell]) / (xs[cell + 1] - xs[cell]))


def probe_grid(process: Any, intervals: int) -> Tensor:
    """K + 1 rising times to measure between: even in log noise level, from the lowest that has
    noise to 1; for tokens even in time."""
    if isinstance(process, Tokens):
        return torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    ends = torch.tensor([_lowest(process), 1.0], dtype=torch.float64)
    low, high = process.level(ends).log()
    times = times_at(
        process, torch.lerp(low, high, torch.linspace(0, 1, intervals + 1).double()).exp()
    )
    times[0], times[-1] = ends
    return times


def fit_curve(
    process: Any,
    denoiser: Denoiser,
    length: Length,
    batches: Iterable[tuple[State, Any]],
    probe: Tensor | int = 64,
    generator: Source = None,
    device: torch.device | str = "cpu",
) -> Curve:
    """Measure a trained model and return its curve; one pass, 2 K network calls for each batch.

    Args:
        process: the process; one with a noise level, or of tokens.
        denoiser: the trained network; evaluated without dropout and gradients.
        length: what a step costs.
        batches: (x_0, cond) pairs of data, a few hundred states in all; averaged before the root.
        probe: rising times (K + 1,), or K for those of `probe_grid`.
        generator: of the noise.
        device: where the network lives.

    Raises:
        ValueError: if there are no batches.
    """
    grid = probe_grid(process, probe) if isinstance(probe, int) else probe
    sums, count = torch.zeros(len(grid) - 1, dtype=torch.float64), 0
    with evaluating(denoiser):
        for x_0, cond in batches:
            count += 1
            for i in range(len(grid) - 1):
                s, t = (grid[j].to(device).expand(len(x_0)) for j in (i, i + 1))
                sums[i] += mean_cost(process, denoiser, length, x_0, cond, t, s, generator)
    if not count:
        raise ValueError("no batches to measure on")
    return Curve.from_costs(grid.tolist(), (sums / count).tolist(), length.order)


def mean_cost(
    process: Any,
    denoiser: Denoiser,
    length: Length,
    x_0: State,
    cond: Any,
    t: Tensor,
    s: Tensor,
    generator: Source,
) -> float:
    """Mean cost of one interval over one batch."""
    t, s = (time.to(torch.get_default_dtype()) for time in (t, s))
    x_t = process.perturb(x_0, t, generator).x_t
    return float(
        length(process, lambda x, time: denoiser(x, time, cond), x_t, t, s).double().mean()
    )
