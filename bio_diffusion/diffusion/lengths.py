"""What a step costs: lengths of the samplers, for the adaptive schedule.

A length looks at samples x_t of p_t and says how much work there is from t to s. The engine in
`schedule` averages it over samples, takes the root of its order and spreads the knots evenly. Which
length suits depends on the sampler, see docs/methods/adaptive-schedules.md: those of the solver's
own error for the probability flow (`TruncationError`, `TerminalError`), `VelocityNormalised` for
second-order solvers and corrected sampling; for samplers that draw, those in `information`.

No length is never worse than a fixed grid. It is the error of single steps that is made even, and
how errors add up along the way is known to few of them.

Shapes: B batch.

Source: Williams, Campbell, Doucet & Syed 2024 (the corrector's and the predictor's cost).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.process import (
    Brownian,
    Prediction,
    Process,
    State,
    Tangent,
    broadcast,
    tangent_map,
)
from bio_diffusion.diffusion.sampling import Heun, sample

__all__ = [
    "CorrectorOptimised",
    "Denoise",
    "Length",
    "PredictorOptimised",
    "TerminalError",
    "TruncationError",
    "VelocityNormalised",
    "weighed",
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


class PredictorOptimised:
    """What a Langevin corrector must make good after an Euler step F of the probability flow.

        L = v^2 |score(F(y), s) - pushed(F(y))|^2,     v = sigma_s, capped on compact factors
        pushed(F(y)) = J^-T (score(y, t) - grad_y log|det J|),     J = dF / dy

    the score of the law that F makes of p_t. Of order 4 where scores are exact: F then keeps p_t to
    first order in the step. What of it is quadratic is error of the network. d backward passes, and
    their gradients, for d numbers a state: for small states. The published order is 2, whatever the
    score; taken so, the fourth power makes knots that swing from fit to fit.

    Source: Williams et al. 2024, predictor-optimised cost; the order derived here.
    """

    order = 4

    def __call__(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        if not isinstance(x_t, Tensor):
            raise ValueError("the predictor's cost needs states that are tensors")
        with torch.enable_grad():
            u = torch.zeros_like(x_t, requires_grad=True)
            here = process.move(x_t, u, t, t)
            now = process.score(denoise(here, t), here, t)
            end = u + process.flow(now, t, s)
            rows = [
                torch.autograd.grad(each.sum(), u, create_graph=True)[0].flatten(1)
                for each in end.flatten(1).unbind(1)
            ]
            J = torch.stack(rows, 1)
            (bend,) = torch.autograd.grad(torch.linalg.slogdet(J)[1].sum(), u, allow_unused=True)
        left = (now - (0 if bend is None else bend)).detach().flatten(1)
        pushed = torch.linalg.solve(J.detach().mT, left[..., None])[..., 0].reshape(x_t.shape)
        x_s = process.move(x_t, end.detach(), t, s)
        then = process.score(denoise(x_s, s), x_s, s)
        return process.norm(then - pushed, s) ** 2


class TruncationError:
    """The local error e of a step of the probability flow dy / dsigma = eps_bar = -sigma score.

        L = |g e|^2,    h = sigma_t - sigma_s
        e = h (eps_bar(y_t, t) - eps_bar(y_s, s))     q = 1 (Euler, DDIM): h^2 times the slope
        e = h^3 eps_bar[t, m, s]                      q = 2 (Heun): half the curvature
        g = 1, or with data_scale c:  c^(1-q) / sqrt(c^2 + sigma_t^2)

    y_m and y_s are Euler's, from y_t. Squared, so that the engine averages squares; hence order
    2 (q + 1). With c (LTE-G) the errors are those left at the end if the data were Gaussian of
    width c, in units of c: errors made early shrink on the way.

    Args:
        solver_order: q.
        data_scale: c, a number for tensors, numbers by name for products; None for bare local
            errors.
    """

    def __init__(
        self, solver_order: int = 1, data_scale: float | Mapping[str, float] | None = None
    ) -> None:
        if solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 or 2, got {solver_order}")
        self.solver_order, self.data_scale = solver_order, data_scale
        self.order = 2 * (solver_order + 1)

    def __call__(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        _, error = self.local(process, denoise, x_t, t, s)
        if self.data_scale is not None:
            error = tangent_map(self._at_the_end, error, process.sigma(t), self.data_scale)
        return process.size(error) ** 2

    def local(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> tuple[State, Tangent]:
        """The Euler step x_s, and the error e."""

        def noise(x: State, time: Tensor) -> Tangent:
            score = process.score(denoise(x, time), x, time)
            return tangent_map(weighed, process.sigma(time), score)

        def step(time: Tensor) -> tuple[State, Tangent, Tangent]:
            h = tangent_map(torch.sub, process.sigma(t), process.sigma(time))
            x = process.move(x_t, tangent_map(weighed, h, now), t, time)
            return x, noise(x, time), h

        now = noise(x_t, t)
        x_s, then, h = step(s)
        if self.solver_order == 1:
            return x_s, tangent_map(lambda a, b, h: weighed(h, a - b), now, then, h)
        _, midway, first = step((t + s) / 2)

        def curvature(a: Tensor, m: Tensor, b: Tensor, h: Tensor, first: Tensor) -> Tensor:
            tiny = torch.finfo(h.dtype).tiny
            early = weighed(h**2 / first.clamp(min=tiny), a - m)
            return early - weighed(h**2 / (h - first).clamp(min=tiny), m - b)

        return x_s, tangent_map(curvature, now, midway, then, h, first)

    def _at_the_end(self, error: Tensor, sigma_t: Tensor, c: float) -> Tensor:
        return weighed(c ** (1 - self.solver_order) / (c**2 + sigma_t**2).sqrt(), error)


class TerminalError(TruncationError):
    """What is left at the end of the local error e of a step: L = |J_{0 <- s} e|   (LTE-J).

    J e is how far the flow lands when it starts e away, by two walks down the rest of the grid; e
    is shrunk to `nudge` sigma_s for it. A length and not its square, of order q + 1: near the
    borders between modes J has heavy tails. K^2 network calls in all: for small networks, or to see
    whether the cheap `TruncationError` with `data_scale` is near enough.

    Args:
        tail: falling times to 0, which the rest of the way is walked on, by Heun's rule.
        solver_order: q, of the sampler that the grid is for.
        nudge: of the finite difference.
    """

    def __init__(self, tail: Tensor, solver_order: int = 1, nudge: float = 0.01) -> None:
        super().__init__(solver_order)
        self.tail, self.nudge, self.order = tail, nudge, solver_order + 1

    def __call__(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        if not isinstance(x_t, Tensor):
            raise ValueError("the terminal error needs states that are tensors")
        x_s, error = self.local(process, denoise, x_t, t, s)
        size = process.size(error)
        if not bool((size > 0).any()):
            return size
        shrink = self.nudge * process.sigma(s) / size.clamp(min=1e-30)
        away = process.move(x_s, weighed(shrink, error), s, s)
        rest = torch.cat([s[:1], self.tail[self.tail < s[0] * (1 - 1e-6)].to(s)])
        if len(rest) < 2:  # s is where the grid ends
            return size
        ends = [
            sample(process, lambda x, time, cond: denoise(x, time), x, rest, step=Heun())
            for x in (away, x_s)
        ]
        return process.size(ends[0] - ends[1]) / shrink


def weighed(coefficient: Tensor, tangent: Tensor) -> Tensor:
    """A coefficient (B,) times a tensor (B, *)."""
    return broadcast(coefficient, tangent) * tangent
