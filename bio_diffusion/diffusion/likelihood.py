"""What a trained model says of given states: how likely they are, as far as it can be cheaply told.

The loss of denoising one state,

    L(x_0) = E_t E_{x_t ~ q(x_t | x_0)} loss(prediction(x_t, t), x_0, t)

is, with the weight of the likelihood, a bound on -log p(x_0) up to a constant; with the weights of
training it is a reweighted one that still orders states: what the model expects is easier to
denoise. Differences between states are far smaller than the noise of either estimate, so all states
are given the same times, the same noise and the same latents, and most of the noise cancels.

For tokens the loss is the bound itself, and what is told is in nats a site: `token_bound` for
infinitely many steps, `token_bound_in_steps` for the steps that a sampler takes, `perplexity` of
either. For tensors whose entries are one of a few values, such as the greys of a picture,
`gaussian_bound` is the bound for infinitely many steps, whatever weights the training had.

Source: Ho, Jain & Abbeel 2020 (the bound); Kingma et al. 2021 (in continuous time, for discrete
    values); Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier" (common
    noise).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.process import (
    Denoiser,
    Process,
    Source,
    State,
    broadcast,
    normal,
    uniform,
)
from bio_diffusion.diffusion.training import keyed_generator

__all__ = [
    "denoising_loss",
    "denoising_parts",
    "gaussian_bound",
    "perplexity",
    "token_bound",
    "token_bound_in_steps",
]


def denoising_loss(
    process: Process,
    denoiser: Denoiser,
    x_0: State,
    times: Tensor,
    cond: Any = None,
    seed: int = 0,
) -> Tensor:
    """Mean training loss of each state over `times`, with common random numbers.

    Args:
        process: noises and weighs.
        denoiser: the network.
        x_0: B states that are to be compared.
        times: (T,) in (0, 1]; one noise draw each, so repeat a time for more.
        cond: handed to the network; the same for all states.
        seed: of the noise.

    Returns:
        (B,), lower for states that the model finds likelier.
    """
    looks = _looks(process, denoiser, x_0, times, cond, seed)
    return _mean(process.loss(*look) for look in looks)


def denoising_parts(
    process: Process,
    denoiser: Denoiser,
    x_0: State,
    times: Tensor,
    cond: Any = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What `denoising_loss` is made of, by factor of the state, (B,) each: `Process.parts`."""
    found = [process.parts(*look) for look in _looks(process, denoiser, x_0, times, cond, seed)]
    return {name: _mean(parts[name] for parts in found) for name in found[0]}


def _looks(
    process: Process, denoiser: Denoiser, x_0: State, times: Tensor, cond: Any, seed: int
) -> list[tuple[Any, Any, State, Tensor]]:
    """Prediction, noised state, x_0 and t at each time, the noise shared by all states."""
    if len(times) == 0:
        raise ValueError("times is empty; give at least one time in (0, 1]")
    looks = []
    with torch.no_grad():
        for number, time in enumerate(times):
            t = time.expand(len(x_0))
            # equal generators, one a row: every state gets the same displacement
            noise = [keyed_generator(seed, number) for _ in range(len(x_0))]
            noised = process.perturb(x_0, t, noise)
            looks.append((denoiser(noised.x_t, t, cond), noised, x_0, t))
    return looks


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _times(draws: int, like: Tensor, t_min: float, generator: Source) -> Iterator[Tensor]:
    """Times (B,), one in each of `draws` equal slices of [t_min, 1]; `like` (B,) is float64."""
    for k in range(draws):
        u = (k + uniform(like.shape, generator, like)) / draws
        yield (t_min + (1 - t_min) * u).to(torch.get_default_dtype())


# --- tensors of a few values ---------------------------------------------------------------------


