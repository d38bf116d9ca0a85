"""What a trained model says of given states: how likely they are, as far as it can be cheaply told.

The loss of denoising one state,

    L(x_0) = E_t E_{x_t ~ q(x_t | x_0)} loss(prediction(x_t, t), x_0, t)

is, with the weight of the likelihood, a bound on -log p(x_0) up to a constant; with the weights of
training it is a reweighted one that still orders states: what the model expects is easier to
denoise. Differences between states are far smaller than the noise of either estimate, so all states
are given the same times, the same noise and the same latents, and most of the noise cancels.

Source: Ho, Jain & Abbeel 2020 (the bound); Li et al. 2023, "Your diffusion model is secretly a
    zero-shot classifier" (common noise).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.process import Denoiser, Process, State
from bio_diffusion.diffusion.training import keyed_generator

__all__ = ["denoising_loss"]


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
    total = None
    with torch.no_grad():
        for number, time in enumerate(times):
            t = time.expand(len(x_0))
            # equal generators, one a row: every state gets the same displacement
            noise = [keyed_generator(seed, number) for _ in range(len(x_0))]
            noised = process.perturb(x_0, t, noise)
            loss = process.loss(denoiser(noised.x_t, t, cond), noised, x_0, t)
            total = loss if total is None else total + loss
    if total is None:
        raise ValueError("times is empty; give at least one time in (0, 1]")
    return total / len(times)
