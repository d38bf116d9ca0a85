"""What docking starts from: receptor and ligand as tensors, and sources of start poses.

A `PoseSource` proposes poses for the physics to improve: a random prior, or a diffusion model.

Shapes: N ligand atoms, K conformers, A receptor atoms. Coordinates in Å.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bio_diffusion.command import choose_device

from .atom_types import active_torsions, ligand_types, receptor_types
from .complex import Ligand, Receptor, Site
from .conformer import conformers
from .featurize import ligand_graph, receptor_graph
from .graph import LigandGraph, ReceptorGraph
from .ligand import atom_orders
from .maps import SiteMaps
from .physics import Vina
from .pose import Pose
from .search import random_poses
from .settings import Settings

SHIPPED = Path(__file__).parents[1] / "weights" / "dock.safetensors"
"""The trained model that comes with the package."""

__all__ = [
    "Opinion",
    "PoseSource",
    "PreparedLigand",
    "PreparedReceptor",
    "PriorPoses",
    "choose_device",
    "load_source",
]


@dataclass(frozen=True)
class PreparedReceptor:
    """A receptor and all that docking derives from it.

    Attributes:
        receptor: As read.
        graph: For the network.
        coords: (A, 3) Å.
        types: (A,) long, kinds of the energy function.
    """

    receptor: Receptor
    graph: ReceptorGraph
    coords: Tensor
    types: Tensor
    _maps: dict[tuple[float, ...], SiteMaps] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, receptor: Receptor) -> PreparedReceptor:
        atoms = (
            receptor.coords,
            receptor.elements,
            receptor.atom_names,
            receptor.residue_index,
            receptor.residue_names,
        )
        return cls(
            receptor=receptor,
            graph=receptor_graph(*atoms),
            coords=torch.as_tensor(np.asarray(receptor.coords, dtype=np.float32)),
            types=torch.as_tensor(receptor_types(*atoms)),
        )

    def maps(self, site: Site) -> SiteMaps:
        """The energy maps of a box, made once and shared by all ligands."""
        key = (*map(float, site.center), *map(float, site.size))
        if key not in self._maps:
            center, size = (
                torch.as_tensor(v, dtype=torch.float32) for v in (site.center, site.size)
            )
            self._maps[key] = SiteMaps(self.coords, self.types, center, size)
        return self._maps[key]


@dataclass(frozen=True)
class PreparedLigand:
    """A ligand and all that docking derives from it.

    Attributes:
        ligand: As read.
        graph: For the network.
        types: (N,) long, kinds of the energy function.
        conformers: (K, N, 3) Å.
        torsions: Vina's count of active torsions.
        same: (P, N) long, orders of the atoms that are alike (`ligand.atom_orders`).
    """

    ligand: Ligand
    graph: LigandGraph
    types: Tensor
    conformers: Tensor
    torsions: float
    same: Tensor

    @classmethod
    def of(cls, ligand: Ligand, count: int, seed: int) -> PreparedLigand:
        """Raises `ConformerError` where the ligand has no conformer."""
        return cls(
            ligand=ligand,
            graph=ligand_graph(ligand.mol),
            types=torch.as_tensor(ligand_types(ligand.mol)),
            conformers=torch.as_tensor(conformers(ligand.mol, count, seed)),
            torsions=active_torsions(ligand.mol),
            same=torch.as_tensor(atom_orders(ligand.mol)),
        )

    def energy(self, receptor: PreparedReceptor, site: Site) -> Vina:
        """The energy function of this ligand in a box."""
        return Vina.for_site(
            receptor.coords,
            receptor.types,
            self.types,
            self.graph.bonds,
            self.graph.tree,
            torch.as_tensor(site.center, dtype=torch.float32),
            torch.as_tensor(site.size, dtype=torch.float32),
            self.torsions,
        )


class Opinion(NamedTuple):
    """What a source thinks of B poses; all zeros where it thinks nothing.

    loss: (B, 3) from `PoseSource.losses`.
    preference: (B,) from `PoseSource.preferences`.
    """

    loss: Tensor
    preference: Tensor

    @classmethod
    def none(cls, poses: int) -> Opinion:
        return cls(torch.zeros(poses, 3), torch.zeros(poses))


class PoseSource(Protocol):
    """What proposes poses for the physics to improve: a random prior, or a diffusion model."""

    name: str

    def poses(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        site: Site,
        count: int,
        generator: torch.Generator,
    ) -> Pose:
        """`count` poses of the ligand at the site."""
        ...

    def losses(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        """(B, 3) how unlikely each of B poses at the site is: its place, rotation and torsions."""
        ...

    def preferences(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        """(B,) nats by which the source would choose each pose before the others."""
        ...


class PriorPoses:
    """Poses without knowledge: uniform place in the box, rotation and torsions."""

    name = "prior"

    def poses(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        site: Site,
        count: int,
        generator: torch.Generator,
    ) -> Pose:
        center, size = (torch.as_tensor(v, dtype=torch.float32) for v in (site.center, site.size))
        # the centroid keeps off the walls by half of a small ligand
        room = (size - 4.0).clamp(min=0.0)
        template = Pose(ligand.conformers, ligand.graph.tree)
        return random_poses(template, center, room, count, generator)

    def losses(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        return torch.zeros(len(pose), 3)

    def preferences(
        self, receptor: PreparedReceptor, ligand: PreparedLigand, site: Site, pose: Pose
    ) -> Tensor:
        return torch.zeros(len(pose))


def load_source(
    checkpoint: str | Path | None, device: str, settings: Settings
) -> tuple[PoseSource, str]:
    """The source of start poses, and the name of its model for the results.

    Args:
        checkpoint: A trained model, None for the one that ships, or "none" for random poses.
        device: `cpu` or `cuda`.
        settings: Those of the reverse diffusion are used.

    Raises:
        InputError: The schedule or a guidance does not exist or does not fit the model.
        CheckpointError: The file cannot be used.
    """
    path = Path(checkpoint) if checkpoint is not None else SHIPPED
    if checkpoint == "none" or (checkpoint is None and not path.is_file()):
        return PriorPoses(), "none"

    from bio_diffusion.grids import kept

    from .network import NetworkPoses, load_model
    from .ranker import load_ranker

    place = torch.device(device)
    model, loaded = load_model(path, place)
    source = NetworkPoses(
        model,
        kept(loaded),
        settings.steps,
        settings.schedule,
        place,
        guidance=settings.guidance,
        latent_guidance=settings.latent_guidance,
        inverse_temperature=settings.inverse_temperature,
        ranker=load_ranker(path, loaded.sha256, model.score.size),
    )
    return source, f"{path.stem}-{loaded.sha256[:12]}"
