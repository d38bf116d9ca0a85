"""Constraints that hold by construction, as maps of transitions.

    Template       letters allowed at a site, in every step: IUPAC templates, inpainting, scaffolds
    Grammar        the last step draws all sites together, given that the sequence is legal
    LeftToRight    the same for a model that writes from left to right: no letter after which no
                   legal sequence is left

With q(x_0 | x_t) = prod_l q_l(x_0^l), the last step under a language is drawn exactly from

    q(x_0 | x_t, legal)  ~  prod_l q_l(x_0^l) [x_0 legal]

by sums over the lattice from its end (log b_l(v) for every node v) and a walk from its start, which
takes letter k at site l with probability q_l(k) b_{l+1}(v_k) / b_l(v).

Shapes: B batch, L sites, V letters, n_l nodes of a lattice's layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.design.language import Language
from bio_diffusion.design.lattice import Lattice
from bio_diffusion.design.rules import Sites
from bio_diffusion.diffusion.categorical import Autoregressive, Tokens
from bio_diffusion.diffusion.process import Guidance, Source, Transition, uniform
from bio_diffusion.diffusion.token_transitions import Categorical, Unmask

__all__ = ["Grammar", "LeftToRight", "Legal", "Template", "draw_legal", "guides", "log_share"]

FLOOR = -1e4
"""nats. What a letter costs that the model rules out or that was written otherwise: so much that
the fewest letters are changed, and finite, so that a legal sequence is always found."""

_CELLS = 2**25  # numbers held at once while drawing, 8 bytes each


class Template:
    """Keeps every site to the letters allowed there.

    What is left is renormalised. Where one letter is allowed, a masking process writes it in its
    first step, so that the network sees it throughout.

    Args:
        allowed: bool (L, V), or (K, L, V) for K templates that the rows take in turn.
        left_to_right: The model writes from left to right, so nothing is written ahead.
    """

    def __init__(self, allowed: Tensor, left_to_right: bool = False) -> None:
        if not bool(allowed.any(-1).all()):
            site = int((~allowed.any(-1)).flatten(end_dim=-1).nonzero()[0, 0]) % allowed.shape[-2]
            raise ValueError(f"the template allows no letter at site {site + 1}")
        self.allowed = allowed if allowed.ndim == 3 else allowed[None]
        self.left_to_right = left_to_right

    def __call__(self, q: Transition, x_t: Tensor, t: Tensor, s: Tensor, cond: Any) -> Transition:
        rows = torch.arange(len(x_t)) % len(self.allowed)
        allowed = self.allowed[rows].to(x_t.device)
        if isinstance(q, Unmask):
            told = torch.zeros_like(q.reveal, dtype=torch.bool)
            if not self.left_to_right:
                told = (allowed.sum(-1) == 1) & (x_t == allowed.shape[-1])
            return replace(
                q, log_p=_within(q.log_p, allowed), reveal=q.reveal.masked_fill(told, 1.0)
            )
        assert isinstance(q, Categorical)
        return Categorical(_within(q.log_q, allowed))


def _within(log_p: Tensor, allowed: Tensor) -> Tensor:
    """Log-probabilities given that the letter is allowed; even where the model rules all out."""
    return log_p.clamp(min=FLOOR).masked_fill(~allowed, -torch.inf).log_softmax(-1)


class Grammar:
    """Draws the last step from the legal sequences. Put it after every other guidance.

    Earlier steps pass unchanged: a noised sequence need not be legal. Under masking, letters that
    were written before may be changed in the last step, as few as the language requires.

    Args:
        language: What is legal.
    """

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, q: Transition, x_t: Tensor, t: Tensor, s: Tensor, cond: Any) -> Transition:
        return q if bool((s > 0).any()) else Legal(q, self.language)


class LeftToRight:
    """Lets a left-to-right model write only what some legal sequence goes on with.

    Args:
        language: What is legal.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.edges = _edges(language.lattice)

    def __call__(self, q: Transition, x_t: Tensor, t: Tensor, s: Tensor, cond: Any) -> Transition:
        assert isinstance(q, Unmask)
        letters = q.log_p.shape[-1]
        written = int((x_t != letters).sum(-1).max())
        if written == len(self.edges):
            return q
        node = torch.zeros(len(x_t), dtype=torch.long)
        for site, edge in zip(x_t[:, :written].T.cpu(), self.edges, strict=False):
            node = edge[node, site]
        allowed = torch.ones_like(q.log_p, dtype=torch.bool)
        edge, following = self.edges[written], _sizes(self.language.lattice)[written + 1]
        allowed[:, written] = (edge[node] < following).to(allowed.device)
        return replace(q, log_p=_within(q.log_p, allowed))


