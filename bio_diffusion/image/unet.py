"""A small DDPM++-like U-Net, from a million weights to sixty, with cross-attention to latents.

    stem     (B, C, H, W) -> patches of `patch` x `patch` pixels as channels -> 3 x 3 convolution
    down     `blocks` residual blocks a level, the first of each further level halving the picture
    middle   one block with attention
    up       as many blocks, each given the block of the way down that it answers
    head     normalised, 3 x 3 convolution from zero, patches unfolded

Every block is told the noise level by a scale and shift after its second normalisation. Sums of two
branches are divided by sqrt 2, so that features keep unit size. Where latents are given, each
self-attention is followed by a cross-attention to their embeddings; with `hierarchical`, the
latents are split into one group a level instead, and group g is seen on the way up at the g-th
lowest resolution only.

Shapes: B batch, C channels, m latents, K codes, E features of the embeddings.

Source: Song et al. 2021 (DDPM++); Karras et al. 2022, Appendix F.2; Xu et al. 2024, Section 3.3
    (latents); Hoogeboom et al. 2023 (patches at the stem).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.diffusion.latents import Latents

__all__ = ["UNet"]

HALF = math.sqrt(0.5)


class UNet(nn.Module):
    """(B, C_in, H, W), noise (B,) and latents to (B, C_out, H, W).

    Args:
        channels: C_in.
        outputs: C_out.
        widths: features at each level, from the finest.
        blocks: residual blocks a level.
        attention: levels with self-attention, beside the middle.
        patch: side of the pixel patches that enter as channels; H and W must divide by it.
        heads: of every attention.
        embedding: E.
        dropout: inside residual blocks.
        latents: m; 0 for none.
        codes: K.
        hierarchical: one group of latents for each level of the way up.

    Raises:
        ValueError: for a level or a count that does not fit.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        patch: int = 1,
        heads: int = 4,
        embedding: int = 128,
        dropout: float = 0.0,
        latents: int = 0,
        codes: int = 0,
        hierarchical: bool = False,
    ) -> None:
        super().__init__()
        levels = len(widths)
        if not levels or blocks < 1 or patch < 1:
            raise ValueError("widths must name a level at least; blocks and patch be 1 or more")
        if outside := [level for level in attention if not 0 <= level < levels]:
            raise ValueError(f"attention names level {outside[0]}; there are 0 to {levels - 1}")
        if any(width % heads for width in widths):
            raise ValueError(f"widths {list(widths)} must divide by the {heads} heads")
        if hierarchical and latents % levels:
            raise ValueError(f"{latents} latents do not split into {levels} groups, one a level")
        self.patch, self.levels = patch, levels
        self.groups = levels if hierarchical else 1
        self.noise = NoiseEmbedding(embedding)
        self.codes = LatentEmbedding(latents, codes, embedding) if latents else None
        seen = embedding if latents else 0
        below = 0 if hierarchical else seen  # latents on the way down and in the middle

        def block(inputs: int, level: int, latent: int, resize: int = 0) -> Block:
            attends = level in attention
            return Block(inputs, widths[level], embedding, heads, attends, latent, resize, dropout)

        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down, skips, width = nn.ModuleList(), [], widths[0]
        for level in range(levels):
            latent = below if level in attention else 0
            for number in range(blocks):
                resize = -1 if level and not number else 0
                self.down.append(block(width, level, latent, resize))
                width = widths[level]
                skips.append(width)
        self.middle = Block(width, width, embedding, heads, True, below, 0, dropout)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            latent = seen if hierarchical or level in attention else 0
            for number in range(blocks):
                resize = 1 if level < levels - 1 and not number else 0
                # hierarchical: the last block of a level alone looks at the level's group
                looks = 0 if hierarchical and number < blocks - 1 else latent
                self.up.append(block(width + skips.pop(), level, looks, resize))
                width = widths[level]
        self.blocks = blocks
        self.norm = group_norm(width)
        self.head = _silent(nn.Conv2d(width, outputs * patch**2, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, cond: Latents | None = None) -> Tensor:
        told = self.noise(noise)
        codes = None if self.codes is None else self.codes(cond, len(x), x)
        x = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips = []
        for block in self.down:
            x = block(x, told, codes)
            skips.append(x)
        x = self.middle(x, told, codes)
        for number, block in enumerate(self.up):
            skip = skips.pop()
            if block.resize:
                x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], 1), told, self._group(codes, number // self.blocks))
        x = self.head(F.silu(self.norm(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def _group(self, codes: Tensor | None, group: int) -> Tensor | None:
        """The embeddings that a level of the way up sees."""
        if codes is None or self.groups == 1:
            return codes
        return codes.chunk(self.groups, 1)[group]


class Block(nn.Module):
    """Two convolutions told the noise level, then attention within the picture and to latents.

    Args:
        inputs: features that come in.
        width: features that go out.
        embedding: E.
        heads: of the attentions.
        attends: whether it has self-attention.
        latent: features of the latents' embeddings; 0 where it sees none.
        resize: -1 halves the picture first; +1 is enlarged by the U-Net before the skip joins.
        dropout: before the second convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        embedding: int,
        heads: int,
        attends: bool,
        latent: int,
        resize: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.norm_in, self.norm_out = group_norm(inputs), group_norm(width)
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.conv_out = _silent(nn.Conv2d(width, width, 3, padding=1))
        self.told = nn.Linear(embedding, 2 * width)
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(width, width, heads) if attends else None
        self.latents = Attention(width, latent, heads) if latent else None

    def forward(self, x: Tensor, told: Tensor, codes: Tensor | None) -> Tensor:
        if self.resize < 0:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        h = self.conv_out(self.dropout(F.silu(h)))
        x = (self.skip(x) + h) * HALF
        if self.attention is not None:
            x = (x + self.attention(x, None)) * HALF
        if self.latents is not None and codes is not None:
            x = (x + self.latents(x, codes)) * HALF
        return x


class Attention(nn.Module):
    """The pixels of x (B, C, H, W) look at each other, or at tokens (B, m, E); zero at the start.

    Args:
        width: C.
        source: features of what is looked at.
        heads: that C is split into.
    """

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(width)
        self.ask = nn.Linear(width, width)
        self.answer = nn.Linear(source, 2 * width)
        self.out = _silent(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        pixels = self.norm(x).flatten(2).mT
        key, value = self.answer(pixels if tokens is None else tokens).chunk(2, -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.ask(pixels), key, value)
        )
        if x.device.type == "cpu" and q.dtype == torch.bfloat16:  # whose backward pass is slow
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(x.device.type, enabled=False):
            found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2)).mT.unflatten(2, x.shape[2:])


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level at 16 frequencies, then two layers; (B,) -> (B, E)."""

    rates: Tensor

    def __init__(self, embedding: int, frequencies: int = 16) -> None:
        super().__init__()
        # periods from 20 down to 0.2: noise levels enter as ln(sigma) / 4 or a time in [0, 1]
        octaves = torch.linspace(0, 1, frequencies)
        self.register_buffer("rates", 0.3 * 100**octaves, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * frequencies, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        phase = noise[:, None] * self.rates
        return self.layers(torch.cat([phase.sin(), phase.cos()], -1))


class LatentEmbedding(nn.Module):
    """z (B, m, K) on the simplex to tokens (B, m, E); learned tokens where latents are hidden."""

    def __init__(self, latents: int, codes: int, embedding: int) -> None:
        super().__init__()
        if codes < 2:
            raise ValueError(f"latents need two codes at least, got {codes}")
        self.codes = nn.Parameter(torch.randn(latents, codes, embedding))
        self.null = nn.Parameter(torch.randn(latents, embedding))
        self.mixed = nn.TransformerEncoderLayer(
            embedding, 4, 2 * embedding, dropout=0.0, activation=F.gelu, batch_first=True,
            norm_first=True,
        )  # fmt: skip

    def forward(self, cond: Latents | None, batch: int, like: Tensor) -> Tensor:
        if cond is None:
            tokens = self.null.expand(batch, -1, -1)
        else:
            tokens = torch.einsum("bmk,mke->bme", cond.z.to(self.codes), self.codes)
            tokens = torch.where(cond.null[:, None, None], self.null, tokens)
        return self.mixed(tokens)


def _silent(layer: nn.Conv2d | nn.Linear) -> Any:
    """A layer that at first says next to nothing, so that its block begins as the identity."""
    nn.init.normal_(layer.weight, std=1e-5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(width: int) -> nn.GroupNorm:
    """Normalises groups of four features or more, 32 groups at most."""
    groups = next(g for g in range(min(32, max(1, width // 4)), 0, -1) if width % g == 0)
    return nn.GroupNorm(groups, width, eps=1e-6)
