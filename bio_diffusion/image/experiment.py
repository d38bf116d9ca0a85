"""Training on pictures: what `train experiment=image/...` builds.

`Images` trains a U-Net and, where there are latents, their encoder with it; `CodePriorFit` then
fits the latents' prior to the frozen encoder; `ClassifierFit` trains the network whose features
the Frechet distance uses.

Shapes: B batch, C channels, H, W pixels, m latents, K codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bio_diffusion import checkpoint
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.collapse import balanced
from bio_diffusion.diffusion.latents import (
    Latents,
    gumbel_softmax,
    hide,
    prior_loss,
    usage,
)
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.diffusion.training import keyed_generator, stratified_times
from bio_diffusion.image.dataset import Pictures, open_pictures
from bio_diffusion.image.metrics import Classifier
from bio_diffusion.image.model import ARGUMENTS, ImageModel, restored

__all__ = ["ClassifierFit", "CodePriorFit", "Images"]


class _Batches:
    """Pictures in random order, the same batches whenever and wherever they are asked for."""

    quantile: Callable[[Tensor], Tensor] | None = None
    condition: Callable[..., Any] | None = None

    def __init__(
        self, device: torch.device, data: str, batch: int, flip: bool, bf16: bool, seed: int
    ) -> None:
        self.device, self.batch, self.bf16, self.seed = device, batch, bf16, seed
        self.flip = flip
        self.train, self.val = (open_pictures(data, split) for split in ("train", "val"))

    def fits(self, shape: Sequence[int]) -> None:
        """Raises: ConfigError if the pictures have another shape."""
        for pictures in (self.train, self.val):
            if pictures.shape != tuple(shape):
                raise ConfigError(
                    f"the pictures have the shape {list(pictures.shape)}, and experiment.shape is "
                    f"{list(shape)}: give theirs"
                )

    def drawn(self, start: int, rank: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        """Pixels (B, C, H, W) uint8 and places of batch k, drawn by (seed, k, rank)."""
        for number in itertools.count(start):
            generator = keyed_generator(self.seed, number, rank)
            index = torch.randint(len(self.train), (self.batch,), generator=generator)
            pixels = self.train.x[index]
            if self.flip:
                turned = torch.rand(self.batch, generator=generator) < 0.5
                pixels = torch.where(turned[:, None, None, None], pixels.flip(-1), pixels)
            yield pixels.to(self.device), index, generator

    @contextmanager
    def fast(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16))
            if self.device.type == "cpu":  # the fused kernel's backward pass is ten times slower
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield


class Images(_Batches):
    """The experiment of a picture model (see `train.Experiment`).

    Args:
        device: where to train.
        data: of `open_pictures`.
        shape: (C, H, W) of the pictures.
        process: gaussian, uniform or absorbing.
        levels: grey levels of tokens.
        network: arguments of `UNet`.
        latents: arguments of `PictureEncoder`; none without.
        batch: B.
        lr: learning rate of AdamW.
        noise: mean and standard deviation of ln sigma in training.
        tau: temperature of the latents' relaxation.
        hard: one-hot latents in training, with gradients of the soft ones.
        hide: share of pictures whose latents are hidden in training.
        bonus: weight of `collapse.balanced`, for even use of the codes.
        flip: mirror pictures at random.
        bf16: multiply in bfloat16; losses stay in float32.
        seed: order of the data.
    """

    kind = "image"

    def __init__(
        self,
        device: torch.device,
        data: str,
        shape: Sequence[int],
        process: str = "gaussian",
        levels: int = 256,
        network: Mapping[str, Any] | None = None,
        latents: Mapping[str, Any] | None = None,
        batch: int = 128,
        lr: float = 1e-3,
        noise: tuple[float, float] = (-1.2, 1.2),
        tau: float = 1.0,
        hard: bool = False,
        hide: float = 0.1,
        bonus: float = 0.0,
        flip: bool = False,
        bf16: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(device, data, batch, flip, bf16, seed)
        self.tau, self.hard, self.hide, self.bonus = tau, hard, hide, bonus
        self.fits(shape)
        self.model = ImageModel(shape, process, levels, network, latents).to(device)
        self.module: nn.Module = self.model
        self.process = self.model.process
        self.quantile = self.model.times_of(*noise)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States, and the clean pictures in [-1, 1] that latents are read from."""
        for pixels, _, _ in self.drawn(start, rank):
            yield self.model.state(pixels), pixels.float() / 127.5 - 1

    def condition(
        self, x_0: Tensor, pictures: Tensor, generator: torch.Generator
    ) -> Latents | None:
        """Read the latents off the clean pictures; hide some."""
        if self.model.encoder is None:
            return None
        with self.fast():
            logits = balanced(self.model.encoder(pictures), self.bonus)
        z = gumbel_softmax(logits, self.tau, self.hard, generator)
        return hide(z, self.hide, generator)

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Latents | None) -> Tensor:
        with self.fast():
            return self.model.denoiser(x_t, t, cond)

    def evaluate(self) -> dict[str, float]:
        """Denoising loss on held-out pictures, by third of the training times, and how latents
        fare.

        ``oracle`` latents come from the encoder and the clean picture, ``shuffled`` ones from
        another picture, ``null`` ones are hidden. Of the codes: information I(z; x) and marginal
        entropy in nats a latent, and the share that is hardly used.
        """
        sums: dict[str, list[Tensor]] = {}
        chosen = torch.randperm(len(self.val), generator=keyed_generator(0))[:1024]
        logits: list[Tensor] = []
        for number, index in enumerate(chosen.split(256)):
            pixels = self.val.x[index].to(self.device)
            x_0 = self.model.state(pixels)
            u = stratified_times(len(x_0), keyed_generator(number), self.quantile)
            noised = self.model.process.perturb(x_0, u.to(self.device), keyed_generator(number, 1))
            thirds = (3 * stratified_times(len(x_0), keyed_generator(number))).long().clamp(max=2)
            for name, cond in self._variants(pixels, number, logits):
                prediction = self.denoiser(noised.x_t, u.to(self.device), cond)
                loss = self.model.process.loss(prediction, noised, x_0, u.to(self.device)).cpu()
                sums.setdefault(name, []).append(loss)
                for third in range(3):
                    sums.setdefault(f"{name}_t{third}", []).append(loss[thirds == third])
        figures = {name: float(torch.cat(values).mean()) for name, values in sums.items()}
        if logits:
            found = usage(torch.cat(logits))
            for name in ("information", "marginal", "dead"):
                figures[name] = float(getattr(found, name).mean())
        return figures

    def _variants(
        self, pixels: Tensor, number: int, logits: list[Tensor]
    ) -> Iterator[tuple[str, Latents | None]]:
        if self.model.encoder is None:
            yield "loss", None
            return
        logits.append(self.model.encoder(pixels.float() / 127.5 - 1))
        z = gumbel_softmax(logits[-1], 1.0, True, keyed_generator(number, 2))
        shown = Latents(z, torch.zeros(len(z), dtype=torch.bool, device=z.device))
        yield "oracle", shown
        yield "shuffled", shown._replace(z=z.roll(1, 0))
        yield "null", shown.hidden()


