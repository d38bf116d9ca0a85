"""Steering: objects that turn one transition into another, whatever the process.

    classifier-free   q <- q^(1 + w) q_null^(-w)        away from what an unconditioned model does
    classifier        q <- q p(y | x_s)^gamma           towards what a predictor takes for y
    energy            q <- q exp<-scale grad E, .>      towards low energy
    temperature       q <- q^(1 / T)                    closer to the mode

They are applied in order by `sampling.Reverse`, after the process has made its own transition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import TokenTransition
from bio_diffusion.diffusion.process import (
    Denoiser,
    Process,
    State,
    Tangent,
    Transition,
    broadcast,
    tangent_map,
)

__all__ = [
    "Classifier",
    "ClassifierFree",
    "EnergyGuidance",
    "ExactClassifier",
    "FirstOrderClassifier",
    "Temperature",
]

Weight: TypeAlias = float | Callable[[Tensor], Tensor]  # a number, or a function of t, (B,) -> (B,)


def _weight(weight: Weight, t: Tensor) -> Tensor:
    return weight(t) if callable(weight) else torch.full_like(t, weight)


class ClassifierFree:
    """Extrapolates from the unconditioned model through the conditioned one; one more network call.

    For Brownian processes this is score + w (score - score_null). With latents, `null` hides them
    (guidance on the latent); with class labels it drops the label.

    Args:
        process: gives the transition of the second prediction.
        denoiser: the network.
        weight: w; 0 is the plain conditioned model, bit for bit and without the second call. In the
            other convention in use, gamma = 1 + w. A number, or a function of the t that all rows
            share.
        null: cond -> the cond of the unconditioned model.
        window: (low, high), guided only while low <= t <= high.

    Source: Ho & Salimans 2022; the window from Kynkäänniemi et al. 2024.
    """

    def __init__(
        self,
        process: Process,
        denoiser: Denoiser,
        weight: Weight,
        null: Callable[[Any], Any],
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.process, self.denoiser, self.null = process, denoiser, null
        self.weight, self.window = weight, window

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        low, high = self.window
        weight = float(self.weight(t[:1])) if callable(self.weight) else self.weight
        if weight == 0 or not bool(((t >= low) & (t <= high)).all()):
            return q
        prediction = self.denoiser(x_t, t, self.null(cond))
        return q.mix(self.process.transition(x_t, prediction, t, s), -weight)


class Classifier(ABC):
    """Tilts each site of tokens by p(y | x_t with another letter at that site)^gamma.

        q(x_s^l = v) <- q(x_s^l = v) p(y | x_t with v at l)^gamma / Z_l

    The sites are then drawn independently, as without guidance. With the exact p(y | x_t) and
    gamma = 1 the samples are those of p(x_0 | y) as steps grow. Where sites are masked, what is
    written is steered and not how many: with the exact predictor the two agree at gamma = 1, and
    above it the published rule would unmask faster than its noise allows. The predictor is asked at
    the middle of the step and not at t: on exact worlds that takes a fifth off the error.

    Args:
        log_p: x, t -> log p(y | x_t = x), (B,), for the y that is wanted. It must have been taught
            on noised x_t, and told t where the noise is uniform.
        weight: gamma; 0 changes nothing. A number or a function of t.

    Source: Schiff et al. 2025 (D-CBG); Nisonoff et al. 2024; for autoregressive processes Yang &
        Klein 2021 (FUDGE).
    """

    def __init__(self, log_p: Callable[[Tensor, Tensor], Tensor], weight: Weight = 1.0) -> None:
        self.log_p, self.weight = log_p, weight

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        assert isinstance(q, TokenTransition)
        evidence = self.evidence(q, x_t, (t + s) / 2)
        return q.tilt(broadcast(_weight(self.weight, t), evidence) * evidence)

    @abstractmethod
    def evidence(self, q: TokenTransition, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t with v at l) up to a constant for each site, (B, L, V)."""


class ExactClassifier(Classifier):
    """Asks the predictor about every letter of every site that the step may write.

    B L V sequences a step under uniform noise, those of the masked sites under masking, B V from
    left to right.

    Args:
        log_p: takes ids (B, L).
        weight: gamma.
        chunk: sequences to a call.
    """

    def __init__(
        self,
        log_p: Callable[[Tensor, Tensor], Tensor],
        weight: Weight = 1.0,
        chunk: int = 4096,
    ) -> None:
        super().__init__(log_p, weight)
        self.chunk = chunk

    def evidence(self, q: TokenTransition, x_t: Tensor, t: Tensor) -> Tensor:
        letters = torch.arange(q.letters, device=x_t.device)
        evidence = torch.zeros(*x_t.shape, q.letters, device=x_t.device)
        places = q.open.nonzero()  # (M, 2): row, site
        for rows, sites in (p.T for p in places.split(max(1, self.chunk // q.letters))):
            x = x_t[rows, None].repeat(1, q.letters, 1)  # (m, V, L)
            x[torch.arange(len(rows), device=x.device), :, sites] = letters
            when = t[rows].repeat_interleave(q.letters)
            log_p = self.log_p(x.flatten(0, 1), when)
            evidence = evidence.to(log_p.dtype)
            evidence[rows, sites] = log_p.view(len(rows), q.letters)
        return evidence


class FirstOrderClassifier(Classifier):
    """One backward pass: log p(y | .) continued linearly from x_t, as a function of one-hots.

    Exact where the predictor is linear in them, and a guess elsewhere: gradients say little of
    letters far from the one that stands.

    Args:
        log_p: takes one-hots (B, L, V + 1), the mask's column last.
        weight: gamma.
    """

    def evidence(self, q: TokenTransition, x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.nn.functional.one_hot(x_t, q.letters + 1).to(torch.get_default_dtype())
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_p(x, t).sum(), x)
        # what taking away the present letter does is the same for all that may replace it
        return gradient[..., : q.letters]


class EnergyGuidance:
    """Tilts each step towards lower energy: p_t is sampled as p_t exp(-scale E).

    Far from a minimum an energy's gradient can be arbitrarily steep (two atoms on top of each
    other), so it is shortened, sample by sample, to the size of a usual score.

    Args:
        process: measures the gradient.
        gradient: (x_t, t, cond) -> dE as a tangent at x_t, in the unscaled frame like every score.
            For a product all factors must be there.
        scale: 1 / kT, a number or a function of t (B,) -> (B,).
        limit: largest `process.norm` of the steering score; a score at the noise it was made for
            has a norm near 1. None for no limit.
    """

    def __init__(
        self,
        process: Process,
        gradient: Callable[[State, Tensor, Any], Tangent],
        scale: Weight = 1.0,
        limit: float | None = 1.0,
    ) -> None:
        self.process, self.gradient, self.scale, self.limit = process, gradient, scale, limit

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        scale = _weight(self.scale, t)
        direction = tangent_map(lambda g: -broadcast(scale, g) * g, self.gradient(x_t, t, cond))
        if self.limit is not None:
            long = self.process.norm(direction, t)
            shorten = (self.limit / long.clamp(min=1e-12)).clamp(max=1.0)
            direction = tangent_map(lambda d: broadcast(shorten, d) * d, direction)
        return q.tilt(direction)


class Temperature:
    """Sharpens (T < 1) or flattens (T > 1) every step.

    This tempers the steps, not the law of the samples: low temperatures trade diversity for
    typicality, without the weights of exact tempering. T = 1 changes nothing.
    """

    def __init__(self, temperature: float) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        self.temperature = temperature

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        return q.temper(self.temperature)
