"""Ways to walk a linear diffusion back, as steps for `sampling.sample`; one network call each.

    reverse SDE         du = [-A u + 2 D s] dtau + sqrt(2 D) dw         tau running backwards
    probability flow    du = [-A u + D s] dtau
    with s = -S^-1 u + r, r small near the prior:
    reverse SDE         du = (Q - D) S^-1 u dtau + sqrt(2 D) dw  +  2 D r dtau
    probability flow    du = Q S^-1 u dtau                       +    D r dtau

The first part of either split is solved exactly: it is a linear diffusion with the same stationary
law and Q the other way round, or a rotation. `sampling.Reverse` with the process's own transition
is the ancestral sampler. A step to s = 0 lands on the denoised state, as everywhere.

Source: Dockhorn, Vahdat & Kreis 2022 (symmetric splitting, for CLD); here for any Q, D and S.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import Recipe, apply, factor, kernel
from bio_diffusion.diffusion.process import Denoiser, Guidance, Source, broadcast, normal

__all__ = ["EulerMaruyama", "ProbabilityFlow", "SymmetricSplitting"]


class _LinearStep(ABC):
    """What the steps share: no guidance, and the last step."""

    def __call__(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Any,
        guidance: Sequence[Guidance],
        generator: Source,
    ) -> Tensor:
        if guidance:
            raise ValueError(f"{type(self).__name__} takes no guidance; use Reverse")
        if not bool((s > 0).all()):
            return process.transition(x_t, denoiser(x_t, t, cond), t, s).mean
        return self.walk(process, denoiser, x_t, t, s, cond, generator)

    @abstractmethod
    def walk(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Any,
        generator: Source,
    ) -> Tensor:
        """x_s for 0 < s < t."""


class EulerMaruyama(_LinearStep):
    """Everything frozen at t: u_s = u_t + h (-A u_t + 2 D s) + sqrt(2 D h) z, h = tau_t - tau_s."""

    def walk(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Any,
        generator: Source,
    ) -> Tensor:
        recipe, h = process.recipe, process.clock.tau(t) - process.clock.tau(s)
        drift = apply(2 * recipe.D, denoiser(x_t, t, cond)) - apply(recipe.A, x_t)
        values, vectors = torch.linalg.eigh(2 * recipe.D)  # D may be singular: no Cholesky
        root = vectors * values.clamp(min=0).sqrt()
        stir = apply(root, normal(x_t.shape, generator, x_t))
        return x_t + broadcast(h, x_t) * drift + broadcast(h.sqrt(), x_t) * stir


class SymmetricSplitting(_LinearStep):
    """Half a step of the exact part with its noise, a step along r at the middle, half a step."""

    def walk(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Any,
        generator: Source,
    ) -> Tensor:
        recipe, h, middle = _halves(process, t, s)
        E, Sigma = kernel(Recipe(-recipe.Q, recipe.D, recipe.S), h / 2)
        L = factor(Sigma, h)
        x = apply(E, x_t) + apply(L, normal(x_t.shape, generator, x_t))
        r = denoiser(x, middle, cond) + apply(torch.diag(1 / recipe.S), x)
        x = x + broadcast(h, x) * apply(2 * recipe.D, r)
        return apply(E, x) + apply(L, normal(x.shape, generator, x))


class ProbabilityFlow(_LinearStep):
    """Half a rotation, a step along D r at the middle, half a rotation; draws no noise."""

    def walk(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Any,
        generator: Source,
    ) -> Tensor:
        recipe, h, middle = _halves(process, t, s)
        turn = torch.linalg.matrix_exp((h / 2)[:, None, None] * (recipe.Q / recipe.S))
        x = apply(turn, x_t)
        r = denoiser(x, middle, cond) + apply(torch.diag(1 / recipe.S), x)
        return apply(turn, x + broadcast(h, x) * apply(recipe.D, r))


def _halves(process: LinearDiffusion, t: Tensor, s: Tensor) -> tuple[Recipe, Tensor, Tensor]:
    """The recipe, the step h (B,) in tau, and the time (B,) in its middle."""
    tau_t, tau_s = (process.clock.tau(time).to(process.S) for time in (t, s))
    middle = process.clock.time((tau_t + tau_s) / 2).to(t)
    return process.recipe, tau_t - tau_s, middle
