"""Diffusion of tokens: uniform noise (UDLM), masking (MDLM), and writing from left to right.

Every site forgets on its own. With alpha_t the chance that a token is still what it was,

    uniform      q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) / V
    absorbing    q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) [x_t = mask]

A prediction is log p(x_0 | ...), (B, L, V); put for x_0 in the exact q(x_s | x_t, x_0) it gives the
step back. What p is conditioned on differs. Under masking a masked site tells nothing of itself. A
site under uniform noise does, and the minimiser of the bound leaves it out: it is the leave-one-out
law p(x_0^l | x_t^{others}), to which the posterior adds the site's own evidence.

The loss is the continuous-time bound on -log p(x_0), in nats a site. Reconstruction and prior cost
nothing, since alpha_0 = 1 and alpha_1 = 0.

Shapes: B batch, L sites, V letters. Letters are 0..V-1, and V is the mask.

Source: Schiff et al. 2025 (UDLM and its bound); Sahoo et al. 2024 (MDLM); Austin et al. 2021.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bio_diffusion.diffusion.noise import LinearSurvival, Survival
from bio_diffusion.diffusion.process import (
    Noised,
    Process,
    Source,
    broadcast,
    uniform,
)
from bio_diffusion.diffusion.token_transitions import Categorical, TokenTransition, Unmask

__all__ = ["Absorbing", "Autoregressive", "Tokens", "Uniform"]

# at t = 0 a letter that does not stand has no chance: keep its logarithm finite
TINY = 1e-30


class Tokens(Process, ABC):
    """What all processes of tokens share.

    Args:
        letters: V; every letter may occur at every site.
        schedule: alpha_t, the chance that a token has survived.
    """

    def __init__(self, letters: int, schedule: Survival | None = None) -> None:
        super().__init__()
        if letters < 2:
            raise ValueError(f"want at least two letters, got {letters}")
        self.letters = letters
        self.schedule = LinearSurvival() if schedule is None else schedule

    @property
    def mask(self) -> int:
        """The id that stands for a masked or unwritten site."""
        return self.letters

    @abstractmethod
    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, generator: Source = None) -> Tensor:
        """Draw x_t ~ q(x_t | x_s), s < t."""

    def perturb(self, x_0: Tensor, t: Tensor, generator: Source = None) -> Noised:
        return Noised(self.diffuse(x_0, torch.zeros_like(t), t, generator), x_0)

    @abstractmethod
    def transition(
        self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor
    ) -> TokenTransition: ...

    @abstractmethod
    def site_loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """Each site's share of the loss, (B, L) in nats."""

    def loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """Nats a site, averaged over sites; (B,)."""
        return self.site_loss(prediction, noised, x_0, t).mean(-1)

    def norm(self, tangent: Tensor, t: Tensor) -> Tensor:
        """Root mean square over sites and letters."""
        return tangent.flatten(1).square().mean(1).sqrt()

    def _kept(self, x: Tensor, s: Tensor, t: Tensor, generator: Source) -> Tensor:
        """bool (B, L): whose token survives from s to t."""
        chance = self.schedule.alpha(t) / self.schedule.alpha(s)
        u = uniform(x.shape, generator, chance)
        return u < broadcast(chance, u)


