"""Small worlds whose denoisers are known exactly: mixtures of a few points on R, R x S^1 and SO(3),
and words of three letters.

Every world gives a process, its data, the exact prediction, and a way to count which mode a sample
ended in, so that the laws in `laws.py` can be put to all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Absorbing, Tokens, Uniform
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.noise import EDM, VE, VP, Cosine
from bio_diffusion.diffusion.process import Brownian
from bio_diffusion.diffusion.product import SO3, Euclidean, ProductDiffusion, Torus

WEIGHTS = (0.5, 0.2, 0.3)


@dataclass(frozen=True)
class Cylinder:
    """A point on R x S^1: height (B, 1), angle (B, 1) in radians."""

    height: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.height)

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"height": (len(self), 1), "angle": (len(self), 1)}

    def moved(self, tangent: Mapping[str, Tensor]) -> Cylinder:
        return Cylinder(self.height + tangent["height"], self.angle + tangent["angle"])


@dataclass(frozen=True)
class Rotation:
    """A rotation matrix (B, 3, 3); a displacement turns it from the left."""

    matrix: Tensor

    def __len__(self) -> int:
        return len(self.matrix)

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"turn": (len(self), 3)}

    def moved(self, tangent: Mapping[str, Tensor]) -> Rotation:
        return Rotation(turn(tangent["turn"]) @ self.matrix)


def turn(u: Tensor) -> Tensor:
    """Rotation matrix (B, 3, 3) of axis-angle vectors u (B, 3), by a matrix exponential."""
    zero = torch.zeros_like(u[:, 0])
    rows = [zero, -u[:, 2], u[:, 1], u[:, 2], zero, -u[:, 0], -u[:, 1], u[:, 0], zero]
    return torch.linalg.matrix_exp(torch.stack(rows, -1).reshape(-1, 3, 3))


def axis_angle(matrix: Tensor) -> Tensor:
    """The axis-angle vector (B, 3) of rotation matrices, angle in [0, pi]."""
    skew = matrix - matrix.transpose(-1, -2)
    vector = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)
    sine, trace = vector.norm(dim=-1), matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return vector * (torch.atan2(sine, trace - 1) / sine.clamp(min=1e-12))[:, None]


class Line:
    """Three points on R^2 (the second coordinate copies the first) under a Gaussian diffusion."""

    modes = torch.tensor([[-1.5, -1.5], [0.3, 0.3], [1.6, 1.6]])
    weights = torch.tensor(WEIGHTS)

    def __init__(self, process: GaussianDiffusion) -> None:
        self.process: Brownian = process

    def data(self, count: int, generator: torch.Generator) -> Tensor:
        return self.modes[torch.multinomial(self.weights, count, True, generator=generator)]

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t]: the modes weighed by their posterior."""
        a, alpha = self.process.sigma(t), self.process.schedule.alpha(t)
        y = x_t.double() / alpha[:, None]
        squares = ((y[:, None] - self.modes) ** 2).sum(-1)
        posterior = (self.weights.double().log() - squares / (2 * a[:, None] ** 2)).softmax(-1)
        return (posterior @ self.modes.double()).to(x_t)

    def nearest(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.modes).norm(dim=-1).argmin(-1)

    def moments(self, x: Tensor) -> Tensor:
        """(B, k) numbers whose means should agree."""
        return torch.stack([x[:, 0], x[:, 1] ** 2, x[:, 0] * x[:, 1]], -1)


