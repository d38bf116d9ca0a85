"""Steps back in the unscaled frame: how far along the score, and with how much noise.

Every Brownian process takes its steps from one of these objects, factor by factor. sigma_t and
sigma_s are noise levels (B,) at both ends, sigma_s = 0 for a step to the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Bridge", "LowTemperature"]


class Bridge:
    """The Brownian bridge from y_t towards y_0, stopped at s.

        y_s = y_t (+) drift * score + sqrt(variance) * noise
        variance = eta^2 (sigma_t^2 - sigma_s^2) sigma_s^2 / sigma_t^2
        drift    = sigma_t^2 - sigma_t sqrt(sigma_s^2 - variance)

    eta = 1 is the posterior q(y_s | y_t, y_0) (ancestral, DDPM), with drift sigma_t^2 - sigma_s^2.
    eta = 0 draws nothing and is an Euler step of the probability flow in sigma (DDIM).
    Every eta keeps the marginal law of y_s when the score is exact for a single x_0.

    Source: Ho et al. 2020, Eq. 7; Song, Meng & Ermon 2021, Eq. 12 and 16, in the unscaled frame.
    """

    def __init__(self, eta: float = 1.0) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(
                f"eta must lie in [0, 1] (0 = deterministic, 1 = ancestral), got {eta}"
            )
        self.eta = eta

    def __call__(self, sigma_t: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and variance, each (B,), from the noise levels at both ends, each (B,)."""
        variance = self.eta**2 * (sigma_t**2 - sigma_s**2).clamp(min=0) * (sigma_s / sigma_t) ** 2
        return sigma_t**2 - sigma_t * (sigma_s**2 - variance).clamp(min=0).sqrt(), variance


class LowTemperature(Bridge):
    """A bridge whose samples crowd around the modes: more drift at high noise, and added stirring.

        lam      = (sigma_data + sigma_t) / (sigma_data + sigma_t / T)
        drift    = min((sigma_t^2 - sigma_s^2) (lam + T psi / 2), sigma_t^2)
        variance = (sigma_t^2 - sigma_s^2) sigma_s^2 / sigma_t^2 (1 + psi)

    T is an *inverse* temperature: lam tends to T at high noise and to 1 at low noise. T = 1 and
    psi = 0 give the ancestral bridge back. No step goes beyond the denoised state, and a step to
    the data lands on it.

    Args:
        inverse_temperature: T >= 1 sharpens.
        psi: strength of the added Langevin motion, >= 0.
        sigma_data: the scale of the data in the units of the factor; where lam turns from T to 1.

    Source: Ingraham et al. 2023, supplement; used by factor by Corso et al. 2024. There steps are
        small multiples of sigma_t^2 and need no bound, and the noise is that of the forward
        kernel; here it is the bridge's, which gives the right width in few steps.
    """

    def __init__(self, inverse_temperature: float, psi: float, sigma_data: float) -> None:
        super().__init__(eta=1.0)
        if inverse_temperature <= 0 or psi < 0 or sigma_data <= 0:
            raise ValueError(
                "want inverse_temperature > 0, psi >= 0, sigma_data > 0, "
                f"got {inverse_temperature}, {psi}, {sigma_data}"
            )
        self.inverse_temperature, self.psi, self.sigma_data = inverse_temperature, psi, sigma_data

    def __call__(self, sigma_t: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
        drift, variance = super().__call__(sigma_t, sigma_s)
        lam = (self.sigma_data + sigma_t) / (self.sigma_data + sigma_t / self.inverse_temperature)
        sharpened = drift * (lam + self.inverse_temperature * self.psi / 2)
        drift = torch.where(sigma_s > 0, torch.minimum(sharpened, sigma_t**2), drift)
        return drift, variance * (1 + self.psi)
