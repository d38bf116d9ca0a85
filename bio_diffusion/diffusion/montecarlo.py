"""Objectives without a noisy predictor: what an exact reward of clean states is enough for.

The wanted law is that of the model, tilted by a reward that is asked about finished states only:

    p(x_0) exp(beta reward(x_0)) / Z

    best_of      the best few of many draws; not the tilted law, but hard to beat for what it costs
    rejection    draws until enough are accepted; exact where the reward says yes or no
    Metropolis   chains over clean states: noise to t, denoise, accept or not; exact in the limit
    Particles    a population on its way from noise, resampled by the reward of what it foresees

Rewards are any functions state -> (B,), minus infinity for states that are not allowed.

Source: Phillips et al. 2026 (chains over clean states); Wu et al. 2023, Singhal et al. 2025
    (populations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.process import Denoiser, Guidance, Source, Transition, uniform
from bio_diffusion.diffusion.sampling import Step, sample

__all__ = ["Metropolis", "Particles", "best_of", "rejection"]

Reward = Callable[[Tensor], Tensor]


def best_of(x: Tensor, reward: Reward, keep: int) -> Tensor:
    """The `keep` states (B, *) of greatest reward, best first."""
    return x[reward(x).argsort(descending=True)[:keep]]


def rejection(
    draw: Callable[[int], Tensor], accept: Callable[[Tensor], Tensor], n: int, tries: int
) -> Tensor:
    """States drawn until n are accepted, or `tries` batches are used up; at most n.

    Args:
        draw: number of the batch -> states (B, *).
        accept: states -> bool (B,).
        n: how many are wanted.
        tries: largest number of batches.
    """
    kept: list[Tensor] = []
    for number in range(tries):
        x = draw(number)
        kept.append(x[accept(x)])
        if sum(map(len, kept)) >= n:
            break
    return torch.cat(kept)[:n]


class Metropolis:
    """Chains over clean states x_0, for p(x_0) exp(beta reward).

        x_t ~ q(x_t | x_0),   x' ~ model(x_0 | x_t),   accepted with min(1, exp(beta (r' - r)))

    Noising and then sampling what it may have come from leaves the model's law unchanged, and is as
    likely one way as the other; so the rewards alone decide. t is how far a proposal goes: 1 draws
    afresh, less keeps a part. The error is that of the sampler from t to 0, of however many steps.

    Args:
        process: noises.
        denoiser: the network.
        reward: r; one call a proposal.
        times: (N + 1,), falling from t to 0: how a proposal is denoised. From left to right, the
            end of `schedule.uniform(L)`: the last N sites are written anew.
        beta: strength.
        cond, guidance, step: as in `sampling.sample`.
    """

    def __init__(
        self,
        process: Tokens,
        denoiser: Denoiser,
        reward: Reward,
        times: Tensor,
        beta: float = 1.0,
        cond: Any = None,
        guidance: Sequence[Guidance] = (),
        step: Step | None = None,
    ) -> None:
        self.process, self.denoiser, self.reward = process, denoiser, reward
        self.times, self.beta = times, beta
        self.cond, self.guidance, self.step = cond, guidance, step

    def propose(self, x_0: Tensor, generator: Source = None) -> Tensor:
        """x' for each row."""
        t = self.times[0].expand(len(x_0))
        x_t = self.process.diffuse(x_0, torch.zeros_like(t), t, generator)
        return sample(
            self.process,
            self.denoiser,
            x_t,
            self.times,
            self.cond,
            self.guidance,
            generator,
            self.step,
        )

    def chains(
        self, x_0: Tensor, rounds: int, generator: Source = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield states (B, *) and rewards (B,) after every round; the rows are chains of their own.

        Where a chain begins on a state that is not allowed, any proposal that is will do.
        """
        x, now = x_0, self.reward(x_0)
        for _ in range(rounds):
            proposed = self.propose(x, generator)
            then = self.reward(proposed)
            u = uniform(now.shape, generator, now.double())
            # written so that two forbidden states, -inf - -inf, do not count as an improvement
            accepted = (then > now) | (u.log() < self.beta * (then - now).double())
            x = torch.where(accepted.view(-1, *(1,) * (x.ndim - 1)), proposed, x)
            now = torch.where(accepted, then, now)
            yield x, now


class Particles:
    """A population that is sampled together and culled on the way, for p(x_0) exp(beta reward).

    Before each step every particle foresees an end, x_0 ~ the step straight to s = 0, and is
    weighed by exp(beta r) of it against that of the step before; once the weights have grown
    uneven the population is drawn anew from itself. The weights end exact, whatever was foreseen,
    so that the population stands for the tilted law as it grows; a small one ends as copies of a
    few. Costs a reward a step and no further network calls.

    Args:
        process: gives the transitions.
        denoiser: the network.
        reward: r; one call a step.
        times: (N + 1,), falling from 1 to 0.
        beta: strength.
        cond, guidance: as in `sampling.sample`; cond is the same for all particles.
        even: the share of the population that the weights must be worth, or it is drawn anew.
    """

    def __init__(
        self,
        process: Tokens,
        denoiser: Denoiser,
        reward: Reward,
        times: Tensor,
        beta: float = 1.0,
        cond: Any = None,
        guidance: Sequence[Guidance] = (),
        even: float = 0.5,
    ) -> None:
        self.process, self.denoiser, self.reward = process, denoiser, reward
        self.times, self.beta, self.even = times, beta, even
        self.cond, self.guidance = cond, guidance

    @torch.no_grad()
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Walk x, (B, *) from the prior, to the data."""
        weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # logarithms
        before = weights
        for t, s in zip(self.times[:-1], self.times[1:], strict=True):
            t, s = t.expand(len(x)), s.expand(len(x))
            prediction = self.denoiser(x, t, self.cond)
            end = self.process.transition(x, prediction, t, torch.zeros_like(s)).sample(generator)
            # finite, so that a particle that foresaw the forbidden can still be redeemed
            foreseen = self._tilt(end).clamp(min=-1e4)
            weights, before = weights + foreseen - before, foreseen
            chosen = self._survivors(weights, generator)
            if chosen is not None:
                x, prediction, before = x[chosen], prediction[chosen], before[chosen]
                weights = torch.zeros_like(weights)
            q: Transition = self.process.transition(x, prediction, t, s)
            for guide in self.guidance:
                q = guide(q, x, t, s, self.cond)
            x = q.sample(generator)
        return x[self._drawn(weights + self._tilt(x) - before, generator)]

    def _tilt(self, x: Tensor) -> Tensor:
        return self.beta * self.reward(x).double()

    def _survivors(self, weights: Tensor, generator: Source) -> Tensor | None:
        """Indices (B,) of the next population, or None while the weights are even enough."""
        share = weights.softmax(0)
        worth = 1 / share.square().sum() / len(share)
        return self._drawn(weights, generator) if worth < self.even else None

    @staticmethod
    def _drawn(weights: Tensor, generator: Source) -> Tensor:
        """B indices in proportion to exp(weights), evenly spaced on their cumulated sum."""
        if bool((weights == -torch.inf).all()):
            return torch.arange(len(weights), device=weights.device)
        start = uniform((1,), generator, weights)
        places = (torch.arange(len(weights), device=weights.device) + start) / len(weights)
        return torch.searchsorted(weights.softmax(0).cumsum(0), places).clamp(max=len(weights) - 1)
