"""Training the ranker on poses that the physics found (`python -m bio_diffusion.dock.decoys`).

A step sees poses of one complex: up to `RIGHTS` right ones (below 1.75 Å) and wrong ones (above
2.5 Å) to make `poses` in all; those between count as neither. Pockets are off centre by a normal
draw of 1 Å an axis, and shaken: what stands in a crystal fits its own ligand so closely that the
ranker would learn these complexes by heart. Complexes without a right or without a wrong pose are
left out.

Legend: B poses; lengths in Å.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint as checkpoints
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.dock.dataset import CompactSet, Example, check_shake, crop_radius
from bio_diffusion.dock.network import load_model
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.ranker import KIND, PoseRanker
from bio_diffusion.dock.score_model import ScoreModel
from bio_diffusion.dock.trunk import Complex
from bio_diffusion.files import InputError, find_data

__all__ = ["RankerFit"]

RIGHT, WRONG = 1.75, 2.5
RIGHTS = 5

_JITTER = 1.0
_REMEDY = "make it with python -m bio_diffusion.dock.decoys"
_SHARPNESS = 0.8  # mol/kcal: what the energy weighs beside f in training


class Candidates(NamedTuple):
    """Poses of one complex: as encoded, their energies (B,) kcal/mol and whether each is right."""

    given: Complex
    energy: Tensor
    right: Tensor


class RankerFit:
    """The experiment (see `train.Experiment`).

    Args:
        device: where to train.
        model: the score network, by file or name of a shipped one; it stays as it is.
        train: compact set of poses, from `dock.decoys`.
        val: the same of held-out complexes.
        more: a second set to train on, if any.
        poses: B, at most.
        shake: Å by which the pocket's atoms are moved in training, see `ReceptorGraph.shaken`.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        seed: order of the data, and which poses are seen.

    Raises:
        InputError: a set cannot be used, or `shake` is negative.
    """

    kind = KIND
    quantile = None
    condition = None

    def __init__(
        self,
        device: torch.device,
        model: str,
        train: str,
        val: str,
        more: str | None = None,
        poses: int = 32,
        shake: float = 0.45,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_shake(shake)
        path = checkpoints.find(model, "dock")
        network, loaded = load_model(path, device)
        self.device, self.poses, self.shake, self.seed = device, poses, shake, seed
        self.model = PoseRanker(network.score.size)
        self.model.begin(network.score)
        self.model.belongs_to(loaded.sha256)
        self.module: nn.Module = self.model.to(device)
        self.process = self.denoiser = Choice(self.model, network.score)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, weight_decay=weight_decay
        )
        self._train, self._val = _usable(train), _usable(val)
        if more is not None:
            self._train += _usable(more)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Pose, Candidates]]:
        for step in range(start * world + rank, 10**12, world):
            turn, place = divmod(step, len(self._train))
            order = np.random.default_rng((self.seed, turn)).permutation(len(self._train))
            generator = np.random.default_rng((self.seed, turn, place, 1))
            example = self._train[int(order[place])]
            chosen, offset = self._drawn(example, generator)
            receptor = example.receptor.shaken(self.shake, generator)
            yield self._candidates(replace(example, receptor=receptor), chosen, offset)

    def _drawn(self, example: Example, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of the poses seen, and how far off the pocket's centre is."""
        rmsd = np.asarray(example.notes["rmsd"])
        right, wrong = (rmsd < RIGHT).nonzero()[0], (rmsd > WRONG).nonzero()[0]
        few = generator.choice(right, min(len(right), RIGHTS), replace=False)
        rest = generator.choice(wrong, min(len(wrong), self.poses - len(few)), replace=False)
        offset = torch.from_numpy(generator.normal(0, _JITTER, 3)).float()
        return torch.from_numpy(np.concatenate([few, rest])), offset

    def _candidates(
        self, example: Example, chosen: Tensor, offset: Tensor
    ) -> tuple[Pose, Candidates]:
        reach = max(crop_radius(pose) for pose in example.conformers)
        pocket, _ = example.receptor.crop(
            example.crystal.mean(0) + offset, 2.0 * math.ceil(reach / 2.0)
        )
        ligand = example.ligand.to(self.device)
        with torch.no_grad():
            given = self.process.score.encode(pocket.to(self.device), ligand)
        rmsd, energy = (torch.tensor(example.notes[k])[chosen] for k in ("rmsd", "energy"))
        pose = Pose(example.conformers[chosen].to(self.device), ligand.tree)
        return pose, Candidates(given, energy.to(self.device), (rmsd < RIGHT).to(self.device))

    def evaluate(self) -> dict[str, float]:
        """On held-out complexes: the loss, without f and with it, and how often the first is right.

        All poses with an RMSD below 1.75 or above 2.5 Å compete.
        """
        rows: dict[str, list[float]] = {}
        for example in self._val:
            rmsd = torch.tensor(example.notes["rmsd"])
            chosen = ((rmsd < RIGHT) | (rmsd > WRONG)).nonzero()[:, 0]
            pose, cond = self._candidates(example, chosen, torch.zeros(3))
            with torch.no_grad():
                value = self.model(self.process.score, pose.coords, cond.given)
            for name, f in (("energy", torch.zeros_like(value)), ("ranker", value)):
                log_p = (f - _SHARPNESS * cond.energy).log_softmax(0)
                rows.setdefault(f"{name}_loss", []).append(-float(log_p[cond.right].logsumexp(0)))
                rows.setdefault(f"{name}_first", []).append(float(cond.right[log_p.argmax()]))
        return {name: sum(values) / len(values) for name, values in rows.items()}


class Choice(nn.Module):
    """The ranker and its loss in the shape that `fit` trains: nothing is noised."""

    def __init__(self, model: PoseRanker, score: ScoreModel) -> None:
        super().__init__()
        self.model, self.score = model, score

    def perturb(self, x_0: Pose, t: Tensor, generator: torch.Generator | None = None) -> Noised:
        return Noised(x_0, None)

    def forward(self, x_t: Pose, t: Tensor, cond: Candidates) -> Tensor:
        """(B,) log-probabilities of choosing each pose."""
        self.right = cond.right
        value = self.model(self.score, x_t.coords, cond.given)
        return (value - _SHARPNESS * cond.energy).log_softmax(0)

    def loss(self, prediction: Tensor, noised: Noised, x_0: Pose, t: Tensor) -> Tensor:
        return self.parts(prediction, noised, x_0, t)["choice"]

    def parts(self, prediction: Tensor, noised: Noised, x_0: Pose, t: Tensor) -> dict[str, Any]:
        return {"choice": -prediction[self.right].logsumexp(0).reshape(1)}


def _usable(name: str) -> list[Example]:
    """The complexes of a compact set of poses that have a right one and a wrong one."""
    found = CompactSet(find_data(name, _REMEDY))
    if not all("rmsd" in row and "energy" in row for row in found.rows):
        raise InputError("format", f"{name}: holds no poses; {_REMEDY}")
    kept = [
        number
        for number, row in enumerate(found.rows)
        if min(row["rmsd"]) < RIGHT and max(row["rmsd"]) > WRONG
    ]
    if not kept:
        raise InputError("empty", f"{name}: no complex has both a right and a wrong pose")
    return [found[number] for number in kept]
