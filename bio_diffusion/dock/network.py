"""Start poses from the trained diffusion model, and what its latents' prior thinks of sites.

Shapes: B poses, N ligand atoms, R residues, m latents, K conformers. Coordinates in Å.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bio_diffusion import checkpoint as checkpoints
from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.diffusion import schedule as schedules
from bio_diffusion.diffusion.bridge import LowTemperature
from bio_diffusion.diffusion.guidance import ClassifierFree, EnergyGuidance
from bio_diffusion.diffusion.latents import Latents, sample_prior
from bio_diffusion.diffusion.likelihood import denoising_parts
from bio_diffusion.diffusion.process import Guidance
from bio_diffusion.diffusion.product import ProductDiffusion
from bio_diffusion.diffusion.sampling import sample

from .complex import InputError, Site
from .dataset import CompactSet, PoseBatches, crop_radius
from .encoders import ReceptorFeatures
from .experiment import DockingModel, find_data
from .latents import PointerPrior
from .layers import Size
from .pose import Pose
from .ranker import PoseRanker
from .score_model import ScoreModel
from .sources import PreparedLigand, PreparedReceptor
from .trunk import Complex, Senders

__all__ = ["NetworkPoses", "SCHEDULES", "load_model", "schedule_probe"]

SCHEDULES = ("adaptive", "uniform", "karras", "log_snr", "cosine")
_STEERING_CAP = 1.0  # kcal/mol, ceiling of one atom's repulsion while poses still pass through
# High noise tells poses apart: near a pose the network cannot tell a good one from its neighbours.
_JUDGING_TIMES = torch.linspace(0.5, 0.9, 5)
_JUDGING_DRAWS = 4  # of noise and latents, at each of these times
_KEPT_POCKETS = 8  # encoded pockets kept for the next ligands on the same receptor


def load_model(
    path: str | Path, device: torch.device
) -> tuple[DockingModel, checkpoints.Checkpoint]:
    """A trained docking model, ready to sample, and the checkpoint it came from.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    loaded = checkpoints.load(path, "dock")
    has_prior = any(name.startswith("prior.") for name in loaded.best)
    try:
        size = Size(**loaded.config["experiment"]["size"])
        model = DockingModel(size, PointerPrior(size) if has_prior else None)
        loaded.into(model)
    except (CheckpointError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: holds another network than this version's ({error}); train it anew"
        ) from error
    return model.to(device).eval().requires_grad_(False), loaded


