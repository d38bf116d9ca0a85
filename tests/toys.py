"""Small worlds whose denoisers are known exactly: mixtures of a few points on R, R x S^1 and SO(3).

Every world gives a process, its data, the exact prediction, and a way to count which mode a sample
ended in, so that the laws in `laws.py` can be put to all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.noise import EDM, VE, VP, Cosine
from bio_diffusion.diffusion.process import Brownian
from bio_diffusion.diffusion.product import SO3, Euclidean, ProductDiffusion, Torus

WEIGHTS = (0.5, 0.2, 0.3)


@dataclass(frozen=True)
class Cylinder:
    """A point on R x S^1: height (B, 1), angle (B, 1) in radians."""

    height: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.height)

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"height": (len(self), 1), "angle": (len(self), 1)}

    def moved(self, tangent: Mapping[str, Tensor]) -> Cylinder:
        return Cylinder(self.height + tangent["height"], self.angle + tangent["angle"])


@dataclass(frozen=True)
class Rotation:
    """A rotation matrix (B, 3, 3); a displacement turns it from the left."""

    matrix: Tensor

    def __len__(self) -> int:
        return len(self.matrix)

    def tangent_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"turn": (len(self), 3)}

    def moved(self, tangent: Mapping[str, Tensor]) -> Rotation:
        return Rotation(turn(tangent["turn"]) @ self.matrix)


def turn(u: Tensor) -> Tensor:
    """Rotation matrix (B, 3, 3) of axis-angle vectors u (B, 3), by a matrix exponential."""
    zero = torch.zeros_like(u[:, 0])
    rows = [zero, -u[:, 2], u[:, 1], u[:, 2], zero, -u[:, 0], -u[:, 1], u[:, 0], zero]
    return torch.linalg.matrix_exp(torch.stack(rows, -1).reshape(-1, 3, 3))


def axis_angle(matrix: Tensor) -> Tensor:
    """The axis-angle vector (B, 3) of rotation matrices, angle in [0, pi]."""
    skew = matrix - matrix.transpose(-1, -2)
    vector = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)
    sine, trace = vector.norm(dim=-1), matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return vector * (torch.atan2(sine, trace - 1) / sine.clamp(min=1e-12))[:, None]


class Line:
    """Three points on R^2 (the second coordinate copies the first) under a Gaussian diffusion."""

    modes = torch.tensor([[-1.5, -1.5], [0.3, 0.3], [1.6, 1.6]])
    weights = torch.tensor(WEIGHTS)

    def __init__(self, process: GaussianDiffusion) -> None:
        self.process: Brownian = process

    def data(self, count: int, generator: torch.Generator) -> Tensor:
        return self.modes[torch.multinomial(self.weights, count, True, generator=generator)]

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t]: the modes weighed by their posterior."""
        a, alpha = self.process.sigma(t), self.process.schedule.alpha(t)
        y = x_t.double() / alpha[:, None]
        squares = ((y[:, None] - self.modes) ** 2).sum(-1)
        posterior = (self.weights.double().log() - squares / (2 * a[:, None] ** 2)).softmax(-1)
        return (posterior @ self.modes.double()).to(x_t)

    def nearest(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.modes).norm(dim=-1).argmin(-1)

    def moments(self, x: Tensor) -> Tensor:
        """(B, k) numbers whose means should agree."""
        return torch.stack([x[:, 0], x[:, 1] ** 2, x[:, 0] * x[:, 1]], -1)


@dataclass
class OnCylinder:
    """Three points on R x S^1, heights and angles correlated."""

    heights: Tensor = field(default_factory=lambda: torch.tensor([-2.0, 2.5, 1.0]))
    angles: Tensor = field(default_factory=lambda: torch.tensor([0.5, 2.5, -2.2]))
    weights: Tensor = field(default_factory=lambda: torch.tensor(WEIGHTS))
    process: ProductDiffusion = field(
        default_factory=lambda: ProductDiffusion(
            {"height": (Euclidean(), 0.05, 10.0, 1.0), "angle": (Torus(), 0.05, math.pi, 1.0)}
        )
    )

    def data(self, count: int, generator: torch.Generator) -> Cylinder:
        mode = torch.multinomial(self.weights, count, True, generator=generator)
        return Cylinder(self.heights[mode][:, None], self.angles[mode][:, None])

    def denoiser(self, x_t: Cylinder, t: Tensor, cond: Any = None) -> dict[str, Tensor]:
        sigma, torus = self.process.sigma(t), Torus()
        height, angle = x_t.height.double() - self.heights, x_t.angle.double() - self.angles
        log_p = self.weights.double().log() - height**2 / (2 * sigma["height"][:, None] ** 2)
        posterior = (log_p + torus.log_density(angle, sigma["angle"])).softmax(-1)
        scores = {
            "height": -height / sigma["height"][:, None] ** 2,
            "angle": torus.score(angle, sigma["angle"]),
        }
        return {k: (posterior * v).sum(-1, keepdim=True).float() for k, v in scores.items()}

    def nearest(self, x: Cylinder) -> Tensor:
        return ((x.height - self.heights).abs() - torch.cos(x.angle - self.angles)).argmin(-1)

    def moments(self, x: Cylinder) -> Tensor:
        angle = x.angle[:, 0]
        return torch.stack([x.height[:, 0], x.height[:, 0] ** 2, angle.cos(), angle.sin()], -1)


class OnRotations:
    """Three orientations."""

    def __init__(self) -> None:
        self.process = ProductDiffusion({"turn": (SO3(), 0.05, 2.5, 1.0)})
        self.weights = torch.tensor(WEIGHTS)
        self.modes = turn(torch.tensor([[0.3, 0.0, 0.1], [0.0, 2.0, 1.0], [-1.5, 1.5, 0.0]]))

    def data(self, count: int, generator: torch.Generator) -> Rotation:
        return Rotation(
            self.modes[torch.multinomial(self.weights, count, True, generator=generator)]
        )

    def _from_modes(self, x: Rotation) -> Tensor:
        """The displacements (B, 3 modes, 3) that take each mode to x."""
        apart = x.matrix[:, None] @ self.modes.transpose(-1, -2)
        return axis_angle(apart.reshape(-1, 3, 3)).reshape(-1, 3, 3)

    def denoiser(self, x_t: Rotation, t: Tensor, cond: Any = None) -> dict[str, Tensor]:
        sigma, kernel, u = self.process.sigma(t)["turn"][:, None], SO3(), self._from_modes(x_t)
        log_f = kernel.log_density(u.norm(dim=-1), sigma)
        posterior = (self.weights.double().log() + log_f).softmax(-1)
        return {"turn": (posterior[..., None] * kernel.score(u.double(), sigma)).sum(1).float()}

    def nearest(self, x: Rotation) -> Tensor:
        return self._from_modes(x).norm(dim=-1).argmin(-1)

    def moments(self, x: Rotation) -> Tensor:
        return x.matrix.flatten(1)


WORLDS = {
    "vp": lambda: Line(GaussianDiffusion(VP())),
    "cosine": lambda: Line(GaussianDiffusion(Cosine())),
    "ve": lambda: Line(GaussianDiffusion(VE(0.02, 20.0))),
    "edm": lambda: Line(GaussianDiffusion(EDM(0.02, 20.0))),
    "cylinder": OnCylinder,
    "rotations": OnRotations,
}
