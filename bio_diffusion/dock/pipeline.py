"""From a protein and ligands to ranked poses: the steps of docking in their order.

    conformers -> start poses (a `PoseSource`) -> physics: search, minimise -> energy
               -> the best that differ -> validity, the source's judgement -> rank

The receptor is read, typed and featurised once, and shared by all ligands and poses. Random numbers
of a ligand come from a generator seeded by the run's seed and the molecule itself, and all tensors
of a ligand are computed on one thread, so that its poses do not depend on which other ligands there
are, in what order, or by how many workers they are docked.

Ranking: poses that pass all checks come before those that fail one; within each of the two groups
by `score`, the energy plus what the trained network adds for poses that it finds unlikely.

Shapes: B poses, N ligand atoms, K conformers, A receptor atoms. Coordinates in Å, energies in
kcal/mol.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from scipy.spatial import cKDTree
from torch import Tensor

import bio_diffusion

from .complex import Failure, InputError, Ligand, Receptor, Site, read_ligands, read_receptor
from .maps import mapped
from .metrics import symmetric_rmsd
from .pose import Pose
from .results import sd_record
from .search import anneal, distinct, minimize
from .sites import PocketFinder, SiteProposer
from .sources import (
    PoseSource,
    PreparedLigand,
    PreparedReceptor,
    PriorPoses,
    choose_device,
    load_source,
)
from .validity import Validator

TORSION_WEIGHT = 0.05846
"""Vina's weight of one active torsion."""

# Of the settings; the upper ones keep a slip of the finger from running for days or out of memory.
_BOUNDS = {
    "num_poses": (1, 1000),
    "seed": (0, 2**63 - 1),
    "steps": (1, 1000),
    "starts": (1, 1024),
    "conformers": (1, 1000),
    "rounds": (0, 10_000),
    "evaluations": (2, 10_000),
    "refine": (1, 10_000),
    "guidance": (0.0, 100.0),
    "latent_guidance": (0.0, 100.0),
    "spread": (0.0, 100.0),
    "judged": (1, 1000),
    "judgement": (0.0, 1000.0),
    "sites": (1, 100),
    "site_size": (5.0, 500.0),
}

__all__ = [
    "Docked",
    "Docker",
    "Settings",
    "ligand_seed",
    "reference_pose",
]


@dataclass(frozen=True)
class Settings:
    """How to dock; the meaning and defaults of each value stand in `configs/dock.yaml`."""

    num_poses: int = 10
    seed: int = 0
    steps: int = 20
    schedule: str = "adaptive"
    guidance: float = 0.0
    latent_guidance: float = 0.0
    minimize: bool = True
    starts: int = 64
    conformers: int = 8
    rounds: int = 20
    evaluations: int = 25
    refine: int = 100
    spread: float = 1.0
    judged: int = 20
    judgement: float = 10.0
    sites: int = 3
    site_size: float = 22.5

    def __post_init__(self) -> None:
        for setting in fields(self):  # a file or a word may say null
            if getattr(self, setting.name) is None:
                raise InputError("setting", f"{setting.name} is empty; give it a value")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    "setting", f"{name} is {value:g}; it must lie between {low:g} and {high:g}"
                )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """The values that a composed configuration holds, its other keys left aside."""
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})


