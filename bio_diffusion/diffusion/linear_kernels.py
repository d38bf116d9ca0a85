"""Linear diffusions with a given stationary law: their matrices, clock and Gaussian kernels.

Every variable of a state is pulled and stirred by the same K x K matrices, at a speed beta(t):

    du = A u beta dt + sqrt(2 beta D) dw,        A = -(Q + D) S^-1
    Q = -Q^T,   D = D^T >= 0                     then N(0, S) is stationary, whatever Q and D are

u = (x, v_1, ..., v_{K-1}) for each data coordinate: the datum and its auxiliaries. In the clock
tau(t) = Int_0^t beta the coefficients are constant, and from u_s to u_t, tau later, the law is

    u_t | u_s ~ N(E u_s, Sigma),    E = expm(tau A),    Sigma = Int_0^tau E_r 2 D E_r^T dr
    Sigma = C E^T,  C = upper right block of expm(tau [[A, 2 D], [0, -A^T]])     (Van Loan)
          = S - E S E^T                                                          (stationary)

Van Loan's block grows like exp(2 w tau) and loses digits at large tau. At small tau, where Sigma_xx
may be as small as tau^(2K - 1), the stationary form cancels, and the block is right only beside its
largest entry: for ALDA torch's float64 `matrix_exp` gives a Sigma_xx that is 1.6 % off at t = 0.01
and a Sigma that is not positive at t = 0.0001. So `kernel` sums the series of Sigma over a short
tau and doubles it, Sigma_2tau = Sigma + E Sigma E^T: positive terms only, all digits kept at every
tau. Everything is float64 and K x K, so it costs next to nothing.

Shapes: B batch, K variables. Matrices are (K, K), kernels (B, K, K).

Source: Ma, Chen & Fox 2015 (all processes with a stationary law); Singhal, Goldstein & Ranganath
    2023 (their use for diffusion models, with the block); Van Loan 1978 (scaling and doubling too).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Clock",
    "Recipe",
    "alda",
    "apply",
    "check",
    "cld",
    "factor",
    "kernel",
    "malda",
    "vpsde",
    "widened",
]

_REACH, _TERMS = 1 / 8, 13  # of the series at |tau A| <= 1/8: the rest is below 4^-13 / 13! = 2e-18


class Clock:
    """tau(t) = b0 t + (b1 - b0) t^2 / 2, the integral of beta(t) = b0 + (b1 - b0) t; float64."""

    def __init__(self, b0: float = 0.1, b1: float = 10.0) -> None:
        if not 0 < b0 < b1 < math.inf:
            raise ValueError(f"want 0 < b0 < b1, got {b0} and {b1}")
        self.b0, self.b1 = b0, b1

    def beta(self, t: Tensor) -> Tensor:
        return self.b0 + (self.b1 - self.b0) * t.double()

    def tau(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.b0 * t + (self.b1 - self.b0) * t**2 / 2

    def time(self, tau: Tensor) -> Tensor:
        """The t with the given tau."""
        rise = self.b1 - self.b0
        return 2 * tau / (self.b0 + (self.b0**2 + 2 * rise * tau).sqrt())


class Recipe(NamedTuple):
    """What makes a linear diffusion.

    Attributes:
        Q: (K, K), skew: how variables drive each other without noise.
        D: (K, K), symmetric, no negative eigenvalue: friction and noise.
        S: (K,) stationary variances, data first.
    """

    Q: Tensor
    D: Tensor
    S: Tensor

    @property
    def A(self) -> Tensor:
        """-(Q + D) S^-1, (K, K)."""
        return -(self.Q + self.D) / self.S

    def scaled(self, rate: float) -> Recipe:
        """The same process at another speed: its slowest mode falls like exp(-rate tau)."""
        slowest = -torch.linalg.eigvals(self.A).real.max()
        return Recipe(self.Q * rate / slowest, self.D * rate / slowest, self.S)


def check(recipe: Recipe) -> None:
    """Raise ValueError unless Q is skew, D positive semi-definite, S positive, and all modes mix.

    They mix if every eigenvalue of A has a negative real part: each variable has noise of its own
    or reaches a noisy one through Q.
    """
    recipe = Recipe(*(matrix.detach() for matrix in recipe))
    Q, D, S = recipe
    if S.ndim != 1 or not len(S):
        raise ValueError(f"S holds a variance for each variable, the datum's first; got {S}")
    K = len(S)
    if Q.shape != (K, K) or D.shape != (K, K):
        raise ValueError(
            f"want Q and D of shape ({K}, {K}) beside S of length {K}, got {tuple(Q.shape)} and "
            f"{tuple(D.shape)}"
        )
    for name, matrix in zip("QDS", recipe, strict=True):
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{name} must be finite, got {matrix.tolist()}")
    if not bool((S > 0).all()):
        raise ValueError(f"S holds variances and must be positive, got {S.tolist()}")
    size = float(torch.cat([Q, D]).abs().max()) * 1e-9
    for name, matrix, sum_ in (("skew-symmetric", Q, Q + Q.mT), ("symmetric", D, D - D.mT)):
        if float(sum_.abs().max()) > size:
            i, j = divmod(int(sum_.abs().argmax()), K)
            raise ValueError(
                f"{'Q' if matrix is Q else 'D'} is not {name}: entries [{i}, {j}] and [{j}, {i}] "
                f"are {float(matrix[i, j]):g} and {float(matrix[j, i]):g}"
            )
    lowest = float(torch.linalg.eigvalsh(D)[0])
    if lowest < -size:
        raise ValueError(
            f"D is not positive semi-definite: its lowest eigenvalue is {lowest:g}; "
            "B B^T is, for any B"
        )
    values = torch.linalg.eigvals(recipe.A)
    worst = complex(values[values.real.argmax()])
    if worst.real > -1e-6 * float(values.abs().max().clamp(min=1e-300)):
        raise ValueError(
            f"the process does not mix: eigenvalue {worst:.4g} of -(Q + D) S^-1 has no negative "
            "real part, so one mode never forgets the data; give it noise in D or couple it to a "
            "noisy variable through Q"
        )


# --- processes of the literature -----------------------------------------------------------------


def _matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def vpsde() -> Recipe:
    """No auxiliary: the variance-preserving diffusion, alpha = exp(-tau / 2)."""
    return Recipe(_matrix([[0.0]]), _matrix([[0.5]]), torch.ones(1, dtype=torch.float64))


def cld(mass: float = 1.0) -> Recipe:
    """Critically damped Langevin dynamics: position and velocity, noise on the velocity alone.

    dx = v / M beta dt,  dv = -(x + G v / M) beta dt + sqrt(2 G beta) dw,  G = 2 sqrt(M)

    Source: Dockhorn, Vahdat & Kreis 2022.
    """
    S = torch.tensor([1.0, mass], dtype=torch.float64)
    return Recipe(_matrix([[0, -1], [1, 0]]), _matrix([[0, 0], [0, 2 * math.sqrt(mass)]]), S)


def alda(gamma: float = 1.0, psi: float = 1.0) -> Recipe:
    """Third-order Langevin dynamics: noise reaches the datum through two integrations.

    Source: Mou et al. 2021, as used by Singhal et al. 2023, with unit masses.
    """
    Q = _matrix([[0, -1, 0], [1, 0, -gamma], [0, gamma, 0]])
    return Recipe(Q, torch.diag(_matrix([[0, 0, psi]])[0]), torch.ones(3, dtype=torch.float64))


def malda(variables: int = 3, mass: float = 1.0) -> Recipe:
    """Every variable drives every other; noise on the auxiliaries alone.

    Source: Singhal, Goldstein & Ranganath 2023.
    """
    if variables < 2:
        raise ValueError(f"MALDA has noise on auxiliaries alone: want 2 variables, got {variables}")
    lower = torch.ones(variables, variables, dtype=torch.float64).tril(-1)
    S = torch.full((variables,), mass, dtype=torch.float64)
    D = torch.full((variables,), 2 * math.sqrt(mass), dtype=torch.float64)
    S[0], D[0] = 1.0, 0.0
    return Recipe(lower - lower.mT, torch.diag(D), S)


# --- kernels -------------------------------------------------------------------------------------


def kernel(recipe: Recipe, tau: Tensor) -> tuple[Tensor, Tensor]:
    """E and Sigma (B, K, K) of the transition over tau (B,) >= 0; float64, differentiable."""
    A, noise, K = recipe.A, 2 * recipe.D, len(recipe.S)
    reach = float(tau.max()) * float(torch.linalg.matrix_norm(A.detach(), 1)) / _REACH
    doublings = math.ceil(math.log2(max(reach, 1.0)))
    power = torch.eye(K, dtype=A.dtype, device=A.device)
    powers, noises = [power], [noise]  # A^n / n! and the n-th derivative of Sigma / (n + 1)!
    for n in range(1, _TERMS):
        powers.append(A @ powers[-1] / n)
        pulled = A @ noises[-1]
        noises.append((pulled + pulled.mT) / (n + 1))
    step = tau.double()[:, None] / 2**doublings
    rising = step ** torch.arange(_TERMS, dtype=A.dtype, device=A.device)
    E = (rising @ torch.stack(powers).flatten(1)).unflatten(1, (K, K))
    Sigma = ((step * rising) @ torch.stack(noises).flatten(1)).unflatten(1, (K, K))
    for _ in range(doublings):
        E, Sigma = E @ E, Sigma + E @ Sigma @ E.mT
    return E, (Sigma + Sigma.mT) / 2


def factor(Sigma: Tensor, tau: Tensor) -> Tensor:
    """Lower Cholesky factors (B, K, K) of kernels over tau (B,); zero where tau is.

    Nothing is ever added to Sigma: at small tau the smallest jitter would be many times Sigma_xx.

    Raises:
        ValueError: if a kernel is singular to float64, which happens at too small a tau.
    """
    still = (tau == 0)[:, None, None]
    one = torch.eye(Sigma.shape[-1], dtype=Sigma.dtype, device=Sigma.device)
    L, info = torch.linalg.cholesky_ex(torch.where(still, one, Sigma))
    if bool(info.any()):
        first = float(tau[info > 0].min())
        raise ValueError(
            f"the kernel over tau = {first:.3g} is singular to float64; keep away from t = 0 "
            "(raise t_min) or use fewer auxiliaries"
        )
    return torch.where(still, 0.0, L)


def widened(L: Tensor, spread: Tensor) -> Tensor:
    """Lower factor (B, K, K) of L L^T + spread spread^T, spread (B, K, M).

    By an orthogonal triangulation of the factors themselves: with noise that is tiny beside the
    spread, the digits that tell them apart would be lost in the sum of the squares.
    """
    R = torch.linalg.qr(torch.cat([L, spread], -1).mT, mode="reduced").R
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (sign[..., None] * R).mT


def apply(matrix: Tensor, u: Tensor) -> Tensor:
    """Matrices (B, K, K) or (K, K) on the variables of states u (B, K, *), in the dtype of u."""
    return (matrix.to(u) @ u.flatten(2)).reshape(u.shape)
