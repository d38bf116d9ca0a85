"""Training the docking network: what `python -m bio_diffusion.train experiment=dock/...` builds.

One batch is one complex: its pocket is encoded once, with gradients, and B copies of its pose get
different noise. `Docking` holds score network and, where there are latents, their encoder, trained
together; `prior.PointerPriorFit` fits the latents' prior to a frozen one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion import checkpoint as checkpoints
from bio_diffusion import files
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.latents import Latents, gumbel_softmax, usage
from bio_diffusion.diffusion.product import R3, SO3, ProductDiffusion, Torus
from bio_diffusion.diffusion.training import keyed_generator, stratified_times
from bio_diffusion.dock.dataset import CompactSet, Example, PoseBatches, check_shake
from bio_diffusion.dock.graph import RESIDUE_TYPES, LigandGraph, ReceptorGraph
from bio_diffusion.dock.latents import PointerEncoder, PointerPrior
from bio_diffusion.dock.layers import Size
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.score_model import ScoreModel
from bio_diffusion.dock.trunk import Complex

__all__ = ["Docking", "DockingModel", "docking_process", "find_data", "open_set"]

Pocket = tuple[ReceptorGraph, LigandGraph]

# Noise in Å, rad, rad. Translations start within a pocket, not anywhere on the protein: a blind
# docking proposes sites first. Below the smallest levels the physics has the better eye.
SIGMA = {"tr": (0.2, 5.0), "rot": (0.05, 2.5), "tor": (0.05, 3.14)}


def docking_process(sigma: Mapping[str, tuple[float, float]] = SIGMA) -> ProductDiffusion:
    """The diffusion of poses over translations, rotations and torsions, equally weighted."""
    kernels = {"tr": R3(), "rot": SO3(), "tor": Torus()}
    return ProductDiffusion({name: (kernels[name], *sigma[name], 1 / 3) for name in kernels})


class DockingModel(nn.Module):
    """Score network and, where `size.latents` > 0, the encoder and the prior of its latents.

    The prior is fitted after the rest (`prior.PointerPriorFit`); until then there is none.
    """

    def __init__(self, size: Size, prior: PointerPrior | None = None) -> None:
        super().__init__()
        self.process = docking_process()
        self.score = ScoreModel(self.process, size)
        self.encoder = PointerEncoder(size) if size.latents else None
        self.prior = prior

    def point(self, given: Complex, pose: Pose) -> Tensor:
        """Logits (m, R + N) of the latents that describe a clean pose."""
        if self.encoder is None:
            raise ValueError("this model has no latents")
        return self.encoder(given, pose)


def find_data(name: str) -> Path:
    """A compact set or folder by path or name, see `files.find_data`."""
    return files.find_data(name, "make it with python -m bio_diffusion.dock.prepare")


def open_set(name: str, split: str) -> CompactSet:
    """A compact file, or a folder of complexes, which is prepared when it is first used.

    Args:
        name: as for `find_data`. Beside a folder, ``<folder>.<split>.safetensors`` keeps what was
            prepared; delete it when the folder has changed.
        split: rows of the folder's manifest to take; without a manifest all complexes.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no usable complex.
    """
    path = find_data(name)
    if not path.is_dir():
        return CompactSet(path)
    prepared = path.with_name(f"{path.name}.{split}.safetensors")
    if not prepared.exists():
        from bio_diffusion.dock import prepare  # reads molecules, which the rest here does not

        words = ["--data", str(path), "--out", str(prepared)]
        if (path / "manifest.csv").exists():
            words += ["--split", split]
        prepare.main(words)
        if not prepared.exists():
            raise files.InputError("empty", f"{path}: no complex in it could be prepared")
    return CompactSet(prepared)


class Docking:
    """The experiment of score network and latent encoder (see `train.Experiment`).

    Args:
        device: where to train.
        train: what to learn from, a compact set or a folder of complexes (see `open_set`).
        val: what to evaluate on.
        begin: a docking model of the same size whose weights to start from, by file or name of a
            shipped one; None starts anew. A prior in it is left out: it is fitted afterwards.
        more: a second set to learn from, if any.
        shake: Å by which receptors' atoms are moved in training, see `ReceptorGraph.shaken`.
        poses: B, noised poses of one complex in a batch.
        lr: learning rate of AdamW.
        size: arguments of `Size`.
        tau: temperature of the latents' relaxation.
        hard: straight-through latents (one-hot forward) instead of soft ones.
        hide: share of poses whose latents are hidden in training.
        seed: order of the data.

    Raises:
        CheckpointError: there is no such model as `begin`, or it is damaged.
        InputError: a set cannot be used, or `shake` is negative.
        ConfigError: `begin` has another size.
    """

    kind = "dock"

    def __init__(
        self,
        device: torch.device,
        train: str = "dock_train.safetensors",
        val: str = "dock_val.safetensors",
        begin: str | None = None,
        more: str | None = None,
        shake: float = 0.0,
        poses: int = 8,
        lr: float = 1e-3,
        size: Mapping[str, int] | None = None,
        tau: float = 1.0,
        hard: bool = True,
        hide: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.device = device
        check_shake(shake)
        self.model = DockingModel(Size(**(size or {})))
        if begin is not None:
            _start(self.model, begin)
        self.model.to(device)
        self.module: nn.Module = self.model
        self.process = self.model.process
        self.denoiser = self.model.score
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=lr, weight_decay=0.01)
        self.quantile = torch.sqrt  # Beta(2, 1): more often at high noise
        self.tau, self.hard, self.hide = tau, hard, hide
        examples: Sequence[Example] = open_set(train, "train")
        if more is not None:
            examples = [*examples, *open_set(more, "train")]
        self._train = PoseBatches(examples, poses, seed, shake=shake)
        self._val = PoseBatches(open_set(val, "val"), poses, seed)

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[Pose, Pocket]]:
        for pose, (receptor, ligand) in self._train.batches(start, rank, world):
            yield pose.to(self.device), (receptor.to(self.device), ligand.to(self.device))

    def condition(self, x_0: Pose, cond: Pocket, generator: torch.Generator) -> Complex:
        """Encode the pocket and, from the clean pose, the latents; hide some of them."""
        given = self.denoiser.encode(*cond)
        if self.model.encoder is None:
            return given
        logits = self.model.encoder(given, x_0).expand(len(x_0), -1, -1)
        z = gumbel_softmax(logits, self.tau, self.hard, generator)
        null = torch.rand(len(x_0), generator=generator) < self.hide
        return given.with_latents(Latents(z, null.to(z.device)))

    def evaluate(self) -> dict[str, float]:
        """Denoising loss on held-out complexes, by third of noise, and how latents fare there.

        ``oracle`` latents come from the encoder and the crystal pose, ``shuffled`` ones point at
        nodes drawn evenly, ``null`` ones are hidden. Of each latent,

            certainty    1 - H(z | crystal pose) / log K: 0 where the encoder says nothing
            information  I(z; pose) in nats, within a complex, of a pose drawn evenly from its
                         crystal pose and B noised copies, at even times: 0 where the pointers
                         ignore the pose, log(B + 1) at most
            kinds        exp H of the kind of node pointed to (the residue's type, or a ligand
                         atom), over all complexes: 1 where all pointers are of one kind

        Codes differ between complexes, so information is averaged over them; it says what the
        encoder tells of poses, most of which it was not trained on, not what the score makes of it.
        No figure here is a docking success: that is measured with latents from the prior.
        """
        sums: dict[str, list[Tensor]] = {}
        pointers: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, example in zip(range(96), self._val.examples, strict=False):
            pose, pocket = self._val.pocket(example, _numpy_generator(number))
            pose = pose.to(self.device)
            given = self.denoiser.encode(pocket[0].to(self.device), pocket[1].to(self.device))
            t = stratified_times(len(pose), keyed_generator(number)).to(self.device)
            noised = self.process.perturb(pose, t, keyed_generator(number, 1))
            if self.model.encoder is not None:
                pointers.append(self._pointers(given, pose, noised.x_t))
            for name, shown in self._variants(given, pose):
                loss = self.process.loss(self.denoiser(noised.x_t, t, shown), noised, pose, t)
                thirds = (3 * t).long().clamp(max=2)
                for third in range(3):
                    sums.setdefault(f"{name}_t{third}", []).append(loss[thirds == third])
                sums.setdefault(name, []).append(loss)
        figures = {name: float(torch.cat(values).mean()) for name, values in sums.items()}
        if pointers:
            certain, told, kinds = (
                torch.stack(values).mean(0) for values in zip(*pointers, strict=True)
            )
            for latent in range(len(certain)):
                figures[f"certainty_{latent}"] = float(certain[latent])
                figures[f"information_{latent}"] = float(told[latent])
                figures[f"kinds_{latent}"] = float(torch.special.entr(kinds[latent]).sum().exp())
        return figures

    def _pointers(self, given: Complex, pose: Pose, noised: Pose) -> tuple[Tensor, Tensor, Tensor]:
        """Certainty (m,), information (m,) and shares of kinds (m, types + 1), of one complex."""
        logits = [self.model.point(given, pose)]
        logits += [self.model.point(given, noised[i : i + 1]) for i in range(len(noised))]
        law = logits[0].double().softmax(-1)
        certainty = 1 - torch.special.entr(law).sum(-1) / law.gt(0).sum(-1).log()
        residue_type = given.receptor.graph.residue_type
        atoms = residue_type.new_full((law.shape[1] - len(residue_type),), len(RESIDUE_TYPES))
        kind = F.one_hot(torch.cat([residue_type, atoms]), len(RESIDUE_TYPES) + 1)
        return certainty, usage(torch.stack(logits)).information, law @ kind.double()

    def _variants(self, given: Complex, pose: Pose) -> Iterator[tuple[str, Complex]]:
        if self.model.encoder is None:
            yield "loss", given
            return
        logits = self.model.encoder(given, pose)
        batch, generator = len(pose), keyed_generator(0)
        z = gumbel_softmax(logits.expand(batch, -1, -1), 1.0, True, generator)
        even = torch.where(logits.isfinite(), 0.0, -torch.inf).expand(batch, -1, -1)
        shuffled = gumbel_softmax(even, 1.0, True, generator)
        shown = torch.zeros(batch, dtype=torch.bool, device=z.device)
        yield "oracle", given.with_latents(Latents(z, shown))
        yield "shuffled", given.with_latents(Latents(shuffled, shown))
        yield "null", given.with_latents(Latents(z, ~shown))


def _start(model: DockingModel, begin: str) -> None:
    """Puts the weights of a trained model, all but a prior's, into one."""
    loaded = checkpoints.load(checkpoints.find(begin, "dock"), "dock")
    if Size(**loaded.config["experiment"]["size"]) != model.score.size:
        raise ConfigError(f"experiment.size differs from that of {begin}: give the same widths")
    weights = {k: v for k, v in loaded.best.items() if not k.startswith("prior.")}
    replace(loaded, weights=weights, ema=None).into(model)


def _numpy_generator(number: int) -> Any:  # noqa: ANN401 - numpy.random.Generator
    import numpy as np

    return np.random.default_rng(number)
