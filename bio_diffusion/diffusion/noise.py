"""How signal fades and noise grows: x_t = alpha_t x_0 + sigma_t eps, for scalar schedules.

A schedule is two logarithms and their derivatives; the rest follows:

    alpha = exp(log_alpha),   d alpha / dt = alpha dlog_alpha,   and so for sigma
    log_snr = 2 (log_alpha - log_sigma),   level = sigma / alpha = exp(-log_snr / 2)

Times t in [0, 1] of any shape; everything is computed and returned in float64, in log space, so
that nothing is lost where alpha or sigma is close to 0 or 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "CosineSurvival",
    "LinearAlpha",
    "LinearSurvival",
    "Noise",
    "Survival",
    "VariancePreserving",
]


class Noise(ABC):
    """A scalar schedule."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """d log alpha / dt."""

    @abstractmethod
    def dlog_sigma(self, t: Tensor) -> Tensor:
        """d log sigma / dt; infinite where sigma is 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return self.log_sigma(t).exp()

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        return self.alpha(t) * self.dlog_alpha(t)

    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        return self.sigma(t) * self.dlog_sigma(t)

    def level(self, t: Tensor) -> Tensor:
        """sigma / alpha, the noise in the unscaled frame x / alpha."""
        return (self.log_sigma(t) - self.log_alpha(t)).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def dlog_snr(self, t: Tensor) -> Tensor:
        """d log_snr / dt, negative."""
        return 2 * (self.dlog_alpha(t) - self.dlog_sigma(t))


class VariancePreserving(Noise):
    """sigma^2 = 1 - alpha^2; subclasses say how alpha falls."""

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def dlog_sigma(self, t: Tensor) -> Tensor:
        return -self.dlog_alpha(t) / torch.expm1(-2 * self.log_alpha(t))


class VP(VariancePreserving):
    """log alpha = -(b0 t + (b1 - b0) t^2 / 2) / 2: beta(t) rises linearly from b0 to b1.

    Source: Song et al. 2021, Eq. 33 of the appendix; the continuous form of Ho et al. 2020.
    """

    def __init__(self, b0: float = 0.1, b1: float = 20.0) -> None:
        self.b0, self.b1 = b0, b1

    def log_alpha(self, t: Tensor) -> Tensor:
        t = t.double()
        return -0.5 * (self.b0 * t + (self.b1 - self.b0) * t**2 / 2)

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.b0 + (self.b1 - self.b0) * t.double())


class Cosine(VariancePreserving):
    """alpha = cos(c t), sigma = sin(c t), with c just short of pi / 2.

    Args:
        margin: c = (1 - margin) pi / 2, so that alpha_1 > 0 and log SNR stays finite.

    Source: Nichol & Dhariwal 2021, without their offset at t = 0.
    """

    def __init__(self, margin: float = 1e-3) -> None:
        self.c = (1 - margin) * math.pi / 2

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.cos(self.c * t.double()))

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -self.c * torch.tan(self.c * t.double())

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(torch.sin(self.c * t.double()))  # 1 - cos^2 would cancel at small t

    def dlog_sigma(self, t: Tensor) -> Tensor:
        return self.c / torch.tan(self.c * t.double())


class LinearAlpha(VariancePreserving):
    """alpha = 1 - (1 - eps) t: the signal falls linearly. (Tokens have `LinearSurvival`.)"""

    def __init__(self, eps: float = 1e-3) -> None:
        self.eps = eps

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-(1 - self.eps) * t.double())

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * torch.exp(-self.log_alpha(t))


class VarianceExploding(Noise):
    """alpha = 1; subclasses say how sigma grows from sigma_min to sigma_max."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"want 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)


class VE(VarianceExploding):
    """sigma = sigma_min^(1 - t) sigma_max^t: log SNR is linear in t.

    Source: Song et al. 2021, Section 3.4.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__(sigma_min, sigma_max)

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t.double() * math.log(self.sigma_max / self.sigma_min)

    def dlog_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.sigma_max / self.sigma_min), dtype=torch.float64)


class EDM(VarianceExploding):
    """sigma^(1/rho) linear in t: uniform times are the grid of Karras et al. 2022, Eq. 5."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = rho
        self._low = sigma_min ** (1 / rho)
        self._rise = sigma_max ** (1 / rho) - self._low

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.rho * torch.log(self._low + t.double() * self._rise)

    def dlog_sigma(self, t: Tensor) -> Tensor:
        return self.rho * self._rise / (self._low + t.double() * self._rise)


# --- tokens --------------------------------------------------------------------------------------


class Survival(ABC):
    """alpha_t, the chance that a token has survived, from 1 at t = 0 to 0 at t = 1; float64."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t, (B,)."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """d alpha_t / dt, (B,), negative."""


class LinearSurvival(Survival):
    """alpha_t = 1 - t: every token is lost at an even time."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t, dtype=torch.float64)


class CosineSurvival(Survival):
    """alpha_t = 1 - sin(pi t / 2): much is lost early, the last tokens late.

    Source: Shi et al. 2024.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.sin(math.pi / 2 * t.double())

    def slope(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.cos(math.pi / 2 * t.double())
