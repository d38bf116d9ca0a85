"""The generator and the predictor of sequences: networks with the process that they belong to.

Shapes: B batch, L sites, V letters, P properties, K classes of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.design.backbone import Past, Sequences
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Tokens, Uniform

__all__ = ["Continued", "Generator", "Predictor", "PROCESSES", "Value"]

PROCESSES: dict[str, type[Tokens]] = {
    "uniform": Uniform,
    "absorbing": Absorbing,
    "autoregressive": Autoregressive,
}


def process_named(name: str, letters: int) -> Tokens:
    """Raises: ValueError for a name that no process has."""
    if name not in PROCESSES:
        raise ValueError(f"no process is called {name!r}; there are {', '.join(PROCESSES)}")
    return PROCESSES[name](letters)


class Generator(nn.Module):
    """log p(x_0 | x_t, labels), (B, L, V): what a process of tokens walks back with.

    Args:
        process: name of the process.
        letters: V.
        classes: K of each property.
        backbone: arguments of `Sequences`.
    """

    def __init__(
        self, process: str, letters: int, classes: Sequence[int], backbone: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.process = process_named(process, letters)
        self.classes = tuple(classes)
        self.body = Sequences(
            letters,
            classes,
            causal=isinstance(self.process, Autoregressive),
            timed=isinstance(self.process, Uniform),
            **backbone,
        )
        self.head = nn.Linear(self.body.norm.normalized_shape[0], letters)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.filled(self.laws(x_t[:, : self.seen(x_t)], t, cond), x_t)

    def laws(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        past: Sequence[Past] | None = None,
    ) -> Tensor:
        """log p of the sites after those in `past`, (B, sites, V)."""
        return self.read(self.body(x_t, t, cond, past))

    def read(self, h: Tensor) -> Tensor:
        """log p(x_0) of the last features (B, L, width)."""
        return self.head(h).float().log_softmax(-1)

    def filled(self, log_p: Tensor, x_t: Tensor) -> Tensor:
        """(B, L, V): sites after the next one to write get even laws, which nobody asks for."""
        even = -math.log(self.process.letters)
        count = x_t.shape[1] - log_p.shape[1]
        rest = log_p.new_full((len(x_t), count, self.process.letters), even)
        return torch.cat([log_p, rest], dim=1)

    def seen(self, x_t: Tensor) -> int:
        """How many sites the network must look at: left-to-right models need not see blanks."""
        if not self.body.causal:
            return x_t.shape[1]
        written = int((x_t != self.process.letters).sum(-1).max())
        return min(written + 1, x_t.shape[1])

    def unlabelled(self, cond: Tensor) -> Tensor:
        """The labels of a sample of which nothing is told."""
        return torch.tensor(self.classes, device=cond.device).expand_as(cond)


class Continued:
    """A left-to-right generator that reads every site once, for sampling without gradients.

    It keeps what its layers made of the sites so far, so that a step costs one site and not all
    that are written. Predictions are those of the generator; where x_t or cond do not go on from
    the call before, it reads anew.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._past: list[Past] = []
        self._log_p = self._read = torch.empty(0)
        self._cond: Tensor | None = None
        self._forget()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        seen = self.generator.seen(x_t)
        if not self._goes_on(x_t, seen, cond):
            self._forget()
        log_p = self.generator.laws(x_t[:, :seen], t, cond, self._past)
        self._log_p = torch.cat([self._log_p, log_p], dim=1) if len(self._log_p) else log_p
        self._read, self._cond = x_t[:, : seen - 1], cond
        return self.generator.filled(self._log_p, x_t)

    def _forget(self) -> None:
        self._past = [Past() for _ in self.generator.body.layers]
        self._log_p = torch.empty(0)

    def _goes_on(self, x_t: Tensor, seen: int, cond: Tensor | None) -> bool:
        before = self._past[0].sites
        same = cond is self._cond or (
            cond is not None and self._cond is not None and torch.equal(cond, self._cond)
        )
        return 0 < before < seen and same and torch.equal(self._read, x_t[:, : before - 1])


class Predictor(nn.Module):
    """log p(y | x_t) of every property, each (B, K); told the time, and trained on noised x_t.

    Takes ids (B, L) or their one-hot form (B, L, V + 1), so that first-order guidance can ask for
    gradients.

    Args:
        letters: V.
        classes: K of each property.
        backbone: arguments of `Sequences`.
    """

    def __init__(self, letters: int, classes: Sequence[int], backbone: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = Sequences(letters, (), **backbone)
        width = self.body.norm.normalized_shape[0]
        self.heads = nn.ModuleList(nn.Linear(width, k) for k in classes)

    def forward(self, x_t: Tensor, t: Tensor) -> list[Tensor]:
        pooled = self.body(x_t, t).float().mean(1)
        return [head(pooled).log_softmax(-1) for head in self.heads]


class Value(nn.Module):
    """log p(y | h) of every property, each (B, K), from the last features h of a generator.

    Small, so that its gradients cost little beside a call of the generator; a site's features are
    mixed before they are averaged, so that gradients differ from site to site.

    Args:
        width: of the features.
        classes: K of each property.
    """

    def __init__(self, width: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(approximate="tanh"))
        self.heads = nn.ModuleList(nn.Linear(width, k) for k in classes)

    def forward(self, h: Tensor) -> list[Tensor]:
        pooled = self.mix(h).float().mean(1)
        return [head(pooled).float().log_softmax(-1) for head in self.heads]
