"""DisCo latents of pictures: an encoder of clean pictures into codes, and their prior.

m latents, each one of K codes, say what a denoiser at high noise cannot see. `PictureEncoder` is
trained with the U-Net, which reads the codes by cross-attention; `CodePrior` learns afterwards to
draw them, one after another.

Shapes: B batch, m latents, K codes, E features.

Source: Xu et al., "DisCo-Diff", ICML 2024, Section 3.3 and Appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CodePrior", "PictureEncoder"]


def _layers(features: int, heads: int, depth: int, dropout: float = 0.0) -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            features, heads, 4 * features, dropout, F.gelu, batch_first=True, norm_first=True
        )
        for _ in range(depth)
    )


class PictureEncoder(nn.Module):
    """Logits (B, m, K) of the codes of clean pictures in [-1, 1]; untrained, all codes alike.

    A small vision transformer: patches and m learned tokens; the m outputs give the logits.

    Args:
        shape: (C, H, W).
        latents: m.
        codes: K.
        patch: side of a patch; the picture is padded to whole ones.
        features: E.
        depth: layers.
        heads: of the attention.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latents: int = 8,
        codes: int = 16,
        patch: int = 4,
        features: int = 64,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        self.latents, self.codes = latents, codes
        self.short = [-side % patch for side in sides]
        count = ((sides[0] + self.short[0]) // patch) * ((sides[1] + self.short[1]) // patch)
        self.patches = nn.Conv2d(channels, features, patch, stride=patch)
        self.places = nn.Parameter(0.1 * torch.randn(count + latents, features))
        self.layers = _layers(features, heads, depth)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = F.pad(pictures, (0, self.short[1], 0, self.short[0]), value=-1.0)
        seen = self.patches(pictures).flatten(2).mT
        blank = seen.new_zeros(len(seen), self.latents, seen.shape[-1])
        tokens = torch.cat([blank, seen], 1) + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens[:, : self.latents])).float()


class CodePrior(nn.Module):
    """An autoregressive law of the codes: causal transformer, a `diffusion.latents.Prior`.

    Args:
        latents: m.
        codes: K.
        features: E.
        depth: layers.
        heads: of the attention.
        dropout: in the layers; small priors overfit.
    """

    def __init__(
        self,
        latents: int,
        codes: int,
        features: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.code = nn.Parameter(0.1 * torch.randn(latents, codes, features))
        self.places = nn.Parameter(0.1 * torch.randn(latents, features))
        self.layers = _layers(features, heads, depth, dropout)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Parameter(torch.zeros(latents, features, codes))

    def forward(self, z: Tensor, cond: None = None) -> Tensor:
        """Logits (B, m, K) of each latent from those before it in z (B, m, K)."""
        known = torch.einsum("bmk,mke->bme", z.to(self.code), self.code)
        tokens = F.pad(known[:, :-1], (0, 0, 1, 0)) + self.places
        m = tokens.shape[1]
        later = torch.ones(m, m, dtype=torch.bool, device=tokens.device).triu(1)
        for layer in self.layers:
            tokens = layer(tokens, src_mask=later)
        return torch.einsum("bme,mek->bmk", self.norm(tokens), self.head)
