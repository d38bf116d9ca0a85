"""Fitting the confidence model to pools of docked poses (`python -m bio_diffusion.dock.pools`).

What is fitted, on training complexes: whether each pose is right (cross-entropy, complexes counted
alike however many poses they have), and which pose of a pool is right (the share that a softmax
over the pool gives to the right ones, where there are right and wrong ones). Calibration is fitted
at the same time to held-out complexes, whose evidence reaches `scale` and `shift` alone.

Shapes: P poses of C complexes, F columns of evidence.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

__all__ = ["ConfidenceFit", "Pools", "read_pools"]

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
        score: (P,) kcal/mol, what ranks without a confidence model.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    sizes: tuple[int, ...]
    evidence: Tensor
    right: Tensor
    failed: Tensor
    score: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def top(self, first: Tensor) -> Tensor:
        """(C,) bool: is the pose right that comes first, valid before not, by falling `first`?"""
        order = torch.where(self.failed, first - 1e6, first)
        hits = zip(order.split(self.sizes), self.right.split(self.sizes), strict=True)
        return torch.stack([right[values.argmax()] for values, right in hits])

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
    wanted = ("id", "split", "cluster", "network", "rmsd", "score", *EVIDENCE)
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
        failed=evidence[:, EVIDENCE.index("failed")] > 0,
        score=torch.tensor([float(row["score"]) for row in rows]),
    )


class ConfidenceFit:
    """The experiment (see `train.Experiment`); a step sees all poses at once.

    Args:
        device: where to train.
        pools: table of pools, with the splits `train` and `val`.
        listwise: weight of choosing within a pool.
        lr: learning rate of AdamW.
        weight_decay: of AdamW, on the weights of the evidence.
    """

    kind = KIND
    quantile = None
    condition = None

    def __init__(
        self,
        device: torch.device,
        pools: str = "dock_pools.csv.gz",
        listwise: float = 1.0,
        lr: float = 0.02,
        weight_decay: float = 0.3,
    ) -> None:
        found, network = read_pools(find_data(pools))
        for split in ("train", "val"):
            if split not in found:
                raise ConfigError(f"{pools}: has no rows of the split {split}")
        self.train, self.val = found["train"], found["val"]
        self.model = Confidence()
        self.model.mean.copy_(self.train.evidence.mean(0))
        self.model.std.copy_(self.train.evidence.std(0) + 1e-3)
        self.model.belongs_to(network.rpartition("-")[2])
        self.module: nn.Module = self.model.to(device)
        self.process = self.denoiser = Imitation(self.model, self.train, self.val, listwise, device)
        free = [self.model.bias, self.model.scale, self.model.shift]
        groups: list[dict[str, Any]] = [
            {"params": [self.model.weight]},
            {"params": free, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Any, Any]]:
        while True:
            yield (None,), None

    def evaluate(self) -> dict[str, float]:
        """On the held-out complexes that calibration has seen; benchmarks cross-validate it."""
        device = self.model.mean.device
        chance = self.model(self.val.evidence.to(device)).cpu()
        base = float(self.val.right.float().mean())
        return {
            "entropy": float(F.binary_cross_entropy(chance, self.val.right.float())),
            "entropy_of_rate": float(
                F.binary_cross_entropy(torch.full_like(chance, base), self.val.right.float())
            ),
            "calibration_error": calibration_error(chance, self.val.right),
            "top_score": float(self.val.top(-self.val.score).float().mean()),
            "top_confidence": float(self.val.top(chance).float().mean()),
            "any": float(self.val.any().float().mean()),
        }


class Imitation(nn.Module):
    """Model and losses in the shape that `fit` trains: nothing is noised."""

    def __init__(
        self, model: Confidence, train: Pools, val: Pools, listwise: float, device: torch.device
    ) -> None:
        super().__init__()
        self.model, self.listwise, self.sizes = model, listwise, train.sizes
        self.seen, self.held = train.evidence.to(device), val.evidence.to(device)
        self.right, self.held_right = train.right.to(device), val.right.float().to(device)

    def perturb(self, x_0: Any, t: Tensor, generator: Any = None) -> Noised:  # noqa: ANN401
        return Noised(x_0, None)

    def forward(self, x_t: Any, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Logits of the training poses (P,), calibrated ones of the held-out poses (P',)."""
        held = self.model.logits(self.held).detach()
        return self.model.logits(self.seen), self.model.scale * held + self.model.shift

    def loss(self, prediction: Any, noised: Noised, x_0: Any, t: Tensor) -> Tensor:  # noqa: ANN401
        parts = self.parts(prediction, noised, x_0, t)
        return parts["pose"] + self.listwise * parts["choice"] + parts["calibration"]

    def parts(
        self,
        prediction: tuple[Tensor, Tensor],
        noised: Noised,
        x_0: Any,
        t: Tensor,  # noqa: ANN401
    ) -> dict[str, Tensor]:
        logits, held = prediction
        each = F.binary_cross_entropy_with_logits(logits, self.right.float(), reduction="none")
        pose = torch.stack([part.mean() for part in each.split(self.sizes)])
        choices = [
            all_.logsumexp(0) - all_[right].logsumexp(0)
            for all_, right in zip(
                logits.split(self.sizes), self.right.split(self.sizes), strict=True
            )
            if right.any() and not right.all()
        ]
        choice = torch.stack(choices).sum() if choices else logits.new_zeros(())
        return {
            "pose": pose.mean().reshape(1),
            "choice": (choice / len(self.sizes)).reshape(1),
            "calibration": F.binary_cross_entropy_with_logits(held, self.held_right).reshape(1),
        }
