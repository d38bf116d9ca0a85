"""Brownian motion on R^d, on rotations and on angles: sampling, scores and their size.

All kernels use one convention: as sigma -> 0 every one of them is N(0, sigma^2) per degree of
freedom, and K(a) followed by K(b) is K(sqrt(a^2 + b^2)).

Both curved kernels are theta functions and have two exact series that converge at opposite ends: a
sum over images (the Gaussian seen through the wrapping, for small sigma) and one over characters
(for large sigma). We use each where it is short, so densities and scores need no tables and keep
their relative precision in the tails. Only E[score^2], which normalises the loss, is tabulated, by
quadrature when it is first asked for.

Shapes: B batch, n degrees of freedom (3 for a rotation, M torsions; M may be 0).

Source: Jing et al. 2022 (torsions), Leach et al. 2022 (IGSO(3)). The latter, and Corso et al. 2023
    after them, write exp(-l(l+1) eps^2), whose small-angle variance is 2 eps^2 per axis, beside
    reverse steps meant for eps^2: rotations then take half steps. Here it is -l(l+1) sigma^2 / 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.process import Source, broadcast, normal, uniform

__all__ = ["R3", "SO3", "Euclidean", "Kernel", "Torus", "wrap"]


class Kernel(nn.Module, ABC):
    """The law of a displacement u after Brownian motion up to noise level sigma.

    Displacements u: (B, n) and levels sigma: (B,) or anything that broadcasts against u[..., 0].

    Attributes:
        extent: largest useful displacement of one degree of freedom; infinite on R^d.
    """

    extent: float = math.inf

    @abstractmethod
    def sample(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        """Draw u ~ K(sigma) of shape (B, n); sigma: (B,). Result has the default dtype."""

    @abstractmethod
    def prior(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        """Draw from the law at t = 1: K(sigma) on R^d, the uniform law on a compact group."""

    @abstractmethod
    def score(self, u: Tensor, sigma: Tensor) -> Tensor:
        """grad_u log K(u; sigma), shape of u."""

    @abstractmethod
    def mean_square(self, sigma: Tensor) -> Tensor:
        """E[score^2] per degree of freedom under K(sigma); shape of sigma."""


def _like(sigma: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.get_default_dtype(), device=sigma.device)


class Euclidean(Kernel):
    """u ~ N(0, sigma^2 I) on R^n; score = -u / sigma^2."""

    def sample(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        eps = normal(shape, generator, _like(sigma))
        return broadcast(sigma, eps) * eps

    def prior(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        return self.sample(shape, sigma, generator)

    def score(self, u: Tensor, sigma: Tensor) -> Tensor:
        return -u / broadcast(sigma**2, u)

    def mean_square(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


R3 = Euclidean


class _Tabulated(Kernel):
    """A kernel whose E[score^2] has no closed form: a table in log sigma, made on first use.

    The table holds log(sigma^2 E[score^2] + tiny) at even steps of log sigma, in float64.
    """

    _low, _high, _count = math.log(1e-3), math.log(8.0), 1024
    _table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_table", torch.empty(0, dtype=torch.float64), persistent=False)

    @abstractmethod
    def _integrate_square(self, sigma: Tensor) -> Tensor:
        """E[score^2] per degree of freedom by quadrature; sigma (G,) -> (G,)."""

    def mean_square(self, sigma: Tensor) -> Tensor:
        if not len(self._table):
            levels = torch.linspace(self._low, self._high, self._count, dtype=torch.float64).exp()
            self._table = (levels**2 * self._integrate_square(levels)).clamp(min=1e-300).log()
        if self._table.device != sigma.device:
            self._table = self._table.to(sigma.device)
        low, high = self._low, self._high
        place = (sigma.double().log().clamp(low, high) - low) * (
            (len(self._table) - 1) / (high - low)
        )
        cell = place.floor().long().clamp(max=len(self._table) - 2)
        value = torch.lerp(self._table[cell], self._table[cell + 1], place - cell)
        return (value.exp() / sigma.double() ** 2).to(sigma)


class SO3(_Tabulated):
    """Brownian motion on rotations, IGSO(3); u is axis times angle in radians, |u| = w in [0, pi].

    Density of the rotation against the uniform law, and of its angle:

        f(w) = sum_l (2l+1) exp(-l(l+1) sigma^2 / 2) sin((l + 1/2) w) / sin(w / 2)     characters
             = c(sigma) / sin(w / 2) sum_k (-1)^k w_k exp(-w_k^2 / 2 sigma^2)          images
        w_k  = w - 2 pi k,   c(sigma) = sqrt(2 pi) exp(sigma^2 / 8) / sigma^3
        p(w) = (1 - cos w) / pi f(w)
        score = d log f / dw * u / w

    The score is with respect to a further small rotation of the moved state, from the left or the
    right: f depends on the angle only, so both give the same vector.

    Source: Nikolayev & Savyolov 1997 (series); the second sum is the Poisson resummation of the
        first.
    """

    extent = math.pi
    # Both sums hold to ~1e-14 between 0.5 and 1.5. Below `_limit` the angle is Gaussian to 1e-6
    # once the curvature of the group is put into its variance (see `sample`).
    _switch = 1.0
    _limit = 0.2
    _characters = 45  # exp(-l(l+1) sigma^2 / 2) < 1e-17 beyond, for sigma >= _limit

    def log_density(self, angle: Tensor, sigma: Tensor) -> Tensor:
        """log f(w) against the uniform law on rotations, in float64; angle and sigma broadcast."""
        return self._log_density_and_slope(angle, sigma)[0]

    def _log_density_and_slope(self, angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log f(w) and d log f / dw, in float64."""
        w, sigma = torch.broadcast_tensors(angle.double().clamp(1e-4, math.pi), sigma.double())
        small = sigma < self._switch
        images = self._images(w, torch.where(small, sigma, self._switch))
        characters = self._by_characters(w, torch.where(small, self._switch, sigma))
        log_f, slope = (torch.where(small, i, c) for i, c in zip(images, characters, strict=True))
        return log_f, slope

    @staticmethod
    def _images(w: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        k = torch.arange(-1, 2, device=w.device, dtype=w.dtype)
        w_k = w[..., None] - 2 * math.pi * k
        # The factor exp(-w^2 / 2 sigma^2) is taken out of the sum: k = 0 leads, the others are <=
        # 1.
        term = (1 - 2 * (k.long() % 2)) * torch.exp(
            -2 * math.pi * k * (math.pi * k - w[..., None]) / sigma[..., None] ** 2
        )
        total = (w_k * term).sum(-1)
        slope = ((1 - (w_k / sigma[..., None]) ** 2) * term).sum(-1) / total - 0.5 / torch.tan(
            w / 2
        )
        log_f = (
            total.log()
            - w**2 / (2 * sigma**2)
            - torch.sin(w / 2).log()
            + sigma**2 / 8
            + 0.5 * math.log(2 * math.pi)
            - 3 * sigma.log()
        )
        return log_f, slope

    @staticmethod
    def _by_characters(w: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        l = torch.arange(10, device=w.device, dtype=w.dtype)  # noqa: E741
        weight = (2 * l + 1) * torch.exp(-l * (l + 1) * sigma[..., None] ** 2 / 2)
        angle = (l + 0.5) * w[..., None]
        total = (weight * torch.sin(angle)).sum(-1)
        slope = (weight * (l + 0.5) * torch.cos(angle)).sum(-1) / total - 0.5 / torch.tan(w / 2)
        return (total / torch.sin(w / 2)).log(), slope

    def score(self, u: Tensor, sigma: Tensor) -> Tensor:
        angle = u.double().norm(dim=-1).clamp(min=1e-4)  # slope / angle is constant to 1e-8 below
        _, slope = self._log_density_and_slope(angle, sigma)
        return ((slope / angle)[..., None] * u.double()).to(u)

    def angle_law(self, angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """P(w <= angle) and the density p(angle) under K(sigma), sigma >= 0.2; float64.

        (1 - cos w) times the character sum telescopes, and integrates term by term:

            pi p(w) = 1 + sum_{l>=1} c_l cos(l w),    pi P(w) = w + sum_{l>=1} c_l sin(l w) / l
            c_l = (2l+1) e_l - (2l-1) e_{l-1},        e_l = exp(-l(l+1) sigma^2 / 2)
        """
        degree = torch.arange(1.0, self._characters + 1, device=angle.device).double()
        half, phase = sigma.double()[..., None] ** 2 / 2, degree * angle.double()[..., None]
        e, e_before = (torch.exp(-degree * (degree + d) * half) for d in (1, -1))
        c = (2 * degree + 1) * e - (2 * degree - 1) * e_before
        below = angle + (c / degree * torch.sin(phase)).sum(-1)
        return below / math.pi, (1 + (c * torch.cos(phase)).sum(-1)) / math.pi

    def sample(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        """Map z ~ N(0, I_3) to a rotation about its axis, quantile of |z| to that of the angle."""
        z = normal(shape, generator, _like(sigma))
        radius = z.double().norm(dim=-1)
        # f(w) sin^2(w/2) / (w/2)^2, the density against du, is N(0, s^2 I) with 1/s^2 = 1/sigma^2
        # + 1/12 up to (w^4) / 2880 in its logarithm.
        angle = radius / (1 / sigma.double() ** 2 + 1 / 12).sqrt()
        wide = sigma.double() >= self._limit
        if wide.any():
            quantile = torch.erf(radius / math.sqrt(2)) - math.sqrt(
                2 / math.pi
            ) * radius * torch.exp(-(radius**2) / 2)
            wrapped = self._invert(quantile, sigma.double().clamp(min=self._limit), angle)
            angle = torch.where(wide, wrapped, angle)
        return (z * (angle / radius.clamp(min=1e-12))[..., None]).to(z)

    def _invert(self, quantile: Tensor, sigma: Tensor, guess: Tensor) -> Tensor:
        """Solve P(angle) = quantile by Newton steps; bisect where one leaves its bracket."""
        low, high = torch.zeros_like(quantile), torch.full_like(quantile, math.pi)
        angle = guess.clamp(max=3.0)
        for _ in range(12):
            below, density = self.angle_law(angle, sigma)
            short = below < quantile
            low, high = torch.where(short, angle, low), torch.where(short, high, angle)
            angle = angle + (quantile - below) / density.clamp(min=1e-12)
            angle = torch.where((angle >= low) & (angle <= high), angle, (low + high) / 2)
        return angle

    def prior(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        """A uniform rotation: the axis-angle vector of a normalised quaternion from N(0, I_4)."""
        q = normal((*shape[:-1], 4), generator, _like(sigma)).double()
        q = q * torch.where(
            q[..., :1] < 0, -1.0, 1.0
        )  # q and -q are one rotation: keep the angle <= pi
        sine = q[..., 1:].norm(dim=-1, keepdim=True)
        angle = 2 * torch.atan2(sine, q[..., :1])
        return (q[..., 1:] * (angle / sine.clamp(min=1e-12))).to(torch.get_default_dtype())

    def _integrate_square(self, sigma: Tensor) -> Tensor:
        w = (12 * sigma).clamp(max=math.pi)[:, None] * torch.linspace(
            0, 1, 161, dtype=torch.float64
        )
        log_f, slope = self._log_density_and_slope(w, sigma[:, None])
        return _trapezium_mean(slope**2, torch.exp(log_f) * (1 - torch.cos(w))) / 3


class Torus(_Tabulated):
    """Brownian motion on n angles, the wrapped normal; u in [-pi, pi) radians.

        K(u) = sum_k N(u + 2 pi k; 0, sigma^2)
        score = -sum_k (u + 2 pi k) / sigma^2 softmax_k(-(u + 2 pi k)^2 / 2 sigma^2)

    Eleven images on each side serve up to sigma = 2 pi, where K is uniform to 1e-8.
    """

    extent = math.pi

    def sample(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        eps = normal(shape, generator, _like(sigma))
        return wrap(broadcast(sigma, eps) * eps)

    def prior(self, shape: Sequence[int], sigma: Tensor, generator: Source = None) -> Tensor:
        return (2 * uniform(shape, generator, _like(sigma)) - 1) * math.pi

    def score(self, u: Tensor, sigma: Tensor) -> Tensor:
        images, variance = self._images(u, sigma)
        weights = torch.softmax(-(images**2) / (2 * variance), dim=-1)
        return (-(images * weights / variance).sum(-1)).to(u)

    def log_density(self, u: Tensor, sigma: Tensor) -> Tensor:
        """log K(u) against du for each angle, shape of u; float64."""
        images, variance = self._images(u, sigma)
        log_normal = -(images**2) / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)
        return torch.logsumexp(log_normal, dim=-1)

    @staticmethod
    def _images(u: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """u + 2 pi k, (B, n, 23), and sigma^2, (B, 1, 1); float64."""
        turns = 2 * math.pi * torch.arange(-11.0, 12.0, device=u.device).double()
        return wrap(u.double())[..., None] + turns, broadcast(sigma**2, u.double())[..., None]

    def _integrate_square(self, sigma: Tensor) -> Tensor:
        u = (12 * sigma).clamp(max=math.pi)[:, None] * torch.linspace(
            -1, 1, 161, dtype=torch.float64
        )
        return _trapezium_mean(self.score(u, sigma) ** 2, self.log_density(u, sigma).exp())


def _trapezium_mean(values: Tensor, density: Tensor) -> Tensor:
    """Mean over the last axis by trapezia, which converge exponentially here: the integrands are
    even about both ends of a period, or have died out before them."""
    weight = torch.ones(density.shape[-1], dtype=density.dtype)
    weight[[0, -1]] = 0.5
    return (weight * density * values).sum(-1) / (weight * density).sum(-1)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
