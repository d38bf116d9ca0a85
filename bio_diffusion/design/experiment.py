"""Training generators and predictors: what `train experiment=design/...` builds.

Shapes: B batch, L sites, P properties.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.design.dataset import open_sets
from bio_diffusion.design.model import Generator, Predictor, Value, process_named
from bio_diffusion.design.pipeline import Designer
from bio_diffusion.design.tokenizer import PAD, tokenizer_for
from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.process import Noised, Source
from bio_diffusion.diffusion.training import bfloat16, keyed_generator, stratified_times

__all__ = ["Design", "DesignPredictor", "DesignValue"]


class _Sequences:
    """What both experiments share: the sets, their batches, and a fast forward pass.

    Args:
        device: where to train.
        data: gzipped CSV with the columns `column`, `split` and one for each property.
        column: that holds the sequences.
        letters: "ACGT", or the SMILES tokens with spaces between.
        length: L, with the <eos> of a SMILES.
        process: uniform, absorbing or autoregressive.
        properties: column -> names of its classes, or quantiles at which to cut its numbers.
        batch: B.
        bf16: multiply in bfloat16 where the device is built for it; losses stay in float32.
        seed: order of the data.
    """

    quantile = None

    def __init__(
        self,
        device: torch.device,
        data: str,
        column: str,
        letters: str,
        length: int,
        process: str,
        properties: Mapping[str, Sequence[float | str]],
        batch: int,
        bf16: bool,
        seed: int,
    ) -> None:
        self.device, self.batch, self.bf16, self.seed = device, batch, bf16, seed
        self.tokenizer = tokenizer_for(letters, length)
        self.train, self.val, self.properties = open_sets(data, column, self.tokenizer, properties)
        self.classes = [p.classes for p in self.properties]
        self.letters = len(self.tokenizer.letters)
        edges = [torch.tensor(p.edges, dtype=torch.float64) for p in self.properties]
        self.cuts = nn.ParameterList(nn.Parameter(e, requires_grad=False) for e in edges)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch k of a rank is drawn with replacement by (seed, k, rank)."""
        for number in itertools.count(start):
            generator = keyed_generator(self.seed, number, rank)
            x_0, labels = self.train.rows(
                torch.randint(len(self.train), (self.batch,), generator=generator)
            )
            yield x_0.to(self.device), labels.to(self.device)

    def _fast(self) -> torch.autocast:
        return bfloat16(self.device, self.bf16)

    def _held_out(self, rows: int = 2048, size: int = 256) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Held-out batches, the same at every evaluation."""
        chosen = torch.randperm(len(self.val), generator=keyed_generator(0))[:rows]
        for number, index in enumerate(chosen.split(size)):
            x_0, labels = self.val.rows(index)
            yield number, x_0.to(self.device), labels.to(self.device)


class Design(_Sequences):
    """The experiment of a generator (see `train.Experiment`); arguments of `_Sequences`, and

    Args:
        lr: learning rate of AdamW.
        backbone: arguments of `Sequences`.
        hide_all: share of samples of which nothing is told in training.
        hide: share of the other samples' labels that are hidden, each by itself, so that any part
            of them can be given later.
    """

    kind = "design"

    def __init__(
        self,
        device: torch.device,
        data: str,
        column: str,
        letters: str,
        length: int,
        process: str = "uniform",
        properties: Mapping[str, Sequence[float | str]] | None = None,
        batch: int = 256,
        lr: float = 1e-3,
        backbone: Mapping[str, Any] | None = None,
        hide_all: float = 0.1,
        hide: float = 0.2,
        bf16: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            device, data, column, letters, length, process, properties or {}, batch, bf16, seed
        )
        self.hide_all, self.hide = hide_all, hide
        self.model = Generator(process, self.letters, self.classes, backbone or {}).to(device)
        self.process = self.model.process
        self.module: nn.Module = nn.ModuleDict({"model": self.model, "cuts": self.cuts})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with self._fast():
            return self.model(x_t, t, cond)

    def condition(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        one = torch.rand(labels.shape, generator=generator) < self.hide
        every = torch.rand(len(labels), 1, generator=generator) < self.hide_all
        hidden = (one | every).to(labels.device)
        return torch.where(hidden, self.model.unlabelled(labels), labels)

    def evaluate(self) -> dict[str, float]:
        """`nats`: held-out bound a letter (<pad> left out), told nothing; `told`: given labels."""
        pad = self.tokenizer.letters.index(PAD) if PAD in self.tokenizer.letters else -1
        sums = {"nats": 0.0, "told": 0.0}
        count = 0
        for number, x_0, labels in self._held_out():
            real = x_0 != pad
            count += int(real.sum())
            for name, given in (("nats", self.model.unlabelled(labels)), ("told", labels)):
                t = stratified_times(len(x_0), keyed_generator(number)).to(self.device)
                noised = self.process.perturb(x_0, t, keyed_generator(number, 1))
                each = self.process.site_loss(self.denoiser(noised.x_t, t, given), noised, x_0, t)
                sums[name] += float((each * real).sum())
        nats = {name: value / count for name, value in sums.items()}
        return {**nats, "perplexity": float(torch.tensor(nats["nats"]).exp())}


class _Labelled(nn.Module):
    """Noise of a process with the loss of a predictor, whose prediction is -log p(y), (B,).

    Every process noises by its own `diffuse`, so that left-to-right generators get a predictor of
    prefixes.
    """

    def __init__(self, process: Tokens) -> None:
        super().__init__()
        self.process = process

    def perturb(self, x_0: Tensor, t: Tensor, generator: Source = None) -> Noised:
        return Noised(self.process.diffuse(x_0, torch.zeros_like(t), t, generator), x_0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        return prediction

    def parts(
        self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        return {"loss": prediction.detach()}


class _Predicting(_Sequences, ABC):
    """What predicts the labels of noised sequences: its error and its figures."""

    condition = None
    process: _Labelled

    @abstractmethod
    def log_p(self, x_t: Tensor, t: Tensor) -> Sequence[Tensor]:
        """log p(y | x_t) of every property, each (B, K)."""

    def denoiser(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """-log p(y | x_t), summed over the properties that are known; (B,)."""
        with self._fast():
            return sum(self._errors(self.log_p(x_t, t), labels))  # type: ignore[return-value]

    def _errors(self, log_p: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        errors = []
        for column, each in enumerate(log_p):
            y = labels[:, column]
            known = y < each.shape[-1]
            picked = each.gather(-1, torch.where(known, y, 0)[:, None])[:, 0]
            errors.append(-picked * known)
        return errors

    def evaluate(self) -> dict[str, float]:
        """Held-out cross-entropy of each property, all and by third of noise."""
        sums: dict[str, list[Tensor]] = {}
        for number, x_0, labels in self._held_out():
            t = stratified_times(len(x_0), keyed_generator(number)).to(self.device)
            noised = self.process.perturb(x_0, t, keyed_generator(number, 1))
            with self._fast():
                log_p = self.log_p(noised.x_t, t)
            for p, error in zip(self.properties, self._errors(log_p, labels), strict=True):
                known = labels[:, self.properties.index(p)] < p.classes
                sums.setdefault(p.name, []).append(error[known])
                for third in range(3):
                    at = known & ((3 * t).long().clamp(max=2) == third)
                    sums.setdefault(f"{p.name}_t{third}", []).append(error[at])
        return {name: float(torch.cat(values).mean()) for name, values in sums.items()}


class DesignPredictor(_Predicting):
    """The experiment of a predictor p(y | x_t) for guidance; arguments of `_Sequences`, and

    Args:
        lr: learning rate of AdamW.
        backbone: arguments of `Sequences`.
        shuffled: deal the training labels out anew, so that they say nothing of their sequences:
            the control of a guidance by the same network, trained alike.
    """

    kind = "predictor"

    def __init__(
        self,
        device: torch.device,
        data: str,
        column: str,
        letters: str,
        length: int,
        process: str = "uniform",
        properties: Mapping[str, Sequence[float | str]] | None = None,
        batch: int = 256,
        lr: float = 1e-3,
        backbone: Mapping[str, Any] | None = None,
        bf16: bool = True,
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            device, data, column, letters, length, process, properties or {}, batch, bf16, seed
        )
        if shuffled:
            order = torch.randperm(len(self.train), generator=keyed_generator(seed))
            self.train.labels = self.train.labels[order]
        self.process = _Labelled(process_named(process, self.letters))
        self.model = Predictor(self.letters, self.classes, backbone or {}).to(device)
        self.module: nn.Module = nn.ModuleDict({"model": self.model, "cuts": self.cuts})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)

    def log_p(self, x_t: Tensor, t: Tensor) -> Sequence[Tensor]:
        return self.model(x_t, t)


class DesignValue(_Predicting):
    """The experiment of a value head over the frozen features of a generator, for NOS.

    Noise, letters and classes are the generator's own.

    Args:
        device: where to train.
        generator: a model file, or the name of one that ships; told nothing.
        data: another table than the generator's, with the same columns; its own when empty.
        batch: B.
        lr: learning rate of AdamW.
        bf16: multiply in bfloat16 where the device is built for it; losses stay in float32.
        seed: order of the data.

    Raises:
        CheckpointError: the generator cannot be used.
        ValueError: it writes from left to right, one site at a time.
    """

    kind = "value"

    def __init__(
        self,
        device: torch.device,
        generator: str,
        data: str = "",
        batch: int = 256,
        lr: float = 1e-3,
        bf16: bool = True,
        seed: int = 0,
    ) -> None:
        self.designer = Designer.load(generator, str(device))
        s = self.designer.settings
        if s["process"] == "autoregressive":
            raise ValueError(
                f"{generator}: writes from left to right, where hidden states of all sites cannot "
                "be moved at once; train experiment=design/predictor for it"
            )
        super().__init__(
            device, data or s["data"], s["column"], s["letters"], s["length"], s["process"],
            s["properties"] or {}, batch, bf16, seed,
        )  # fmt: skip
        self.process = _Labelled(self.designer.process)
        self.model = Value(self.designer.model.head.in_features, self.classes).to(device)
        self.module: nn.Module = nn.ModuleDict({"model": self.model})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)

    def log_p(self, x_t: Tensor, t: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            untold = self.designer.labels({}).to(t.device).expand(len(x_t), -1)
            features = self.designer.model.body(x_t, t, untold)
        return self.model(features)
