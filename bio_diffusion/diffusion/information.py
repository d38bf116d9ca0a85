"""What a step loses in nats: lengths of information, for samplers that draw.

`AncestralDivergence` and `PathDivergence` look at samples x_t, as the lengths in `lengths` do. A
`Reading` needs no samples: it is read off the curve of denoising errors over time, which training
measures anyway; see `online.LossCurve`, and `online.fit_losses` for a trained model.

Under masking the reading is exact: with the true posteriors a step from alpha_t to alpha_s, of n
sites, loses n [(alpha_s - alpha_t) h(alpha_t) - Int h] nats, and n Int_0^1 h = H(x_0). Under
uniform noise later steps mend what earlier ones spoiled, path divergence counts it all the same,
and `schedule.sine` is the grid to beat.

Shapes: B batch, K intervals, L sites, V letters.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Absorbing, Tokens
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.lengths import Denoise, weighed
from bio_diffusion.diffusion.process import Brownian, Source, State, tangent_map

__all__ = [
    "AncestralDivergence",
    "EntropyRate",
    "PathDivergence",
    "Reading",
    "RescaledEntropic",
    "Unmasking",
]


class AncestralDivergence:
    """What an ancestral step loses because the denoised state D is held from t to s.

        L = |D(y_s, s) - D(y_t, t)|^2 (1 / sigma_s^2 - 1 / sigma_t^2) / 4,   y_s ~ q(y_s | y_t, D)

    To second order the divergence of the step's path from the true one, in nats a degree of
    freedom: with lambda = 1 / sigma^2 it is |d mmse / d lambda| d lambda^2 / 4. It spends much at
    the lowest noise. For a sampler that draws nothing it is the wrong length, and a Heun's step
    over the high noise that it neglects fails.

    Args:
        generator: of the draw of y_s.

    Source: Guo, Shamai & Verdu 2005 (I-MMSE); the length derived here.
    """

    order = 2

    def __init__(self, generator: Source = None) -> None:
        self.generator = generator

    def __call__(
        self, process: Brownian, denoise: Denoise, x_t: State, t: Tensor, s: Tensor
    ) -> Tensor:
        sigma_t, sigma_s = process.sigma(t), process.sigma(s)
        drop = tangent_map(lambda a, b: (a**2 - b**2).clamp(min=0), sigma_t, sigma_s)
        width = tangent_map(lambda v, a, b: v.sqrt() * b / a, drop, sigma_t, sigma_s)
        score_t = process.score(denoise(x_t, t), x_t, t)
        stir = process.noise(x_t, width, self.generator)
        u = tangent_map(lambda v, d, z: weighed(v, d) + z.to(d), drop, score_t, stir)
        x_s = process.move(x_t, u, t, s)
        score_s = process.score(denoise(x_s, s), x_s, s)

        def change(u: Tensor, then: Tensor, now: Tensor, a: Tensor, b: Tensor) -> Tensor:
            moved = u + weighed(b**2, then) - weighed(a**2, now)
            return weighed((b**-2 - a**-2).clamp(min=0).sqrt() / 2, moved)

        return process.size(tangent_map(change, u, score_s, score_t, sigma_t, sigma_s)) ** 2


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


class Reading(Protocol):
    """A length that is read off losses: an error E(t) of denoising, and what an interval costs.

    Attributes:
        order: p, with cost ~ |t - s|^p as s -> t.
        monotone: E cannot fall with more noise, so that estimates of it are made to rise.
    """

    order: int
    monotone: bool

    def error(self, process: Any, t: Tensor, loss: Tensor) -> Tensor:
        """E at t, from `process.loss`; both (B,)."""
        ...

    def trust(self, process: Any, t: Tensor) -> Tensor:
        """What an error at t counts in a mean over near times, (B,): 1 / its variance."""
        ...

    def cost(self, process: Any, t: Tensor, s: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """Costs (K,) of intervals from t to s with errors `high` at t and `low` at s."""
        ...


class Unmasking:
    """Path divergence of masking: L = (h_t - h_s) (alpha_s - alpha_t), h the nats of a masked site.

    Half of what one step loses a site, to second order. Grids follow that no sampler has to be run
    for. Where h falls evenly in alpha, even steps in alpha are best and come out.

    Source: derived here, from the chain rule; see the head of this page.
    """

    order, monotone = 2, True

    def error(self, process: Absorbing, t: Tensor, loss: Tensor) -> Tensor:
        return loss / -process.schedule.slope(t)

    def trust(self, process: Absorbing, t: Tensor) -> Tensor:
        return 1 - process.schedule.alpha(t)  # as many masks are asked about

    def cost(self, process: Absorbing, t: Tensor, s: Tensor, high: Tensor, low: Tensor) -> Tensor:
        return (high - low) * (process.schedule.alpha(s) - process.schedule.alpha(t))


class RescaledEntropic:
    """Even increments of rescaled entropy: L = Int mmse(sigma) / sigma^2 dsigma.

    For Gaussian data of width c it is even in arctan(sigma / c), which is best for the probability
    flow there.

    Source: Stancevic, Handke & Ambrogioni 2025, rescaled entropic time.
    """

    order, monotone = 1, True

    def error(self, process: GaussianDiffusion, t: Tensor, loss: Tensor) -> Tensor:
        return loss / process.weight(t)

    def trust(self, process: GaussianDiffusion, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def cost(
        self, process: GaussianDiffusion, t: Tensor, s: Tensor, high: Tensor, low: Tensor
    ) -> Tensor:
        a, b = process.sigma(t), process.sigma(s)
        return (high + low) / 2 * (a - b) / (a * b)


class EntropyRate:
    """Even increments of entropy: L = Int loss dt, the nats that the bound counts in the interval.

    For tokens under any noise. Every site of x_t tells something of x_0 as t falls; this is how
    much, and not what a step loses.
    """

    order, monotone = 1, False

    def error(self, process: Tokens, t: Tensor, loss: Tensor) -> Tensor:
        return loss / -process.schedule.slope(t)

    def trust(self, process: Tokens, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def cost(self, process: Tokens, t: Tensor, s: Tensor, high: Tensor, low: Tensor) -> Tensor:
        alpha_t, alpha_s = process.schedule.alpha(t), process.schedule.alpha(s)
        return (high + low) / 2 * (alpha_s - alpha_t)
