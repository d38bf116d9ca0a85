"""The nouns of diffusion, and the page that fixes the notation for every other module.

Time runs from data to noise: ``t = 0`` is data, ``t = 1`` is the prior, and ``s < t``.

    x_0 ~ data                          what we want more of
    x_t ~ q(x_t | x_0)                  a noised version           Process.perturb
    f(x_t, t, cond)                     the network's prediction   Denoiser
    score = grad log p_t(x_t)           what it knows about p_t    Process.score
    q(x_s | x_t)                        one step back              Process.transition -> Transition
    log p(x_s) + <d, x_s>, ...          a step that was steered    Transition.mix, .tilt, .temper

A process is *Brownian* when its state, seen in an unscaled frame y (for tensors y = x / alpha_t,
for poses the pose itself), does Brownian motion with clock sigma_t^2, one clock for each of its
factors:

    y_t = y_0 (+) u,   u ~ K(sigma_t)
    score = grad log p_t(y_t)            on R^d: (E[y_0 | y_t] - y_t) / sigma_t^2

where (+) adds on R^d and moves along the tangent on a manifold. Everything that tensors and poses
have in common follows from that line: the Brownian bridge back (`bridge.Bridge`), the probability
flow (`Brownian.flow`), correctors and lengths. The clock stops at a small sigma_0 > 0 in some
processes; a step *to* ``s = 0`` always means the data themselves, so it lands on the denoised
state and adds no noise.

Shapes: B batch (for poses: poses), ``*`` the rest of a state. Times are tensors of shape (B,).
A tangent is a tensor, or a mapping of named tensors for product spaces; its leading axis is B.
Coefficients are computed in the precision of t or better and cast to the state's last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Any
Prediction: TypeAlias = Any
Tangent: TypeAlias = Any  # Tensor (B, *) or Mapping[str, Tensor]
Source: TypeAlias = torch.Generator | Sequence[torch.Generator] | None

__all__ = [
    "Brownian",
    "Denoiser",
    "Guidance",
    "Noised",
    "Normal",
    "Prediction",
    "Process",
    "Source",
    "State",
    "Tangent",
    "Transition",
    "broadcast",
    "evaluating",
    "normal",
    "tangent_map",
    "uniform",
]


# --- small algebra shared by all processes -------------------------------------------------------


def tangent_map(f: Callable[..., Tensor], *tangents: Tangent) -> Tangent:
    """Apply f to the tensors of one or several tangents, name by name for product spaces."""
    first = tangents[0]
    if isinstance(first, Mapping):
        return {name: f(*(tangent[name] for tangent in tangents)) for name in first}
    return f(*tangents)


def broadcast(coefficient: Tensor, like: Tensor) -> Tensor:
    """Shape a coefficient (B,) as (B, 1, ...) beside `like` (B, *), in the dtype of `like`."""
    return coefficient.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def _draw(
    sampler: Callable[..., Tensor], shape: Sequence[int], source: Source, like: Tensor
) -> Tensor:
    if source is None or isinstance(source, torch.Generator):
        device = like.device if source is None else source.device
        size = tuple(shape)  # of one row of (B,) nothing is left
        return sampler(size, generator=source, device=device, dtype=like.dtype).to(like.device)
    if len(source) != shape[0]:
        raise ValueError(
            f"got {len(source)} generators for a batch of {shape[0]}: give one, or one per row"
        )
    return torch.stack([_draw(sampler, shape[1:], row, like) for row in source])


def normal(shape: Sequence[int], source: Source, like: Tensor) -> Tensor:
    """Draw N(0, 1) with the dtype and device of `like`.

    A generator draws on its own device and the numbers are moved, so a CPU generator gives the same
    numbers whatever device the state lives on. A sequence of generators gives every row its own
    stream: then a row does not depend on which others share its batch.

    Args:
        shape: (B, *).
        source: one generator, B generators, or None for torch's global one.
        like: sets dtype and device.
    """
    return _draw(torch.randn, shape, source, like)


def uniform(shape: Sequence[int], source: Source, like: Tensor) -> Tensor:
    """Draw U[0, 1) with the dtype and device of `like`; see `normal`."""
    return _draw(torch.rand, shape, source, like)


@contextmanager
def evaluating(*modules: object) -> Iterator[None]:
    """No gradients and no dropout inside; every module's own training flag is put back after."""
    flags = {m: m.training for top in modules if isinstance(top, nn.Module) for m in top.modules()}
    for module in flags:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


