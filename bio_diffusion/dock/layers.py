"""The layers of the docking networks: equivariant messages between nodes and their updates.

Features are pairs (s, V): C scalars and C' vectors a node, `C x 0e + C' x 1e` in e3nn's terms,
without parity. n nodes, K neighbours of each, in dense tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.dock.compiled import apply, kernels_for

__all__ = [
    "Cached",
    "Features",
    "Message",
    "Neighbours",
    "Size",
    "Update",
    "bounded",
    "edges_between",
    "nearest",
    "start",
]

_RADIAL = 16


@dataclass(frozen=True)
class Size:
    """Widths of the network; the defaults are those of the shipped model."""

    scalars: int = 48
    vectors: int = 16
    hidden: int = 32
    layers: int = 4
    receptor_layers: int = 2
    neighbours: int = 12
    receptor_neighbours: int = 10
    latents: int = 0

    def without_latents(self) -> Size:
        return replace(self, latents=0)


class Features(NamedTuple):
    """Scalars (n, C) and vectors (n, 3, C') of n nodes."""

    scalars: Tensor
    vectors: Tensor


class Neighbours(NamedTuple):
    """K senders for each of n receivers: sender (n, K), radial (n, K, G), unit (n, K, 3)."""

    sender: Tensor
    radial: Tensor
    unit: Tensor


class Cached(NamedTuple):
    """Sender features as one kind of message reads them: (n, *) and (n, 3, C')."""

    scalars: Tensor
    vectors: Tensor


def _radial(distance: Tensor, cutoff: float) -> Tensor:
    """Gaussians (…, G) whose spacing grows with distance, zero slope beyond `cutoff`."""
    centers = torch.linspace(0, 1, _RADIAL, device=distance.device) ** 1.5
    scaled = (distance / cutoff).clamp(max=1.2)[..., None]
    width = 1.5 * (0.4 + centers) / _RADIAL
    return torch.exp(-(((scaled - centers) / width) ** 2))


def edges_between(receivers: Tensor, senders: Tensor, index: Tensor, cutoff: float) -> Neighbours:
    """Edge geometry from positions (n, 3) and (n', 3) and sender indices (n, K)."""
    offset = senders[index] - receivers[:, None]
    distance = offset.norm(dim=-1)
    return Neighbours(
        index, _radial(distance, cutoff), offset / distance.clamp(min=1e-3)[..., None]
    )


def nearest(receivers: Tensor, senders: Tensor, count: int, skip_self: bool = False) -> Tensor:
    """Indices (n, K) of the nearest senders; K is smaller where there are fewer."""
    count = min(count, senders.shape[0] - int(skip_self))
    if not skip_self and (kernels := kernels_for(receivers)):
        index = torch.empty(len(receivers), count, dtype=torch.long)
        apply(kernels.nearest, receivers, senders.T, index)
        return index
    distance = torch.cdist(receivers, senders)
    if skip_self:
        distance.fill_diagonal_(math.inf)
    return distance.topk(count, dim=-1, largest=False, sorted=False).indices


class Message(nn.Module):
    """Depthwise tensor product of sender features with the edge's harmonics (1, r).

    An edge's weights come from its length, its receiver's and its sender's scalars through one
    hidden layer; `pair_types` adds a learned vector per kind of pair.
    """

    def __init__(self, size: Size, pair_types: int = 0) -> None:
        super().__init__()
        self.split = [size.scalars, size.vectors, size.vectors, size.vectors]
        self.hidden = size.hidden
        self.radial = nn.Linear(_RADIAL, size.hidden, bias=False)
        self.receiver = nn.Linear(size.scalars, size.hidden)
        self.sender = nn.Linear(size.scalars, size.hidden + size.scalars + size.vectors)
        self.sender_vectors = nn.Linear(size.vectors, size.vectors, bias=False)
        self.weights = nn.Linear(size.hidden, sum(self.split))
        self.pair = nn.Embedding(pair_types, size.hidden) if pair_types else None

    def cache(self, senders: Features) -> Cached:
        """Everything of this message that lives on senders, once a sender."""
        return Cached(self.sender(senders.scalars), self.sender_vectors(senders.vectors))

    def forward(
        self,
        receivers: Tensor,
        senders: Features | Cached,
        edges: Neighbours,
        pair_type: Tensor | None = None,
    ) -> Features:
        """Sum the messages of K senders.

        Args:
            receivers: (n, scalars).
            senders: of n' nodes, as they are or as `cache` returned them.
            edges: K senders for each receiver.
            pair_type: (n, K) long, where the message was made with `pair_types`.

        Returns:
            (n, scalars + vectors) and (n, 3, vectors).
        """
        if isinstance(senders, Features):
            senders = self.cache(senders)
        if kernels := kernels_for(receivers):
            return self._compiled(kernels, receivers, senders, edges, pair_type)
        n, k = edges.sender.shape
        flat = edges.sender.reshape(-1)
        scalars = senders.scalars.index_select(0, flat).view(n, k, -1)
        vectors = senders.vectors.index_select(0, flat).view(n, k, 3, -1)
        key, value, along = scalars.split([self.hidden, self.split[0], self.split[2]], -1)
        hidden = self.radial(edges.radial) + self.receiver(receivers)[:, None] + key
        if self.pair is not None and pair_type is not None:
            hidden = hidden + self.pair(pair_type)
        w_ss, w_vs, w_sv, w_vv = self.weights(F.silu(hidden)).split(self.split, -1)
        scale = 1 / math.sqrt(k)
        dot = (vectors * edges.unit[..., None]).sum(2)
        summed = torch.cat([(w_ss * value).sum(1), (w_vs * dot).sum(1)], -1)
        carried = (w_vv[:, :, None] * vectors).sum(1)
        pointed = edges.unit.transpose(1, 2) @ (w_sv * along)
        return Features(scale * summed, scale * (carried + pointed))

    def _compiled(
        self,
        kernels: ModuleType,
        receivers: Tensor,
        senders: Cached,
        edges: Neighbours,
        pair_type: Tensor | None,
    ) -> Features:
        n, vectors = len(receivers), self.split[1]
        hidden = self.radial(edges.radial)
        if self.pair is not None and pair_type is not None:
            hidden += self.pair(pair_type)
        own = self.receiver(receivers)
        apply(kernels.add_senders, hidden, own, senders.scalars, edges.sender)
        weights = F.linear(F.silu(hidden, inplace=True), self.weights.weight)
        heard = Features(
            receivers.new_empty(n, self.split[0] + vectors), receivers.new_empty(n, 3, vectors)
        )
        sums = kernels.message_sums(self.hidden, self.split[0], vectors)
        bias = self.weights.bias.detach()
        apply(sums, weights, bias, *senders, edges.sender, edges.unit, *heard)
        return heard


class Update(nn.Module):
    """Mix what a node heard from `sources` kinds of senders; form V.V -> s and V x V -> V.

    Scalars leave through a layer norm, vectors through `bounded`: without these, products of
    products grow from layer to layer until they overflow.
    """

    def __init__(self, size: Size, sources: int) -> None:
        super().__init__()
        s, v = size.scalars, size.vectors
        inputs = s + sources * (s + v) + 2 * v
        self.mix = nn.Linear(v * (sources + 1), 3 * v, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, 2 * s), nn.SiLU(), nn.Linear(2 * s, s + 2 * v)
        )
        self.norm = nn.LayerNorm(s)
        self.split = [s, v, v]

    def forward(self, node: Features, heard: list[Features]) -> Features:
        vectors = torch.cat([node.vectors, *(bounded(h.vectors) for h in heard)], -1)
        a, b, c = self.mix(vectors).chunk(3, -1)
        dot = (a * b).sum(1)
        length = (c.square().sum(1) + 1e-6).sqrt()
        inputs = torch.cat([node.scalars, *(h.scalars for h in heard), dot, length], -1)
        change, gate, cross_gate = self.mlp(inputs).split(self.split, -1)
        cross = torch.linalg.cross(b, c, dim=1)
        turned = node.vectors + gate[:, None] * a + cross_gate[:, None] * cross
        return Features(self.norm(node.scalars + change), bounded(turned))


def bounded(vectors: Tensor) -> Tensor:
    """(n, 3, C) over sqrt(1 + mean square length): short ones stay, long ones get length 1."""
    return vectors * torch.rsqrt(1 + vectors.square().sum(1, keepdim=True).mean(-1, keepdim=True))


def start(scalars: Tensor, size: Size) -> Features:
    return Features(scalars, scalars.new_zeros(scalars.shape[0], 3, size.vectors))