class NetworkPoses:
    """Poses by reverse diffusion, each with latents of its own from the prior (a `PoseSource`).

    Args:
        model: from `load_model`.
        curve: the time grid fitted to it, for the adaptive schedule.
        steps: network calls.
        schedule: one of `SCHEDULES`.
        device: where the network runs; poses come back on the CPU.
        temperature: of the latents' prior; above 1 flatter.
        guidance: how strongly Vina's energy steers each step, in 1 / (kcal/mol) at t = 0, falling
            to none at t = 1, where a ligand's atoms still lie across the receptor's.
        latent_guidance: w of classifier-free guidance, whose unconditioned model has its latents
            hidden; 0 is off and costs nothing, else each step takes a second network call.
        inverse_temperature: how sharply poses crowd around the likely ones (`LowTemperature`, which
            turns from this to 1 at the least noise of each factor); 1 samples the model as it is.
        ranker: prefers some poses to others; None has no preference.

    Raises:
        InputError: the schedule does not exist or does not fit the model, or guidance on latents is
            wanted of a model that draws none.
    """

    name = "network"

    def __init__(
        self,
        model: DockingModel,
        curve: schedules.Curve | None = None,
        steps: int = 20,
        schedule: str = "adaptive",
        device: torch.device | None = None,
        temperature: float = 1.0,
        guidance: float = 0.0,
        latent_guidance: float = 0.0,
        inverse_temperature: float = 1.0,
        ranker: PoseRanker | None = None,
    ) -> None:
        if latent_guidance and model.prior is None:
            raise InputError(
                "setting",
                f"latent_guidance is {latent_guidance:g}, but the model draws no latents; give 0 "
                "or a --checkpoint with latents",
            )
        self.model, self.device = model, device or torch.device("cpu")
        self.ranker = None if ranker is None else ranker.to(self.device)
        self.latent_guidance = latent_guidance
        self.guidance, self.temperature = guidance, temperature
        self.process = copy.copy(model.process)  # with steps of its own
        if inverse_temperature != 1.0:
            self.process.bridge = {
                name: LowTemperature(inverse_temperature, 0.0, factor.sigma_min)
                for name, factor in self.process.factors.items()
            }
        self.times = _times(model, curve, steps, schedule)
        self._pockets: OrderedDict[tuple[float, ...], tuple[ReceptorFeatures, Senders]]
        self._pockets = OrderedDict()
        self._of: PreparedReceptor | None = None

    def poses(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        site: Site,
        count: int,
        generator: torch.Generator,
    ) -> Pose:
        """`count` poses of the ligand at the site; the conformers take turns."""
        with torch.inference_mode():
            given = self.complex(receptor, ligand, site)
            chosen = ligand.conformers[torch.arange(count) % len(ligand.conformers)]
            center = torch.as_tensor(np.asarray(site.center), dtype=torch.float32)
            placed = chosen - chosen.mean(1, keepdim=True) + center
            start = Pose(placed, ligand.graph.tree).to(self.device)
            latents = self.draw(given, count, generator)
            pose = sample(
                self.process,
                self.model.score,
                self.process.prior(start, generator),
                self.times,
                given.with_latents(latents),
                (*self._contrast(), *self._steering(receptor, ligand, site)),
                generator,
            )
        return pose.to("cpu")

    def _contrast(self) -> tuple[Guidance, ...]:
        """Guidance on the latents, where it is wanted."""
        if not self.latent_guidance:
            return ()
        score = self.model.score
        return (ClassifierFree(self.process, score, self.latent_guidance, Complex.without_latents),)

    def _steering(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site
    ) -> tuple[Guidance, ...]:
        """The physics as guidance, where it is wanted; poses travel to the CPU for it and back."""
        if not self.guidance:
            return ()
        energy = ligand.energy(receptor, site).softened(_STEERING_CAP)

        def gradient(x_t: Pose, t: Tensor, cond: Complex) -> dict[str, Tensor]:
            found = energy.energy_and_gradient(x_t.to("cpu"))[1]
            return {name: value.to(self.device) for name, value in found.items()}

        def scale(t: Tensor) -> Tensor:
            return self.guidance * (1 - t)

        return (EnergyGuidance(self.process, gradient, scale),)

    def losses(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        """Losses of denoising each pose, by factor; their mean is the loss of training.

        Times, noise and latents are the same for all poses and in every call, so equal poses get
        equal numbers.
        """
        with torch.inference_mode():
            given = self.complex(receptor, ligand, site)
            generator = torch.Generator().manual_seed(0)
            drawn = self.draw(given, _JUDGING_DRAWS, generator)
            total = torch.zeros(len(pose), len(self.model.process.factors))
            for draw in range(_JUDGING_DRAWS):
                shared = None
                if drawn is not None:
                    shared = Latents(
                        drawn.z[draw].expand(len(pose), -1, -1),
                        drawn.null[draw].expand(len(pose)),
                    )
                parts = denoising_parts(
                    self.model.process,
                    self.model.score,
                    pose.to(self.device),
                    _JUDGING_TIMES.to(self.device),
                    given.with_latents(shared),
                    seed=draw,
                )
                total += torch.stack(list(parts.values()), 1).cpu()
        return total / _JUDGING_DRAWS

    def preferences(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        """Those of the ranker; zeros without one."""
        if self.ranker is None:
            return torch.zeros(len(pose))
        with torch.inference_mode():
            given = self.complex(receptor, ligand, site)
            return self.ranker(self.model.score, pose.coords.to(self.device), given).cpu()

    def complex(self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site) -> Complex:
        """The encoded pocket, kept for the next ligand, joined with the ligand."""
        center = torch.as_tensor(np.asarray(site.center), dtype=torch.float32)
        gap = float((receptor.graph.coords - center).norm(dim=1).min())
        reach = max(gap + 6.0, *(crop_radius(coords) for coords in ligand.conformers))
        radius = 2.0 * math.ceil(reach / 2.0)  # few different pockets, so that ligands share them
        if self._of is not receptor:
            self._pockets.clear()
            self._of = receptor
        key = (*map(float, site.center), radius)
        if key not in self._pockets:
            pocket, _ = receptor.graph.crop(center, radius)
            self._pockets[key] = self.model.score.encode_receptor(pocket.to(self.device))
            while len(self._pockets) > _KEPT_POCKETS:
                self._pockets.popitem(last=False)
        self._pockets.move_to_end(key)
        return self.model.score.pair(self._pockets[key], ligand.graph.to(self.device))

    def draw(self, given: Complex, count: int, generator: torch.Generator) -> Latents | None:
        """Latents (count, m, R + N) from the prior; hidden where none was fitted; None without any.

        The nodes are those of the encoded pocket, so a known site restricts the first pointer.
        """
        m, prior = self.model.score.size.latents, self.model.prior
        if not m:
            return None
        nodes = len(given.receptor.graph.residue_type) + len(given.ligand_scalars)
        z = given.ligand_scalars.new_full((count, m, nodes), 1 / nodes)
        if prior is not None:
            z = sample_prior(prior, z, given, self.temperature, generator=generator)
        return Latents(z, torch.full((count,), prior is None, device=z.device))


def _times(model: DockingModel, curve: schedules.Curve | None, steps: int, schedule: str) -> Tensor:
    """N + 1 times of the chosen schedule; adaptive without a fitted curve is an error."""
    if schedule not in SCHEDULES:
        raise InputError("schedule", f"no schedule {schedule!r}; one of {', '.join(SCHEDULES)}")
    if schedule == "uniform":
        return schedules.uniform(steps)
    if schedule != "adaptive":
        return getattr(schedules, schedule)(model.process, steps)
    if curve is None:
        raise InputError("schedule", "the model has no fitted time grid; choose --schedule uniform")
    return curve.knots(steps)


def schedule_probe(path: Path, probes: int) -> tuple[ProductDiffusion, ScoreModel, Any]:
    """Process, network and (pose, complex) batches of held-out complexes to fit a schedule on."""
    model, loaded = load_model(path, torch.device("cpu"))
    source = NetworkPoses(model, schedule="uniform")
    examples = CompactSet(find_data("dock_val.safetensors"))
    stream = PoseBatches(examples, poses=8, seed=0)

    def batches() -> Iterator[tuple[Pose, Complex]]:
        for number, example in zip(range(probes), examples, strict=False):
            pose, pocket = stream.pocket(example, np.random.default_rng(number))
            given = model.score.encode(*pocket)
            latents = source.draw(given, len(pose), torch.Generator().manual_seed(number))
            yield pose, given.with_latents(latents)

    return model.process, model.score, batches()