def gaussian_bound(
    process: GaussianDiffusion,
    denoiser: Denoiser,
    x_0: Tensor,
    values: Tensor,
    cond: Any = None,
    draws: int = 16,
    generator: Source = None,
) -> Tensor:
    """A bound on -log p(x_0) of tensors with entries from `values`, nats a sample; (B,) float64.

        |x_0|^2 / (2 a_1^2)                                      what the prior does not know
        + E int_0^1 |x_0 - D(x_t)|^2 / a^2 (d ln a / dt) dt      denoising
        - E log p(x_0 | y_0),  p(x = v | y) ~ N(y; v, a_0^2)     rounding to one of the values

    all in the frame y = x_t / alpha_t. One time is drawn in each of `draws` equal slices of [0, 1].

    Args:
        process: its noise must start above 0, well below the gap between values.
        denoiser: the network, giving D.
        x_0: (B, *).
        values: (V,).
        cond: handed to the network.
        draws: times a sample is looked at.
        generator: of times and noise.

    Raises:
        ValueError: if the process has no noise at t = 0.

    Source: Kingma et al. 2021, "Variational diffusion models", Eqs. 11-15 and Appendix.
    """
    zero = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    first, last = process.sigma(zero), process.sigma(zero + 1)
    if not bool((first > 0).all()):
        raise ValueError("the noise must start above 0, such as EDM's: there is none at t = 0")
    x = x_0.double()
    total = x.flatten(1).square().sum(1) / (2 * last**2)
    with torch.no_grad():
        y_0 = x + broadcast(first, x) * normal(x.shape, generator, x)
        gaps = (y_0[..., None] - values.to(x)) / broadcast(first, y_0[..., None])
        log_p = (-gaps.square() / 2).log_softmax(-1)
        place = (x[..., None] - values.to(x)).abs().argmin(-1)
        total -= log_p.gather(-1, place[..., None])[..., 0].flatten(1).sum(1)
        for t in _times(draws, zero, 0.0, generator):
            noised = process.perturb(x_0, t, generator)
            error = (denoiser(noised.x_t, t, cond).double() - x).flatten(1).square().sum(1)
            total += error / process.sigma(t) ** 2 * -process.schedule.dlog_snr(t) / 2 / draws
    return total


# --- tokens --------------------------------------------------------------------------------------


def token_bound(
    process: Tokens,
    denoiser: Denoiser,
    x_0: Tensor,
    cond: Any = None,
    draws: int = 32,
    t_min: float = 1e-5,
    generator: Source = None,
) -> Tensor:
    """Each site's share of the continuous-time bound on -log p(x_0), in nats; (B, L) float64.

    Sum over the sites of a sample for its bound. From left to right there is no bound to take: the
    share is -log p(x_0^l | x_0^{<l}) itself, whatever t, and one draw is exact.

    Args:
        process: noises and weighs.
        denoiser: the network.
        x_0: (B, L) tokens.
        cond: handed to the network.
        draws: times a sample is looked at, one in each of as many equal slices of [t_min, 1].
        t_min: the mean is over t_min..1, as published bounds are with 1e-3. What lies below is left
            out, which flatters uniform noise: 0.45 % of the entropy of a small world at 1e-3.
        generator: of times and noise.
    """
    total = torch.zeros(x_0.shape, dtype=torch.float64, device=x_0.device)
    with torch.no_grad():
        for t in _times(draws, total[:, 0], t_min, generator):
            noised = process.perturb(x_0, t, generator)
            prediction = _doubled(denoiser(noised.x_t, t, cond))
            total += process.site_loss(prediction, noised, x_0, t)
    return total / draws


def token_bound_in_steps(
    process: Tokens,
    denoiser: Denoiser,
    x_0: Tensor,
    times: Tensor,
    cond: Any = None,
    generator: Source = None,
) -> Tensor:
    """The same for a sampler that takes these steps, which is never lower; (B, L) float64.

        sum over steps of KL(q(x_s | x_t, x_0) || q(x_s | x_t, prediction)),   x_t ~ q(x_t | x_0)

    One draw of x_t a step. The last step to s = 0 is the reconstruction, -log p(x_0 | x_t), and the
    prior costs nothing.

    Args:
        process: noises and steps back.
        denoiser: the network.
        x_0: (B, L) tokens.
        times: (N + 1,), falling from 1 to 0.
        cond: handed to the network.
        generator: of the noise.
    """
    known = torch.nn.functional.one_hot(x_0, process.letters).double().log()
    total = torch.zeros(x_0.shape, dtype=torch.float64, device=x_0.device)
    with torch.no_grad():
        for t, s in zip(times[:-1], times[1:], strict=True):
            t, s = t.expand(len(x_0)), s.expand(len(x_0))
            x_t = process.diffuse(x_0, torch.zeros_like(t), t, generator)
            prediction = _doubled(denoiser(x_t, t, cond))
            q, p = (process.transition(x_t, each, t, s) for each in (known, prediction))
            total += q.divergence(p)
    return total


def perplexity(nats: Tensor, counted: Tensor | None = None) -> float:
    """exp of the mean nats a site, over all sites or those `counted` (B, L bool; not padding)."""
    nats = nats.double()
    return float((nats if counted is None else nats[counted]).mean().exp())


def _doubled(prediction: Tensor) -> Tensor:
    """In float64, where nothing is lost near t = 0 and t = 1."""
    return prediction.double().log_softmax(-1)
