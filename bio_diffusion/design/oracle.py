"""Oracles that score finished designs: learned estimates of a measured activity.

An oracle is never the predictor that guides: it sees clean sequences only, has another architecture
and its own training run. Molecules enter as Morgan fingerprints, DNA as letters.

    molecules   counts of Morgan environments of radius 2 in 2,048 bins -> probability of activity
    DNA         letters -> the measured expression, learned as its logarithm

Shapes: B batch, P targets, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint
from bio_diffusion.design.backbone import Sequences
from bio_diffusion.design.dataset import find_data, read_rows
from bio_diffusion.design.tokenizer import DNA, DnaTokenizer
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.diffusion.training import keyed_generator

__all__ = ["ActivityOracle", "OracleFit", "oracles"]

BINS = 2048
FLOOR = 1e-3  # of an expression before its logarithm, in the units of the assay


class ActivityOracle(nn.Module):
    """One number a target: a logit for molecules, log10 expression for DNA.

    Args:
        targets: columns that it learns.
        length: of DNA, nt; 0 for molecules.
        width: of the hidden features.
    """

    def __init__(self, targets: Sequence[str], length: int = 0, width: int = 128) -> None:
        super().__init__()
        self.targets, self.length = tuple(targets), length
        self.body: nn.Module
        if length:
            self.body = Sequences(
                len(DNA), kind="convolution", width=width, depth=3, kernel=11, timed=False
            )
        else:
            self.body = nn.Sequential(
                nn.Linear(BINS, width), nn.SiLU(), nn.Dropout(0.3), nn.Linear(width, width)
            )
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, len(targets)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, P) from ids (B, L) or counts (B, 2048)."""
        if self.length:
            return self.head(self.body(x, torch.zeros(len(x), device=x.device)).mean(1))
        return self.head(self.body(torch.log1p(x.float())))

    def features(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What it looks at, (k, F), and which of the strings it could read, bool (B,)."""
        rows = [self._row(string) for string in strings]
        readable = torch.tensor([row is not None for row in rows], dtype=torch.bool)
        kept = [row for row in rows if row is not None]
        return (torch.from_numpy(np.stack(kept)) if kept else torch.empty(0)), readable

    def _row(self, string: str) -> np.ndarray | None:
        if self.length:
            try:
                return np.array(DnaTokenizer(self.length).encode(string))
            except ValueError:
                return None
        from rdkit.Chem import rdFingerprintGenerator

        from bio_diffusion.design.properties import molecule

        mol = molecule(string)
        if mol is None:
            return None
        maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BINS)
        return maker.GetCountFingerprintAsNumPy(mol).clip(max=255).astype(np.uint8)

    @torch.no_grad()
    def score(self, strings: Sequence[str]) -> np.ndarray:
        """(B, P): probability of activity (molecules), expression in the units of the assay (DNA);
        NaN where a string cannot be read."""
        self.eval()
        x, readable = self.features(strings)
        scores = torch.full((len(strings), len(self.targets)), torch.nan)
        if len(x):
            found = torch.cat([self(part) for part in x.split(512)])
            scores[readable] = 10**found if self.length else found.sigmoid()
        return scores.numpy()


class _Clean(nn.Module):
    """No noise, and the loss of an oracle, whose prediction is its error (B,)."""

    def perturb(self, x_0: Tensor, t: Tensor, generator: Any = None) -> Noised:
        return Noised(x_0, x_0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor) -> Tensor:
        return prediction

    def parts(
        self, prediction: Tensor, noised: Noised, x_0: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        return {"loss": prediction.detach()}


class OracleFit:
    """The experiment of an oracle (see `train.Experiment`).

    Args:
        device: where to train.
        data: gzipped CSV with a column `split`.
        column: of the sequences.
        targets: columns to learn; 0 or 1 for molecules, a positive expression for DNA; may be
            empty in some rows.
        length: of DNA, nt; 0 for molecules.
        width: of the hidden features.
        batch: B.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        seed: order of the data.
    """

    kind = "oracle"
    condition = None
    quantile = None

    def __init__(
        self,
        device: torch.device,
        data: str,
        column: str,
        targets: Sequence[str],
        length: int = 0,
        width: int = 128,
        batch: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.device, self.batch, self.seed = device, batch, seed
        self.oracle = ActivityOracle(targets, length, width).to(device)
        self.module: nn.Module = self.oracle
        self.process = _Clean()
        self.optimizer = torch.optim.AdamW(
            self.oracle.parameters(), lr=lr, weight_decay=weight_decay
        )
        path = find_data(data)
        self.sets = {split: self._read(path, split, column) for split in ("train", "val", "test")}

    def _read(self, path: Path, split: str, column: str) -> tuple[Tensor, Tensor]:
        rows = list(read_rows(path, split))
        x, readable = self.oracle.features([row[column] for row in rows])
        y = torch.tensor(
            [[float(row[t]) if row[t] else torch.nan for t in self.oracle.targets] for row in rows]
        )[readable]
        return x, y.clamp(min=FLOOR).log10() if self.oracle.length else y

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch k of a rank is drawn with replacement by (seed, k, rank)."""
        x, y = self.sets["train"]
        for number in itertools.count(start):
            generator = keyed_generator(self.seed, number, rank)
            index = torch.randint(len(x), (self.batch,), generator=generator)
            yield x[index].to(self.device), y[index].to(self.device)

    def denoiser(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The error (B,): squared (DNA) or cross-entropy (molecules); unknown targets are free."""
        found, known = self.oracle(x), torch.isfinite(y)
        y = torch.where(known, y, 0.0)
        each = (
            (found - y) ** 2
            if self.oracle.length
            else nn.functional.binary_cross_entropy_with_logits(found, y, reduction="none")
        )
        return (each * known).sum(-1)

    def evaluate(self) -> dict[str, float]:
        """Held-out rank correlation (DNA) or area under the ROC curve (molecules), val and test."""
        figures = {}
        for split in ("val", "test"):
            x, y = self.sets[split]
            found = torch.cat([self.oracle(part.to(self.device)).cpu() for part in x.split(512)])
            for column, target in enumerate(self.oracle.targets):
                known = torch.isfinite(y[:, column])
                judge = spearman if self.oracle.length else auroc
                figures[f"{target}_{split}"] = judge(found[known, column], y[known, column])
        return figures


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean; float64."""
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return ((2 * last - counts - 1) / 2)[inverse]


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def auroc(score: Tensor, label: Tensor) -> float:
    """Area under the ROC curve: the chance that an active scores above an inactive."""
    active = label > 0.5
    many, few = int(active.sum()), int((~active).sum())
    total = float(_ranks(score)[active].sum())
    return (total - many * (many - 1) / 2) / (many * few)


def oracles(*files: Path) -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
    """Scoring functions by target, of the oracles in these files.

    Raises:
        CheckpointError: a file cannot be used.
    """
    found: dict[str, Callable[[Sequence[str]], np.ndarray]] = {}
    for path in files:
        loaded = checkpoint.load(path, "oracle")
        settings = loaded.config["experiment"]
        oracle = ActivityOracle(settings["targets"], settings["length"], settings["width"])
        loaded.into(oracle)
        for column, target in enumerate(oracle.targets):
            found[target] = partial(_column, oracle, column)
    return found


def _column(oracle: ActivityOracle, column: int, strings: Sequence[str]) -> np.ndarray:
    return oracle.score(strings)[:, column]
