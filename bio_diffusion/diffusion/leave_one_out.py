"""What a network of tokens under uniform noise says of a site: with and without the site itself.

    p_loo(v)  = p(x_0^l = v | x_t at the other sites)      what the bound teaches, what steps take
    p_post(v) = p(x_0^l = v | x_t) ~ p_loo(v) (alpha_t [v = x_t^l] + (1 - alpha_t) / V)

Near t = 0 the two differ most: the leave-one-out law does not know what stands at the site. Whoever
asks how sure the model is of a letter, or which one it would put there, means p_post. It needs no
code of its own: p_post is the law of the step to the data, `transition(x_t, prediction, t, 0)`, for
every process of tokens. A last step to s = 0 hence cleans up as it should.

Source: Gourevitch et al. 2026 (the conversions).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Tokens, Uniform
from bio_diffusion.diffusion.process import Denoiser

__all__ = ["FromPosterior", "Sharpened", "confidence"]


def confidence(process: Tokens, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The chance that each site is, in the data, what stands there; (B, L), 0 where masked."""
    law = process.transition(x_t, prediction, t, torch.zeros_like(t)).law()
    stands = law.gather(-1, x_t[..., None])[..., 0]
    return torch.where(x_t == process.mask, 0.0, stands)


class FromPosterior:
    """The leave-one-out law of a network that was taught p(x_0 | x_t), by plain cross-entropy.

    Put as it is into the steps, such a network counts the site's own evidence twice, and no number
    of steps leads to the data.

    Args:
        process: gives the evidence.
        denoiser: predicts log p(x_0 | x_t), (B, L, V).
    """

    def __init__(self, process: Uniform, denoiser: Denoiser) -> None:
        self.process, self.denoiser = process, denoiser

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        log_p = self.denoiser(x_t, t, cond)
        return (log_p - self.process.evidence(x_t, t)).log_softmax(-1).to(log_p)


class Sharpened:
    """A network whose laws of letters are p^(1 / T), normalised: the temperature for tokens.

    `guidance.Temperature` sharpens the step instead, and a short step under uniform noise is nearly
    sure to stay: sharpened, it never leaves, and the samples are noise. Here the law of the letter
    is sharpened before the step is made; for a single site that gives samples of p^(1 / T) exactly.

    Args:
        denoiser: the network.
        temperature: T > 0; below 1 keeps closer to the mode.
    """

    def __init__(self, denoiser: Denoiser, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.denoiser, self.temperature = denoiser, temperature

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return (self.denoiser(x_t, t, cond) / self.temperature).log_softmax(-1)
