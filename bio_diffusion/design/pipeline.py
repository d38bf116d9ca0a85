"""`Designer`: from a trained generator to sequences, guided and constrained.

    prior tokens -> `diffusion.sample` with guidance and constraints -> strings

Every row has a random stream of its own, keyed by seed and number, and the network always sees
`CHUNK` rows at once, so that the first k sequences do not depend on how many are asked for.

Shapes: B batch (`CHUNK`), L sites, V letters, P properties.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint
from bio_diffusion.checkpoint import WEIGHTS, Checkpoint, CheckpointError
from bio_diffusion.command import choose_device
from bio_diffusion.design.dataset import SequenceSet, find_data, read_rows
from bio_diffusion.design.grid import grid
from bio_diffusion.design.model import Continued, Generator, Predictor, Value
from bio_diffusion.design.oracle import oracles
from bio_diffusion.design.tokenizer import DnaTokenizer, tokenizer_for
from bio_diffusion.design.trained import restored, same_classes
from bio_diffusion.diffusion.categorical import Autoregressive, Tokens
from bio_diffusion.diffusion.guidance import (
    ClassifierFree,
    ExactClassifier,
    FirstOrderClassifier,
)
from bio_diffusion.diffusion.hidden import HiddenStates
from bio_diffusion.diffusion.process import Denoiser, Guidance, evaluating
from bio_diffusion.diffusion.sampling import Step, sample
from bio_diffusion.diffusion.schedule import uniform
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.grids import kept

__all__ = ["Designer"]

log = logging.getLogger(__name__)

CHUNK = 64
# Letters times squared sites up to which cbg asks its predictor about every letter of every site:
# first-order guidance is some hundred times cheaper, but says little where the predictor is sure.
EXACT = 15_000


class Designer:
    """A trained generator with its letters, labels and process; made by `load`.

    Attributes:
        domain: "dna" or "smiles".
        length: L.
        tokenizer: between strings and ids.
        properties: name -> what each of its classes holds, in words.
        sha256: of the model's file.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        loaded = checkpoint.load(path, "design")
        settings = loaded.config["experiment"]
        self.path, self.name, self.device = path, path.stem, device
        self.sha256 = loaded.sha256
        self.settings: Mapping[str, Any] = settings
        self.tokenizer = tokenizer_for(settings["letters"], settings["length"])
        self.length: int = settings["length"]
        self.domain = "dna" if isinstance(self.tokenizer, DnaTokenizer) else "smiles"
        self.labelled, self.model = restored(loaded, Generator)
        self.model.to(device)
        self.process = self.model.process
        self.curve = kept(loaded)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The generators that ship."""
        return checkpoint.shipped("design")

    @classmethod
    def load(cls, model: str = "zinc", device: str = "auto") -> Designer:
        """A generator that ships, by name, or one of your own, by file.

        Raises:
            CheckpointError: the file cannot be used, or there is none of that name.
            InputError: there is no such device.
        """
        path = checkpoint.find(model, "design")
        return cls(path, torch.device(choose_device(device)))

    @property
    def properties(self) -> dict[str, tuple[str, ...]]:
        return {p.name: p.describe() for p in self.labelled}

    @cached_property
    def training(self) -> list[str]:
        """All known sequences, as they stand in the model's data; what is not among them is novel.

        Raises:
            FileNotFoundError: the data are not at hand.
        """
        path, column = find_data(self.settings["data"]), self.settings["column"]
        return [row[column] for split in ("train", "val", "test") for row in read_rows(path, split)]

    @cached_property
    def oracles(self) -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
        """Learned activities that designs can be scored on, by name: of the file NAME_oracle beside
        the model's, and for molecules those that ship."""
        files = [self.path.with_name(f"{self.path.stem}_oracle.safetensors")]
        if self.domain == "smiles":
            files.append(WEIGHTS / "kinase_oracle.safetensors")
        return oracles(*(file for file in files if file.is_file()))

    def labels(self, targets: Mapping[str, int | str]) -> Tensor:
        """(P,) classes, "not told" for properties without a target.

        Raises:
            ValueError: for a property or class that the model was not taught.
        """
        told = [p.classes for p in self.labelled]
        names = [p.name for p in self.labelled]
        for name, target in targets.items():
            if name not in names:
                raise ValueError(
                    f"the model {self.name} was not taught {name!r}; "
                    f"it knows {', '.join(names) or 'no property'}"
                )
            known = self.labelled[names.index(name)]
            label = known.describe().index(target) if target in known.describe() else target
            if not isinstance(label, int) or not 0 <= label < known.classes:
                raise ValueError(
                    f"{name} has no class {target!r}; there are "
                    + ", ".join(f"{i} ({words})" for i, words in enumerate(known.describe()))
                )
            told[names.index(name)] = label
        return torch.tensor(told, dtype=torch.long)

    def design(
        self,
        n: int,
        *,
        targets: Mapping[str, int | str] | None = None,
        guidance: str = "none",
        gamma: float = 1.0,
        steps: int = 32,
        schedule: str | None = None,
        seed: int = 0,
        constraints: Sequence[Guidance] = (),
        step: Step | None = None,
        network: Denoiser | None = None,
        first: int = 0,
    ) -> Iterator[list[str]]:
        """Draws sequences and yields them as they are made, at most `CHUNK` at once.

        Args:
            n: how many to draw, invalid ones included.
            targets: property -> class, its number or words; the others are not told.
            guidance: "none" draws from the conditioned model, "cfg" sharpens it by gamma without a
                classifier, "cbg" steers the unconditioned model by a predictor p(y | x_t).
            gamma: strength; 1 is the conditioned model itself.
            steps: of the sampler; a left-to-right model takes its length instead.
            schedule: of the steps, see `grid.grid`.
            seed: of all randomness.
            constraints: maps of transitions, applied after guidance.
            step: how to take a step; `sampling.Reverse()` unless told otherwise.
            network: what to sample with, such as `steered`; the model unless told otherwise.
            first: number of the first sequence; 0..first-1 are passed over.

        Raises:
            ValueError: for an unknown target, guidance or schedule.
        """
        label = self.labels(targets or {})
        steering, told = self._steering(guidance, gamma, label)
        times = self.times(steps, schedule).to(self.device)
        cond = told.to(self.device).expand(CHUNK, -1)
        like = torch.zeros(CHUNK, self.length, dtype=torch.long, device=self.device)
        for start in range(first - first % CHUNK, first + n, CHUNK):
            rows = [keyed_generator(seed, start + i) for i in range(CHUNK)]
            with evaluating(self.model):
                x = sample(
                    self.process,
                    network or self.network(),
                    self.process.prior(like, rows),
                    times,
                    cond,
                    (*steering, *constraints),
                    rows,
                    step,
                )
            chosen = x[max(0, first - start) : first + n - start]
            yield [self.tokenizer.decode(ids) for ids in chosen.tolist()]

    def network(self) -> Denoiser:
        """What the sampler calls: the generator, or one from left to right that keeps its place."""
        left_to_right = isinstance(self.process, Autoregressive)
        return Continued(self.model) if left_to_right else self.model

    def times(self, steps: int, schedule: str | None = None) -> Tensor:
        """(steps + 1,) times from 1 to 0, see `grid.grid`; a site a step from left to right.

        Raises:
            ValueError: there is no such schedule, or it does not suit the model.
        """
        if isinstance(self.process, Autoregressive):
            if schedule not in (None, "uniform"):
                raise ValueError(
                    f"the model {self.name} writes one site a step, from left to right: it has no "
                    f"time grid to choose, so leave out the schedule {schedule}"
                )
            return uniform(self.length)
        return grid(schedule, steps, self.path, self.curve)

    def _steering(
        self, guidance: str, gamma: float, label: Tensor
    ) -> tuple[tuple[Guidance, ...], Tensor]:
        """The guidance and the labels that the network itself is told."""
        null = self.model.unlabelled
        if guidance == "none":
            return (), label
        if guidance == "cfg":
            return (ClassifierFree(self.process, self.network(), gamma - 1, null),), label
        if guidance == "cbg":
            left_to_right = isinstance(self.process, Autoregressive)  # one site a step: cheap
            exact = left_to_right or self.length**2 * self.process.letters <= EXACT
            kind = ExactClassifier if exact else FirstOrderClassifier
            return (kind(self.log_p(label), gamma),), null(label)
        raise ValueError(f"no guidance is called {guidance!r}; there are none, cfg, cbg")

    @cached_property
    def predictor(self) -> Predictor:
        """p(y | x_t) of the model's own properties: the file NAME_predictor beside the model's.

        Raises:
            CheckpointError: there is none, or it belongs to other letters or properties.
        """
        missing = f"guidance cbg needs a predictor of the model {self.name}, guidance cfg does not"
        loaded = self._beside("predictor", missing)
        properties, model = restored(loaded, Predictor)
        same = ("letters", "length", "process")
        if not same_classes(properties, self.labelled) or any(
            loaded.config["experiment"][key] != self.settings[key] for key in same
        ):
            raise CheckpointError(
                f"{self.path.stem}_predictor: was not trained for the model {self.name}"
            )
        return model.to(self.device)

    @cached_property
    def value(self) -> Value:
        """log p(y | features) of the model's own properties: the file NAME_value beside it.

        Raises:
            CheckpointError: there is none, or it belongs to another model.
        """
        missing = f"train one: train experiment=design/value experiment.generator={self.name}"
        loaded = self._beside("value", missing)
        if Path(loaded.config["experiment"]["generator"]).stem != self.name:
            raise CheckpointError(f"{self.name}_value: was not trained for the model {self.name}")
        value = Value(self.model.head.in_features, self.model.classes)
        loaded.into(nn.ModuleDict({"model": value}))
        return value.eval().to(self.device)

    def _beside(self, what: str, missing: str) -> Checkpoint:
        path = self.path.with_name(f"{self.path.stem}_{what}.safetensors")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; {missing}")
        return checkpoint.load(path, what)

    def steered(
        self,
        targets: Mapping[str, int | str],
        size: float = 0.1,
        count: int = 10,
        stability: float = 0.01,
    ) -> HiddenStates:
        """The network told nothing, its hidden states moved towards targets: NOS, for `design`.

        Raises:
            ValueError: for an unknown target.
            CheckpointError: as `value`.
        """
        value, label = self.value, self.labels(targets)
        wanted = [(i, int(y)) for i, y in enumerate(label) if y < self.labelled[i].classes]

        def log_p(h: Tensor) -> Tensor:
            found = value(h)
            return sum((found[i][:, y] for i, y in wanted), torch.zeros(len(h), device=h.device))

        return HiddenStates(
            self.process, self.model.body, self.model.read, log_p, size, count, stability
        )

    def log_p(self, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """x_t, t -> log p(y | x_t), (B,), of the classes that are told in `label` (P,)."""
        wanted = [(i, int(y)) for i, y in enumerate(label) if y < self.labelled[i].classes]
        predictor = self.predictor

        def evidence(x_t: Tensor, t: Tensor) -> Tensor:
            log_p = predictor(x_t, t)
            return sum((log_p[i][:, y] for i, y in wanted), torch.zeros(len(x_t), device=t.device))

        return evidence


def schedule_probe(path: Path, probes: int) -> tuple[Tokens, Generator, Any]:
    """Process, network and held-out batches, told nothing, to fit a schedule on.

    Raises:
        ValueError: a left-to-right model has no grid to fit.
    """
    designer = Designer(path, torch.device("cpu"))
    if isinstance(designer.process, Autoregressive):
        raise ValueError(f"{path}: writes one site a step, so there is no time grid to fit")
    data = SequenceSet(
        find_data(designer.settings["data"]), "val", designer.settings["column"], designer.tokenizer
    )
    index = torch.randperm(len(data), generator=keyed_generator(0))[:probes]
    batches = [
        (data.x[part].long(), designer.labels({}).expand(len(part), -1))
        for part in index.split(CHUNK)
    ]
    return designer.process, designer.model, batches
