"""Diffusion on products of R^d, rotations and angles: a pose and what moves it.

Each factor k of the product has a kernel K_k (Brownian motion on its group) and a geometric clock

    sigma_k(t) = sigma_min^(1 - t) sigma_max^t,   u_k ~ K_k(sigma_k(t)),   x_t = x_0.moved({k: u_k})

and the network learns the scores of the kernels, target_k = grad_u log K_k(u_k; sigma_k(t)).
The kernels share one convention (see `kernels`), so one bridge steps back along each of them.

Shapes: B batch, n degrees of freedom of a factor (3 for a translation or rotation, M torsions; M
may be 0).

Source: Corso et al. 2023, Section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.kernels import R3, SO3, Euclidean, Kernel, Torus
from bio_diffusion.diffusion.process import (
    Brownian,
    Noised,
    Source,
    State,
    Transition,
    broadcast,
    normal,
    tangent_map,
)

__all__ = [
    "R3",
    "SO3",
    "Euclidean",
    "Factor",
    "Kernel",
    "Movable",
    "Moves",
    "ProductDiffusion",
    "Torus",
]


class Movable(Protocol):
    """What a state must do to diffuse: be a batch of B things that displacements act on."""

    def moved(self, tangent: Mapping[str, Tensor]) -> Movable: ...

    def tangent_shapes(self) -> Mapping[str, Sequence[int]]:
        """Shape of each factor's displacement, e.g. {"tr": (B, 3), "tor": (B, M)}."""
        ...

    def __len__(self) -> int: ...


class Factor(NamedTuple):
    """One factor of the product: its kernel, its range of noise, and its weight in the loss."""

    kernel: Kernel
    sigma_min: float
    sigma_max: float
    weight: float = 1.0


@dataclass(frozen=True)
class Moves(Transition):
    """x_s = x_t.moved(u), u_k ~ N(mean_k, variance_k I) in the tangent at x_t.

    Attributes:
        x_t: a `Movable` of B.
        mean: (B, n) by factor.
        variance: (B,) by factor, what `sample` draws with; may be zero.
        kernel: (B,) by factor, sigma_t^2 - sigma_s^2, what `tilt` steers with.
    """

    x_t: State
    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    kernel: Mapping[str, Tensor]

    def sample(self, generator: Source = None) -> State:
        def draw(mean: Tensor, variance: Tensor) -> Tensor:
            return mean + broadcast(variance.sqrt(), mean) * normal(mean.shape, generator, mean)

        return self.x_t.moved(tangent_map(draw, self.mean, self.variance))

    def mix(self, other: Transition, weight: float) -> Moves:
        assert isinstance(other, Moves)
        return replace(
            self, mean=tangent_map(lambda a, b: torch.lerp(a, b, weight), self.mean, other.mean)
        )

    def tilt(self, direction: Mapping[str, Tensor]) -> Moves:
        """Factors that `direction` leaves out stay as they are."""
        shifts = {k: broadcast(self.kernel[k], d) * d for k, d in direction.items()}
        return replace(
            self, mean={k: m + shifts[k] if k in shifts else m for k, m in self.mean.items()}
        )

    def temper(self, temperature: float) -> Moves:
        return replace(self, variance={k: v * temperature for k, v in self.variance.items()})


