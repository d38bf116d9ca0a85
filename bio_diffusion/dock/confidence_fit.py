"""Fitting the confidence model to pools of docked poses (`python -m bio_diffusion.dock.pools`).

What is fitted, on complexes that the network has not seen: whether each pose is right, by
cross-entropy, complexes counted alike however many poses they have, with a ridge on the weights.
How good that is, `held_out` tells: there each complex is judged by a fit to other protein clusters.

Shapes: P poses of C complexes, F columns of evidence.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.dock.confidence import KIND, Confidence, calibration_error
from bio_diffusion.dock.experiment import find_data
from bio_diffusion.dock.pool import EVIDENCE

__all__ = ["ConfidenceFit", "Pools", "folds", "held_out", "read_pools"]

_TERMS = ("energy", "fitted", "loss", "preference", "score")

RIGHT = 2.0
"""Å of RMSD below which a pose counts as right."""


@dataclass(frozen=True)
class Pools:
    """Docked poses of several complexes, those of a complex one after the other.

    Attributes:
        ids: C names.
        clusters: C names of protein clusters.
        sizes: C numbers of poses.
        evidence: (P, F).
        right: (P,) bool.
        failed: (P,) bool, whether a validity check fails.
        energy, fitted, score: (P,) kcal/mol; the score ranks without a confidence model.
        loss: (P,) of denoising.
        preference: (P,) nats, the ranker's.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    sizes: tuple[int, ...]
    evidence: Tensor
    right: Tensor
    failed: Tensor
    energy: Tensor
    fitted: Tensor
    loss: Tensor
    preference: Tensor
    score: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, chosen: Sequence[bool]) -> Pools:
        """The complexes for which `chosen` (C,) is true."""
        poses = torch.tensor(chosen).repeat_interleave(torch.tensor(self.sizes))

        def part(column: Any) -> Any:  # noqa: ANN401 - of poses or of complexes
            return column[poses] if isinstance(column, Tensor) else tuple(compress(column, chosen))

        return Pools(**{f.name: part(getattr(self, f.name)) for f in fields(self)})

    def joined(self, other: Pools) -> Pools:
        """The complexes of both."""

        def both(a: Any, b: Any) -> Any:  # noqa: ANN401 - of poses or of complexes
            return torch.cat([a, b]) if isinstance(a, Tensor) else a + b

        return Pools(
            **{f.name: both(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        )

    def top(self, first: Tensor, of: Tensor | None = None) -> Tensor:
        """(C,): `of` (P,), or else `right`, of the pose that is first: valid, then by `first`."""
        order = torch.where(self.failed, first - 1e6, first)
        told = self.right if of is None else of
        pairs = zip(order.split(self.sizes), told.split(self.sizes), strict=True)
        return torch.stack([values[ranks.argmax()] for ranks, values in pairs])

    def any(self) -> Tensor:
        """(C,) bool: is a right pose among them?"""
        return torch.stack([part.any() for part in self.right.split(self.sizes)])


def read_pools(path: Path) -> tuple[dict[str, Pools], str]:
    """Pools by split, and the network that they come from.

    Raises:
        ConfigError: the file is no table of pools, or mixes those of several networks.
    """
    raw = path.read_bytes()
    text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    wanted = ("id", "split", "cluster", "network", "rmsd", *_TERMS, "failed", *EVIDENCE)
    missing = [c for c in wanted if not rows or c not in rows[0]]
    networks = sorted({row["network"] for row in rows}) if not missing else []
    if missing or len(networks) != 1:
        what = f"lacks the column {missing[0]}" if missing else "mixes poses of several networks"
        raise ConfigError(f"{path}: {what}; make it with python -m bio_diffusion.dock.pools")
    by_split: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        by_split.setdefault(row["split"], {}).setdefault(row["id"], []).append(row)
    return {split: _pools(list(found.values())) for split, found in by_split.items()}, networks[0]


def _pools(complexes: Sequence[Sequence[dict[str, str]]]) -> Pools:
    rows = [row for found in complexes for row in found]
    evidence = torch.tensor([[float(row[c]) for c in EVIDENCE] for row in rows])
    return Pools(
        ids=tuple(found[0]["id"] for found in complexes),
        clusters=tuple(found[0]["cluster"] for found in complexes),
        sizes=tuple(map(len, complexes)),
        evidence=evidence,
        right=torch.tensor([float(row["rmsd"]) < RIGHT for row in rows]),
        failed=torch.tensor([row["failed"] == "1" for row in rows]),
        **{name: torch.tensor([float(row[name]) for row in rows]) for name in _TERMS},
    )


FOLDS = 10
_RIDGE = 0.0003


def folds(pools: Pools) -> list[int]:
    """(C,) which of `FOLDS` parts of the protein clusters each complex is in."""
    clusters = sorted(set(pools.clusters))
    return [clusters.index(cluster) % FOLDS for cluster in pools.clusters]


def held_out(pools: Pools, ridge: float = _RIDGE) -> Tensor:
    """(P,) the probability of each pose by a fit to the other `folds`."""
    chance = torch.zeros(len(pools.right))
    sizes, fold = torch.tensor(pools.sizes), folds(pools)
    for number in set(fold):
        model = _fitted(pools.of([f != number for f in fold]), ridge)
        here = torch.tensor([f == number for f in fold]).repeat_interleave(sizes)
        with torch.no_grad():
            chance[here] = model(pools.evidence[here])
    return chance


def _fitted(pools: Pools, ridge: float) -> Confidence:
    """The optimum that `ConfidenceFit` goes down to, at once."""
    regression = Regression(Confidence(), pools, ridge)
    optimizer = torch.optim.LBFGS(
        regression.parameters(), max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = regression.total(regression.logits())
        loss.backward()
        return loss

    optimizer.step(closure)
    return regression.model


class ConfidenceFit:
    """The experiment (see `train.Experiment`); a step sees all poses at once.

    Args:
        device: where to train.
        pools: table of pools; all of its splits are fitted to.
        lr: learning rate of Adam.
        ridge: times the square of the weights, added to the loss.
    """

    kind = KIND
    quantile = None
    condition = None

    def __init__(
        self,
        device: torch.device,
        pools: str = "dock_pools.csv.gz",
        lr: float = 0.05,
        ridge: float = _RIDGE,
    ) -> None:
        found, network = read_pools(find_data(pools))
        self.pools, self.ridge = reduce(Pools.joined, found.values()), ridge
        if len(set(self.pools.clusters)) < 2:
            raise ConfigError(f"{pools}: holds one protein cluster; two are needed at least")
        self.model = Confidence()
        self.process = self.denoiser = Regression(self.model, self.pools, ridge).to(device)
        self.model.belongs_to(network.rpartition("-")[2])
        self.module: nn.Module = self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Any, Any]]:
        while True:
            yield (None,), None

    def evaluate(self) -> dict[str, float]:
        """Of fits to other protein clusters, whatever the model has learned so far."""
        chance, right = held_out(self.pools, self.ridge), self.pools.right.float()
        return {
            "entropy": float(F.binary_cross_entropy(chance, right)),
            "entropy_of_rate": float(
                F.binary_cross_entropy(torch.full_like(chance, float(right.mean())), right)
            ),
            "calibration_error": calibration_error(chance, self.pools.right),
            "top_score": float(self.pools.top(-self.pools.score).float().mean()),
            "top_confidence": float(self.pools.top(chance).float().mean()),
            "any": float(self.pools.any().float().mean()),
        }


class Regression(nn.Module):
    """Model and loss in the shape that `fit` trains: nothing is noised."""

    evidence: Tensor
    right: Tensor

    def __init__(self, model: Confidence, seen: Pools, ridge: float) -> None:
        super().__init__()
        model.mean.copy_(seen.evidence.mean(0))
        model.std.copy_(seen.evidence.std(0) + 1e-3)
        self.model, self.ridge, self.sizes = model, ridge, seen.sizes
        self.register_buffer("evidence", seen.evidence)
        self.register_buffer("right", seen.right.float())

    def perturb(self, x_0: Any, t: Tensor, generator: Any = None) -> Noised:  # noqa: ANN401
        return Noised(x_0, None)

    def logits(self) -> Tensor:
        """(P,) of all poses."""
        return self.model.logits(self.evidence)

    def forward(self, x_t: Any, t: Tensor, cond: Any) -> Tensor:  # noqa: ANN401
        return self.logits()

    def total(self, logits: Tensor) -> Tensor:
        """(1,) what is minimised."""
        return torch.stack(list(self._parts(logits).values())).sum(0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Any, t: Tensor) -> Tensor:  # noqa: ANN401
        return self.total(prediction)

    def parts(
        self,
        prediction: Tensor,
        noised: Noised,
        x_0: Any,  # noqa: ANN401
        t: Tensor,
    ) -> dict[str, Tensor]:
        return self._parts(prediction)

    def _parts(self, logits: Tensor) -> dict[str, Tensor]:
        each = F.binary_cross_entropy_with_logits(logits, self.right, reduction="none")
        pose = torch.stack([part.mean() for part in each.split(self.sizes)]).mean()
        ridge = self.ridge * self.model.weight.square().sum()
        return {"pose": pose.reshape(1), "ridge": ridge.reshape(1)}
