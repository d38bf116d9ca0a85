"""How good pictures are: the Frechet distance of a network's features.

The classifier ships (`mnist_classifier`), is trained on MNIST's own training part, and serves this
measure alone. The distance is called `Frechet distance (MNIST classifier features)`: it is no FID,
whose features come from Inception on ImageNet (`inception`, for users who have its weights), and
compares with no published figure.

Shapes: B batch, N pictures, F features.

Source: Heusel et al. 2017 (the distance); Dowson & Landau 1982.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Classifier", "Moments", "frechet_distance"]


class Classifier(nn.Module):
    """Class logits of pictures in [-1, 1]; `features` is what they are read off.

    Args:
        channels: C.
        classes: of the labels.
        features: F.
        width: of the first convolution.
    """

    def __init__(self, channels: int, classes: int, features: int = 64, width: int = 24) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.AdaptiveMaxPool2d(4),
            nn.GELU(),
        )
        self.hidden = nn.Linear(16 * 2 * width, features)
        self.head = nn.Linear(features, classes)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, F)."""
        return F.gelu(self.hidden(self.convolutions(pictures).flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, classes)."""
        return self.head(F.dropout(self.features(pictures), 0.2, self.training))

    @torch.no_grad()
    def describe(self, pixels: Tensor, size: int = 250) -> Tensor:
        """Features (N, F) float64 of uint8 pixels (N, C, H, W)."""
        device = self.head.weight.device
        parts = (part.to(device).float() / 127.5 - 1 for part in pixels.split(size))
        return torch.cat([self.features(part).double().cpu() for part in parts])

    @torch.no_grad()
    def sure(self, features: Tensor, least: float = 0.9) -> float:
        """Share of pictures, by their `describe`, that it calls one class with such a chance."""
        weight, bias = self.head.weight.double().cpu(), self.head.bias.double().cpu()
        chance = F.linear(features, weight, bias).softmax(-1).amax(-1)
        return float((chance > least).double().mean())


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F) of a set of features."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Raises: ValueError if there are fewer than two pictures in features (N, F)."""
        if len(features) < 2:
            raise ValueError("the Frechet distance needs two pictures at least on either side")
        return cls(features.double().mean(0), torch.cov(features.double().T))


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features, (N, F) each.

    A and B are the sets' covariances; instead of a set its moments may be given. The value is that
    of the finite sets: sets of a few thousand from the same source are some way above 0, so compare
    sets of equal size only.

    Raises:
        ValueError: a set has fewer than two members.
    """
    (m, A), (n, B) = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    if isinstance(a, Tensor) and len(a) < a.shape[1]:  # rows R with R^T R = A are at hand
        rows = (a.double() - m) / (len(a) - 1) ** 0.5
    else:
        values, vectors = torch.linalg.eigh(A)
        rows = values.clamp(min=0).sqrt()[:, None] * vectors.T
    # R B R^T and A^(1/2) B A^(1/2) have the same eigenvalues, zeros apart
    cross = torch.linalg.eigvalsh(rows @ B @ rows.T).clamp(min=0).sqrt().sum()
    return float((m - n).square().sum() + A.trace() + B.trace() - 2 * cross)
