"""What is learned of a linear diffusion: the score, by a network or from a denoiser that there is
already; Q and D if wished.

Shapes and letters are those of `linear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import Clock, Recipe, apply

__all__ = ["DataPrediction", "LearnedDiffusion", "NoisePrediction"]


class LearnedDiffusion(LinearDiffusion):
    """Q and D as parameters, trained by the loss together with the network.

        Q = q - q^T,    D = diag(softplus(d) + 1e-3)  or, if full,  d d^T + 1e-3

    (Q, D) -> c (Q, D) only makes the clock run faster, which the bound always likes. So the rate of
    the slowest mode is held at `rate`, and what is learned is the shape.

    Args:
        variables: K, one datum and K - 1 auxiliaries.
        full: let the noise of different variables be correlated.
        rate, clock, init_var, hybrid, t_min, sigma_data: as for `LinearDiffusion`.
        generator: draws the start, uniform in +-1 / sqrt(K).

    Source: Singhal, Goldstein & Ranganath 2023. There the speed is free; their full D takes a
        softplus of every entry, which need not be positive.
    """

    def __init__(
        self,
        variables: int,
        full: bool = False,
        rate: float = 1.0,
        clock: Clock | None = None,
        init_var: float = 0.01,
        hybrid: bool = True,
        t_min: float = 1e-3,
        sigma_data: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if variables < 1:
            raise ValueError(f"want at least one variable, got {variables}")
        one = torch.eye(variables, dtype=torch.float64)
        any_ = Recipe(0 * one, one, torch.ones_like(one[0]))
        super().__init__(any_, clock, init_var, rate, hybrid, t_min, sigma_data)
        del self.Q, self.D  # parameters take their place

        def start(*shape: int) -> nn.Parameter:
            u = torch.rand(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter((2 * u - 1) / math.sqrt(variables))

        self.q = start(variables, variables)
        self.d = start(variables, variables) if full else start(variables)

    @property
    def recipe(self) -> Recipe:
        spread = self.d @ self.d.mT if self.d.ndim == 2 else torch.diag(softplus(self.d))
        one = torch.eye(self.variables, dtype=self.q.dtype, device=self.q.device)
        assert self.rate is not None
        return Recipe(self.q - self.q.mT, spread + 1e-3 * one, self.S).scaled(self.rate)


class NoisePrediction(nn.Module):
    """A score from a plain network F that keeps unit size, around that of Gaussian data.

        s(u_t) = -Sigma_c^-1 u_t - L^-T c_out F(u_t / std, ln tau, cond)

    Sigma_c is the covariance of u_t for data of variance c^2, std the root of its diagonal, L the
    factor of the kernel in training, and c_out^2 = diag(1 - L^T Sigma_c^-1 L) what is left of the
    variance of eps once u_t is known. F = 0 is exact for data N(0, c^2).

    Args:
        network: F(input (B, K, *), noise (B,), cond) -> (B, K, *).
        process: gives the kernels and c = sigma_data.

    Source: Singhal et al. 2023 have -L^-T F alone; the first term is the mixed score of Dockhorn et
        al. 2022 with the data's width in place of the prior's; c_out is Karras et al. 2022's.
    """

    def __init__(self, network: Callable[..., Tensor], process: LinearDiffusion) -> None:
        super().__init__()
        self.network, self.process = network, process

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        E, Sigma, L = self.process.conditional(t)
        covariance = self.process.covariance(E, Sigma)
        R = torch.linalg.cholesky(covariance)
        std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        known = torch.linalg.solve_triangular(R, L, upper=False).square().sum(1)
        out = (1 - known).clamp(min=1e-12).sqrt()
        noise = self.process.clock.tau(t).log().to(x_t)
        output = self.network(apply(torch.diag_embed(1 / std), x_t), noise, cond)
        upper = torch.linalg.solve_triangular(L.mT, torch.diag_embed(out), upper=True)
        return -apply(torch.cholesky_inverse(R), x_t) - apply(upper, output)


class DataPrediction(nn.Module):
    """A score from any denoiser of plain noise: auxiliaries add nothing to what there is to learn.

        s(u_t) = Sigma^-1 (E_x D(w^T u_t, sigma, cond) - u_t)
        w = sigma^2 Sigma^-1 E_x,    sigma^-2 = E_x^T Sigma^-1 E_x

    with E_x, Sigma of the kernel given x. Under it w^T u_t = x + sigma eps, and by sufficiency that
    one number a coordinate is all that the K of u_t tell of x: if D is the exact denoiser of plain
    noise, s is the exact score. In t, w^T u_t is Brownian with clock sigma^2, and an ancestral step
    takes it where the scalar process's would (up to v_0, which the step conditions on).

    Args:
        denoiser: D(x + sigma eps (B, *), sigma (B,), cond) -> E[x | .] (B, *).
        process: gives the kernels.

    Raises:
        ValueError: if the process conditions on v_0 (hybrid=False).
    """

    def __init__(self, denoiser: Callable[..., Tensor], process: LinearDiffusion) -> None:
        super().__init__()
        if not process.hybrid:
            raise ValueError("want a kernel given the data alone: LinearDiffusion(hybrid=True)")
        self.denoiser, self.process = denoiser, process

    def statistic(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """w (B, K) and sigma (B,), which rises with t; float64."""
        E, _, L = self.process.conditional(t)
        pull = torch.cholesky_solve(E[..., :1], L)[..., 0]
        variance = 1 / (E[..., 0] * pull).sum(1)
        return variance[:, None] * pull, variance.sqrt()

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        w, sigma = self.statistic(t)
        plain = (w[:, None].to(x_t) @ x_t.flatten(2)).reshape(x_t[:, 0].shape)
        clean = self.denoiser(plain, sigma.to(x_t), cond)
        E, _, L = self.process.conditional(t)
        mean = (E[..., :1].to(x_t) @ clean.flatten(1)[:, None]).reshape(x_t.shape)
        return apply(torch.cholesky_inverse(L), mean - x_t)
