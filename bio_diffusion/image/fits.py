"""What is fitted beside a picture model: the prior of its latents, and the classifier whose
features the Frechet distance uses.

Shapes: B batch, N pictures, m latents, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion import checkpoint
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.latents import prior_loss, usage
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.image.batches import Batches
from bio_diffusion.image.dataset import Pictures
from bio_diffusion.image.metrics import Classifier
from bio_diffusion.image.model import ARGUMENTS, SIGMA_DATA, restored

__all__ = ["ClassifierFit", "CodePriorFit"]


class _Given(nn.Module):
    """No noise: the prediction of the network is its error already, (B,)."""

    def perturb(self, x_0: Any, t: Tensor, generator: Any = None) -> Noised:
        return Noised(x_0, x_0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Any, t: Tensor) -> Tensor:
        return prediction

    def parts(self, prediction: Tensor, noised: Noised, x_0: Any, t: Tensor) -> dict[str, Tensor]:
        return {"loss": prediction.detach()}


class CodePriorFit(Batches):
    """The experiment of the latents' prior; its file holds the whole model.

    Args:
        device: where to train.
        model: file of the trained `Images` run.
        data: as there.
        shape: as there, and so the others of `ARGUMENTS`.
        process: as there.
        levels: as there.
        network: as there.
        latents: as there.
        sigma_data: as there.
        head: as there.
        recipe: as there.
        prior: arguments of `CausalPrior`.
        batch: B.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        seed: order of the data.

    Raises:
        ConfigError: the model has no latents, or was built with other settings.
    """

    kind = "image"

    def __init__(
        self,
        device: torch.device,
        model: str,
        data: str,
        shape: Sequence[int],
        process: str = "gaussian",
        levels: int = 256,
        network: Mapping[str, Any] | None = None,
        latents: Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        batch: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        sigma_data: float = SIGMA_DATA,
        head: str = "logistic",
        recipe: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        loaded = checkpoint.load(Path(model), self.kind)
        own = (shape, process, levels, network, latents, sigma_data, head, recipe)
        given = dict(zip(ARGUMENTS, own, strict=True))
        for name, value in loaded.config["experiment"].items():
            if name in given and given[name] != value:
                raise ConfigError(f"experiment.{name} differs from that of {model}: give the same")
        if not latents:
            raise ConfigError(f"{model} has no latents, so there is no prior to fit")
        super().__init__(device, data, batch, False, False, seed)
        self.fits(shape)
        self.model = restored(loaded, prior or {}).to(device)
        assert self.model.encoder is not None and self.model.prior is not None
        self.model.requires_grad_(False)
        self.model.prior.requires_grad_(True)
        self.module: nn.Module = self.model
        self.process = _Given()
        self.optimizer = torch.optim.AdamW(
            self.model.prior.parameters(), lr=lr, weight_decay=weight_decay
        )
        self.model.encoder.eval()
        self._codes = {
            name: self._read(pictures)
            for name, pictures in (("train", self.train), ("val", self.val))
        }

    @torch.no_grad()
    def _read(self, pictures: Pictures) -> Tensor:
        """The frozen encoder's logits (N, m, K) of all pictures, computed once."""
        encoder = self.model.encoder
        assert encoder is not None
        parts = (part.to(self.device).float() / 127.5 - 1 for part in pictures.x.split(500))
        return torch.cat([encoder(part) for part in parts])

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, None]]:
        for _, index, _ in self.drawn(start, rank):
            yield self._codes["train"][index.to(self.device)], None

    def condition(self, x_0: Tensor, cond: None, generator: torch.Generator) -> torch.Generator:
        return generator

    def denoiser(self, x_t: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Nats a picture to write the encoder's codes by the prior."""
        assert self.model.prior is not None
        return prior_loss(self.model.prior, x_t, None, generator)

    def evaluate(self) -> dict[str, float]:
        """Held-out nats a latent: of the prior, of the encoder's own laws (below which no prior can
        come), of independent codes with the histogram's frequencies, and log K."""
        assert self.model.prior is not None
        logits = self._codes["val"]
        nll = prior_loss(self.model.prior, logits, None, keyed_generator(0))
        found = usage(logits)
        return {
            "nll": float(nll.mean()) / logits.shape[1],
            "entropy": float(found.conditional.mean()),
            "histogram": float(found.marginal.mean()),
            "log_k": float(torch.tensor(float(logits.shape[2])).log()),
        }


class ClassifierFit(Batches):
    """The experiment of the classifier whose features the Frechet distance uses.

    Args:
        device: where to train.
        data: of `open_pictures`, with labels.
        features: of the last layer but one.
        batch: B.
        lr: learning rate of AdamW.
        seed: order of the data.

    Raises:
        ConfigError: the pictures have no labels.
    """

    kind = "image_classifier"

    def __init__(
        self,
        device: torch.device,
        data: str,
        features: int = 64,
        batch: int = 128,
        lr: float = 2e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(device, data, batch, False, True, seed)
        if self.train.y is None or self.val.y is None:
            raise ConfigError(
                f"{data}: its pictures have no labels, whole numbers from 0, to learn"
            )
        classes = int(max(self.train.y.max(), self.val.y.max())) + 1
        self.model = Classifier(self.train.shape[0], classes, features).to(device)
        self.module: nn.Module = self.model
        self.process = _Given()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.05)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.train.y is not None
        for pixels, index, generator in self.drawn(start, rank):
            # moved by up to two pixels
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            pictures = (pixels.float() / 127.5 - 1).roll((down, right), (-2, -1))
            yield pictures, self.train.y[index].to(self.device)

    def denoiser(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with self.fast():
            logits = self.model(x_t)
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def evaluate(self) -> dict[str, float]:
        """Share of held-out pictures that it names rightly."""
        assert self.val.y is not None
        parts = self.val.x.split(500)
        named = [self.model(p.to(self.device).float() / 127.5 - 1).argmax(-1).cpu() for p in parts]
        return {"accuracy": float((torch.cat(named) == self.val.y).double().mean())}
