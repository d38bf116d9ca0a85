"""How likely a pose is right: a calibrated probability that its RMSD is below 2 Å.

A logistic regression on the evidence of `pool`, above all what lies near the pose, by score,

    p(x) = sigmoid(weight . (x - mean) / std + bias)

It is fitted to held-out complexes: the networks that score poses have been trained on the training
complexes, so they are too sure of poses there. A model belongs to one network; beside another it is
not used.

Shapes: P poses, F columns of evidence.

Source: Platt 1999 (probabilities from scores); Corso et al. 2023 (a confidence model for the poses
of a diffusion model).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bio_diffusion.dock.companion import DIGITS, Companion, companion_path, load_companion
from bio_diffusion.dock.pool import EVIDENCE

__all__ = ["Confidence", "calibration_error", "load_confidence"]

KIND = "dock/confidence"

_CLIP = 5.0  # standard deviations; what lies beyond says no more


class Confidence(Companion):
    """The probability that poses are right.

    Attributes:
        mean, std: (F,) of the evidence that it was fitted to.
        name: file stem and first digits of the sha256 of its own file, empty before it is loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        columns = len(EVIDENCE)
        self.weight = nn.Parameter(torch.zeros(columns))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    def logits(self, evidence: Tensor) -> Tensor:
        """(P, F) -> (P,) log-odds."""
        x = ((evidence - self.mean) / self.std).clamp(-_CLIP, _CLIP)
        # a sum a row, so that a pose's number does not depend on how many there are
        return (x * self.weight).sum(1) + self.bias

    def forward(self, evidence: Tensor) -> Tensor:
        """(P, F) -> (P,) probabilities."""
        with torch.no_grad():
            return self.logits(evidence).sigmoid()


def load_confidence(network: str | Path, name: str) -> Confidence | None:
    """The confidence model beside a network's file; None where there is none made for it.

    Args:
        network: file of the network.
        name: of the network as in results, ending in the first 12 digits of its sha256.

    Raises:
        CheckpointError: the file is damaged or of another kind or shape.
    """
    model = Confidence()
    sha256 = load_companion(model, KIND, network, name.rpartition("-")[2])
    if sha256 is None:
        return None
    model.name = f"{companion_path(network, KIND).stem}-{sha256[:DIGITS]}"
    return model


def calibration_error(chance: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error: mean |share right - mean chance| over bins of equal width.

    Args:
        chance: (P,) probabilities.
        right: (P,) bool.
        bins: of [0, 1]; each counts by its poses.
    """
    place = (chance * bins).long().clamp(0, bins - 1)
    gap = chance.new_zeros(bins).index_add_(0, place, right.to(chance) - chance)
    return float(gap.abs().sum() / len(chance))
