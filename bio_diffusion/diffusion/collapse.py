"""When discrete latents collapse: what tells it beside `latents.usage`, and what helps.

The objective of DisCo-Diff has no term for the use of codes, and codes may die or go silent.

    joined, shared    how much all latents together say, and how much of it is about known classes
    balanced          a bonus for even use, carried by the gradient
    revive            a dead code takes half the work of the most used one

Shapes: B batch, m latents, K codes, common to all samples.

Source: ours; the paper names no remedy. Reviving codes is common with vector quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["balanced", "joined", "revive", "shared"]


def joined(logits: Tensor) -> Tensor:
    """Logits (B, 1, K^m) of all m latents (B, m, K) as one, for `usage` and `shared`; small K^m."""
    log_p = logits.detach().double().log_softmax(-1)
    out = log_p[:, 0]
    for i in range(1, log_p.shape[1]):
        out = (out[:, :, None] + log_p[:, i, None]).flatten(1)
    return out[:, None]


def shared(logits: Tensor, labels: Tensor) -> Tensor:
    """I(z; label) of each latent with known classes (B,) of the data, (m,) in nats.

    At most the entropy of the labels, and at most `usage(logits).information`. What a latent says
    of x_0 beyond its class is in the second and not in the first.
    """
    p = logits.detach().double().softmax(-1)
    law = torch.stack([p[labels == label].sum(0) for label in labels.unique()]) / len(p)
    entr = torch.special.entr
    by_code, by_label = entr(law.sum(0)).sum(-1), entr(law.sum(-1)).sum(0)
    return by_code + by_label - entr(law).sum((0, -1))


def balanced(logits: Tensor, weight: float = 0.1) -> Tensor:
    """The same logits (B, m, K); training through them also spreads use over the codes.

        penalty = weight * mean over latents of (log K - H(mean over the batch of softmax(logits)))

    Its gradient joins what comes back from the loss, so no loss needs to know of it. Batches must
    be large beside K; not for pointers, whose codes differ between samples.
    """
    if weight == 0 or not logits.requires_grad:
        return logits
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        use = torch.special.entr(leaf.float().softmax(-1).mean(0)).sum(-1).mean()
        (slope,) = torch.autograd.grad(-weight * use, leaf)
    out = logits.view_as(logits)
    out.register_hook(lambda gradient: gradient + slope)
    return out


@torch.no_grad()
def revive(
    logits: Tensor,
    bias: Tensor,
    tables: Sequence[Tensor],
    generator: torch.Generator | None = None,
    jitter: float = 0.1,
) -> Tensor:
    """Give every dead code half of what the most used code of its latent has, in place.

    The dead code becomes a copy of the other, a little off, so the model says nearly the same as
    before and the two can go separate ways. Dead is as in `usage`; call it now and then while
    training, and let the last third be.

    Args:
        logits: (B, m, K) of the encoder over much data.
        bias: (m, K), what the encoder adds to each logit.
        tables: parameters with a row a code, (m, K, *): the encoder's last weights and what the
            denoiser knows of each code. Views of parameters will do.
        generator: of the jitter, on the CPU.
        jitter: size of the difference, in units of the row's root mean square.

    Returns:
        (m, K) bool, the codes that were dead.
    """
    mean = logits.double().softmax(-1).mean(0)
    dead = mean < 0.1 / mean.shape[-1]
    for i, code in dead.nonzero().tolist():
        top = int(mean[i].argmax())
        for table in tables:
            row = table[i, top]
            noise = torch.randn(row.shape, generator=generator).to(row)
            table[i, code] = row + jitter * row.square().mean().sqrt() * noise
        bias[i, top] -= math.log(2)
        bias[i, code] = bias[i, top]
        mean[i, top] /= 2
        mean[i, code] = mean[i, top]
    return dead