class Uniform(Tokens):
    """Tokens that are redrawn evenly from all V letters; every site may change at every step.

    Source: Schiff et al. 2025; Austin et al. 2021.
    """

    def prior(self, like: Tensor, generator: Source = None) -> Tensor:
        return self._anything(like, generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, generator: Source = None) -> Tensor:
        kept = self._kept(x_s, s, t, generator)
        return torch.where(kept, x_s, self._anything(x_s, generator))

    def site_loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """The continuous-time bound.

            r_j = q(x_t = j | x_0) / q(x_t = i | x_0),  i the letter that stands; rho_j: same with p
            loss = -alpha' / (V alpha) sum_j r_j (exp(d_j) - 1 - d_j),     d_j = log rho_j - log r_j

        Every term is positive and vanishes with d, so nothing cancels as alpha -> 0.

        Source: Schiff et al. 2025, Eq. (continuous-time NELBO), rearranged.
        """
        truth = torch.nn.functional.one_hot(x_0, self.letters).to(prediction)
        log_r = self._ratios(truth, noised.x_t, t)
        d = self._ratios(prediction.exp(), noised.x_t, t) - log_r
        each = (log_r.exp() * (torch.expm1(d) - d)).sum(-1)
        alpha, slope = self.schedule.alpha(t), self.schedule.slope(t)
        return broadcast(-slope / (self.letters * alpha), each) * each

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Categorical:
        """q(x_s = k | x_t = i, x_0 ~ p), in float32 or better.

        V a_t p_k [k = i] + (a_t / a_s - a_t) [k = i] + (a_s - a_t) p_k
            + (1 - a_t / a_s) (1 - a_s) / V,          all over V a_t p_i + 1 - a_t
        """
        a_t, a_s = self.schedule.alpha(t), self.schedule.alpha(s)
        p = prediction.exp()
        stays = torch.nn.functional.one_hot(x_t, self.letters).to(p)
        still = broadcast(self.letters * a_t, p) * p + broadcast(a_t / a_s - a_t, p)
        base = broadcast((1 - a_t / a_s) * (1 - a_s) / self.letters, p)
        q = stays * still + broadcast(a_s - a_t, p) * p + base
        return Categorical((q / q.sum(-1, keepdim=True)).log())

    def evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | x_0 = v), what a site tells of itself: (B, L, V), float64."""
        alpha = self.schedule.alpha(t)
        chance = broadcast((1 - alpha).clamp(min=TINY) / self.letters, x_t[..., None].double())
        same = torch.nn.functional.one_hot(x_t, self.letters)
        return (broadcast(alpha, chance) * same + chance).log()

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t with letter j at a site) - log p_t(x_t), (B, L, V); a concrete score.

        Source: Lou et al. 2024.
        """
        return self._ratios(prediction.exp(), x_t, t)

    def _ratios(self, p: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log of (V a p_j + 1 - a) over the same at the letter that stands, (B, L, V)."""
        alpha = self.schedule.alpha(t)
        rest = broadcast((1 - alpha).clamp(min=TINY), p)
        log = (broadcast(self.letters * alpha, p) * p + rest).log()
        return log - log.gather(-1, x_t[..., None])

    def _anything(self, like: Tensor, generator: Source) -> Tensor:
        u = uniform(like.shape, generator, torch.empty(0, dtype=torch.float64, device=like.device))
        return (u * self.letters).long()


class Absorbing(Tokens):
    """Tokens that are masked one by one; what is written once stays.

    Source: Sahoo et al. 2024; Shi et al. 2024.
    """

    def prior(self, like: Tensor, generator: Source = None) -> Tensor:
        return torch.full_like(like, self.mask)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, generator: Source = None) -> Tensor:
        return torch.where(self._kept(x_s, s, t, generator), x_s, self.mask)

    def site_loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha) times the cross-entropy of masked sites."""
        cross = -prediction.gather(-1, x_0[..., None])[..., 0]
        weight = -self.schedule.slope(t) / (1 - self.schedule.alpha(t))
        return broadcast(weight, cross) * cross * (noised.x_t == self.mask)

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Unmask:
        a_t, a_s = self.schedule.alpha(t), self.schedule.alpha(s)
        chance = broadcast((a_s - a_t) / (1 - a_t), prediction[..., 0])
        return Unmask(prediction, chance * (x_t == self.mask), x_t)

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t with letter j at a masked site) - log p_t(x_t); 0 at written sites."""
        alpha = self.schedule.alpha(t)
        odds = broadcast((alpha / (1 - alpha)).log(), prediction)
        return torch.where((x_t == self.mask)[..., None], prediction + odds, 0.0)


class Autoregressive(Tokens):
    """Sites written from left to right, as a process: the L - n t-th site is the last one known.

    The network must be causal: what it predicts at a site may depend on earlier sites alone. It
    learns all sites at once, so x_t is x_0 and the loss does not depend on t. Sampling takes
    `schedule.uniform(L)`: one site a step.
    """

    def prior(self, like: Tensor, generator: Source = None) -> Tensor:
        return torch.full_like(like, self.mask)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, generator: Source = None) -> Tensor:
        unwritten = torch.arange(x_s.shape[-1], device=x_s.device) >= self._written(x_s, t)[:, None]
        return torch.where(unwritten, self.mask, x_s)

    def perturb(self, x_0: Tensor, t: Tensor, generator: Source = None) -> Noised:
        return Noised(x_0, x_0)

    def site_loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """-log p(x_0^l | x_0^{<l}): no bound, their sum is -log p(x_0)."""
        return -prediction.gather(-1, x_0[..., None])[..., 0]

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Unmask:
        """Raises: ValueError if the step writes more than one site."""
        first, last = self._written(x_t, t), self._written(x_t, s)
        if not bool((last - first == 1).all()):
            raise ValueError(
                f"one site is written a step: take {x_t.shape[-1]} even steps, uniform(L)"
            )
        here = torch.arange(x_t.shape[-1], device=x_t.device) == first[:, None]
        return Unmask(prediction, here.to(prediction), x_t)

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log p of each letter at unwritten sites; 0 at written ones."""
        return torch.where((x_t == self.mask)[..., None], prediction, 0.0)

    def _written(self, x: Tensor, t: Tensor) -> Tensor:
        """How many sites are known at t, (B,) long."""
        return ((1 - t.double()) * x.shape[-1]).round().long()
