"""Steps back that keep editing: other ways from x_t to x_s with the same law at every time.

The posterior q(x_s | x_t, x_0) is one of many with which x_s has the law q(x_s | x_0) whenever x_t
has the law q(x_t | x_0). Those that forget a part of x_t can undo what was badly written before:
they spend steps on correcting, where the posterior of a masking process never looks back. They are
to tokens what the noise of a bridge is to Gaussians. Networks are the same, so a trained one is
sampled by putting one of these in place of its process; guidance sees one law more and need not
know.

What they repair are the errors of a network, so measure on yours. With exact networks they cost
accuracy (32 steps, 64 words, total variation: 0.021 for uniform noise and 0.032 with a share of
0.3 renoised throughout, 0.020 for masking and 0.035 with a share of 0.2 remasked), and so they do
where a network is wrong in the same way at every step. A predictor's guidance is made for short
steps; renoising makes long ones at every time, and many of them lead away from p(x_0 | y).

Shapes: B batch, L sites, V letters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Absorbing, Uniform
from bio_diffusion.diffusion.noise import Survival
from bio_diffusion.diffusion.process import Source, broadcast, uniform
from bio_diffusion.diffusion.token_transitions import Categorical, Unmask

__all__ = ["Remasking", "Remask", "Renoising"]


class Renoising(Uniform):
    """Uniform noise whose steps back, at a share of the sites, begin again from the guess of x_0.

        q(x_s | x_t, x_0) <- (1 - share) q(x_s | x_t, x_0) + share q(x_s | x_0)

    The guess is the denoising posterior, the site's own evidence included.

    Args:
        letters: V.
        schedule: alpha_t.
        share: of the sites that are noised anew in a step; 1 - kappa of the source.
        window: (low, high), only steps from low <= t <= high do so.

    Source: Deschenaux et al. 2026 (Psi-samplers; their setting for images is kappa = 0.95 for t in
        [0.1, 0.5]).
    """

    def __init__(
        self,
        letters: int,
        schedule: Survival | None = None,
        share: float = 0.05,
        window: tuple[float, float] = (0.1, 0.5),
    ) -> None:
        super().__init__(letters, schedule)
        self.share, self.window = _share(share), window

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Categorical:
        ancestral = super().transition(x_t, prediction, t, s)
        guess = super().transition(x_t, prediction, t, torch.zeros_like(s)).law()
        a_s = broadcast(self.schedule.alpha(s), guess)
        share = broadcast(self.share * _inside(t, self.window), guess)
        anew = a_s * guess + (1 - a_s) / self.letters
        return Categorical(torch.lerp(ancestral.law(), anew, share).log())


@dataclass(frozen=True)
class Remask(Unmask):
    """An `Unmask` that also takes written letters back.

    Attributes:
        erase: (B, L) chance that a written site is masked again; 0 where masked.
    """

    erase: Tensor

    def sample(self, generator: Source = None) -> Tensor:
        erased = uniform(self.erase.shape, generator, self.erase) < self.erase
        return torch.where(erased, self.letters, super().sample(generator))

    def law(self) -> Tensor:
        kept = super().law() * (1 - self.erase)[..., None]
        kept[..., -1] += self.erase
        return kept


class Remasking(Absorbing):
    """Masking whose steps back mask a share of the written sites again.

        sigma    = min(cap, share sigma_max),   sigma_max = min(1, (1 - a_s) / a_t)
        written  masked again with chance sigma
        masked   written with chance (a_s - (1 - sigma) a_t) / (1 - a_t)

    Args:
        letters: V.
        schedule: alpha_t.
        share: of what is possible ("rescale" in the source).
        cap: largest chance ("cap" in the source).
        window: (low, high), only steps from low <= t <= high do so.

    Source: Wang et al. 2025 (ReMDM).
    """

    def __init__(
        self,
        letters: int,
        schedule: Survival | None = None,
        share: float = 1.0,
        cap: float = 0.02,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(letters, schedule)
        self.share, self.cap, self.window = _share(share), _share(cap), window

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Remask:
        a_t, a_s = self.schedule.alpha(t), self.schedule.alpha(s)
        largest = ((1 - a_s) / a_t.clamp(min=1e-30)).clamp(max=1.0)
        sigma = (self.share * largest).clamp(max=self.cap) * _inside(t, self.window)
        masked = (x_t == self.mask).to(prediction)
        written = broadcast((a_s - (1 - sigma) * a_t) / (1 - a_t), masked)
        return Remask(prediction, written * masked, x_t, broadcast(sigma, masked) * (1 - masked))


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"shares and chances lie in [0, 1], got {value}")
    return value


def _inside(t: Tensor, window: tuple[float, float]) -> Tensor:
    return (t >= window[0]) & (t <= window[1])
