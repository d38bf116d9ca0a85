"""How straight a probability flow's paths are."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bio_diffusion.diffusion.sampling import Heun, trajectory
from bio_diffusion.diffusion.schedule import times_at


class Paths(NamedTuple):
    """Of B paths over K noise levels.

    Attributes:
        ratio: path over chord, (B,).
        late: the same from the first level at or below a given one, (B,).
        levels: noise a at which the curvature is told, (K,), falling.
        bends: curvature there, (K, B), in 1 over the units of x.
    """

    ratio: Tensor
    late: Tensor
    levels: list[float]
    bends: Tensor

    def figures(self, levels: tuple[float, ...]) -> dict[str, Any]:
        """Means and quantiles, and the median at the known levels nearest to `levels`."""
        middle = self.bends.median(1).values
        nearest = (min(range(len(middle)), key=lambda i: abs(self.levels[i] - a)) for a in levels)
        return {
            "ratio": float(self.ratio.mean()),
            "ratio_90": float(self.ratio.quantile(0.9)),
            "late": float(self.late.mean()),
            "median": float(self.bends.median()),
            "p90": float(self.bends.flatten().quantile(0.9)),
            "by_level": [float(middle[i]) for i in nearest],
        }


@torch.no_grad()
def walk(process, denoiser, x, times, cond=None, dt=1e-3, least=0.02, late=math.inf) -> Paths:
    """Of Heun's paths from x: path over chord, and |T(a) - T(a - dt)| / |x(a) - x(a - dt)|.

    T is the unit tangent of dx/da, a the noise of a process without drift, and x(a - dt) one Euler
    step away. Give network, x (B, *) and times in float64. Levels below `least` are left out. From
    far out most of a path is straight, so path over chord is also told from the level `late` on.
    """

    def pull(x, t, a):
        return (denoiser(x, t.expand(len(x)), cond) - x) / a

    def length(x):
        return x.flatten(1).norm(dim=1)

    states = list(trajectory(process, denoiser, x, times, cond, step=Heun()))

    def over_chord(states):
        path = sum(length(b - a) for a, b in zip(states[:-1], states[1:], strict=True))
        return path / length(states[-1] - states[0])

    bends, levels = [], []
    for t, here in zip(times[:-1], states[:-1], strict=True):
        a = float(process.sigma(t))
        if a < least:
            continue
        step = pull(here, t, a)
        before = times_at(process, torch.tensor(a - dt).double())
        there = pull(here + dt * step, before, a - dt)
        tangents = [(each.flatten(1) / length(each)[:, None]) for each in (step, there)]
        bends.append(length(tangents[0] - tangents[1]) / (dt * length(step)))
        levels.append(a)
    first = next(i for i, t in enumerate(times) if float(process.sigma(t)) <= late)
    return Paths(over_chord(states), over_chord(states[first:]), levels, torch.stack(bends))
