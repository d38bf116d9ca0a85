"""The smallest whole experiment: eight Gaussians of unequal weight in the plane, seconds on a core.

    python -m bio_diffusion.train experiment=toy/mixture

To begin your own, copy it: a state that displacements act on (`Points`), a network that predicts
scores (`PointScore`), and the object that `train.Experiment` describes (`Mixture`), registered by
name in `config`. What stands under `experiment:` in the settings arrives as its arguments.

Shapes: B batch of points.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.product import R3, ProductDiffusion
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.training import keyed_generator

CENTERS = [(4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)) for k in range(8)]
SHARES = [k / 36 for k in range(1, 9)]
SPREAD = 0.3  # standard deviation about a centre


@dataclass(frozen=True)
class Points:
    """B points in the plane. x: (B, 2)."""

    x: Tensor

    def moved(self, tangent: Mapping[str, Tensor]) -> "Points":
        return Points(self.x + tangent["x"])

    def tangent_shapes(self) -> Mapping[str, Sequence[int]]:
        return {"x": self.x.shape}

    def __len__(self) -> int:
        return len(self.x)


class PointScore(nn.Module):
    """Score of a point: a small network on (x_t / sqrt(1 + sigma^2), log sigma), over sigma."""

    def __init__(self, process: ProductDiffusion, width: int) -> None:
        super().__init__()
        self.process = process
        self.layers = nn.Sequential(
            nn.Linear(3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x_t: Points, t: Tensor, cond: None = None) -> dict[str, Tensor]:
        sigma = self.process.sigma(t)["x"].to(x_t.x)[:, None]
        features = torch.cat([x_t.x / (1 + sigma**2).sqrt(), sigma.log()], dim=-1)
        return {"x": self.layers(features) / sigma}


class Mixture:
    """The experiment.

    Args:
        device: where to train.
        width: of the network.
        batch: B.
        lr: learning rate of AdamW.
        samples: drawn to evaluate.
    """

    kind = "toy"
    condition = None
    quantile = None

    def __init__(
        self,
        device: torch.device,
        width: int = 64,
        batch: int = 256,
        lr: float = 1e-3,
        samples: int = 2000,
    ) -> None:
        self.device, self.batch, self.samples = device, batch, samples
        self.process = ProductDiffusion({"x": (R3(), 0.05, 10.0, 1.0)}).to(device)
        self.denoiser = PointScore(self.process, width).to(device)
        self.module: nn.Module = self.denoiser
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=lr)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Points, None]]:
        """Batch k of a rank is drawn anew from (k, rank), so any of them may be the first."""
        centers, shares = torch.tensor(CENTERS), torch.tensor(SHARES)
        for number in itertools.count(start):
            generator = keyed_generator(number, rank)
            modes = torch.multinomial(shares, self.batch, replacement=True, generator=generator)
            noise = torch.randn(self.batch, 2, generator=generator)
            yield Points((centers[modes] + SPREAD * noise).to(self.device)), None

    def evaluate(self) -> dict[str, float]:
        """`mass_error`: total variation between the modes' shares among samples and in truth."""
        like = Points(torch.zeros(self.samples, 2, device=self.device))
        prior = self.process.prior(like, keyed_generator(0))
        times = torch.linspace(1, 0, 41, device=self.device)
        x = sample(self.process, self.denoiser, prior, times, generator=keyed_generator(1)).x
        modes = torch.cdist(x.cpu(), torch.tensor(CENTERS)).argmin(dim=-1)
        shares = torch.bincount(modes, minlength=8) / self.samples
        return {"mass_error": float((shares - torch.tensor(SHARES)).abs().sum()) / 2}
