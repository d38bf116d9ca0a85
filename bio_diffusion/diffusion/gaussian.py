"""Gaussian diffusion of tensors, x_t = alpha_t x_0 + sigma_t eps, from DDPM to DDIM.

In the frame y = x / alpha it is Brownian with clock a_t = sigma_t / alpha_t, so everything but the
frame comes from `Brownian`. A prediction is the denoised state D = E[x_0 | x_t] and

    score = (D - y_t) / a_t^2,        q(x_s | x_t) = N(alpha_s (r D + (1 - r) y_t), alpha_s^2 v)

with drift a_t^2 r and variance v from the process's `Bridge`.

Shapes: B batch, ``*`` the rest of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.noise import Noise
from bio_diffusion.diffusion.process import (
    Brownian,
    Noised,
    Normal,
    Source,
    broadcast,
    normal,
)

__all__ = ["GaussianDiffusion", "Preconditioned"]


class GaussianDiffusion(Brownian):
    """x_t = alpha_t x_0 + sigma_t eps with a denoiser for E[x_0 | x_t].

    Args:
        noise: the schedule of alpha and sigma.
        sigma_data: standard deviation of the data; sets the weight of the loss.
        bridge: how steps go back, ancestral unless told otherwise; may be assigned anew.

    Source: Ho et al. 2020; Song, Meng & Ermon 2021; Karras et al. 2022.
    """

    def __init__(self, noise: Noise, sigma_data: float = 1.0, bridge: Bridge | None = None) -> None:
        super().__init__()
        if sigma_data <= 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.schedule, self.sigma_data = noise, sigma_data
        self.bridge = Bridge() if bridge is None else bridge

    def sigma(self, t: Tensor) -> Tensor:
        """a_t = sigma_t / alpha_t, the noise level in the unscaled frame; (B,) float64."""
        return self.schedule.level(t)

    def noise(self, x: Tensor, sigma: Tensor, generator: Source = None) -> Tensor:
        return broadcast(sigma, x) * normal(x.shape, generator, x)

    def move(self, x_t: Tensor, tangent: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_s = broadcast(self.schedule.alpha(s), x_t)
        return self.reframe(x_t, t, s) + alpha_s * tangent

    def reframe(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return broadcast((self.schedule.log_alpha(s) - self.schedule.log_alpha(t)).exp(), x_t) * x_t

    def prior(self, like: Tensor, generator: Source = None) -> Tensor:
        """N(0, sigma_1^2 I): what is left of x_0, alpha_1 x_0, is taken for nothing."""
        one = torch.ones(len(like), device=like.device)
        return broadcast(self.schedule.sigma(one), like) * normal(like.shape, generator, like)

    def perturb(self, x_0: Tensor, t: Tensor, generator: Source = None) -> Noised:
        eps = normal(x_0.shape, generator, x_0)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return Noised(broadcast(alpha, x_0) * x_0 + broadcast(sigma, x_0) * eps, x_0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """(a^2 + sigma_data^2) / (a sigma_data)^2 times the mean square error of D; (B,).

        With `Preconditioned` every noise level then weighs the same on the network's own output.

        Source: Karras et al. 2022, Table 1.
        """
        error = ((prediction - noised.target) ** 2).flatten(1).mean(1)
        return self.weight(t).to(prediction) * error

    def weight(self, t: Tensor) -> Tensor:
        """Of the mean square error in the loss, (B,) float64."""
        a, c = self.sigma(t), self.sigma_data
        return (a**2 + c**2) / (a * c) ** 2

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Normal:
        a_t, a_s = self.sigma(t), self.sigma_to(s)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        drift, variance = self.bridge(a_t, a_s)
        r = drift / a_t**2
        # Coefficients first, in float64: where alpha_t is tiny, y_t is huge but its share is not.
        mean = broadcast(alpha_s * r, x_t) * prediction
        mean = mean + broadcast(alpha_s * (1 - r) / alpha_t, x_t) * x_t
        return Normal(mean, alpha_s**2 * variance, alpha_s * (a_t**2 - a_s**2))

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(D - y) / a^2 at y = x_t / alpha_t."""
        y_t = x_t / broadcast(self.schedule.alpha(t), x_t)
        return (prediction - y_t) / broadcast(self.sigma(t) ** 2, x_t)

    def size(self, tangent: Tensor) -> Tensor:
        return tangent.flatten(1).square().mean(1).sqrt()


class Preconditioned(nn.Module):
    """A denoiser from a plain network F, whose input, output and target keep unit size.

        D(x_t) = c_skip y + c_out F(c_in y, ln(a) / 4, cond),       y = x_t / alpha_t, a = a_t
        c_skip = c^2 / (a^2 + c^2),   c_out = a c / sqrt(a^2 + c^2),   c_in = 1 / sqrt(a^2 + c^2)

    Args:
        network: F(input (B, *), noise (B,), cond) -> (B, *).
        process: gives a_t, alpha_t and c = sigma_data.

    Source: Karras et al. 2022, Section 5 and Table 1.
    """

    def __init__(self, network: Callable[..., Tensor], process: GaussianDiffusion) -> None:
        super().__init__()
        self.network, self.process = network, process

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        a, c = self.process.sigma(t), self.process.sigma_data
        scale = (a**2 + c**2).sqrt()
        y = x_t / broadcast(self.process.schedule.alpha(t), x_t)
        output = self.network(broadcast(1 / scale, y) * y, (a.log() / 4).to(y), cond)
        return broadcast((c / scale) ** 2, y) * y + broadcast(a * c / scale, y) * output
