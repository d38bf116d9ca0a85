"""Poses whose place has a velocity, for `dock_momentum.py`: a linear diffusion of the translation
beside the shipped diffusion of rotation and torsions, one time for all.

Given the data, a state's K variables tell as much of the clean centre as a position under plain
noise sigma does (`linear_learned.DataPrediction`). So time is chosen such that this sigma is the
translation noise of `docking_process`: the score network is told the time of that process, and
hears of rotation and torsions what it always does.

Shapes: B poses, K variables (position first), N ligand atoms.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import Recipe, apply
from bio_diffusion.diffusion.linear_learned import DataPrediction
from bio_diffusion.diffusion.linear_steps import SymmetricSplitting
from bio_diffusion.diffusion.process import Noised, Source, broadcast
from bio_diffusion.diffusion.product import ProductDiffusion
from bio_diffusion.diffusion.sampling import Reverse, Step
from bio_diffusion.dock.experiment import docking_process
from bio_diffusion.dock.layers import Size
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.score_model import ScoreModel
from bio_diffusion.dock.trunk import Complex


@dataclass(frozen=True)
class Flight:
    """A `Movable` whose place is u (B, K, 3) about `origin` (3,) Å, in units of the widest noise.

    `pose` has the rotation and the torsions; where it lies does not matter.
    """

    pose: Pose
    u: Tensor
    origin: Tensor

    def __len__(self) -> int:
        return len(self.pose)

    def moved(self, tangent: Mapping[str, Tensor]) -> Flight:
        still = {"tr": torch.zeros_like(self.pose.coords[:, 0])}
        return replace(self, pose=self.pose.moved(still | dict(tangent)))

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.pose.tangent_shapes()

    def at(self, place: Tensor) -> Pose:
        """The pose with its centroid at origin + place, (B, 3) Å."""
        coords = self.pose.coords
        shift = self.origin + place - coords.mean(1)
        return Pose(coords + shift[:, None], self.pose.tree)


class Momentum(nn.Module):
    """A linear diffusion of the place beside the shipped one of rotation and torsions.

    Its time is that of the linear diffusion; `told` is the time of `docking_process` whose
    translation noise tells as much, and the one that rotation, torsions and network go by.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.linear = LinearDiffusion(recipe)
        factors = docking_process().factors
        _, self.low, self.unit, _ = factors["tr"]
        self.rest = ProductDiffusion({name: factors[name] for name in ("rot", "tor")})
        t = torch.linspace(1e-3, 1, 4096, dtype=torch.float64)
        sigma = DataPrediction(nn.Identity(), self.linear).statistic(t)[1]
        self._table = (self.told_by(sigma).numpy(), t.numpy())

    def told_by(self, sigma: Tensor) -> Tensor:
        return (self.unit * sigma / self.low).log() / math.log(self.unit / self.low)

    def told(self, t: Tensor) -> Tensor:
        known = torch.from_numpy(np.interp(t.double().numpy(), self._table[1], self._table[0]))
        return torch.where(t > 0, known, 0.0)

    def time(self, told: Tensor) -> Tensor:
        t = torch.from_numpy(np.interp(told.double().numpy(), *self._table))
        return torch.where(told > 0, t, 0.0)

    def prior(self, like: Flight, generator: Source) -> Flight:
        """As `docking_process` has it: the law of the widest noise about the site."""
        x = self.rest.prior(like, generator)
        t = self.time(torch.ones(len(like)))
        return replace(x, u=self.linear.perturb(torch.zeros_like(like.u), t, generator).x_t)

    def perturb(self, x_0: Flight, t: Tensor, generator: Source = None) -> Noised:
        turned = self.rest.perturb(x_0, self.told(t), generator)
        placed = self.linear.perturb(x_0.u, t, generator)
        x_t = replace(turned.x_t, u=placed.x_t)
        return Noised(x_t, {"tr": placed.target, **turned.target})

    def parts(self, out: Mapping[str, Tensor], noised: Noised, x_0: Flight, t: Tensor) -> dict:
        """Each as in `docking_process`; all K scores together weigh |D - x|^2 / sigma^2."""
        L = self.linear.conditional(t)[2]
        error = apply(L.mT, out["tr"] - noised.target["tr"]).square().sum(1).mean(1)
        return {"tr": error, **self.rest.parts(out, noised, x_0, self.told(t))}

    def loss(self, out: Mapping[str, Tensor], noised: Noised, x_0: Flight, t: Tensor) -> Tensor:
        return torch.stack(list(self.parts(out, noised, x_0, t).values())).mean(0)


class Hearing(ScoreModel):
    """The score network with one more input: `heard` (B, K - 1, 3), a vector on every atom."""

    def __init__(self, process: ProductDiffusion, size: Size, auxiliaries: int = 1) -> None:
        super().__init__(process, size)
        self.ear = nn.Linear(auxiliaries, size.vectors, bias=False)
        self.heard = torch.zeros(0)
        self.trunk.layers[0].register_forward_pre_hook(self._listen)

    def _listen(self, layer: nn.Module, given: tuple) -> tuple:
        atoms = len(given[0].scalars) // len(self.heard)
        vectors = self.ear(self.heard.mT).repeat_interleave(atoms, 0)
        return given[0]._replace(vectors=vectors), *given[1:]