@dataclass(frozen=True)
class Legal(Transition):
    """Sites drawn together: a law of single sites, given that the sequence is legal.

    Attributes:
        q: the law of single sites.
        language: what is legal.
    """

    q: Transition
    language: Language

    def sample(self, generator: Source = None) -> Tensor:
        log_q = _sites(self.q)
        return draw_legal(log_q.cpu(), self.language.lattice, generator).to(log_q.device)

    def mix(self, other: Transition, weight: float) -> Legal:
        return replace(self, q=self.q.mix(other.q if isinstance(other, Legal) else other, weight))

    def tilt(self, direction: Tensor) -> Legal:
        return replace(self, q=self.q.tilt(direction))

    def temper(self, temperature: float) -> Legal:
        return replace(self, q=self.q.temper(temperature))


def _sites(q: Transition) -> Tensor:
    """(B, L, V) log-weights of the letters at each site, finite; written sites hold to theirs."""
    if isinstance(q, Categorical):
        return q.log_q.double().clamp(min=FLOOR)
    assert isinstance(q, Unmask)
    letters = q.log_p.shape[-1]
    masked = (q.x_t == letters)[..., None]
    holds = torch.nn.functional.one_hot(q.x_t, letters + 1)[..., :-1].double()
    return torch.where(masked, q.log_p.double().clamp(min=FLOOR), (1 - holds) * FLOOR)


def guides(language: Language, process: Tokens) -> tuple[Guidance, ...]:
    """What keeps samples of a process in a language; goes after all other guidance."""
    if isinstance(process, Autoregressive):
        return (LeftToRight(language),)
    found: tuple[Guidance, ...] = ()
    if not language.allowed.all():
        found += (Template(torch.from_numpy(language.allowed)),)
    if not all(isinstance(constraint, Sites) for constraint in language.constraints):
        found += (Grammar(language),)
    return found


# --- draws from a lattice ------------------------------------------------------------------------


def draw_legal(log_q: Tensor, lattice: Lattice, generator: Source = None) -> Tensor:
    """Legal sequences x ~ prod_l q_l(x^l), (B, L).

    Args:
        log_q: (B, L, 4) log-weights, on the CPU.
        lattice: the legal sequences.
        generator: one, or one for each row.
    """
    noise = uniform(log_q.shape, generator, log_q.double()).clamp(min=1e-300)
    gumbel = -(-noise.log()).clamp(min=1e-300).log()
    edges = _edges(lattice)
    drawn = []
    for rows in _chunks(len(log_q), lattice):
        log_b = _backward(log_q[rows], lattice, edges)
        node = torch.zeros(len(rows), dtype=torch.long)
        column = torch.arange(len(rows))[:, None]
        letters = []
        for site, edge in enumerate(edges):
            options = log_q[rows, site] + log_b[site + 1][edge[node], column]
            letter = (options + gumbel[rows, site]).argmax(-1)
            node = edge[node, letter]
            letters.append(letter)
        drawn.append(torch.stack(letters, -1))
    return torch.cat(drawn)


def log_share(log_q: Tensor, lattice: Lattice) -> Tensor:
    """log sum of prod_l q_l(x^l) over the legal sequences, (B,): how likely a free draw is legal.

    Args:
        log_q: (B, L, 4) log-probabilities, on the CPU.
        lattice: the legal sequences.
    """
    edges = _edges(lattice)
    return torch.cat(
        [_backward(log_q[rows], lattice, edges)[0][0] for rows in _chunks(len(log_q), lattice)]
    )


def _backward(log_q: Tensor, lattice: Lattice, edges: Sequence[Tensor]) -> list[Tensor]:
    """log b_l(v), each (n_l + 1, B): the weight of all ways from a node to the end; the last row
    stands for no way."""
    log_q = log_q.double()
    nowhere = torch.full((1, len(log_q)), -torch.inf, dtype=torch.float64)
    ahead = torch.cat([torch.zeros(lattice.ends, len(log_q), dtype=torch.float64), nowhere])
    found = [ahead]
    for site in reversed(range(len(edges))):
        ways = ahead[edges[site]] + log_q[:, site].T  # (n_l, 4, B)
        ahead = torch.cat([ways.logsumexp(1), nowhere])
        found.append(ahead)
    return found[::-1]


def _edges(lattice: Lattice) -> list[Tensor]:
    return [torch.from_numpy(edge) for edge in lattice.edges]


def _sizes(lattice: Lattice) -> list[int]:
    return [*map(len, lattice.edges), lattice.ends]


def _chunks(count: int, lattice: Lattice) -> list[Tensor]:
    """Row numbers, as many at once as memory allows."""
    return list(torch.arange(count).split(max(1, _CELLS // lattice.nodes)))
