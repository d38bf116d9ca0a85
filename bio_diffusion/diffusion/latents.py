"""Discrete latents beside a continuous diffusion (DisCo-Diff): what is common to every domain.

    z ~ E(x_0)                      encoder, trained with the denoiser through a relaxation
    D(x_t, t, z)                    the denoiser sees z; with probability 0.1 a null latent instead
    z ~ prod_i A(z_i | z_<i, cond)  autoregressive prior, fitted afterwards, used when sampling

DisCo is no process: latents are part of `cond`, so every process can have them and no sampler
knows. In training they come in through the `condition` of `training.fit`; when sampling, from
`sample_prior` before the first step; guidance on the latent is `guidance.ClassifierFree`.

Nothing in the objective keeps the codes in use: `usage` tells, remedies are in `collapse`. Latents
in ordered groups (layout before texture) are one sequence to the prior, and `Latents.groups` to the
network; `sample_prior(known=...)` keeps the first and draws the others anew.

Shapes: B batch, m latents, K codes. Codes may be pointers (to atoms, to residues): then K differs
between batches, and impossible codes have logits of -inf.

Source: Xu, Corso, Jaakkola & Vahdat 2024, Section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.process import Source, uniform

__all__ = [
    "CausalPrior",
    "Latents",
    "Prefixed",
    "Prior",
    "Usage",
    "enumerate_prior",
    "gumbel_softmax",
    "hide",
    "prior_loss",
    "sample_prior",
    "usage",
]


class Latents(NamedTuple):
    """z (B, m, K) on the simplex, and null (B,) bool: where all latents of a sample are hidden."""

    z: Tensor
    null: Tensor

    def hidden(self) -> Latents:
        """The same with every sample's latents hidden: the `null` of classifier-free guidance."""
        return Latents(self.z, torch.ones_like(self.null))

    def groups(self, sizes: Sequence[int]) -> list[Latents]:
        """The m latents in consecutive groups, in the order in which the prior draws them.

        Each group is shown to one level of the network, the first to the coarsest.

        Raises:
            ValueError: if the sizes do not add up to m.

        Source: Xu et al. 2024, Section 3.3 (group-hierarchical latents).
        """
        if sum(sizes) != self.z.shape[1]:
            raise ValueError(f"groups of {list(sizes)} beside {self.z.shape[1]} latents")
        return [Latents(z, self.null) for z in self.z.split(list(sizes), 1)]


