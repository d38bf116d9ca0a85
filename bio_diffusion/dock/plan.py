"""What a run of the command docks: its proteins, ligands, and the jobs made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import bio_diffusion

from .complex import Failure, InputError, Ligand, Receptor, Site, read_ligands, slug
from .docked import reference_pose
from .pipeline import Docker, Settings
from .results import job_key
from .target import Place, Target, open_target, probes, split_bound

__all__ = ["Job", "Plan", "Session"]

log = logging.getLogger("bio_diffusion.dock")

_OPEN_TARGETS = 8  # proteins kept in memory; a table may name thousands


@dataclass(frozen=True)
class Job:
    """One ligand to dock. `key` names the result, see `results.job_key`."""

    key: str
    ligand: Ligand
    receptor: Receptor
    sites: tuple[Site, ...]
    reference: np.ndarray | None


@dataclass
class Session:
    """What a worker needs to dock jobs; loads the model when it is first used.

    Args:
        checkpoint: File or name of one that ships, None for the usual one, or "none".
        device: `auto`, `cpu` or `cuda`.
        settings: How to dock.
    """

    checkpoint: str | None
    device: str
    settings: Settings
    _docker: Docker | None = None
    _prepared: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def docker(self) -> Docker:
        if self._docker is None:
            self._docker = Docker.load(self.checkpoint, self.device, **asdict(self.settings))
        return self._docker

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_docker": None, "_prepared": {}}

    def __call__(self, job: Job) -> dict[str, Any]:
        """The journal record of a job: rows and SDF, or code and reason of a failure."""
        name = job.receptor.name, job.receptor.pdb
        if name not in self._prepared:
            while len(self._prepared) >= _OPEN_TARGETS:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[name] = self.docker.prepare(job.receptor)
        try:
            docked = self.docker.dock_one(
                self._prepared[name], job.ligand, job.sites, job.reference
            )
        except InputError as error:
            return {"failure": [error.code, str(error)]}
        return docked.record()


class Plan:
    """The proteins and ligands of a run.

    Args:
        session: How to dock.
        protein: File of the main protein.
        place: Where.
        prepare: `none`, `check` or `fix`.
        ligands: Files or SMILES strings.
        table: A file of many ligands.

    Attributes:
        main: The target of the main protein.
        warnings: What the user should know, a line each.

    Raises:
        InputError: A file or site cannot be used.
    """

    def __init__(
        self,
        session: Session,
        protein: str,
        place: Place,
        prepare: str,
        ligands: list[str],
        table: str | None,
    ) -> None:
        self.session, self.protein, self.place, self.prepare = session, protein, place, prepare
        self.ligands, self.table = ligands, table
        self.warnings: list[str] = []
        self._targets: dict[str, Target] = {}
        self._sites: dict[str, tuple[Site, ...]] = {}
        self._own: list[Ligand] = []
        if ligands or table:
            self.main = open_target(protein, place, prepare)
        else:
            self.main, self._own = self._protein_only()
        self.warnings += self.main.warnings
        self.main_sites = self.sites(self.main)
        self.items()  # a missing file is found before any work

    def _protein_only(self) -> tuple[Target, list[Ligand]]:
        target = split_bound(self.protein, self.place, self.prepare)
        if target.crystal is not None:
            log.info("no ligand given: redocking %s", target.crystal.id)
            return target, [target.crystal]
        own = list(probes())
        log.info("no ligand given and none bound: docking %d probe molecules", len(own))
        return target, own

    def items(self) -> Iterator[Ligand | Failure]:
        """All ligands from the start, and what could not be read."""
        return iter(self._own) if self._own else read_ligands(self.ligands, self.table)

    def job(self, ligand: Ligand) -> Job:
        """The job of docking a ligand.

        Raises:
            InputError: The protein that its row names cannot be used.
        """
        target = self._target(ligand.protein)
        sites = self.sites(target)
        reference = reference_pose(ligand, target.receptor, target.crystal)
        docker = self.session.docker
        key = job_key(
            [target.sha256, target.receptor.name, ligand.id, list(ligand.notes)],
            ligand.mol.ToBinary(),
            b"" if reference is None else np.asarray(reference, dtype=np.float64).tobytes(),
            [[*map(float, site.center), *map(float, site.size)] for site in sites],
            asdict(docker.settings),
            [docker.source.name, docker.checkpoint, docker.device, bio_diffusion.__version__],
            docker.confidence.name if docker.confidence else "none",
        )
        return Job(key, ligand, target.receptor, sites, reference)

    def sites(self, target: Target) -> tuple[Site, ...]:
        """The box of a target, or its candidate sites."""
        if target.site is not None:
            return (target.site,)
        if target.sha256 not in self._sites:
            self._sites[target.sha256] = tuple(self.session.docker.sites(target.receptor))
        return self._sites[target.sha256]

    def receptors(self) -> dict[str, Receptor]:
        """The proteins in memory by name, the main one among them."""
        targets = [self.main, *self._targets.values()]
        return {target.receptor.name: target.receptor for target in targets}

    def _target(self, protein: str | None) -> Target:
        if protein is None or protein == self.protein:
            return self.main
        if protein not in self._targets:
            while len(self._targets) >= _OPEN_TARGETS:
                self._targets.pop(next(iter(self._targets)))
            path = Path(protein)
            if (
                self.table
                and not path.is_absolute()
                and (near := Path(self.table).parent / path).exists()
            ):
                path = near
            target = open_target(path, self.place, self.prepare)
            # many folders hold a `protein.pdb`: the path as given is the name
            name = slug(Path(protein).with_suffix(""))
            self._targets[protein] = replace(target, receptor=replace(target.receptor, name=name))
            self.warnings += target.warnings
        return self._targets[protein]
