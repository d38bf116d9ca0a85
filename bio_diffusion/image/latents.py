"""DisCo latents of pictures: an encoder of clean pictures into codes.

m latents, each one of K codes, say what a denoiser at high noise cannot see. The encoder is trained
with the U-Net, which reads the codes by cross-attention; their prior, a `CausalPrior` of the core,
learns afterwards to draw them, one after another.

Shapes: B batch, m latents, K codes, E features.

Source: Xu et al., "DisCo-Diff", ICML 2024, Section 3.3 and Appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PictureEncoder"]


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
        layer = nn.TransformerEncoderLayer(
            features, heads, 4 * features, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(features), enable_nested_tensor=False
        )
        self.head = nn.Linear(features, codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = F.pad(pictures, (0, self.short[1], 0, self.short[0]), value=-1.0)
        seen = self.patches(pictures).flatten(2).mT
        blank = seen.new_zeros(len(seen), self.latents, seen.shape[-1])
        tokens = self.layers(torch.cat([blank, seen], 1) + self.places)
        return self.head(tokens[:, : self.latents]).float()