# --- protocols -----------------------------------------------------------------------------------


class Denoiser(Protocol):
    """The network: what is known of x_0 once x_t is seen."""

    def __call__(self, x_t: State, t: Tensor, cond: Any) -> Prediction: ...


class Guidance(Protocol):
    """Steers a step: a map from q(x_s | x_t) to another transition of the same kind."""

    def __call__(
        self, q: Transition, x_t: State, t: Tensor, s: Tensor, cond: Any
    ) -> Transition: ...


# --- one step back -------------------------------------------------------------------------------


class Transition(ABC):
    """A law q(x_s | x_t) that has not been sampled yet, so that it can still be steered."""

    @abstractmethod
    def sample(self, generator: Source = None) -> State:
        """Draw x_s."""

    @abstractmethod
    def mix(self, other: Transition, weight: float) -> Transition:
        """The law q^(1 - weight) other^weight, normalised: natural parameters interpolate.

        A negative weight extrapolates away from `other`. Both must come from the same process and
        times.
        """

    @abstractmethod
    def tilt(self, direction: Tangent) -> Transition:
        """The law q(x_s) exp<direction, x_s>, normalised.

        The direction is a tangent in the unscaled frame, as scores are, and adds to them. The
        displacement is that of the noising kernel between s and t, also where the step itself
        draws no noise (probability flow, last step): steering a deterministic sampler still steers
        it.
        """

    @abstractmethod
    def temper(self, temperature: float) -> Transition:
        """The law q^(1 / temperature), normalised: below 1 it keeps closer to its mode."""


@dataclass(frozen=True)
class Normal(Transition):
    """x_s ~ N(mean, variance I).

    Attributes:
        mean: (B, *).
        variance: (B,), what `sample` draws with; may be zero.
        kernel: (B,), displacement of the mean per unit of direction in `tilt`.
    """

    mean: Tensor
    variance: Tensor
    kernel: Tensor

    def sample(self, generator: Source = None) -> Tensor:
        noise = normal(self.mean.shape, generator, self.mean)
        return self.mean + broadcast(self.variance.sqrt(), self.mean) * noise

    def mix(self, other: Transition, weight: float) -> Normal:
        assert isinstance(other, Normal)
        return Normal(torch.lerp(self.mean, other.mean, weight), self.variance, self.kernel)

    def tilt(self, direction: Tensor) -> Normal:
        return Normal(
            self.mean + broadcast(self.kernel, self.mean) * direction, self.variance, self.kernel
        )

    def temper(self, temperature: float) -> Normal:
        return Normal(self.mean, self.variance * temperature, self.kernel)


# --- the process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noised:
    """A noised state and what a network is taught at it.

    Attributes:
        x_t: the state.
        target: what `Process.loss` compares a prediction with (a clean state, noise, or scores).
    """

    x_t: State
    target: Any


