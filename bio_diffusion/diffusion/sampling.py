"""From the prior to the data: one loop for every process, and the ways to take one step of it.

    x <- x_1 ~ prior;   for (t, s) in pairs of times:   x <- step(x, t, s);   return x

A step is an object: `Reverse` draws from the (guided) transition with one network call; `Heun` is
second order on the probability flow with two; `Langevin` wraps either and lets the result settle
at its noise level. What is steered, and how, is in the guidance; how much noise a step draws, in
the process's `Bridge`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.process import (
    Brownian,
    Denoiser,
    Guidance,
    Process,
    Source,
    State,
    broadcast,
    tangent_map,
)

__all__ = ["Heun", "Langevin", "Reverse", "Step", "sample", "trajectory"]


class Step(Protocol):
    """One step from x_t to x_s. t, s: (B,)."""

    def __call__(
        self,
        process: Any,
        denoiser: Denoiser,
        x_t: State,
        t: Tensor,
        s: Tensor,
        cond: Any,
        guidance: Sequence[Guidance],
        generator: Source,
    ) -> State: ...


class Reverse:
    """Draw x_s from the process's transition, after each guidance has had its say; one call."""

    def __call__(
        self,
        process: Process,
        denoiser: Denoiser,
        x_t: State,
        t: Tensor,
        s: Tensor,
        cond: Any,
        guidance: Sequence[Guidance],
        generator: Source,
    ) -> State:
        q = process.transition(x_t, denoiser(x_t, t, cond), t, s)
        for guide in guidance:
            q = guide(q, x_t, t, s, cond)
        return q.sample(generator)


class Heun:
    """The probability flow dy / dsigma = -sigma score by Heun's rule; two calls, one when s = 0.

        u_t = (sigma_t - sigma_s) sigma_t score(x_t, t)          Euler
        u_s = (sigma_t - sigma_s) sigma_s score(x_t (+) u_t, s)
        x_s = x_t (+) (u_t + u_s) / 2

    Source: Karras et al. 2022, Algorithm 1.
    """

    def __call__(
        self,
        process: Brownian,
        denoiser: Denoiser,
        x_t: State,
        t: Tensor,
        s: Tensor,
        cond: Any,
        guidance: Sequence[Guidance],
        generator: Source,
    ) -> State:
        if guidance:
            raise ValueError(
                "Heun follows the bare probability flow; under guidance use Reverse, Bridge(eta=0)"
            )
        u_t = process.flow(process.score(denoiser(x_t, t, cond), x_t, t), t, s)
        x_s = process.move(x_t, u_t, t, s)
        if not bool(
            (s > 0).all()
        ):  # Euler lands on the denoised state; there is no score to ask for at 0
            return x_s
        score_s = process.score(denoiser(x_s, s, cond), x_s, s)
        u_s = tangent_map(
            lambda d, sigma_t, sigma_s: broadcast(sigma_s * (sigma_t - sigma_s), d) * d,
            score_s,
            process.sigma(t),
            process.sigma(s),
        )
        return process.move(x_t, tangent_map(lambda a, b: (a + b) / 2, u_t, u_s), t, s)


class Langevin:
    """Another step, then Langevin's dynamics at the noise level it arrived at (a corrector).

        x_s <- x_s (+) [ h score(x_s, s) + sqrt(2 h) noise ],     h = size * sigma_s^2

    It leaves p_s unchanged as size -> 0, so it repairs what the step before got wrong. Nothing is
    done at s = 0, where there is no noise left to work with.

    Args:
        step: the step to correct.
        size: h in units of sigma_s^2; 0.05 to 0.2 are usual.
        count: how many times; each costs one network call.

    Source: Song et al. 2021, Algorithm 2 (here with the step tied to sigma, not to a norm of the
        score).
    """

    def __init__(self, step: Step, size: float = 0.1, count: int = 1) -> None:
        if size <= 0 or count < 1:
            raise ValueError(f"want size > 0 and count >= 1, got {size} and {count}")
        self.step, self.size, self.count = step, size, count

    def __call__(
        self,
        process: Brownian,
        denoiser: Denoiser,
        x_t: State,
        t: Tensor,
        s: Tensor,
        cond: Any,
        guidance: Sequence[Guidance],
        generator: Source,
    ) -> State:
        x_s = self.step(process, denoiser, x_t, t, s, cond, guidance, generator)
        if not bool((s > 0).all()):
            return x_s
        sigma_s = process.sigma(s)
        for _ in range(self.count):
            score = process.score(denoiser(x_s, s, cond), x_s, s)
            drift = tangent_map(
                lambda d, sigma: broadcast(self.size * sigma**2, d) * d, score, sigma_s
            )
            stir = process.noise(
                x_s, tangent_map(lambda sigma: (2 * self.size) ** 0.5 * sigma, sigma_s), generator
            )
            x_s = process.move(x_s, tangent_map(lambda a, b: a + b.to(a), drift, stir), s, s)
        return x_s


def trajectory(
    process: Process,
    denoiser: Denoiser,
    x: State,
    times: Tensor,
    cond: Any = None,
    guidance: Sequence[Guidance] = (),
    generator: Source = None,
    step: Step | None = None,
) -> Iterator[State]:
    """Yield x_{times[0]} (x itself), ..., x_{times[-1]} as they are made; see `sample`."""
    times = torch.as_tensor(times)
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError(
            f"want at least two times, falling strictly from noise (1) to data (0), got {times}"
        )
    take = Reverse() if step is None else step
    yield x
    for t, s in zip(times[:-1], times[1:], strict=True):
        with torch.no_grad():
            x = take(
                process, denoiser, x, t.expand(len(x)), s.expand(len(x)), cond, guidance, generator
            )
        yield x


def sample(
    process: Process,
    denoiser: Denoiser,
    x: State,
    times: Tensor,
    cond: Any = None,
    guidance: Sequence[Guidance] = (),
    generator: Source = None,
    step: Step | None = None,
) -> State:
    """Walk x from times[0] (usually 1, x from `Process.prior`) to times[-1] (usually 0).

    Gradients are off, except those a guidance takes for itself. The network's mode is the caller's
    to set.

    Args:
        process: gives the transitions.
        denoiser: the network, `denoiser(x_t, t, cond)` with t of shape (B,).
        x: the state at times[0], a batch of B.
        times: (N + 1,), strictly falling, on the device of the network; see `schedule`.
        cond: handed on untouched.
        guidance: applied in order to every transition.
        generator: one generator, one for each row of the batch, or None for the global one.
        step: how to take a step; `Reverse()` unless told otherwise.

    Returns:
        The state at times[-1].

    Raises:
        ValueError: if times do not fall strictly.
    """
    for state in trajectory(process, denoiser, x, times, cond, guidance, generator, step):
        x = state
    return x
