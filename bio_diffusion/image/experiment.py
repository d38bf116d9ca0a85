"""Training on pictures: what `train experiment=image` builds.

`Images` trains a U-Net and, where there are latents, their encoder with it. What is fitted beside
it, the latents' prior and a classifier, stands in `fits`.

Shapes: B batch, C channels, H, W pixels, m latents, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.collapse import balanced
from bio_diffusion.diffusion.latents import Latents, gumbel_softmax, hide, usage
from bio_diffusion.diffusion.training import keyed_generator, stratified_times
from bio_diffusion.image.batches import Batches
from bio_diffusion.image.model import PROCESSES, SIGMA_DATA, ImageModel

__all__ = ["Images"]


class Images(Batches):
    """The experiment of a picture model (see `train.Experiment`).

    Args:
        device: where to train.
        data: of `open_pictures`.
        shape: (C, H, W) of the pictures.
        process: of `model.PROCESSES`.
        levels: grey levels of tokens.
        network: arguments of `UNet`.
        latents: arguments of `PictureEncoder`; none without.
        batch: B.
        lr: learning rate of AdamW.
        noise: mean and standard deviation of ln sigma in training, of the Gaussian process.
        sigma_data: width of the pixels in [-1, 1], for EDM's scalings.
        head: what the network gives for a token: a `softmax` over the levels, or a `logistic` law.
        recipe: Q, D and S of the process `linear`.
        tau: temperature of the latents' relaxation.
        hard: one-hot latents in training, with gradients of the soft ones.
        hide: share of pictures whose latents are hidden in training.
        bonus: weight of `collapse.balanced`, for even use of the codes.
        flip: mirror pictures at random.
        bf16: multiply in bfloat16 in the U-Net, where the device is built for it; losses, the
            encoder and multivariate processes, whose kernels need it, stay in float32.
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
        sigma_data: float = SIGMA_DATA,
        head: str = "logistic",
        recipe: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(device, data, batch, flip, bf16, seed)
        self.tau, self.hard, self.hide, self.bonus = tau, hard, hide, bonus
        if process not in PROCESSES:
            known = ", ".join(PROCESSES)
            raise ConfigError(f"experiment.process is {process!r}; it must be one of {known}")
        if len(noise) != 2:
            raise ConfigError(
                f"experiment.noise is {list(noise)}; it must be the mean and the standard "
                "deviation of ln sigma"
            )
        self.fits(shape)
        self.model = ImageModel(
            shape, process, levels, network, latents, None, sigma_data, head, recipe
        ).to(device)
        self.module: nn.Module = self.model
        self.bf16 = bf16 and not self.model.multivariate
        self.process = self.model.process
        self.quantile = self.model.times_of(*noise)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States, and the clean pictures in [-1, 1] that latents are read from."""
        for pixels, _, generator in self.drawn(start, rank):
            yield self.model.state(pixels, generator), pixels.float() / 127.5 - 1

    def condition(
        self, x_0: Tensor, pictures: Tensor, generator: torch.Generator
    ) -> Latents | None:
        """Read the latents off the clean pictures; hide some."""
        if self.model.encoder is None:
            return None
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
            x_0 = self.model.state(pixels, keyed_generator(number, 3))
            u = stratified_times(len(x_0), keyed_generator(number), self.quantile)
            noised = self.model.process.perturb(x_0, u.to(self.device), keyed_generator(number, 1))
            thirds = (3 * stratified_times(len(x_0), keyed_generator(number))).long().clamp(max=2)
            for name, cond in self._variants(pixels, number, logits):
                prediction = self.denoiser(noised.x_t, u.to(self.device), cond)
                loss = self.model.process.loss(prediction, noised, x_0, u.to(self.device)).cpu()
                sums.setdefault(name, []).append(loss)
                for third in thirds.unique().tolist():  # of very few pictures not all have some
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
