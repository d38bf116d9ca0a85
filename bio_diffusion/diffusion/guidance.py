"""Steering: objects that turn one transition into another, whatever the process.

    classifier-free   q <- q^(1 + w) q_null^(-w)        away from what an unconditioned model does
    energy            q <- q exp<-scale grad E, .>      towards low energy
    temperature       q <- q^(1 / T)                    closer to the mode

They are applied in order by `sampling.Reverse`, after the process has made its own transition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.process import (
    Denoiser,
    Process,
    State,
    Tangent,
    Transition,
    broadcast,
    tangent_map,
)

__all__ = ["ClassifierFree", "EnergyGuidance", "Temperature"]


class ClassifierFree:
    """Extrapolates from the unconditioned model through the conditioned one; one more network call.

    For Brownian processes this is score + w (score - score_null). With latents, `null` hides them
    (guidance on the latent); with class labels it drops the label.

    Args:
        process: gives the transition of the second prediction.
        denoiser: the network.
        weight: w; 0 is the plain conditioned model, bit for bit and without the second call. In the
            other convention in use, gamma = 1 + w.
        null: cond -> the cond of the unconditioned model.
        window: (low, high), guided only while low <= t <= high.

    Source: Ho & Salimans 2022; the window from Kynkäänniemi et al. 2024.
    """

    def __init__(
        self,
        process: Process,
        denoiser: Denoiser,
        weight: float,
        null: Callable[[Any], Any],
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.process, self.denoiser, self.null = process, denoiser, null
        self.weight, self.window = weight, window

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        low, high = self.window
        if self.weight == 0 or not bool(((t >= low) & (t <= high)).all()):
            return q
        prediction = self.denoiser(x_t, t, self.null(cond))
        return q.mix(self.process.transition(x_t, prediction, t, s), -self.weight)


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
        scale: float | Callable[[Tensor], Tensor] = 1.0,
        limit: float | None = 1.0,
    ) -> None:
        self.process, self.gradient, self.scale, self.limit = process, gradient, scale, limit

    def __call__(self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any) -> Transition:
        scale = self.scale(t) if callable(self.scale) else torch.full_like(t, self.scale)
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
