"""The smallest whole experiment: eight unequal Gaussians in the plane. Copy it to begin your own.

    python -m bio_diffusion.train experiment=toy/mixture

A domain offers an object like `Mixture` (`train.Experiment`) and registers what builds it in
`config`; settings under `experiment:` arrive as its arguments.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.product import R3, ProductDiffusion
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.training import keyed_generator


@dataclass(frozen=True)
class Points:
    x: Tensor

    def moved(self, tangent: Mapping[str, Tensor]) -> "Points":
        return Points(self.x + tangent["x"])

    def tangent_shapes(self) -> Mapping[str, Any]:
        return {"x": tuple(self.x.shape)}

    def __len__(self) -> int:
        return len(self.x)


class Net(nn.Module):
    def __init__(self, process: ProductDiffusion, width: int) -> None:
        super().__init__()
        self.process = process
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x_t: Points, t: Tensor, cond: Any) -> Mapping[str, Tensor]:
        sigma = self.process.sigma(t)["x"][:, None].float()
        h = torch.cat([x_t.x / (1 + sigma), sigma.log()], -1)
        return {"x": self.layers(h) / sigma}


class Mixture:
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
        self.process = ProductDiffusion({"x": (R3(), 0.05, 10.0, 1.0)})
        self.module = self.denoiser = Net(self.process, width).to(device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=lr)
        angles = torch.arange(8) * (math.pi / 4)
        self.centers = 4 * torch.stack([angles.cos(), angles.sin()], -1)
        self.shares = torch.arange(1.0, 9.0) / 36

    def draw(self, generator: torch.Generator) -> Points:
        k = torch.multinomial(self.shares, self.batch, replacement=True, generator=generator)
        return Points(
            (self.centers[k] + 0.3 * torch.randn(self.batch, 2, generator=generator)).to(
                self.device
            )
        )

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Points, None]]:
        for number in itertools.count(start):
            yield self.draw(keyed_generator(number, rank)), None

    def evaluate(self) -> dict[str, float]:
        prior = self.process.prior(
            Points(torch.zeros(self.samples, 2, device=self.device)), keyed_generator(0)
        )
        x = sample(
            self.process,
            self.denoiser,
            prior,
            torch.linspace(1, 0, 41),
            generator=keyed_generator(1),
        )
        nearest = torch.cdist(x.x.cpu(), self.centers).argmin(-1)
        shares = torch.bincount(nearest, minlength=8) / self.samples
        return {"mass_error": float((shares - self.shares).abs().sum() / 2)}
