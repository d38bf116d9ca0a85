"""Diffusion of data together with auxiliary variables: VPSDE, CLD, ALDA, MALDA, or learned.

A state u = (x, v_1, ..., v_{K-1}) has shape (B, K, *): the data first, then what is carried along.
`LinearDiffusion.lift` draws v_0 ~ N(0, init_var) beside the data; the data are u[:, 0]. Kernels,
clock and the matrices Q, D, S are those of `linear_kernels`:

    u_t | u_0 ~ N(E_t u_0, Sigma_t),      u_t = mean + L eps,      L L^T = Sigma

A prediction is the score s = grad log p_t(u_t). As every process has an unscaled frame, here it is
y = E_t^-1 u_t, in which the motion is Brownian with a *matrix* clock Lambda = E^-1 Sigma E^-T:

    score in y     = E_t^T s
    q(u_s | u_t)   = N(E_ts^-1 (u_t + Sigma_ts s), P)
    P^-1           = Sigma_s^-1 + E_ts^T Sigma_ts^-1 E_ts

with E_ts, Sigma_ts the kernel from s to t. The mean is exact for any data (Tweedie); P is the
variance that is left when u_0 is known, so K = 1 is the ancestral step of `GaussianDiffusion`.

The loss is the bound on -log p(x) in nats per data coordinate, every term of it, because a learned
Q and D enter all of them:

    E[-log N(u_1; 0, S)] - H[v_0] + Int beta (|s - g|_D^2 - tr(L^-1 D L^-T) - tr A) dt
    g = grad log q(u_t | .) = -L^-T eps

conditioned on x alone (hybrid, HSM) or on all of u_0 (denoising, DSM): the same in expectation. It
is written for times drawn with density p ~ beta / (1 - e^-tau), by `quantile`; under even times it
is the same objective with the weights of small t taken off.

Shapes: B batch, K variables, ``*`` the rest of a datum, d its number of coordinates.

Source: Singhal, Goldstein & Ranganath 2023; Dockhorn, Vahdat & Kreis 2022 (CLD and HSM).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.linear_kernels import (
    Clock,
    Recipe,
    apply,
    check,
    factor,
    kernel,
    widened,
)
from bio_diffusion.diffusion.process import Noised, Process, Source, Transition, normal

__all__ = ["LinearDiffusion", "MatrixNormal"]


@dataclass(frozen=True)
class MatrixNormal(Transition):
    """u_s ~ N(mean, factor factor^T), the same K x K covariance for every coordinate.

    Attributes:
        mean: (B, K, *).
        factor: (B, K, K), what `sample` draws with; may be zero.
        kernel: (B, K, K), displacement of the mean per unit of direction in `tilt`.
    """

    mean: Tensor
    factor: Tensor
    kernel: Tensor

    def sample(self, generator: Source = None) -> Tensor:
        return self.mean + apply(self.factor, normal(self.mean.shape, generator, self.mean))

    def mix(self, other: Transition, weight: float) -> MatrixNormal:
        assert isinstance(other, MatrixNormal)
        return replace(self, mean=torch.lerp(self.mean, other.mean, weight))

    def tilt(self, direction: Tensor) -> MatrixNormal:
        return replace(self, mean=self.mean + apply(self.kernel, direction))

    def temper(self, temperature: float) -> MatrixNormal:
        return replace(self, factor=self.factor * math.sqrt(temperature))


class LinearDiffusion(Process):
    """A linear diffusion of data and auxiliaries with fixed Q, D and S.

    Args:
        recipe: Q, D, S, such as `linear_kernels.cld()`.
        clock: tau(t).
        init_var: variance of the auxiliaries beside the data. Small values make them informative
            early, and their scores large.
        rate: speed of the slowest mode in tau; None leaves the recipe as it is. Processes are
            compared fairly at one rate.
        hybrid: condition on x alone; False conditions on the drawn v_0 too.
        t_min: lowest time that training and the bound look at.
        sigma_data: standard deviation of the data, for `linear_learned.NoisePrediction` and to
            quieten the loss.

    Raises:
        ValueError: if the recipe has no stationary law or does not mix; see `linear_kernels.check`.
    """

    def __init__(
        self,
        recipe: Recipe,
        clock: Clock | None = None,
        init_var: float = 0.01,
        rate: float | None = None,
        hybrid: bool = True,
        t_min: float = 1e-3,
        sigma_data: float = 1.0,
    ) -> None:
        super().__init__()
        named = {
            "sigma_data": sigma_data,
            "init_var": init_var,
            "rate": 1.0 if rate is None else rate,
        }
        for name, value in named.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 < t_min < 1:
            raise ValueError(f"want 0 < t_min < 1, got {t_min}")
        recipe = Recipe(*(torch.as_tensor(matrix, dtype=torch.float64) for matrix in recipe))
        check(recipe)
        if rate is not None:
            recipe = recipe.scaled(rate)
        self.Q: Tensor
        self.D: Tensor
        self.S: Tensor
        for name, matrix in zip("QDS", recipe, strict=True):
            self.register_buffer(name, matrix)
        self.clock = Clock() if clock is None else clock
        self.init_var, self.rate, self.hybrid = init_var, rate, hybrid
        self.t_min, self.sigma_data = t_min, sigma_data
        self._last: tuple[Any, ...] | None = None  # what `conditional` found, and for what
        self._end = torch.ones(1)  # t = 1, one tensor, so that its kernel is found again

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearDiffusion:
        """Move devices, but stay in float64 whatever `.to` or `.half` says of the network."""
        return super()._apply(lambda x: x.to(fn(x).device), recurse)

    @property
    def recipe(self) -> Recipe:
        """Q, D and S in use."""
        return Recipe(self.Q, self.D, self.S)

    @property
    def variables(self) -> int:
        """K."""
        return len(self.S)

    def lift(self, x: Tensor, generator: Source = None) -> Tensor:
        """Data (B, *) to states (B, K, *), the auxiliaries drawn from N(0, init_var)."""
        v = normal((len(x), self.variables - 1, *x.shape[1:]), generator, x)
        return torch.cat([x[:, None], math.sqrt(self.init_var) * v], 1)

    # --- kernels ---------------------------------------------------------------------------------

    def between(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E, Sigma and its factor L from s to t, each (B, K, K)."""
        tau = (self.clock.tau(t) - self.clock.tau(s)).clamp(min=0).to(self.S)
        E, Sigma = kernel(self.recipe, tau)
        return E, Sigma, factor(Sigma, tau)

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E, Sigma, L of the kernel that training noises with: given x if hybrid, given u_0 if not.

        Given x, E is zero in the columns of the auxiliaries, whose spread is in Sigma. A step of
        training asks for the same kernel three times: the last one is kept, unless it is learned.
        """
        if t.is_inference():
            return self._conditional(t)
        matrices = (t, *self.parameters(), *self.buffers())
        how = (torch.is_grad_enabled(), self.hybrid, self.init_var)
        key = (*how, *(matrix._version for matrix in matrices))
        if self._last is not None and self._last[0] is t and self._last[1] == key:
            return self._last[2]
        found = self._conditional(t)
        self._last = None if found[1].requires_grad else (t, key, found)
        return found

    def _conditional(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tau = self.clock.tau(t).to(self.S)
        E, Sigma = kernel(self.recipe, tau)
        L = factor(Sigma, tau)
        if self.hybrid and self.variables > 1:
            spread = math.sqrt(self.init_var) * E[..., 1:]
            L, Sigma = widened(L, spread), Sigma + spread @ spread.mT
            E = torch.cat([E[..., :1], torch.zeros_like(E[..., 1:])], -1)
        return E, Sigma, L

    def covariance(self, E: Tensor, Sigma: Tensor) -> Tensor:
        """Covariance (B, K, K) of u_t for data of width sigma_data, from E, Sigma of a kernel."""
        start = torch.full_like(self.S, self.init_var)
        start[0] = self.sigma_data**2
        return Sigma + (E * start) @ E.mT

    @torch.no_grad()
    def level(self, t: Tensor) -> Tensor:
        """det(Lambda_t)^(1 / 2K), one noise level that rises with t; (B,) float64, for grids."""
        _, _, L = self.between(torch.zeros_like(t), t)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return ((log_det - self.clock.tau(t) * self.recipe.A.trace()) / self.variables).exp()

    # --- protocol --------------------------------------------------------------------------------

    def prior(self, like: Tensor, generator: Source = None) -> Tensor:
        return apply(torch.diag(self.S.sqrt()), normal(like.shape, generator, like))

    def perturb(self, x_0: Tensor, t: Tensor, generator: Source = None) -> Noised:
        """x_0 is a lifted state (B, K, *); the target is the score of the kernel."""
        E, _, L = self.conditional(t)
        eps = normal(x_0.shape, generator, x_0)
        target = torch.linalg.solve_triangular(L.mT, -eps.flatten(2).double(), upper=True)
        return Noised(apply(E, x_0) + apply(L, eps), target.reshape(eps.shape).to(eps))

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, generator: Source = None) -> Tensor:
        """One step of noising, u_t ~ q(u_t | u_s) with s <= t."""
        E, _, L = self.between(s, t)
        return apply(E, x_s) + apply(L, normal(x_s.shape, generator, x_s))

    def loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        """One-sample bound on -log p(x), nats per coordinate, for t drawn by `quantile`; (B,)."""
        return self.total(self.excess(prediction, noised, t), x_0, t)

    def parts(
        self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        """The weighted square error, and the cost of the prior; what is left depends on t alone."""
        error = self.square(prediction - noised.target)
        return {"error": error, "prior": self.mismatch(x_0)}

    def transition(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> MatrixNormal:
        E, Sigma, L = self.between(s, t)
        _, _, L_s = self.between(torch.zeros_like(s), s)
        back = torch.linalg.inv(E)
        mean = apply(back, x_t) + apply(back @ Sigma, prediction)
        # P = L_s (1 + M^T M)^-1 L_s^T: nothing cancels, and P = 0 where s = 0
        M = torch.linalg.solve_triangular(L, E @ L_s, upper=False)
        one = torch.eye(self.variables, dtype=M.dtype, device=M.device)
        C = torch.linalg.cholesky(one + M.mT @ M)
        P = torch.linalg.solve_triangular(C, L_s.mT, upper=False).mT
        return MatrixNormal(mean, P, back @ Sigma @ torch.linalg.inv(self.flow(t)).mT)

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E_t^T s, the score at y = E_t^-1 u_t."""
        return apply(self.flow(t).mT, prediction)

    def norm(self, tangent: Tensor, t: Tensor) -> Tensor:
        """Root mean square of (E_t^-1 L_t)^T tangent: one where the score is that of the noise."""
        E, _, L = self.between(torch.zeros_like(t), t)
        scaled = apply(torch.linalg.solve(E, L).mT, tangent)
        return scaled.flatten(1).square().mean(1).sqrt()

    def reframe(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        tau = (self.clock.tau(s) - self.clock.tau(t)).to(self.S)[:, None, None]
        return apply(torch.linalg.matrix_exp(tau * self.recipe.A), x_t)

    def flow(self, t: Tensor) -> Tensor:
        """E_t, (B, K, K)."""
        return torch.linalg.matrix_exp(self.clock.tau(t).to(self.S)[:, None, None] * self.recipe.A)

    # --- the bound -------------------------------------------------------------------------------

    def quantile(self, u: Tensor) -> Tensor:
        """Times in [t_min, 1] with density p ~ beta / (1 - e^-tau), from u in [0, 1]; closed form.

        The integrand goes like 1 / tau at small tau, so its estimate has little spread under p.

        Source: the idea is Singhal et al. 2023; the inverse is tau = log(1 + (e^tau_min - 1) e^uZ).
        """
        low = torch.expm1(self.clock.tau(torch.tensor(self.t_min)))
        tau = torch.log1p(low * torch.exp(u.double() * self.spread))
        return self.clock.time(tau).clamp(self.t_min, 1.0).to(u)

    @property
    def spread(self) -> float:
        """Z = Int_{t_min}^1 beta / (1 - e^-tau) dt."""
        low, high = torch.expm1(self.clock.tau(torch.tensor([self.t_min, 1.0]))).log().tolist()
        return high - low

    def square(self, tangent: Tensor) -> Tensor:
        """|tangent|_D^2 per coordinate; (B,)."""
        return (tangent * apply(self.recipe.D, tangent)).flatten(2).mean(-1).sum(1)

    def excess(self, prediction: Tensor, noised: Noised, t: Tensor) -> Tensor:
        """|s - g|_D^2 - tr(L^-1 D L^-T) per coordinate, less a term of mean zero; (B,).

        Below the data's own scale s is nothing beside g = -L^-T eps, and the square of eps drowns
        all else. Were the data normal, its share would be |N eps|_D^2, N = L^-T - Sigma_c^-1 L:
        that is taken off, and its mean added.
        """
        E, Sigma, L = self.conditional(t)
        eps = -apply(L.mT, noised.target)
        one = torch.eye(self.variables, dtype=L.dtype, device=L.device).expand_as(L)
        upper = torch.linalg.solve_triangular(L.mT, one, upper=True)
        N = upper - torch.cholesky_solve(L, torch.linalg.cholesky(self.covariance(E, Sigma)))
        D = self.recipe.D
        mean = _trace(N.mT @ D @ N) - _trace(upper.mT @ D @ upper)
        return self.square(prediction - noised.target) - self.square(apply(N, eps)) + mean

    def total(self, integrand: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The bound, from an integrand (B,) per unit of tau and coordinate, without its -tr A.

        beta / p = Z (1 - e^-tau) is what a draw of t by `quantile` stands for.
        """
        weight = -self.spread * torch.expm1(-self.clock.tau(t))
        value = weight.to(self.S) * (integrand - self.recipe.A.trace())
        return (value + self.mismatch(x_0) - self.entropy).to(x_0.dtype)

    def mismatch(self, x_0: Tensor) -> Tensor:
        """E[-log N(u_1; 0, S)] per data coordinate, given x or u_0; (B,) float64."""
        E, Sigma, _ = self.conditional(self._end.to(x_0.device))
        mean = apply(E, x_0.double()).flatten(2).square().mean(-1)
        second = (mean + Sigma.diagonal(dim1=-2, dim2=-1)) / self.S
        return 0.5 * (second + (2 * math.pi * self.S).log()).sum(-1)

    @property
    def entropy(self) -> float:
        """H[v_0] per data coordinate."""
        return (self.variables - 1) / 2 * (1 + math.log(2 * math.pi * self.init_var))


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