@dataclass
class OnCylinder:
    """Three points on R x S^1, heights and angles correlated."""

    heights: Tensor = field(default_factory=lambda: torch.tensor([-2.0, 2.5, 1.0]))
    angles: Tensor = field(default_factory=lambda: torch.tensor([0.5, 2.5, -2.2]))
    weights: Tensor = field(default_factory=lambda: torch.tensor(WEIGHTS))
    process: ProductDiffusion = field(
        default_factory=lambda: ProductDiffusion(
            {"height": (Euclidean(), 0.05, 10.0, 1.0), "angle": (Torus(), 0.05, math.pi, 1.0)}
        )
    )

    def data(self, count: int, generator: torch.Generator) -> Cylinder:
        mode = torch.multinomial(self.weights, count, True, generator=generator)
        return Cylinder(self.heights[mode][:, None], self.angles[mode][:, None])

    def denoiser(self, x_t: Cylinder, t: Tensor, cond: Any = None) -> dict[str, Tensor]:
        sigma, torus = self.process.sigma(t), Torus()
        height, angle = x_t.height.double() - self.heights, x_t.angle.double() - self.angles
        log_p = self.weights.double().log() - height**2 / (2 * sigma["height"][:, None] ** 2)
        posterior = (log_p + torus.log_density(angle, sigma["angle"])).softmax(-1)
        scores = {
            "height": -height / sigma["height"][:, None] ** 2,
            "angle": torus.score(angle, sigma["angle"]),
        }
        return {k: (posterior * v).sum(-1, keepdim=True).float() for k, v in scores.items()}

    def nearest(self, x: Cylinder) -> Tensor:
        return ((x.height - self.heights).abs() - torch.cos(x.angle - self.angles)).argmin(-1)

    def moments(self, x: Cylinder) -> Tensor:
        angle = x.angle[:, 0]
        return torch.stack([x.height[:, 0], x.height[:, 0] ** 2, angle.cos(), angle.sin()], -1)


class OnRotations:
    """Three orientations."""

    def __init__(self) -> None:
        self.process = ProductDiffusion({"turn": (SO3(), 0.05, 2.5, 1.0)})
        self.weights = torch.tensor(WEIGHTS)
        self.modes = turn(torch.tensor([[0.3, 0.0, 0.1], [0.0, 2.0, 1.0], [-1.5, 1.5, 0.0]]))

    def data(self, count: int, generator: torch.Generator) -> Rotation:
        return Rotation(
            self.modes[torch.multinomial(self.weights, count, True, generator=generator)]
        )

    def _from_modes(self, x: Rotation) -> Tensor:
        """The displacements (B, 3 modes, 3) that take each mode to x."""
        apart = x.matrix[:, None] @ self.modes.transpose(-1, -2)
        return axis_angle(apart.reshape(-1, 3, 3)).reshape(-1, 3, 3)

    def denoiser(self, x_t: Rotation, t: Tensor, cond: Any = None) -> dict[str, Tensor]:
        sigma, kernel, u = self.process.sigma(t)["turn"][:, None], SO3(), self._from_modes(x_t)
        log_f = kernel.log_density(u.norm(dim=-1), sigma)
        posterior = (self.weights.double().log() + log_f).softmax(-1)
        return {"turn": (posterior[..., None] * kernel.score(u.double(), sigma)).sum(1).float()}

    def nearest(self, x: Rotation) -> Tensor:
        return self._from_modes(x).norm(dim=-1).argmin(-1)

    def moments(self, x: Rotation) -> Tensor:
        return x.matrix.flatten(1)


WORLDS = {
    "vp": lambda: Line(GaussianDiffusion(VP())),
    "cosine": lambda: Line(GaussianDiffusion(Cosine())),
    "ve": lambda: Line(GaussianDiffusion(VE(0.02, 20.0))),
    "edm": lambda: Line(GaussianDiffusion(EDM(0.02, 20.0))),
    "cylinder": OnCylinder,
    "rotations": OnRotations,
}


