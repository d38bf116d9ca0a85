"""Small models that serve one network only and lie beside its file.

Beside `net.safetensors` a model of the kind `dock/ranker` is `net_ranker.safetensors`. It holds the
first digits of the network's sha256: beside another network it is not used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint as checkpoints
from bio_diffusion.checkpoint import CheckpointError

__all__ = ["DIGITS", "Companion", "companion_path", "load_companion"]

DIGITS = 12
"""Hexadecimal ones, of a sha256, that name a network."""


class Companion(nn.Module):
    """A module that notes which network it was trained beside.

    Attributes:
        network: the first digits of that network's sha256.
    """

    network: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("network", torch.zeros(DIGITS, dtype=torch.uint8))

    def belongs_to(self, network: str) -> None:
        """Notes the network, by the hexadecimal digits that begin its sha256."""
        self.network.copy_(torch.tensor([int(digit, 16) for digit in network[:DIGITS]]))

    @property
    def digits(self) -> str:
        """What `belongs_to` noted."""
        return "".join(f"{int(digit):x}" for digit in self.network)


def companion_path(network: str | Path, kind: str) -> Path:
    """Where a network's companion of a kind lies."""
    path = Path(network)
    return path.with_name(f"{path.stem}_{kind.rpartition('/')[2]}.safetensors")


def load_companion(model: Companion, kind: str, network: str | Path, sha256: str) -> str | None:
    """Fills `model` from the file beside a network's.

    Args:
        model: of this version; it comes back ready for use, without gradients.
        kind: of the file.
        network: file of the network.
        sha256: the network's, or the first `DIGITS` of it.

    Returns:
        The sha256 of the companion's file; None where there is none made for this network.

    Raises:
        CheckpointError: the file is damaged or of another kind or shape.
    """
    path = companion_path(network, kind)
    if not path.is_file():
        return None
    loaded = checkpoints.load(path, kind)
    try:
        loaded.into(model)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: holds another model than this version's ({error}); train it anew"
        ) from error
    model.eval().requires_grad_(False)
    return loaded.sha256 if sha256.startswith(model.digits) else None
