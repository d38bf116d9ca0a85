"""Networks over sequences: a transformer for short ones, a convolutional one for long DNA.

Both see letters (B, L) or their one-hot form (B, L, V + 1), the time (B,) and class labels (B, P),
and give features (B, L, width). Time and labels enter every layer by adaptive normalisation whose
gates start at zero, so that a fresh network is the identity.

Shapes: B batch, L sites, V letters (and the mask), P labelled properties, H heads, D of one head.

Source: Peebles & Xie 2023 (adaLN-zero); Su et al. 2021 (rotary positions); Avdeyev et al. 2023 (the
    convolutional network for promoters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

__all__ = ["Attention", "Convolution", "Past", "Sequences", "layer_kinds"]


class Past:
    """Keys and values of the sites that a causal layer has read, (B, H, sites, D)."""

    def __init__(self) -> None:
        self.sites = 0
        self._k = self._v = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of further sites; returns all."""
        if self.sites:
            k, v = torch.cat([self._k, k], dim=2), torch.cat([self._v, v], dim=2)
        self._k, self._v, self.sites = k, v, k.shape[2]
        return k, v


class Attention(nn.Module):
    """Self-attention with rotary positions, then a feed-forward network; 12 width^2 weights.

    Args:
        width: of the features.
        heads: H.
        causal: a site sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice the {heads} heads")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adapt = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, h: Tensor, given: Tensor, past: Past | None = None) -> Tensor:
        """Features of the sites after those in `past`, which gains them."""
        parts = self.adapt(given)[:, None].chunk(6, dim=-1)
        h = h + parts[2] * self._attend(_adapted(h, parts[0], parts[1]), past or Past())
        return h + parts[5] * self.feed(_adapted(h, parts[3], parts[4]))

    def _attend(self, h: Tensor, past: Past) -> Tensor:
        first = past.sites
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        turn = _rotations(first, h.shape[1], q.shape[-1], q)
        k, v = past.extend(_turned(k, *turn), v)
        mask = None
        if self.causal and first:
            mask = torch.ones(h.shape[1], k.shape[2], dtype=torch.bool, device=h.device).tril(first)
        q = _turned(q, *turn)
        if q.device.type == "cpu":  # whose backward pass takes four times as long in bfloat16
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=self.causal and not first
            )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Convolution(nn.Module):
    """A dilated convolution over sites, then a mixing of channels; (kernel + 4) width^2 weights.

    Cost grows linearly with L, so it is the network for long sequences; a stack whose dilation
    grows sees hundreds of sites.

    Args:
        width: of the features.
        kernel: sites that one convolution sees, odd.
        dilation: distance between them.
    """

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(
            width, width, kernel, dilation=dilation, padding=dilation * (kernel // 2)
        )
        self.feed = nn.Sequential(nn.GELU(approximate="tanh"), nn.Linear(width, width))
        self.adapt = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, h: Tensor, given: Tensor) -> Tensor:
        shift, scale, gate = self.adapt(given)[:, None].chunk(3, dim=-1)
        seen = self.convolution(_adapted(h, shift, scale).transpose(1, 2)).transpose(1, 2)
        return h + gate * self.feed(seen)


def layer_kinds(
    kind: str, width: int, depth: int, heads: int, kernel: int, causal: bool
) -> list[nn.Module]:
    """The layers of a network, "attention" or "convolution" (dilations 1, 2, 4, 8, 16 in turn).

    Raises:
        ValueError: for another kind, or a causal convolution.
    """
    if kind == "attention":
        return [Attention(width, heads, causal) for _ in range(depth)]
    if kind == "convolution" and not causal:
        return [Convolution(width, kernel, 2 ** (i % 5)) for i in range(depth)]
    raise ValueError(f"no {'causal ' * causal}layers of kind {kind!r}: take attention")


class Sequences(nn.Module):
    """Letters, time and labels to features (B, L, width), normalised.

    Args:
        letters: V; the embedding holds one more, the mask.
        classes: number of classes of each of P properties; label K stands for "not told".
        kind: "attention" or "convolution".
        width: of the features.
        depth: layers.
        heads: of attention.
        kernel: of convolutions.
        causal: what is given at a site depends on sites before it, and not on itself: the input is
            moved by one site, with the mask in front.
        timed: whether the network is told t. Masked and left-to-right models need not be, since the
            number of masks says it.
    """

    def __init__(
        self,
        letters: int,
        classes: Sequence[int] = (),
        kind: str = "attention",
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        kernel: int = 9,
        causal: bool = False,
        timed: bool = True,
    ) -> None:
        super().__init__()
        self.letters, self.causal, self.timed = letters, causal, timed
        self.embed = nn.Embedding(letters + 1, width)
        self.labels = nn.ModuleList(nn.Embedding(k + 1, width) for k in classes)
        self.clock = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(layer_kinds(kind, width, depth, heads, kernel, causal))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        past: Sequence[Past] | None = None,
    ) -> Tensor:
        """Features of all sites or, given what causal layers read before, of those after it."""
        if x_t.is_floating_point():
            h = x_t @ self.embed.weight
        else:
            h = self.embed(x_t)
        if self.causal:
            before = self.embed.weight[self.letters].expand(len(h), 1, -1).to(h)
            h = torch.cat([before, h[:, :-1]], dim=1)
        given = self.clock(_sinusoids(t if self.timed else torch.zeros_like(t)))
        if cond is not None:
            for column, table in enumerate(self.labels):
                given = given + table(cond[:, column])
        given = F.silu(given)
        if past is None:
            for layer in self.layers:
                h = layer(h, given)
        else:
            h = h[:, past[0].sites :]
            for layer, read in zip(self.layers, past, strict=True):
                h = layer(h, given, read)
        return self.norm(h)


def _adapted(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift


def _sinusoids(t: Tensor, count: int = 64) -> Tensor:
    """(B, count) waves of t in [0, 1], from one turn to a thousand."""
    rates = 2 * math.pi * torch.logspace(0, 3, count // 2, device=t.device)
    angle = t.float()[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _rotations(first: int, count: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (count, D) of the rotary positions from the first on."""
    rates = 10_000 ** -(torch.arange(0, size, 2, device=like.device).float() / size)
    angle = torch.arange(first, first + count, device=like.device).float()[:, None] * rates
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-two, one], dim=-1) * sin
