"""Steps of tokens: sites that are redrawn, or masked sites that are written.

Shapes: B batch, L sites, V letters 0..V-1; V is the mask.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bio_diffusion.diffusion.process import Source, Transition, uniform

__all__ = ["Categorical", "TokenTransition", "Unmask", "draw"]


def draw(log_p: Tensor, generator: Source = None) -> Tensor:
    """One letter of each site, (B, L), from log-probabilities (B, L, V).

    Gumbel's trick in float64: in float32 the extremes of the noise are cut, which samples at a
    temperature below 1 (Zheng et al. 2024).
    """
    return _best(log_p, _even(log_p, generator))


def _even(log_p: Tensor, generator: Source) -> Tensor:
    """Even noise in [0, 1) of the shape of log_p, float64."""
    like = torch.empty(0, dtype=torch.float64, device=log_p.device)
    return uniform(log_p.shape, generator, like)


def _best(log_p: Tensor, u: Tensor) -> Tensor:
    """The letters (*) that noise u (*, V) picks."""
    return (log_p - (-u.clamp(min=1e-300).log()).clamp(min=1e-300).log()).argmax(-1)


class TokenTransition(Transition):
    """A step in which every site draws for itself."""

    @abstractmethod
    def law(self) -> Tensor:
        """What each site may hold afterwards: chances (B, L, V), or (B, L, V + 1) with the mask."""

    def divergence(self, other: TokenTransition) -> Tensor:
        """KL(self || other) of each site, (B, L) in nats.

        A chance that has underflowed to zero counts as the least that there is: it costs much (708
        nats in float64) and not infinitely much.
        """
        q, p = self.law(), other.law()
        p = p.clamp(min=torch.finfo(p.dtype).tiny)
        return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1).clamp(min=0)  # rounding

    @property
    @abstractmethod
    def letters(self) -> int:
        """V."""

    @property
    @abstractmethod
    def open(self) -> Tensor:
        """bool (B, L): the sites that the step may write."""


@dataclass(frozen=True)
class Categorical(TokenTransition):
    """Sites that are redrawn, each from its own law.

    Attributes:
        log_q: (B, L, V) log-probabilities, normalised over V.
    """

    log_q: Tensor

    def sample(self, generator: Source = None) -> Tensor:
        return draw(self.log_q, generator)

    def law(self) -> Tensor:
        return self.log_q.exp()

    @property
    def letters(self) -> int:
        return self.log_q.shape[-1]

    @property
    def open(self) -> Tensor:
        return torch.ones_like(self.log_q[..., 0], dtype=torch.bool)

    def mix(self, other: Transition, weight: float) -> Categorical:
        assert isinstance(other, Categorical)
        return Categorical(_mixed(self.log_q, other.log_q, weight))

    def tilt(self, direction: Tensor) -> Categorical:
        return Categorical((self.log_q + direction).log_softmax(-1))

    def temper(self, temperature: float) -> Categorical:
        return Categorical(_tempered(self.log_q, temperature))


@dataclass(frozen=True)
class Unmask(TokenTransition):
    """Masked sites that are written with some chance, each from its own law; the others stay.

    Steering changes what is written and never whether: mixed as one law over letters and mask, two
    models would multiply their shared mass at the mask, and a large weight would unmask all at
    once.

    Attributes:
        log_p: (B, L, V) log-probabilities of the letters, normalised over V.
        reveal: (B, L) chance that the site is written in this step; 0 where a letter stands.
        x_t: (B, L), V where masked.
    """

    log_p: Tensor
    reveal: Tensor
    x_t: Tensor

    def sample(self, generator: Source = None) -> Tensor:
        written = uniform(self.reveal.shape, generator, self.reveal) < self.reveal
        u = _even(self.log_p, generator)  # for all sites: none's noise hangs on what others do
        x_s = self.x_t.clone()
        x_s[written] = _best(self.log_p[written], u[written])
        return x_s

    def law(self) -> Tensor:
        stays = torch.nn.functional.one_hot(self.x_t, self.letters + 1).to(self.log_p)
        written = torch.nn.functional.pad(self.log_p.exp(), (0, 1))
        return torch.lerp(stays, written, self.reveal[..., None])

    @property
    def letters(self) -> int:
        return self.log_p.shape[-1]

    @property
    def open(self) -> Tensor:
        return self.reveal > 0

    def mix(self, other: Transition, weight: float) -> Unmask:
        assert isinstance(other, Unmask)
        return replace(self, log_p=_mixed(self.log_p, other.log_p, weight))

    def tilt(self, direction: Tensor) -> Unmask:
        return replace(self, log_p=(self.log_p + direction).log_softmax(-1))

    def temper(self, temperature: float) -> Unmask:
        return replace(self, log_p=_tempered(self.log_p, temperature))


def _mixed(log_p: Tensor, other: Tensor, weight: float) -> Tensor:
    """log of p^(1 - weight) other^weight, normalised; letters that p cannot be stay impossible."""
    mixed = (1 - weight) * log_p + weight * other.clamp(min=torch.finfo(other.dtype).min / 1e4)
    return mixed.masked_fill(log_p == -torch.inf, -torch.inf).log_softmax(-1)


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        best = log_p.argmax(-1, keepdim=True)
        return torch.full_like(log_p, -torch.inf).scatter(-1, best, 0.0)
    return (log_p / temperature).log_softmax(-1)