class _Given(nn.Module):
    """No noise: the prediction of the network is its error already, (B,)."""

    def perturb(self, x_0: Any, t: Tensor, generator: Any = None) -> Noised:
        return Noised(x_0, x_0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Any, t: Tensor) -> Tensor:
        return prediction

    def parts(self, prediction: Tensor, noised: Noised, x_0: Any, t: Tensor) -> dict[str, Tensor]:
        return {"loss": prediction.detach()}


class CodePriorFit(_Batches):
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
        seed: int = 0,
    ) -> None:
        loaded = checkpoint.load(Path(model), self.kind)
        given = dict(zip(ARGUMENTS, (shape, process, levels, network, latents), strict=True))
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
        """Held-out nats a latent: of the prior, of the encoder's own laws (the least that the prior
        can reach), of independent codes with the histogram's frequencies, and log K."""
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


class ClassifierFit(_Batches):
    """The experiment of the classifier whose features the Frechet distance uses.

    Args:
        device: where to train.
        data: of `open_pictures`, with labels.
        features: of the last layer but one.
        batch: B.
        lr: learning rate of AdamW.
        seed: order of the data.

    Raises:
        ValueError: the pictures have no labels.
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
            raise ValueError(f"{data}: its pictures have no labels to learn")
        classes = int(self.train.y.max()) + 1
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
