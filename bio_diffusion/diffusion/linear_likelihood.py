"""How likely a trained linear diffusion finds data: bounds on log p(x) in nats, and bits per dim.

    log p(x) >= E[log N(u_1; 0, S)] + H[v_0] + offset - Int_{t_min}^1 beta J dt

with the integrand J of score matching (`denoising`, the kernel's score as target: HSM or DSM, as
the process was told) or of integration by parts (`Implicit`). Both have the same mean. What happens
below t_min is told by a Gaussian decoder,

    offset = E[log p(u_0 | u_e) - log q(u_e | u_0)],   p = N(E^-1 (u_e + Sigma s), E^-1 Sigma E^-T)
           = E[K d / 2 - |eps + L^T s|^2 / 2] + d tau tr A,        e = t_min, kernel given u_0,

without which the bound of a process with auxiliaries is short by 0.02 to 0.04 nats a coordinate at
t_min = 0.001, and of VPSDE by 0.0001.

Shapes: B batch, K variables, ``*`` the rest of a datum, d its number of coordinates.

Source: Singhal, Goldstein & Ranganath 2023; Huang, Lim & Courville 2021; Song et al. 2021.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import apply
from bio_diffusion.diffusion.process import Denoiser, Source, evaluating, normal
from bio_diffusion.diffusion.training import keyed_generator, stratified_times

__all__ = ["Implicit", "bits_per_dim", "bound", "denoising", "offset"]


class Integrand(Protocol):
    """A one-sample estimate of the bound on -log p(x) without offset, nats a coordinate; (B,)."""

    def __call__(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_0: Tensor,
        t: Tensor,
        cond: Any,
        generator: Source,
    ) -> Tensor: ...


def denoising(
    process: LinearDiffusion,
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    cond: Any = None,
    generator: Source = None,
) -> Tensor:
    """The training loss: |s - g|_D^2 - E |g|_D^2, g the score of the process's kernel."""
    noised = process.perturb(x_0, t, generator)
    return process.loss(denoiser(noised.x_t, t, cond), noised, x_0, t)


class Implicit:
    """|s|_D^2 + div 2 D s (ISM), the divergence by random projections.

    Args:
        probes: +-1 vectors a sample, one backward pass each.

    Source: Hyvärinen 2005; Hutchinson's estimator of a trace.
    """

    def __init__(self, probes: int = 10) -> None:
        if probes < 1:
            raise ValueError(f"want at least one probe, got {probes}")
        self.probes = probes

    def __call__(
        self,
        process: LinearDiffusion,
        denoiser: Denoiser,
        x_0: Tensor,
        t: Tensor,
        cond: Any = None,
        generator: Source = None,
    ) -> Tensor:
        x_t = process.perturb(x_0, t, generator).x_t.detach()
        with torch.enable_grad():
            x_t.requires_grad_(True)
            score = denoiser(x_t, t, cond)
            pull = apply(2 * process.recipe.D, score)
            divergence = torch.zeros(len(x_t), dtype=x_t.dtype, device=x_t.device)
            for _ in range(self.probes):
                probe = normal(x_t.shape, generator, x_t).sign()
                (slope,) = torch.autograd.grad((pull * probe).sum(), x_t, retain_graph=True)
                divergence = divergence + (slope * probe).flatten(1).sum(1) / self.probes
        squares = (score * pull).flatten(1).sum(1) / 2
        each = (squares + divergence).detach() / x_0[0, 0].numel()
        return process.total(each, x_0, t)


def offset(
    process: LinearDiffusion,
    denoiser: Denoiser,
    x_0: Tensor,
    cond: Any = None,
    generator: Source = None,
) -> Tensor:
    """What the decoder below t_min adds to the bound on log p(x), nats; (B,) float64."""
    d, t = x_0[0, 0].numel(), x_0.new_full((len(x_0),), process.t_min)
    E, Sigma, L = process.between(torch.zeros_like(t), t)
    eps = normal(x_0.shape, generator, x_0)
    x_t = apply(E, x_0) + apply(L, eps)
    missed = eps.double() + apply(L.mT, denoiser(x_t, t, cond).double())
    # As in the loss, the share of eps for normal data is replaced by its mean.
    one = torch.eye(process.variables, dtype=L.dtype, device=L.device)
    N = one - L.mT @ torch.linalg.solve(process.covariance(E, Sigma), L)
    noise = apply(N, eps.double()).square().flatten(1).sum(1) - d * N.square().sum((1, 2))
    squares = missed.square().flatten(1).sum(1) - noise
    shrunk = d * process.clock.tau(t) * process.recipe.A.trace()
    return (d * process.variables - squares) / 2 + shrunk


def bound(
    process: LinearDiffusion,
    denoiser: Denoiser,
    x: Tensor,
    cond: Any = None,
    draws: int = 16,
    seed: int = 0,
    integrand: Integrand = denoising,
) -> Tensor:
    """A lower bound on log p(x), in nats, averaged over draws; (B,) float64.

    Args:
        process: of a trained model.
        denoiser: its network.
        x: data (B, *), not lifted.
        cond: handed to the network.
        draws: times, noises and auxiliaries of each datum; stratified in time over the batch, so
            the mean over data has less noise than independent draws.
        seed: of all of them.
        integrand: `denoising` or `Implicit()`.
    """
    if draws < 1:
        raise ValueError(f"want at least one draw, got {draws}")
    d = x[0].numel()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with evaluating(denoiser, process):
        for number in range(draws):
            generator = keyed_generator(seed, number)
            t = stratified_times(len(x), generator, process.quantile, process.t_min).to(x)
            x_0 = process.lift(x, generator)
            total += offset(process, denoiser, x_0, cond, generator)
            total -= d * integrand(process, denoiser, x_0, t, cond, generator).double()
    return total / draws


def bits_per_dim(nats: Tensor, d: int, log_det: Tensor | float = 0.0, levels: int = 1) -> Tensor:
    """-(log p + log |det|) / (d ln 2) + log2(levels): bits a coordinate of discrete data.

    Args:
        nats: log p or a bound on it, of the transformed data.
        d: coordinates of a datum.
        log_det: log-determinant of the transformation from [0, 1] to what the model saw.
        levels: 256 for 8-bit images scaled to [0, 1]; 1 for data that are continuous.
    """
    return -(nats + log_det) / (d * math.log(2)) + math.log2(levels)