class ProductDiffusion(Brownian):
    """Brownian motion on a product of spaces, all driven by one time t.

    A prediction is a mapping of scores, (B, n) by factor, estimates of E[target | x_t].

    Args:
        factors: name -> (kernel, sigma_min, sigma_max, weight). Names are those of
            `Movable.tangent_shapes`.
        bridge: how steps go back, for all factors or by name; may be assigned anew before sampling
            (``process.bridge = Bridge(eta=0)`` turns the sampler into the probability flow).

    Example:
        >>> process = ProductDiffusion({
        ...     "tr": (R3(), 0.1, 19.0, 1.0),
        ...     "rot": (SO3(), 0.03, 1.55, 1.0),
        ...     "tor": (Torus(), 0.03, 3.14, 1.0),
        ... })

    Source: Corso et al. 2023, Sections 4.2 to 4.4.
    """

    _origin: Tensor  # knows the device

    def __init__(
        self,
        factors: Mapping[str, Factor | tuple[Kernel, float, float, float]],
        bridge: Bridge | Mapping[str, Bridge] | None = None,
    ) -> None:
        super().__init__()
        self.factors = {name: Factor(*factor) for name, factor in factors.items()}
        if not self.factors:
            raise ValueError("a product needs at least one factor")
        for name, (_, low, high, weight) in self.factors.items():
            if not (0 < low < high and weight >= 0):
                raise ValueError(
                    f"factor {name!r}: want 0 < sigma_min < sigma_max and weight >= 0, "
                    f"got {low}, {high}, {weight}"
                )
        self.kernels = nn.ModuleDict({name: factor.kernel for name, factor in self.factors.items()})
        self.bridge: Bridge | Mapping[str, Bridge] = Bridge() if bridge is None else bridge
        self.register_buffer("_origin", torch.empty(0), persistent=False)

    def sigma(self, t: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.exp(math.log(low) + t.double() * math.log(high / low))
            for name, (_, low, high, _) in self.factors.items()
        }

    def rms_score(self, t: Tensor) -> dict[str, Tensor]:
        """sqrt E[target^2] per degree of freedom, (B,) by factor.

        A network that puts out numbers near 1 is multiplied by it to give scores.
        """
        return {
            k: self.factors[k].kernel.mean_square(sigma).sqrt()
            for k, sigma in self.sigma(t).items()
        }

    def noise(
        self, x: State, sigma: Mapping[str, Tensor], generator: Source = None
    ) -> dict[str, Tensor]:
        shapes = self._shapes(x)
        return {k: f.kernel.sample(shapes[k], sigma[k], generator) for k, f in self.factors.items()}

    def move(self, x_t: State, tangent: Mapping[str, Tensor], t: Tensor, s: Tensor) -> State:
        return x_t.moved(tangent)

    def prior(self, like: State, generator: Source = None) -> State:
        """x_1: `like` moved by N(0, sigma_max^2) in R^d factors and uniformly in compact ones.

        `like` must therefore lie where the prior is centred (for docking, on the pocket's centre).
        """
        shapes, tangent, device = self._shapes(like), {}, self._origin.device
        for name, (kernel, _, high, _) in self.factors.items():
            sigma = torch.full((len(like),), high, dtype=torch.float64, device=device)
            tangent[name] = kernel.prior(shapes[name], sigma, generator)
        return like.moved(tangent)

    def perturb(self, x_0: State, t: Tensor, generator: Source = None) -> Noised:
        sigma = self.sigma(t)
        u = self.noise(x_0, sigma, generator)
        target = {k: f.kernel.score(u[k], sigma[k]) for k, f in self.factors.items()}
        return Noised(x_0.moved(u), target)

    def loss(
        self, prediction: Mapping[str, Tensor], noised: Noised, x_0: State, t: Tensor
    ) -> Tensor:
        parts = self.parts(prediction, noised, x_0, t)
        return torch.stack([self.factors[k].weight * part for k, part in parts.items()]).sum(0)

    def parts(
        self, prediction: Mapping[str, Tensor], noised: Noised, x_0: State, t: Tensor
    ) -> dict[str, Tensor]:
        """Mean square error of the scores of each factor, over E[target^2] per degree; (B,) each.

        About 1 for a prediction of zero, and 0 for a factor with no degrees of freedom.
        """
        sigma = self.sigma(t)
        return {
            k: _mean((prediction[k] - noised.target[k]) ** 2)
            / f.kernel.mean_square(sigma[k]).to(prediction[k])
            for k, f in self.factors.items()
        }

    def transition(
        self, x_t: State, prediction: Mapping[str, Tensor], t: Tensor, s: Tensor
    ) -> Moves:
        sigma_t, sigma_s = self.sigma(t), self.sigma_to(s)
        mean, variance, kernel = {}, {}, {}
        for name in self.factors:
            bridge = self.bridge if isinstance(self.bridge, Bridge) else self.bridge[name]
            drift, variance[name] = bridge(sigma_t[name], sigma_s[name])
            mean[name] = broadcast(drift, prediction[name]) * prediction[name]
            kernel[name] = sigma_t[name] ** 2 - sigma_s[name] ** 2
        return Moves(x_t, mean, variance, kernel)

    def score(self, prediction: Mapping[str, Tensor], x_t: State, t: Tensor) -> dict[str, Tensor]:
        return {name: prediction[name] for name in self.factors}

    def size(self, tangent: Mapping[str, Tensor]) -> Tensor:
        """sqrt sum_k weight_k mean |d_k|^2, the mean over the degrees of freedom."""
        squares = [f.weight * _mean(tangent[k] ** 2) for k, f in self.factors.items()]
        return torch.stack(squares).sum(0).sqrt()

    @property
    def extent(self) -> dict[str, float]:
        return {name: factor.kernel.extent for name, factor in self.factors.items()}

    def _shapes(self, x: State) -> Mapping[str, Sequence[int]]:
        shapes = x.tangent_shapes()
        if missing := self.factors.keys() - shapes.keys():
            raise ValueError(
                f"the state moves in {sorted(shapes)}, but the process also has {sorted(missing)}"
            )
        return shapes


def _mean(values: Tensor) -> Tensor:
    """Mean over all but the batch, (B,); zero where there is nothing to average (no torsions)."""
    return values.flatten(1).sum(1) / max(values[0].numel() if len(values) else 1, 1)
