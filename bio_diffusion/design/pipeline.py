"""`Designer`: from a trained generator to sequences, guided and constrained.

    prior tokens -> `diffusion.sample` with guidance and constraints -> strings

Every row has a random stream of its own, keyed by seed and number, and the network always sees
`CHUNK` rows at once, so that the first k sequences do not depend on how many are asked for.

Shapes: B batch (`CHUNK`), L sites, V letters, P properties.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint
from bio_diffusion.checkpoint import Checkpoint, CheckpointError
from bio_diffusion.design.dataset import Property, SequenceSet, find_data, read_rows
from bio_diffusion.design.model import Continued, Generator, Predictor
from bio_diffusion.design.oracle import oracles
from bio_diffusion.design.tokenizer import DnaTokenizer, tokenizer_for
from bio_diffusion.diffusion.categorical import Autoregressive, Tokens
from bio_diffusion.diffusion.guidance import (
    ClassifierFree,
    ExactClassifier,
    FirstOrderClassifier,
)
from bio_diffusion.diffusion.process import Denoiser, Guidance, evaluating
from bio_diffusion.diffusion.sampling import Step, sample
from bio_diffusion.diffusion.schedule import sine, uniform
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.grids import kept

__all__ = ["Designer"]

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parents[1] / "weights"
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
        self.labelled, self.model = _restored(loaded, Generator)
        self.model.to(device)
        self.process = self.model.process
        self.curve = kept(loaded)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The generators that ship."""
        files = sorted(WEIGHTS.glob("*.safetensors"))
        return tuple(f.stem for f in files if checkpoint.header(f)["kind"] == "design")

    @classmethod
    def load(cls, model: str = "zinc", device: str = "auto") -> Designer:
        """A generator that ships, by name, or one of your own, by file.

        Raises:
            CheckpointError: the file cannot be used, or there is none of that name.
        """
        path = WEIGHTS / f"{model}.safetensors"
        if not path.is_file():
            path = Path(model)
        if not path.is_file():
            raise CheckpointError(
                f"no model is called {model!r}; name a file or one of {', '.join(cls.names())}"
            )
        chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device
        return cls(path, torch.device("cpu" if chosen == "auto" else chosen))

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
        schedule: str = "uniform",
        seed: int = 0,
        constraints: Sequence[Guidance] = (),
        step: Step | None = None,
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
            schedule: of the steps, "uniform", "sine" or the "adaptive" one fitted to the model.
            seed: of all randomness.
            constraints: maps of transitions, applied after guidance.
            step: how to take a step; `sampling.Reverse()` unless told otherwise.
            first: number of the first sequence; 0..first-1 are passed over.

        Raises:
            ValueError: for an unknown target or guidance.
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
                    self.network(),
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

    def times(self, steps: int, schedule: str = "uniform") -> Tensor:
        """The grid of the sampler, (steps + 1,) from 1 to 0; a site a step from left to right.

        Raises:
            ValueError: the schedule does not exist, or the model has no fitted one.
        """
        if isinstance(self.process, Autoregressive):
            return uniform(self.length)
        if schedule in ("uniform", "sine"):
            return uniform(steps) if schedule == "uniform" else sine(steps)
        if schedule != "adaptive":
            raise ValueError(
                f"no schedule is called {schedule!r}; there are uniform, sine, adaptive"
            )
        if self.curve is None:
            raise ValueError(
                f"the model {self.name} has no fitted time grid; take uniform, or fit one: "
                "python -m bio_diffusion.schedule fit --model FILE"
            )
        return self.curve.knots(steps)

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
        path = self.path.with_name(f"{self.path.stem}_predictor.safetensors")
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; guidance cbg needs a predictor of the model {self.name}, "
                "guidance cfg does not"
            )
        loaded = checkpoint.load(path, "predictor")
        properties, model = _restored(loaded, Predictor)
        same = ("letters", "length", "process")
        if not _same_classes(properties, self.labelled) or any(
            loaded.config["experiment"][key] != self.settings[key] for key in same
        ):
            raise CheckpointError(f"{path}: was not trained for the model {self.name}")
        return model.to(self.device)

    def log_p(self, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """x_t, t -> log p(y | x_t), (B,), of the classes that are told in `label` (P,)."""
        wanted = [(i, int(y)) for i, y in enumerate(label) if y < self.labelled[i].classes]
        predictor = self.predictor

        def evidence(x_t: Tensor, t: Tensor) -> Tensor:
            log_p = predictor(x_t, t)
            return sum((log_p[i][:, y] for i, y in wanted), torch.zeros(len(x_t), device=t.device))

        return evidence


def _same_classes(some: Sequence[Property], others: Sequence[Property]) -> bool:
    """Whether two models were taught the same; edges may have been kept in half precision."""
    return [(p.name, p.names, len(p.edges)) for p in some] == [
        (p.name, p.names, len(p.edges)) for p in others
    ] and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
        for p, q in zip(some, others, strict=True)
        for a, b in zip(p.edges, q.edges, strict=True)
    )


def _restored(loaded: Checkpoint, kind: type[nn.Module]) -> tuple[list[Property], Any]:
    """The properties and the network of a checkpoint, in evaluation mode."""
    settings = loaded.config["experiment"]
    specs = settings["properties"] or {}
    words = [all(isinstance(item, str) for item in spec) for spec in specs.values()]
    cuts = nn.ParameterList(
        nn.Parameter(torch.zeros(0 if w else len(spec), dtype=torch.float64), requires_grad=False)
        for w, spec in zip(words, specs.values(), strict=True)
    )
    classes = [len(s) if w else len(s) + 1 for w, s in zip(words, specs.values(), strict=True)]
    letters = len(tokenizer_for(settings["letters"], settings["length"]).letters)
    arguments = (letters, classes, settings["backbone"])
    model = kind(settings["process"], *arguments) if kind is Generator else kind(*arguments)
    loaded.into(nn.ModuleDict({"model": model, "cuts": cuts}))
    properties = [
        Property(name, names=tuple(spec)) if w else Property(name, edges=tuple(cut.tolist()))
        for (name, spec), w, cut in zip(specs.items(), words, cuts, strict=True)
    ]
    return properties, model.eval()


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