class Pilot(nn.Module):
    """Scores of a `Flight` from a score network; a `Hearing` one sees position and velocity."""

    def __init__(self, process: Momentum, score: ScoreModel) -> None:
        super().__init__()
        self.process, self.score = process, score

    def forward(self, x_t: Flight, t: Tensor, cond: Complex) -> dict[str, Tensor]:
        process, unit, out = self.process, self.process.unit, {}

        def clean(best: Tensor, sigma: Tensor, cond: Complex) -> Tensor:
            place = self._position(x_t, t) if isinstance(self.score, Hearing) else best
            told = process.told_by(sigma.double()).to(best)
            out.update(self.score(x_t.at(unit * place), told, cond))
            return best + unit * broadcast(sigma, best) ** 2 * out["tr"]

        out["tr"] = DataPrediction(clean, process.linear)(x_t.u, t, cond)
        return out

    def _position(self, x_t: Flight, t: Tensor) -> Tensor:
        """u_x / E_xx, with mean x; and, to be heard, what is left of the velocity, at unit size."""
        E, Sigma, _ = self.process.linear.conditional(t)
        e = E[..., 0].to(x_t.u)
        place = x_t.u[:, 0] / e[:, :1]
        lean = e[:, 1:] / e[:, :1]
        left = x_t.u[:, 1:] - lean[..., None] * x_t.u[:, :1]
        turn = torch.cat([-lean[..., None], torch.eye(len(e[0]) - 1).expand(len(e), -1, -1)], -1)
        width = (turn.double() @ Sigma @ turn.double().mT).diagonal(dim1=1, dim2=2).sqrt()
        self.score.heard = left / width[..., None].to(left)
        return place


class Flow:
    """Probability flow of a linear diffusion with the denoised datum D held over the step.

        u_s = E_s D + R (u_t - E_t D),    dR / dtau = (A + D Sigma^-1) R        (hybrid E, Sigma)

    K = 1 is the deterministic Euler step in sigma (DDIM). Source: Zhang, Tao & Chen 2022 (gDDIM).
    """

    def __call__(self, process: LinearDiffusion, denoiser: Any, x_t: Tensor, t: Tensor, s: Tensor,
                 cond: Any, guidance: Any, generator: Source) -> Tensor:  # fmt: skip
        score = denoiser(x_t, t, cond)
        if not bool((s > 0).all()):
            return process.transition(x_t, score, t, s).mean
        E_t, Sigma, _ = process.conditional(t)
        ahead = x_t + apply(Sigma, score)  # E_t D
        clean = ahead[:, :1] / E_t[:, :1, :1].to(x_t)
        E_s, R = process.conditional(s)[0], _turn(process, float(t[0]), float(s[0]))
        return E_s[..., :1].to(x_t) * clean + apply(R, x_t - ahead)


@functools.cache
def _turn(process: LinearDiffusion, t: float, s: float, substeps: int = 32) -> Tensor:
    """R of `Flow` from t to s, (1, K, K), by Runge and Kutta's rule in log tau."""
    A, D = process.recipe.A, process.recipe.D
    log_tau, end = (float(process.clock.tau(torch.tensor(time)).log()) for time in (t, s))
    h, R = (end - log_tau) / substeps, torch.eye(len(A), dtype=A.dtype)[None]

    def slope(log_tau: float, R: Tensor) -> Tensor:
        tau = torch.tensor([log_tau], dtype=A.dtype).exp()
        Sigma = process.conditional(process.clock.time(tau))[1]
        return tau[:, None, None] * (A + D @ torch.linalg.inv(Sigma)) @ R

    for _ in range(substeps):
        k_1 = slope(log_tau, R)
        k_2 = slope(log_tau + h / 2, R + h / 2 * k_1)
        k_3 = slope(log_tau + h / 2, R + h / 2 * k_2)
        log_tau += h
        R = R + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + slope(log_tau, R + h * k_3))
    return R


WAYS: dict[str, Step] = {
    "ancestral": Reverse(),
    "flow": Flow(),
    "splitting": SymmetricSplitting(),
}


def draw(process: Momentum, denoiser: Pilot, start: Flight, cond: Complex, count: int, way: str,
         generator: torch.Generator) -> Pose:  # fmt: skip
    """Poses in `count` network calls, even times of `docking_process`; the place goes by `way`.

    Rotation and torsions take ancestral steps from one call to the next. Splitting calls in the
    middle of a step, except for the last.
    """
    times = process.time(torch.linspace(1, 0, count + 1)).float()
    calls = times.clone()
    if way == "splitting":
        tau = process.linear.clock.tau(times)
        calls[:-2] = process.linear.clock.time((tau[1:-1] + tau[:-2]) / 2)
    x = process.prior(start, generator)
    heard: dict[str, Tensor] = {}

    def score(u: Tensor, t: Tensor, cond: Complex) -> Tensor:
        heard.update(denoiser(replace(x, u=u), t, cond))
        return heard["tr"]

    for (t, s), (call, then) in zip(
        itertools.pairwise(times.unbind()), itertools.pairwise(calls.unbind()), strict=True
    ):
        B = len(x)
        u = WAYS[way](process.linear, score, x.u, t.expand(B), s.expand(B), cond, (), generator)
        told, after = (process.told(time.expand(B)) for time in (call, then))
        x = replace(process.rest.transition(x, heard, told, after).sample(generator), u=u)
    return x.at(process.unit * x.u[:, 0])
