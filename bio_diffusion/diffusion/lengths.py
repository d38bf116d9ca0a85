"""What a step costs: lengths for the adaptive schedule.

A length looks at samples x_t of p_t and says how much work there is from t to s. The engine in
`schedule` averages it over samples, takes the root of its order and spreads the knots evenly.
Which length suits depends on the sampler: `TruncationError` for its own solver of the probability
flow, `VelocityNormalised` for second-order solvers and corrected sampling. Ancestral steps are near
their best on a geometric grid: measure before putting an adaptive one in its place. For tokens
`PathDivergence` is the length: on small exact worlds never worse than even steps, with a third of
their divergence under uniform noise, where `schedule.sine` comes close without any measuring.

Shapes: B batch.

Source: Williams, Campbell, Doucet & Syed 2024 (the corrector's cost).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.process import (
    Brownian,
    Prediction,
    Process,
    Source,
    State,
    broadcast,
    tangent_map,
)

__all__ = [
    "CorrectorOptimised",
    "Denoise",
    "Length",
    "PathDivergence",
    "TruncationError",
    "VelocityNormalised",
]

Denoise = Callable[[State, Tensor], Prediction]  # a denoiser with its cond filled in


class Length(Protocol):
    """The cost of a step from t to s, as seen from samples x_t of p_t.

    Attributes:
        order: p, with cost ~ |t - s|^p as s -> t.
    """

    order: int

    def __call__(self, process: Any, denoise: Denoise, x_t: State, t: Tensor, s: Tensor) -> Tensor:
        """Cost (B,) >= 0, zero at s = t."""
        ...


class CorrectorOptimised:
    """What a Langevin corrector would have to make good if nothing were moved: L = v^2 |ds|^2.

        ds = score(y, s) - score(y, t),   at the same point y of the unscaled frame
        v  = sigma_s, capped on compact factors

    Scales between the data's and the prior's count, all below the data's finest hardly count at
    all.

    Source: Williams et al. 2024, corrector-optimised cost.
    """

    order = 2

    def __call__(self, process: Any, denoise: Denoise, x_t: State, t: Tensor, s: Tensor) -> Tensor:
        now, then = self._scores(process, denoise, x_t, t, s)
        change = tangent_map(torch.sub, then, now)
        # sigma_s, not sigma_t: x_t comes from p_t, and over a finite step at high noise the two
        # choices of end make up for each other. (On a coarse grid that is refitted over and over,
        # it would let the last interval swallow the others.)
        return process.norm(change, s) ** 2

    @staticmethod
    def _scores(process: Process, denoise: Denoise, x_t: State, t: Tensor, s: Tensor) -> Any:
        x_s = process.reframe(x_t, t, s)
        now = process.score(denoise(x_t, t), x_t, t)
        return now, process.score(denoise(x_s, s), x_s, s)


class VelocityNormalised(CorrectorOptimised):
    """The corrector's cost with v = 1 / rms(score), the width of p_t itself, in place of sigma_t.

    For data of width c this is sqrt(c^2 + sigma^2): low noise keeps some weight. The better of the
    two with deterministic samplers wherever we looked. rms is over the batch and degrees of
    freedom of each factor; where scores vanish v is capped by the size of the space.
    """

    def __call__(self, process: Any, denoise: Denoise, x_t: State, t: Tensor, s: Tensor) -> Tensor:
        now, then = self._scores(process, denoise, x_t, t, s)

        def scaled(a: Tensor, b: Tensor, top: float) -> Tensor:
            velocity = 1 / a.square().mean().sqrt().clamp(min=1e-30)
            return (b - a) * velocity.clamp(max=top)

        return process.size(tangent_map(scaled, now, then, process.extent)) ** 2


class TruncationError:
    """The local error of a step of the probability flow dy / dsigma = eps_bar = -sigma score.

        L = sum over factors of (g |eps_bar(y_t, t) - eps_bar(y_s, s)| h^q)^2
        h = sigma_t - sigma_s
        g = 1, or with data_scale c:  c^(1-q) / sqrt(c^2 + sigma_t^2)

    with y_s the Euler step from y_t, q the order of the solver (1 Euler and DDIM, 2 Heun). Squared,
    so that the engine averages squares; hence order 2 (q + 1). With c (LTE-G) the errors are those
    left at the end if the data were Gaussian of width c, in units of c: errors made early shrink
    on the way.

    Args:
        solver_order: q.
        data_scale: c, a number for tensors, numbers by name for products; None for bare local
            errors.
    """

    def __init__(
        self, solver_order: int = 1, data_scale: float | Mapping[str, float] | None = None
    ) -> None:
        if solver_order < 1:
            raise ValueError(f"solver_order must be at least 1, got {solver_order}")
        self.solver_order, self.data_scale = solver_order, data_scale
        self.order = 2 * (solver_order + 1)

    def __call__(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        sigma_t, sigma_s = process.sigma(t), process.sigma(s)
        h = tangent_map(torch.sub, sigma_t, sigma_s)
        now = tangent_map(_times, sigma_t, process.score(denoise(x_t, t), x_t, t))
        x_s = process.move(x_t, tangent_map(_times, h, now), t, s)
        then = tangent_map(_times, sigma_s, process.score(denoise(x_s, s), x_s, s))
        error = tangent_map(lambda a, b, step: _times(step**self.solver_order, a - b), now, then, h)
        if self.data_scale is not None:
            error = tangent_map(self._at_the_end, error, sigma_t, self.data_scale)
        return process.size(error) ** 2

    def _at_the_end(self, error: Tensor, sigma_t: Tensor, c: float) -> Tensor:
        return _times(c ** (1 - self.solver_order) / (c**2 + sigma_t**2).sqrt(), error)


class PathDivergence:
    """What a step of tokens loses by drawing all sites at once, beside two steps of half its size.

        L = E_{x_m ~ q(x_m | x_t)} KL( q(x_s | x_m, predicted at x_m) || q(x_s | x_m, at x_t) )

    One step from t to s is the same as two halves of which the second knows no more than the first,
    so this is the divergence of the two paths, in nats. Under masking, with h(alpha) the entropy of
    a masked site's letter and n sites, it is n |h'| d alpha^2 / 4 for small steps.

    Args:
        generator: of the draw of x_m.

    Source: Watson et al. 2022 (the bound as the cost of a step); the excess of a step derived here.
    """

    order = 2

    def __init__(self, generator: Source = None) -> None:
        self.generator = generator

    def __call__(
        self, process: Tokens, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        m = (t + s) / 2
        now = denoise(x_t, t).double()
        x_m = process.transition(x_t, now, t, m).sample(self.generator)
        two, one = (process.transition(x_m, p, m, s) for p in (denoise(x_m, m).double(), now))
        return two.divergence(one).sum(-1)


def _times(coefficient: Tensor, tangent: Tensor) -> Tensor:
    return broadcast(coefficient, tangent) * tangent