def gumbel_softmax(
    logits: Tensor, tau: float = 1.0, hard: bool = False, generator: Source = None
) -> Tensor:
    """softmax((logits + g) / tau), g Gumbel; `hard`: its argmax, with gradients of the soft one.

    A hard sample is an exact draw from softmax(logits) at any tau, which then shapes the gradient
    alone. Straight-through training has been seen to lose codes late, soft training less so: watch
    `usage`.

    Args:
        logits: (B, m, K); -inf where a code is impossible.
        tau: temperature, > 0.
        hard: one-hot forward (straight-through).
        generator: of the noise.

    Returns:
        (B, m, K), on the simplex, float32 whatever the precision around it.

    Source: Jang et al. 2017; Maddison et al. 2017.
    """
    if tau <= 0:
        raise ValueError(f"tau must be positive, got {tau}")
    logits = logits.float()
    # The floor keeps g finite below, the ceiling keeps u from rounding to 1, where g is infinite.
    u = uniform(logits.shape, generator, logits).clamp(1e-9, 1 - 1e-7)
    soft = ((logits - (-u.log()).log()) / tau).softmax(-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + soft - soft.detach()


def hide(z: Tensor, probability: float = 0.1, generator: Source = None) -> Latents:
    """Hide all m latents of a sample together, with the given probability, as training does."""
    return Latents(z, uniform((len(z), 1), generator, z.detach())[:, 0] < probability)


# --- the prior -----------------------------------------------------------------------------------


class Prior(Protocol):
    """An autoregressive model of z: logits (B, m, K), position i of z_<i and cond only.

    z is (B, m, K), one-hot, and zero where it is not yet known.
    """

    def __call__(self, z: Tensor, cond: Any) -> Tensor: ...


class Prefixed:
    """Makes a `Prior` of a network that looks at one position: step(z, i, cond) -> (B, K).

    The network is shown z with positions i and later set to zero, so it cannot see what it is to
    predict, however it is built. Costs m calls where a causally masked network needs one.
    """

    def __init__(self, step: Callable[[Tensor, int, Any], Tensor]) -> None:
        self.step = step

    def __call__(self, z: Tensor, cond: Any) -> Tensor:
        place = torch.arange(z.shape[1], device=z.device)
        shown = ((z * (place < i)[:, None], i) for i in range(z.shape[1]))
        return torch.stack([self.step(prefix, i, cond) for prefix, i in shown], dim=1)


class CausalPrior(nn.Module):
    """A `Prior` of m latents with K codes common to all samples: a small causal transformer.

    Position i sees a start token and z_<i. It begins as the even law, log K nats a latent.

    Args:
        latents: m.
        codes: K.
        width, depth, heads: of the transformer.
        cond: size of a cond (B, cond), a class say, which is added to the start token; 0 for none.
        dropout: of its layers.

    Source: Xu et al. 2024, Appendix D.1 (a plain decoder; there 12 layers of 512).
    """

    def __init__(
        self,
        latents: int,
        codes: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        cond: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(codes, width, bias=False)
        self.start = nn.Linear(cond, width) if cond else None
        self.place = nn.Parameter(torch.randn(latents, width) / width**0.5)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.out = nn.Linear(width, codes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        m = len(self.place)
        first = z.new_zeros(len(z), 1, self.place.shape[1])
        if self.start is not None:
            first = self.start(cond)[:, None]
        hidden = torch.cat([first, self.embed(z[:, : m - 1])], 1) + self.place
        mask = torch.ones(m, m, dtype=torch.bool, device=z.device).triu(1)
        return self.out(self.layers(hidden, mask=mask))


def sample_prior(
    prior: Prior,
    like: Tensor,
    cond: Any = None,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
    generator: Source = None,
    known: Tensor | None = None,
) -> Tensor:
    """Draw z_1, z_2, ..., each from its softmax(logits / temperature) given those before.

    Args:
        prior: the autoregressive model.
        like: any tensor (B, m, K) with the wanted device and dtype.
        cond: handed to the prior.
        temperature: above 1 explores; 0 takes the most likely code.
        allowed: bool, broadcast against (B, m, K): codes that may be drawn (a known pocket, say).
        generator: of the draws.
        known: (B, p, K) one-hot, the first p latents, kept as they are: only the rest is drawn.

    Returns:
        One-hot (B, m, K).

    Raises:
        ValueError: if `allowed` leaves some latent no code.
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    z, first = torch.zeros_like(like), 0
    if known is not None:
        first = known.shape[1]
        z[:, :first] = known
    for i in range(first, like.shape[1]):
        logits = prior(z, cond)[:, i].float()
        if allowed is not None:
            logits = logits.masked_fill(~allowed.expand(like.shape)[:, i], -torch.inf)
            if bool((logits == -torch.inf).all(-1).any()):
                raise ValueError(f"no code is allowed for latent {i} of some sample")
        if temperature > 0:
            logits = (logits / temperature)[:, None]
            choice = gumbel_softmax(logits, 1.0, True, generator)[:, 0].argmax(-1)
        else:
            choice = logits.argmax(-1)
        z = z.clone()
        z[torch.arange(len(z), device=z.device), i, choice] = 1.0
    return z


def prior_loss(
    prior: Prior, encoder_logits: Tensor, cond: Any = None, generator: Source = None
) -> Tensor:
    """Cross-entropy (B,) of the prior to the encoder's soft labels, in nats, summed over latents.

        z ~ E hard,    loss = -sum_i sum_k E(z_i = k) log A(z_i = k | z_<i, cond)

    Same expectation as -log A(z), with less noise: each label's own average is taken exactly.

    Args:
        prior: being fitted.
        encoder_logits: (B, m, K), of the frozen encoder.
        cond: handed to the prior.
        generator: of z.

    Source: Xu et al. 2024, Appendix E.4.
    """
    encoder_logits = encoder_logits.detach().float()
    label = encoder_logits.softmax(-1)
    with torch.no_grad():
        z = gumbel_softmax(encoder_logits, 1.0, True, generator)
    log_prior = prior(z, cond).float().log_softmax(-1)
    # 0 log 0 = 0 for impossible codes, in value and in gradient.
    return -(label * log_prior.masked_fill(label == 0, 0.0)).sum((-2, -1))


def enumerate_prior(prior: Prior, m: int, k: int, cond: Any = None) -> tuple[Tensor, Tensor]:
    """All K^m codes, (K^m, m) long, and their log-probabilities (K^m,); for small m and K."""
    codes = torch.tensor(list(itertools.product(range(k), repeat=m))).reshape(-1, m)
    z = torch.nn.functional.one_hot(codes, k).to(torch.get_default_dtype())
    log_prior = prior(z, cond).log_softmax(-1)
    return codes, log_prior.gather(-1, codes[..., None])[..., 0].sum(-1)


# --- health --------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """How the codes are used, for each latent, (m,) in nats.

    Attributes:
        marginal: H(z), entropy of the mean of the encoder's laws; log K when all codes share.
        conditional: H(z | x_0), mean entropy of the laws; log K when the encoder says nothing.
        information: I(z; x_0) = marginal - conditional; at or near 0 the latent has collapsed.
        dead: share of codes whose mean probability is below a tenth of even.
    """

    marginal: Tensor
    conditional: Tensor
    information: Tensor
    dead: Tensor


def usage(logits: Tensor) -> Usage:
    """Code usage of encoder logits (B, m, K) over a batch with common codes.

    The information is biased towards log B when B is small beside K.
    """
    p = logits.detach().double().softmax(-1)
    mean = p.mean(0)
    marginal = torch.special.entr(mean).sum(-1)
    conditional = torch.special.entr(p).sum(-1).mean(0)
    dead = (mean < 0.1 / mean.shape[-1]).double().mean(-1)
    return Usage(marginal, conditional, marginal - conditional, dead)
