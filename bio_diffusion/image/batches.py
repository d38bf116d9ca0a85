"""Pictures in the order in which they are trained on.

Shapes: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.training import bfloat16, keyed_generator
from bio_diffusion.image.dataset import open_pictures

__all__ = ["Batches"]


class Batches:
    """Pictures in random order, the same batches whenever and wherever they are asked for."""

    quantile: Callable[[Tensor], Tensor] | None = None
    condition: Callable[..., Any] | None = None

    def __init__(
        self, device: torch.device, data: str, batch: int, flip: bool, bf16: bool, seed: int
    ) -> None:
        self.device, self.batch, self.bf16, self.seed = device, batch, bf16, seed
        self.flip = flip
        if batch < 1:
            raise ConfigError(f"experiment.batch is {batch}; it must be 1 or more")
        self.train, self.val = (open_pictures(data, split) for split in ("train", "val"))

    def fits(self, shape: Sequence[int]) -> None:
        """Raises: ConfigError if the pictures have another shape."""
        if self.train.shape != self.val.shape:
            here, there = list(self.train.shape), list(self.val.shape)
            raise ConfigError(
                f"pictures to train on have the shape {here}, but held-out ones {there}: bring all "
                "to one"
            )
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

    def fast(self) -> torch.autocast:
        """Multiplications in bfloat16, where that was asked for and is fast."""
        return bfloat16(self.device, self.bf16)