class Process(nn.Module, ABC):
    """A law that turns data into noise, with what is needed to learn it and to walk it back."""

    @abstractmethod
    def prior(self, like: State, generator: Source = None) -> State:
        """Draw x_1, in the shape of `like`."""

    @abstractmethod
    def perturb(self, x_0: State, t: Tensor, generator: Source = None) -> Noised:
        """Draw x_t ~ q(x_t | x_0), with the target of the loss. t: (B,)."""

    @abstractmethod
    def loss(self, prediction: Prediction, noised: Noised, x_0: State, t: Tensor) -> Tensor:
        """Weighted error of a prediction, (B,)."""

    @abstractmethod
    def transition(self, x_t: State, prediction: Prediction, t: Tensor, s: Tensor) -> Transition:
        """q(x_s | x_t) under a prediction. t, s: (B,) with s < t."""

    @abstractmethod
    def score(self, prediction: Prediction, x_t: State, t: Tensor) -> Tangent:
        """grad log p_t at x_t, in the unscaled frame (log-ratios for tokens)."""

    @abstractmethod
    def norm(self, tangent: Tangent, t: Tensor) -> Tensor:
        """Length (B,) of a difference of scores, in units of the noise at t."""

    def parts(
        self, prediction: Prediction, noised: Noised, x_0: State, t: Tensor
    ) -> dict[str, Tensor]:
        """The loss taken apart for logging, each (B,); one part unless the process has factors."""
        return {"loss": self.loss(prediction, noised, x_0, t)}

    def reframe(self, x_t: State, t: Tensor, s: Tensor) -> State:
        """The same point of the unscaled frame, written as a state of time s."""
        return x_t


class Brownian(Process):
    """A process that is Brownian motion in its unscaled frame; see the top of this page."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tangent:
        """The noise level in the unscaled frame, (B,) for each factor."""

    @abstractmethod
    def move(self, x_t: State, tangent: Tangent, t: Tensor, s: Tensor) -> State:
        """x_s with y_s = y_t (+) tangent."""

    @abstractmethod
    def noise(self, x: State, sigma: Tangent, generator: Source = None) -> Tangent:
        """A displacement u ~ K(sigma) in the tangent at x; sigma as `sigma(t)` gives it."""

    @abstractmethod
    def size(self, tangent: Tangent) -> Tensor:
        """Root mean square (B,) of a tangent over degrees of freedom, factors weighted."""

    @property
    def extent(self) -> Tangent:
        """The largest displacement that means anything, a float for each factor."""
        return float("inf")

    def velocity(self, t: Tensor) -> Tangent:
        """The scale to explore p_t at, (B,) by factor: sigma_t, capped where the space ends."""
        return tangent_map(lambda sigma, top: sigma.clamp(max=top), self.sigma(t), self.extent)

    def norm(self, tangent: Tangent, t: Tensor) -> Tensor:
        scaled = tangent_map(lambda d, v: broadcast(v, d) * d, tangent, self.velocity(t))
        return self.size(scaled)

    def sigma_to(self, s: Tensor) -> Tangent:
        """The noise level a step to s ends at: sigma_s, and none at s = 0, which is the data."""
        return tangent_map(lambda sigma_s: torch.where(s > 0, sigma_s, 0.0), self.sigma(s))

    def level(self, t: Tensor) -> Tensor:
        """One noise level for all factors, their geometric mean; shape of t."""
        sigma_t = self.sigma(t)
        if not isinstance(sigma_t, Mapping):
            return sigma_t
        return torch.stack([value.log() for value in sigma_t.values()]).mean(0).exp()

    def flow(self, score: Tangent, t: Tensor, s: Tensor) -> Tangent:
        """Displacement of one Euler step of the probability flow dy / dsigma = -sigma score."""
        return tangent_map(
            lambda d, sigma_t, sigma_s: broadcast(sigma_t * (sigma_t - sigma_s), d) * d,
            score,
            self.sigma(t),
            self.sigma_to(s),
        )

    def diffuse(self, x_s: State, s: Tensor, t: Tensor, generator: Source = None) -> State:
        """One step of noising, x_t ~ q(x_t | x_s) with s <= t."""
        between = tangent_map(
            lambda sigma_t, sigma_s: (sigma_t**2 - sigma_s**2).clamp(min=0).sqrt(),
            self.sigma(t),
            self.sigma(s),
        )
        return self.move(x_s, self.noise(x_s, between, generator), s, t)
