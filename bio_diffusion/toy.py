"""The smallest whole experiment: eight Gaussians of unequal weight in the plane, seconds on a core.

    python -m bio_diffusion.train experiment=toy/mixture

To begin your own, copy it: a process, a network, and the object that `train.Experiment` describes,
registered by name in `config`. What stands under `experiment:` in the settings arrives as its
arguments.

Shapes: B batch of points.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint
from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.schedule import karras
from bio_diffusion.diffusion.training import keyed_generator

CENTERS = [(4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)) for k in range(8)]
SHARES = [k / 36 for k in range(1, 9)]
SPREAD = 0.3  # standard deviation about a centre


class Network(nn.Module):
    """(B, 2) points and (B,) noise to (B, 2), between which `Preconditioned` keeps unit size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, noise: Tensor, cond: None = None) -> Tensor:
        return self.layers(torch.cat([x, noise[:, None]], dim=-1))


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
        self.process = GaussianDiffusion(EDM(0.05, 20.0), sigma_data=2.8)  # about 4 / sqrt 2
        self.denoiser = Preconditioned(Network(width), self.process).to(device)
        self.module: nn.Module = self.denoiser
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=lr)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, None]]:
        """Batch k of a rank is drawn anew from (k, rank), so any of them may be the first."""
        centers, shares = torch.tensor(CENTERS), torch.tensor(SHARES)
        for number in itertools.count(start):
            generator = keyed_generator(number, rank)
            modes = torch.multinomial(shares, self.batch, replacement=True, generator=generator)
            noise = torch.randn(self.batch, 2, generator=generator)
            yield (centers[modes] + SPREAD * noise).to(self.device), None

    def evaluate(self) -> dict[str, float]:
        """`mass_error`: total variation between the modes' shares among samples and in truth."""
        like = torch.zeros(self.samples, 2, device=self.device)
        prior = self.process.prior(like, keyed_generator(0))
        times = karras(self.process, 40).to(self.device)
        x = sample(self.process, self.denoiser, prior, times, generator=keyed_generator(1))
        modes = torch.cdist(x.cpu(), torch.tensor(CENTERS)).argmin(dim=-1)
        shares = torch.bincount(modes, minlength=8) / self.samples
        return {"mass_error": float((shares - torch.tensor(SHARES)).abs().sum()) / 2}


def schedule_probe(
    path: Path, probes: int
) -> tuple[GaussianDiffusion, nn.Module, list[tuple[Tensor, None]]]:
    """Process, network and data to fit a time grid on."""
    loaded = checkpoint.load(path, "toy")
    settings = {k: v for k, v in loaded.config["experiment"].items() if k != "name"}
    mixture = Mixture(torch.device("cpu"), **{**settings, "batch": probes})
    loaded.into(mixture.module)
    return mixture.process, mixture.denoiser, [next(mixture.batches(0, 0, 1))]
