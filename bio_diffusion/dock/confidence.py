"""How likely a pose is right: a calibrated probability that its RMSD is below 2 Å.

A logistic regression on the evidence of `pool`, as measured in training complexes,

    l(x) = weight . (x - mean) / std + bias,    p(x) = sigmoid(scale * l(x) + shift)

`scale` and `shift` are fitted on held-out complexes alone (Platt): the network that judges poses
has been trained on the training complexes, so it is too sure of their poses. A model belongs to one
network, whose losses it was fitted to; beside another it is not used.

Shapes: P poses, F columns of evidence.

Source: Platt 1999 (calibration); Corso et al. 2023 (a confidence model for the poses of a diffusion
model).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint as checkpoints
from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.dock.pool import EVIDENCE

__all__ = ["Confidence", "calibration_error", "confidence_path", "load_confidence"]

KIND = "dock/confidence"

_CLIP = 5.0  # standard deviations; what lies beyond says no more
_DIGITS = 12  # hexadecimal, of the network's sha256


class Confidence(nn.Module):
    """The probability that poses are right.

    Attributes:
        mean, std: (F,) of the evidence in training.
        network: first digits of the sha256 of the network whose poses and losses it knows.
        name: file stem and first digits of the sha256 of its own file, empty before it is loaded.
    """

    mean: Tensor
    std: Tensor
    network: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        columns = len(EVIDENCE)
        self.weight = nn.Parameter(torch.zeros(columns))
        self.bias = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.register_buffer("network", torch.zeros(_DIGITS, dtype=torch.uint8))

    def logits(self, evidence: Tensor) -> Tensor:
        """(P, F) -> (P,), before calibration."""
        x = ((evidence - self.mean) / self.std).clamp(-_CLIP, _CLIP)
        # a sum a row, so that a pose's number does not depend on how many there are
        return (x * self.weight).sum(1) + self.bias

    def forward(self, evidence: Tensor) -> Tensor:
        """(P, F) -> (P,) probabilities."""
        with torch.no_grad():
            return (self.scale * self.logits(evidence) + self.shift).sigmoid()

    def belongs_to(self, network: str) -> None:
        """Notes the network, by the hexadecimal digits that begin its sha256."""
        self.network.copy_(torch.tensor([int(digit, 16) for digit in network[:_DIGITS]]))

    @property
    def digits(self) -> str:
        """What `belongs_to` noted."""
        return "".join(f"{int(digit):x}" for digit in self.network)


def confidence_path(network: str | Path) -> Path:
    """Where the confidence model of a network's file lies: beside it."""
    path = Path(network)
    return path.with_name(f"{path.stem}_confidence.safetensors")


def load_confidence(network: str | Path, name: str) -> Confidence | None:
    """The confidence model beside a network's file; None where there is none made for it.

    Args:
        network: file of the network.
        name: of the network as in results, ending in the first 12 digits of its sha256.

    Raises:
        CheckpointError: the file is damaged or of another kind or shape.
    """
    path = confidence_path(network)
    if not path.is_file():
        return None
    loaded = checkpoints.load(path, KIND)
    try:
        loaded.into(model := Confidence())
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: holds another model than this version's ({error}); train it anew"
        ) from error
    if not name.endswith(model.digits):
        return None
    model.name = f"{path.stem}-{loaded.sha256[:_DIGITS]}"
    return model.eval().requires_grad_(False)


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