class Words:
    """All 64 words of three letters out of four, with chances drawn from a Dirichlet law.

    Small enough that every posterior is a sum over words, and every sampler's law a product of
    matrices. The chances are those of the numeric checks that the golden numbers come from: their
    entropy is 2.4869 nats.

    Args:
        process: one of `diffusion.categorical`.
    """

    letters, sites = 4, 3

    def __init__(self, process: Tokens) -> None:
        self.process = process
        alphabet = torch.arange(self.letters)
        self.words = torch.cartesian_prod(*[alphabet] * self.sites)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            concentration = torch.full((len(self.words),), 0.15, dtype=torch.float64)
            self.p = torch.distributions.Dirichlet(concentration).sample()

    @property
    def entropy(self) -> float:
        return float(-torch.xlogy(self.p, self.p).sum())

    def data(self, count: int, generator: torch.Generator) -> Tensor:
        return self.words[torch.multinomial(self.p, count, True, generator=generator)]

    def evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """q(x_t^l | x_0 = word) up to a factor, (B, 64, L), each site by itself."""
        same = (x_t[:, None] == self.words).double()
        if isinstance(self.process, Uniform):
            alpha = self.process.schedule.alpha(t)[:, None, None]
            return alpha * same + (1 - alpha) / self.letters
        return same + (x_t[:, None] == self.letters)

    def marginals(self, weights: Tensor) -> Tensor:
        """log of the letters' chances at each site, (B, L, V), for words weighed (B, 64, L)."""
        letters = torch.nn.functional.one_hot(self.words, self.letters).double()
        p = torch.einsum("bwl,wlv->blv", weights, letters)
        return (p / p.sum(-1, keepdim=True)).log()

    def posterior(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p(x_0^l | x_t), by Bayes over words."""
        joint = self.p[:, None] * self.evidence(x_t, t).prod(-1, keepdim=True)
        return self.marginals(joint.expand(-1, -1, self.sites))

    def leave_one_out(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p(x_0^l | x_t at the other sites)."""
        seen = self.evidence(x_t, t)
        others = [seen[..., [m for m in range(self.sites) if m != site]] for site in range(3)]
        return self.marginals(self.p[:, None] * torch.stack([o.prod(-1) for o in others], -1))

    def causal(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p(x_0^l | x_0^{<l}), where masks tell nothing."""
        seen = self.evidence(x_t, t)
        earlier = [seen[..., :site].prod(-1) for site in range(self.sites)]
        return self.marginals(self.p[:, None] * torch.stack(earlier, -1))

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """What the minimiser of the process's loss predicts."""
        if len(x_t) > len(self.states) and bool((t == t[0]).all()):  # each state once
            place = self.states.max() + 1
            number = (x_t * torch.stack([place**2, place, place**0])).sum(-1)
            return self.denoiser(self.states, t[:1].expand(len(self.states)))[number]
        if isinstance(self.process, Uniform):
            return self.leave_one_out(x_t, t)
        return (self.posterior if isinstance(self.process, Absorbing) else self.causal)(x_t, t)

    @property
    def states(self) -> Tensor:
        """Everything x_t can be, (64 or 125, L)."""
        letters = self.letters + (not isinstance(self.process, Uniform))
        return torch.cartesian_prod(*[torch.arange(letters)] * self.sites)

    def step_matrix(self, q: Any) -> Tensor:
        """Chance of each state after the step q, which was made at all states; (S, S)."""
        law, states = q.law(), self.states
        sites = [law[:, site][:, states[:, site]] for site in range(self.sites)]
        return torch.stack(sites).prod(0)

    def noising_matrix(self, s: float, t: float) -> Tensor:
        """q(x_t | x_s) between all states, (S, S)."""
        alpha = self.process.schedule.alpha(torch.tensor([s, t], dtype=torch.float64))
        kept, x, y = alpha[1] / alpha[0], self.states[:, None], self.states[None]
        same = (x == y).double()
        if isinstance(self.process, Uniform):
            return (kept * same + (1 - kept) / self.letters).prod(-1)
        lost = kept * same + (1 - kept) * (y == self.letters)
        return torch.where(x == self.letters, same, lost).prod(-1)

    def law_of_samples(self, times: Tensor, denoiser: Any = None, guidance: Any = ()) -> Tensor:
        """The exact law (64,) of `sample` with `Reverse`, by multiplying step matrices."""
        states, denoiser = self.states, denoiser or self.denoiser
        start = self.process.prior(states)
        law = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
        if not isinstance(self.process, Uniform):
            law = (states == start).all(-1).double()
        for t, s in zip(times[:-1].double(), times[1:].double(), strict=True):
            t, s = t.expand(len(states)), s.expand(len(states))
            q = self.process.transition(states, denoiser(states, t, None), t, s)
            for guide in guidance:
                q = guide(q, states, t, s, None)
            law = law @ self.step_matrix(q)
        written = (states < self.letters).all(-1)
        assert float(law[~written].sum()) < 1e-12  # nothing is left masked
        return law[written]

    def distance(self, law: Tensor, other: Tensor | None = None) -> float:
        """Total variation to the data, or to another law of words."""
        return float((law - (self.p if other is None else other)).abs().sum() / 2)
