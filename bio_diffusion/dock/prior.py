"""Fitting the prior of the pointer latents to a trained, frozen docking network.

For every complex the encoder gives its pointer probabilities p_i(node | crystal pose), i = 1..m.
The prior imitates them without the pose: it minimises

    sum_i E_{z ~ p} -sum_node p_i(node) log q_i(node | z_<i)

once within the pocket and once over the whole receptor, so that one prior serves a known site and
a blind docking.

The frozen features are computed once and kept, so an epoch costs seconds.

Source: Xu et al., "DisCo-Diff", ICML 2024, appendix E (targets are the encoder's probabilities).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bio_diffusion import checkpoint
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.latents import gumbel_softmax
from bio_diffusion.diffusion.process import Noised
from bio_diffusion.dock.dataset import Example, PoseBatches
from bio_diffusion.dock.encoders import ReceptorFeatures
from bio_diffusion.dock.experiment import DockingModel, open_set
from bio_diffusion.dock.latents import PointerPrior
from bio_diffusion.dock.layers import Features, Size
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.trunk import Complex

__all__ = ["PointerPriorFit", "Lesson"]


class Lesson(NamedTuple):
    """One complex as the prior sees it: frozen features, the targets p (m, R + N), the ligand."""

    given: Complex
    target: Tensor
    center: Tensor


class PointerPriorFit:
    """The experiment that fits the prior (see `train.Experiment`).

    Its model holds the frozen network and encoder beside the prior, so that its file is complete.

    Args:
        device: where to train.
        model: file of the trained `Docking` run.
        train: compact set, with receptors as whole as the file has them.
        val: compact set to evaluate on.
        size: of the trained network; must agree with its file.
        draws: latents drawn from the encoder for each complex in a batch.
        lr: learning rate of AdamW.
        weight_decay: of AdamW; overfitting is this prior's main difficulty.
        seed: order of the data.
    """

    kind = "dock"
    quantile = None

    def __init__(
        self,
        device: torch.device,
        model: str,
        train: str = "dock_train.safetensors",
        val: str = "dock_val.safetensors",
        size: Mapping[str, int] | None = None,
        draws: int = 4,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        loaded = checkpoint.load(Path(model), "dock")
        widths = Size(**(size or {}))
        if Size(**loaded.config["experiment"]["size"]) != widths:
            raise ConfigError(f"experiment.size differs from that of {model}: give the same widths")
        if not widths.latents:
            raise ConfigError(f"{model} has no latents, so there is no prior to fit")
        self.prior = PointerPrior(widths)
        self.model = DockingModel(widths, self.prior).to(device)
        self.model.load_state_dict(loaded.best, strict=False)
        self.model.requires_grad_(False)
        self.prior.requires_grad_(True)
        self.device, self.draws, self.seed = device, draws, seed
        self.module: nn.Module = self.model
        self.process = self.denoiser = PointerImitation(self.prior)
        self.optimizer = torch.optim.AdamW(
            self.prior.parameters(), lr=lr, weight_decay=weight_decay
        )
        self._train, self._val = open_set(train, "train"), open_set(val, "val")
        self._lessons: dict[tuple[int, bool], Lesson] = {}

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Pose, Lesson]]:
        """Complexes in random order; pocket and whole receptor take turns."""
        count = len(self._train)
        for step in range(start * world + rank, 10**12, world):
            turn, place = divmod(step, count)
            order = np.random.default_rng((self.seed, turn)).permutation(count)
            number, whole = int(order[place]), (turn + place) % 2 == 0
            if (number, whole) not in self._lessons:
                self._lessons[number, whole] = self.lesson(self._train[number], whole)
            lesson = self._lessons[number, whole]
            tree = lesson.given.ligand.tree
            yield Pose(torch.zeros(self.draws, tree.moving.shape[1], 3), tree), lesson

    def condition(self, x_0: Pose, cond: Lesson, generator: torch.Generator) -> Any:
        """Draw latents from the encoder's probabilities."""
        logits = cond.target.log().expand(len(x_0), -1, -1)
        return cond, gumbel_softmax(logits, 1.0, True, generator)

    @torch.no_grad()
    def lesson(self, example: Example, whole: bool) -> Lesson:
        """Encode a complex with the frozen network, and its pose into pointer probabilities."""
        batches = PoseBatches([example], poses=1, jitter=0.0 if whole else 2.0)
        generator = np.random.default_rng((self.seed, len(self._lessons)))
        conformer = example.conformers[0]
        pose, (pocket, ligand) = batches.pocket(example, generator)
        given = self.model.score.encode(pocket.to(self.device), ligand.to(self.device))
        target = self.model.point(given, pose.to(self.device)).softmax(-1)
        if whole:
            kept = torch.cdist(pocket.residue_coords, example.receptor.residue_coords).argmin(1)
            given = self.model.score.encode(
                example.receptor.to(self.device), ligand.to(self.device)
            )
            residues = len(example.receptor.residue_type)
            spread = target.new_zeros(len(target), residues + len(ligand.features))
            spread[:, kept] = target[:, : len(kept)]
            spread[:, residues:] = target[:, len(kept) :]
            target = spread
        return Lesson(_light(given), target, conformer.mean(0))

    def evaluate(self) -> dict[str, float]:
        """On held-out complexes, in the pocket and over all: nats a latent and their yardsticks.

        ``nll`` is the cross-entropy from the encoder's probabilities, ``entropy`` theirs (the least
        that it can be), ``even`` that of pointing anywhere. ``site`` is the prior's mean share of
        residues within 8 Å of the ligand's centre, ``site_even`` that of pointing anywhere.
        """
        rows: dict[str, list[float]] = {}
        for number, example in zip(range(120), self._val, strict=False):
            for whole in (False, True):
                lesson = self.lesson(example, whole)
                for name, value in self._figures(lesson, number).items():
                    rows.setdefault(f"{'all' if whole else 'pocket'}_{name}", []).append(value)
        return {name: sum(values) / len(values) for name, values in rows.items()}

    def _figures(self, lesson: Lesson, number: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(number)
        given, target, center = lesson
        pose = Pose(torch.zeros(8, len(given.ligand.features), 3), given.ligand.tree)
        logits = self.denoiser(pose, None, self.condition(pose, lesson, generator))
        figures = {}
        for i, (log_q, p) in enumerate(zip(logits, target, strict=True)):
            figures[f"nll_{i}"] = float(_cross_entropy(p, log_q).mean())
            figures[f"entropy_{i}"] = float(torch.special.entr(p).sum())
            figures[f"even_{i}"] = math.log(int(log_q[0].isfinite().sum()))
        place = given.receptor.graph.residue_coords
        near = (place - center.to(place)).norm(dim=-1) < 8.0
        figures["site"] = float(logits[0][0].softmax(-1)[: len(place)][near].sum())
        figures["site_even"] = float(near.float().mean())
        return figures


class PointerImitation(nn.Module):
    """The prior and its loss in the shape that `fit` trains: nothing is noised."""

    def __init__(self, prior: PointerPrior) -> None:
        super().__init__()
        self.prior = prior

    def perturb(self, x_0: Pose, t: Tensor, generator: torch.Generator | None = None) -> Noised:
        return Noised(x_0, None)

    def forward(self, x_t: Pose, t: Tensor | None, cond: tuple[Lesson, Tensor]) -> list[Tensor]:
        """Log-probabilities (B, R + N) of each latent given the ones before it, and the targets."""
        lesson, z = cond
        self.target = lesson.target
        return list(self.prior(z, lesson.given).log_softmax(-1).unbind(1))

    def loss(self, prediction: Sequence[Tensor], noised: Noised, x_0: Pose, t: Tensor) -> Tensor:
        parts = self.parts(prediction, noised, x_0, t)
        return torch.stack(list(parts.values())).mean(0)

    def parts(
        self, prediction: Sequence[Tensor], noised: Noised, x_0: Pose, t: Tensor
    ) -> dict[str, Tensor]:
        return {
            f"nll_{i}": _cross_entropy(p, log_q)
            for i, (p, log_q) in enumerate(zip(self.target, prediction, strict=True))
        }


def _cross_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """-sum p log q over nodes, where p = 0 counts as 0 even if q = 0; (K,), (B, K) -> (B,)."""
    return -torch.where(p > 0, p * log_q, torch.zeros_like(log_q)).sum(-1)


def _light(given: Complex) -> Complex:
    """Without what the prior does not read."""
    receptor, graph = given.receptor, given.receptor.graph
    none = graph.coords.new_zeros(0, 3)
    bare = replace(graph, coords=none, atom_type=graph.atom_type[:0], residue=graph.residue[:0])
    atoms = Features(receptor.atoms.scalars[:0], receptor.atoms.vectors[:0])
    return replace(given, receptor=ReceptorFeatures(bare, atoms, receptor.residues), senders=())