@dataclass(frozen=True)
class Docked:
    """The poses of one ligand, best first.

    Attributes:
        ligand: As read.
        coords: (P, N, 3) float32 Å, in the atom order of `ligand.mol`.
        rows: One mapping a pose with the columns of the results, but for what belongs to the run.
        seconds: Wall time spent on this ligand.
        reference: (N, 3) crystal pose that RMSD is measured to, or None.
        notes: What a reader should know, a line each.
    """

    ligand: Ligand
    coords: np.ndarray
    rows: tuple[dict[str, Any], ...]
    seconds: float
    reference: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def sdf(self) -> str:
        """All poses as SDF records with their fields."""
        return "".join(
            sd_record(_molblock(self.ligand, xyz), row)
            for xyz, row in zip(self.coords, self.rows, strict=True)
        )

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for the journal and the report."""
        crystal = None if self.reference is None else _molblock(self.ligand, self.reference)
        rows = [{**row, "seconds": round(self.seconds, 2)} for row in self.rows]
        return {"rows": rows, "sdf": self.sdf, "crystal": crystal, "notes": list(self.notes)}


@dataclass
class Docker:
    """Docks ligands into proteins.

    Args:
        settings: How.
        source: Proposes poses.
        checkpoint: Name of the trained model for the results; `none` without one.
        device: Where the model runs, `cpu` or `cuda`.
        finder: Proposes sites of a blind docking.
    """

    settings: Settings = field(default_factory=Settings)
    source: PoseSource = field(default_factory=PriorPoses)
    checkpoint: str = "none"
    device: str = "cpu"
    finder: SiteProposer = field(default_factory=PocketFinder)

    @classmethod
    def load(
        cls, checkpoint: str | Path | None = None, device: str = "auto", **settings: Any
    ) -> Docker:
        """A docker with its trained model.

        Args:
            checkpoint: A file, or None for the one that ships, if any.
            device: `auto`, `cpu` or `cuda`.
            settings: Fields of `Settings`.

        Raises:
            InputError: The checkpoint or the device cannot be used.
        """
        chosen = Settings(**settings)
        place = choose_device(device)
        source, name = load_source(
            checkpoint,
            place,
            chosen.steps,
            chosen.schedule,
            chosen.guidance,
            chosen.latent_guidance,
        )
        return cls(chosen, source, name, place)

    def prepare(self, protein: str | Path | Receptor | PreparedReceptor) -> PreparedReceptor:
        """Reads and featurises a protein; do it once for many calls of `dock`."""
        if isinstance(protein, PreparedReceptor):
            return protein
        return PreparedReceptor.of(
            protein if isinstance(protein, Receptor) else read_receptor(protein)
        )

    def sites(self, receptor: Receptor) -> list[Site]:
        """Candidate sites for a blind docking, the likeliest first.

        Raises:
            InputError: The surface has none.
        """
        edge = np.full(3, self.settings.site_size)
        found = self.finder.propose(receptor, self.settings.sites)
        if not found:
            raise InputError(
                "no_site",
                f"{receptor.name}: no cavity on its surface; give a site with --center",
            )
        return [Site(p.site.center, edge, p.site.how) for p in found]

    def dock(
        self,
        protein: str | Path | Receptor | PreparedReceptor,
        ligands: str | Path | Iterable[Ligand | Failure],
        site: Site | Sequence[Site] | None = None,
        reference: Ligand | None = None,
    ) -> Iterator[Docked | Failure]:
        """Docks one ligand after the other.

        Args:
            protein: File, or what `read_receptor` or `prepare` gave.
            ligands: A file or SMILES string, or what `read_ligands` gives.
            site: Where; None looks for sites on the surface.
            reference: A ligand in its crystal pose; ligands that are the same molecule get an RMSD.

        Yields:
            One `Docked` or `Failure` a ligand, in their order.

        Raises:
            InputError: The protein cannot be read, has no site, or the site lies away from it.
        """
        receptor = self.prepare(protein)
        sites = [site] if isinstance(site, Site) else site or self.sites(receptor.receptor)
        for each in sites:
            each.require_near(receptor.receptor)
        if isinstance(ligands, str | Path):
            ligands = read_ligands([ligands])
        for ligand in ligands:
            if isinstance(ligand, Failure):
                yield ligand
                continue
            try:
                yield self.dock_one(
                    receptor, ligand, sites, reference_pose(ligand, receptor.receptor, reference)
                )
            except InputError as error:
                yield Failure(ligand.id, error.code, str(error))

    def dock_one(
        self,
        receptor: PreparedReceptor,
        ligand: Ligand,
        sites: Sequence[Site],
        reference: np.ndarray | None = None,
    ) -> Docked:
        """Docks one ligand at all sites and ranks the poses together.

        Args:
            receptor: From `prepare`.
            ligand: As read; its own coordinates are not used.
            sites: Boxes.
            reference: (N, 3) crystal pose in the ligand's atom order, for the RMSD only.

        Raises:
            InputError: The ligand has no conformer.
        """
        began = time.perf_counter()
        with _one_thread():
            return self._dock_one(receptor, ligand, sites, reference, began)

    def _dock_one(
        self,
        receptor: PreparedReceptor,
        ligand: Ligand,
        sites: Sequence[Site],
        reference: np.ndarray | None,
        began: float,
    ) -> Docked:
        wanted = self.settings
        seed = ligand_seed(ligand, wanted.seed)
        generator = torch.Generator().manual_seed(seed)
        prepared = PreparedLigand.of(ligand, wanted.conformers, seed)
        found = [
            self._at(receptor, prepared, site, number, generator)
            for number, site in enumerate(sites, start=1)
        ]
        # more than wanted, so that sound and likely poses can take the place of others
        count = max(wanted.judged, wanted.num_poses)
        pool = _Pool.join(found).distinct(count, wanted.spread)
        energy = pool.affinity(prepared.torsions)
        score = self._scores(receptor, prepared, sites, pool, energy)
        coords = pool.coords.numpy()
        checks = Validator(ligand.mol, receptor.receptor).check(coords)
        failed = [[name for name, ok in checks.items() if not ok[i]] for i in range(len(coords))]
        order = sorted(range(len(coords)), key=lambda i: (bool(failed[i]), score[i]))
        order = order[: wanted.num_poses]
        rmsd: list[float | None] = [None] * len(coords)
        if reference is not None:
            rmsd = [round(float(r), 3) for r in symmetric_rmsd(coords, reference, ligand.mol)]
        rows = tuple(
            {
                "ligand_id": ligand.id,
                "rank": rank,
                "confidence": None,
                "energy": round(energy[i], 3),
                "score": round(score[i], 3),
                "valid": not failed[i],
                "rmsd": rmsd[i],
                "seed": wanted.seed,
                "checkpoint": self.checkpoint,
                "version": bio_diffusion.__version__,
                "failed_checks": " ".join(failed[i]),
                "protein": receptor.receptor.name,
                "site": int(pool.site[i]),
            }
            for rank, i in enumerate(order, start=1)
        )
        notes = list(ligand.notes)
        if len(rows) < wanted.num_poses:
            notes.append(f"only {len(rows)} poses differ by {wanted.spread:g} Å or more")
        seconds = time.perf_counter() - began
        return Docked(ligand, coords[order], rows, seconds, reference, tuple(notes))

    def _scores(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        sites: Sequence[Site],
        pool: _Pool,
        energy: Sequence[float],
    ) -> list[float]:
        """What ranks poses: their energy, and a charge where the source finds them unlikely."""
        surprise = torch.zeros(len(pool.coords))
        if self.settings.judgement:
            for number, site in enumerate(sites, start=1):
                here = pool.site == number
                if bool(here.any()):
                    poses = Pose(pool.coords[here], ligand.graph.tree)
                    surprise[here] = self.source.surprise(receptor, ligand, site, poses)
        charge = (self.settings.judgement * surprise).tolist()
        return [e + c for e, c in zip(energy, charge, strict=True)]

    def _at(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        site: Site,
        number: int,
        generator: torch.Generator,
    ) -> _Pool:
        """The best poses at one site, many more than wanted."""
        wanted = self.settings
        pose = self.source.poses(receptor, ligand, site, wanted.starts, generator)
        exact = ligand.energy(receptor, site)
        if wanted.minimize:
            fast = mapped(exact, receptor.maps(site))
            visited = anneal(pose, fast, generator, wanted.rounds, wanted.evaluations)
            pose = distinct(visited, 4 * wanted.num_poses, 0.5 * wanted.spread).pose
            pose = minimize(pose, exact, wanted.refine).pose
        coords = pose.coords.clone()
        inter, intra = exact.inter(coords), exact.intra(coords)
        return _Pool(coords, inter, intra, torch.full((len(coords),), number))


@dataclass(frozen=True)
class _Pool:
    """Poses with the parts of their energy.

    Attributes:
        coords: (B, N, 3) Å.
        inter: (B,) between ligand and receptor.
        intra: (B,) within the ligand.
        site: (B,) long, number of the site.
    """

    coords: Tensor
    inter: Tensor
    intra: Tensor
    site: Tensor

    @classmethod
    def join(cls, pools: Sequence[_Pool]) -> _Pool:
        return cls(*(torch.cat([getattr(p, f.name) for p in pools]) for f in fields(cls)))

    def distinct(self, count: int, apart: float) -> _Pool:
        """The lowest `count` poses of which no two are closer than `apart` Å, lowest first."""
        kept: list[int] = []
        for i in (self.inter + self.intra).argsort(stable=True).tolist():
            if len(kept) == count:
                break
            gaps = (self.coords[kept] - self.coords[i]).square().sum(-1).mean(-1).sqrt()
            if bool((gaps >= apart).all()):
                kept.append(i)
        return _Pool(*(getattr(self, f.name)[kept] for f in fields(self)))

    def affinity(self, torsions: float) -> list[float]:
        """Vina's estimate of each pose, (inter + intra - intra of the first) by its torsion term.

        As in Vina, the unbound ligand is taken to have the inner energy of the best pose.
        """
        free = (self.inter + self.intra - self.intra[:1]) / (1.0 + TORSION_WEIGHT * torsions)
        return [float(value) for value in free]


def ligand_seed(ligand: Ligand, seed: int) -> int:
    """Seed of a ligand's random numbers, from the run's and the molecule, whatever it is called."""
    text = f"{seed} {Chem.MolToSmiles(ligand.mol)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def reference_pose(
    ligand: Ligand, receptor: Receptor, crystal: Ligand | None = None
) -> np.ndarray | None:
    """The pose that a ligand's RMSD is measured to, (N, 3) in its atom order, or None.

    It is that of `crystal` where this is the same molecule, else the ligand's own coordinates where
    they lie in the protein: half of the atoms or more within 4.5 Å of it and none within 1 Å.
    """
    if crystal is not None and crystal.crystal is not None:
        plain = [Chem.MolToSmiles(m, isomericSmiles=False) for m in (ligand.mol, crystal.mol)]
        if plain[0] == plain[1]:
            match = crystal.mol.GetSubstructMatch(ligand.mol, useChirality=True)
            match = match or crystal.mol.GetSubstructMatch(ligand.mol)
            if len(match) == ligand.mol.GetNumAtoms():
                return crystal.crystal[list(match)]
    if ligand.crystal is None:
        return None
    gap, _ = cKDTree(receptor.coords).query(ligand.crystal)
    return ligand.crystal if gap.min() > 1.0 and np.mean(gap < 4.5) >= 0.5 else None


def _molblock(ligand: Ligand, coords: np.ndarray) -> str:
    """A MOL block titled with the ligand's id."""
    mol = Chem.Mol(ligand.mol)
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(coords, dtype=np.float64))
    mol.AddConformer(conformer, assignId=True)
    mol.SetProp("_Name", ligand.id)
    return Chem.MolToMolBlock(mol)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread: sums then have one order, whatever the machine's load or cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
