"""Which of a pool's poses is right: a learned preference, read off the score network's features.

A search by the physics ends in tens of minima, and a right one is among them more often than it is
the lowest. What tells them apart has been learned already, for denoising; so the score network
stays as it is and looks at each pose as if it were noised a little (t_0); only its last layer is
taken by a copy, with a head, that is trained to choose:

    h = layer(features(x, t_0)),    f(x) = sum_i g(h_i) / sqrt(N)
    loss = - log sum_{right p} softmax_p(f(x_p) - s E(x_p))

over poses of one complex, with the energy E beside it, so that f learns what the energy does not
say. The network has seen the crystal poses of its own training complexes, where f is too sure even
though receptors are shaken in training (`ranker_fit`); what a unit of f is worth beside the energy
is set on held-out complexes (`Settings`).

Legend: B poses, N ligand atoms; Å, kcal/mol; f is in nats.

Source: Corso et al. 2023 (a confidence model for the poses of a diffusion model; theirs is a
    network of its own); McNutt et al. 2021 (a network ranks the minima of Vina's search, GNINA).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bio_diffusion.dock.companion import Companion, load_companion
from bio_diffusion.dock.encoders import PAIR_TYPES
from bio_diffusion.dock.layers import Message, Size, Update
from bio_diffusion.dock.score_model import ScoreModel
from bio_diffusion.dock.trunk import Complex, Interaction

__all__ = ["KIND", "PoseRanker", "load_ranker"]

KIND = "dock/ranker"

_T_0 = 0.1  # noise at which the score network looks: a third of an Å
_HIDDEN = 16


class PoseRanker(Companion):
    """The preference f among poses of one ligand.

    Args:
        size: of the score network whose features it reads.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        size = size.without_latents()
        self.from_ligand = Message(size, PAIR_TYPES)
        self.from_atoms = Message(size)
        self.update = Update(size, 3)
        last = nn.Linear(_HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(size.scalars + size.vectors, _HIDDEN), nn.SiLU(), last)

    def forward(self, score: ScoreModel, coords: Tensor, given: Complex) -> Tensor:
        """(B,) nats; only differences between poses of one complex mean anything.

        Args:
            score: the network that it was trained on.
            coords: (B, N, 3).
            given: the complex as `score` encodes it; latents are hidden.
        """
        given, last = given.without_latents(), _last(score)
        before = replace(given, senders=given.senders[:-1])
        with torch.no_grad():
            seen = score.features(coords, coords.new_full((len(coords),), _T_0), before)
            near = score.trunk.surroundings(coords, given)
            residues = last.from_residues(seen.scalars, given.senders[-1][1], near.residues)
        heard = [
            self.from_ligand(seen.scalars, seen, near.ligand, near.pair_type),
            self.from_atoms(seen.scalars, given.receptor.atoms, near.atoms),
            residues,
        ]
        own = self.update(seen, heard)
        lengths = (own.vectors.square().sum(1) + 1e-6).sqrt()
        each = self.head(torch.cat([own.scalars, lengths], -1)).view(coords.shape[:2])
        return each.sum(1) / math.sqrt(coords.shape[1])

    def begin(self, score: ScoreModel) -> None:
        """Starts as a copy of the network's last layer; what residues say stays the network's."""
        last = _last(score)
        for own in ("from_ligand", "from_atoms", "update"):
            getattr(self, own).load_state_dict(getattr(last, own).state_dict())


def _last(score: ScoreModel) -> Interaction:
    last = score.trunk.layers[-1]
    assert isinstance(last, Interaction)
    return last


def load_ranker(network: str | Path, sha256: str, size: Size) -> PoseRanker | None:
    """The ranker beside a network's file; None where there is none made for it.

    Args:
        network: file of the network.
        sha256: of that file.
        size: of the network.

    Raises:
        CheckpointError: the file is damaged or of another kind or shape.
    """
    model = PoseRanker(size)
    return model if load_companion(model, KIND, network, sha256) else None
