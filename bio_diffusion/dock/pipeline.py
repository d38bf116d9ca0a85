"""From a protein and ligands to ranked poses: the steps of docking in their order.

    conformers -> start poses (a `PoseSource`) -> physics: search, minimise -> energy
               -> the best that differ -> validity, the source's judgement, confidence -> rank

The receptor is read, typed and featurised once, and shared by all ligands and poses. Random numbers
of a ligand come from a generator seeded by the run's seed and the molecule itself, and all tensors
of a ligand are computed on one thread, so that its poses do not depend on which other ligands there
are, in what order, or by how many workers they are docked.

Ranking: poses that pass all checks come before those that fail one; within each of the two groups
by `confidence` where there is one, else by `score`, the fitted energy (`terms`) plus what the
trained network adds for poses that it finds unlikely, less what its ranker prefers them by.

Shapes: B poses, N ligand atoms, K conformers, A receptor atoms. Coordinates in Å, energies in
kcal/mol.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

import bio_diffusion
from bio_diffusion.checkpoint import find
from bio_diffusion.command import one_thread

from .complex import Failure, InputError, Ligand, Receptor, Site, as_ligands, read_receptor
from .confidence import Confidence, load_confidence
from .docked import Docked, reference_pose
from .maps import mapped
from .metrics import symmetric_rmsd
from .pool import Pool, crowding, evidence
from .pose import Pose
from .search import Minimized, anneal, distinct, minimize
from .settings import Settings
from .sites import PocketFinder, SiteProposer
from .sources import (
    SHIPPED,
    Opinion,
    PoseSource,
    PreparedLigand,
    PreparedReceptor,
    PriorPoses,
    choose_device,
    load_source,
)
from .terms import fitted_energy
from .validity import Validator

__all__ = [
    "Candidates",
    "Docker",
    "Settings",
    "ligand_seed",
]


@dataclass(frozen=True)
class Candidates:
    """P poses of one ligand before they are ranked, lowest energy first.

    Attributes:
        coords: (P, N, 3) Å.
        site: (P,) long, number of the site.
        energy: Vina's of each, kcal/mol.
        fitted: From `terms.fitted_energy`, with the mean of `energy`.
        score: Fitted energy, judgement and preference, kcal/mol.
        failed: Names of the checks that each fails.
        opinion: What the source thinks of each.
        evidence: (P, len(EVIDENCE)), see `pool.evidence`.
    """

    coords: Tensor
    site: Tensor
    energy: list[float]
    fitted: list[float]
    score: list[float]
    failed: list[list[str]]
    opinion: Opinion
    evidence: Tensor


@dataclass
class Docker:
    """Docks ligands into proteins.

    Args:
        settings: How.
        source: Proposes poses.
        checkpoint: Name of the trained model for the results; `none` without one.
        device: Where the model runs, `cpu` or `cuda`.
        finder: Proposes sites of a blind docking.
        confidence: Tells how likely a pose is right, from a model that fits `checkpoint`, or None.
    """

    settings: Settings = field(default_factory=Settings)
    source: PoseSource = field(default_factory=PriorPoses)
    checkpoint: str = "none"
    device: str = "cpu"
    finder: SiteProposer = field(default_factory=PocketFinder)
    confidence: Confidence | None = None

    @classmethod
    def load(
        cls, checkpoint: str | Path | None = None, device: str = "auto", **settings: Any
    ) -> Docker:
        """A docker with its trained model.

        Args:
            checkpoint: A file, the name of a model that ships, None for the usual one, or "none" to
                dock by physics alone.
            device: `auto`, `cpu` or `cuda`.
            settings: Fields of `Settings`.

        Raises:
            InputError: A setting or the device cannot be used.
            CheckpointError: The model cannot.
        """
        chosen = Settings(**settings)
        place = choose_device(device)
        if checkpoint not in (None, "none"):
            checkpoint = find(checkpoint, "dock")
        source, name = load_source(checkpoint, place, chosen)
        confidence = load_confidence(checkpoint or SHIPPED, name)
        return cls(chosen, source, name, place, confidence=confidence)

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
        ligands: str | Path | Iterable[str | Path | Ligand | Failure],
        site: Site | Sequence[Site] | None = None,
        reference: Ligand | None = None,
    ) -> Iterator[Docked | Failure]:
        """Docks one ligand after the other.

        Args:
            protein: File, or what `read_receptor` or `prepare` gave.
            ligands: A file or SMILES string, several of them, or what `read_ligands` gives.
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
            ligands = [ligands]
        for ligand in as_ligands(ligands):
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
        wanted = self.settings
        with one_thread():
            found = self.candidates(receptor, ligand, sites)
            chance = None
            # fitted to minimised poses at one site: several see other crops of the receptor
            here = wanted.minimize and len(sites) == 1 and wanted.judgement and wanted.preference
            if self.confidence is not None and bool(found.opinion.loss.any()) and here:
                chance = self.confidence(found.evidence).tolist()
        count = len(found.coords)
        first = found.score if chance is None or wanted.rank_by == "score" else [-c for c in chance]
        order = sorted(
            range(count), key=lambda i: (bool(found.failed[i]), first[i], found.score[i])
        )
        order = order[: wanted.num_poses]
        coords = found.coords.numpy()
        rmsd: list[float | None] = [None] * count
        if reference is not None:
            rmsd = [round(float(r), 3) for r in symmetric_rmsd(coords, reference, ligand.mol)]
        rows = tuple(
            {
                "ligand_id": ligand.id,
                "rank": rank,
                "confidence": None if chance is None else round(chance[i], 4),
                "energy": round(found.energy[i], 3),
                "score": round(found.score[i], 3),
                "valid": not found.failed[i],
                "rmsd": rmsd[i],
                "seed": wanted.seed,
                "checkpoint": self.checkpoint,
                "version": bio_diffusion.__version__,
                "failed_checks": " ".join(found.failed[i]),
                "protein": receptor.receptor.name,
                "site": int(found.site[i]),
            }
            for rank, i in enumerate(order, start=1)
        )
        notes = list(ligand.notes)
        if len(rows) < wanted.num_poses:
            notes.append(f"only {len(rows)} poses differ by {wanted.spread:g} Å or more")
        seconds = time.perf_counter() - began
        return Docked(ligand, coords[order], rows, seconds, reference, tuple(notes))

    def candidates(
        self, receptor: PreparedReceptor, ligand: Ligand, sites: Sequence[Site]
    ) -> Candidates:
        """The best poses at all sites that differ, lowest energy first, checked and judged.

        There are more than wanted, so that sound and likely poses can take the place of others.

        Raises:
            InputError: The ligand has no conformer.
        """
        wanted = self.settings
        seed = ligand_seed(ligand, wanted.seed)
        generator = torch.Generator().manual_seed(seed)
        prepared = PreparedLigand.of(ligand, wanted.conformers, seed)
        found = [
            self._at(receptor, prepared, site, number, generator)
            for number, site in enumerate(sites, start=1)
        ]
        pool = Pool.join(found).distinct(
            max(wanted.judged, wanted.num_poses), wanted.spread, prepared.same
        )
        energy = pool.affinity(prepared.torsions)
        fitted = _fitted(receptor, prepared, pool)
        fitted += energy.mean() - fitted.mean()
        opinion = self._judged(receptor, prepared, sites, pool, fitted)
        score = (
            fitted
            + wanted.judgement * opinion.loss.mean(1)
            - wanted.preference * opinion.preference
        )
        checks = Validator(ligand.mol, receptor.receptor).check(pool.coords.numpy())
        failed = [
            [name for name, ok in checks.items() if not ok[i]] for i in range(len(pool.coords))
        ]
        return Candidates(
            pool.coords,
            pool.site,
            energy.tolist(),
            fitted.tolist(),
            score.tolist(),
            failed,
            opinion,
            evidence(pool, score, prepared.torsions, prepared.same),
        )

    def _judged(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        sites: Sequence[Site],
        pool: Pool,
        fitted: Tensor,
    ) -> Opinion:
        """What the source thinks of each pose at its site; preferences above the site's mean.

        Losses are dear: where there are preferences, only the best quarter by these and the fitted
        energy is looked at, and the others are taken to be as bad as the worst of these.
        """
        wanted, opinion = self.settings, Opinion.none(len(pool.coords))

        def asked(what: Callable[..., Tensor], of: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for number, site in enumerate(sites, start=1):
                here = ((pool.site == number) & of).nonzero()[:, 0]
                if len(here):
                    pose = Pose(pool.coords[here], ligand.graph.tree)
                    yield here, what(receptor, ligand, site, pose)

        looked_at = torch.ones(len(pool.coords), dtype=torch.bool)
        if wanted.preference:
            for here, nats in asked(self.source.preferences, looked_at):
                opinion.preference[here] = nats - nats.mean()
        if wanted.judgement:
            if bool(opinion.preference.any()):
                order = (fitted - wanted.preference * opinion.preference).argsort(stable=True)
                looked_at[order[(len(order) + 3) // 4 :]] = False
            for here, loss in asked(self.source.losses, looked_at):
                opinion.loss[here] = loss
            worst = opinion.loss[looked_at].mean(1).argmax()
            opinion.loss[~looked_at] = opinion.loss[looked_at][worst]
        return opinion

    def _at(
        self,
        receptor: PreparedReceptor,
        ligand: PreparedLigand,
        site: Site,
        number: int,
        generator: torch.Generator,
    ) -> Pool:
        """The best poses at one site, many more than wanted."""
        wanted = self.settings
        pose = self.source.poses(receptor, ligand, site, wanted.starts, generator)
        exact = ligand.energy(receptor, site)
        if wanted.minimize:
            fast = mapped(exact, receptor.maps(site))
            visited = anneal(pose, fast, generator, wanted.rounds, wanted.evaluations)
            # as many for few poses as for ten, so that fewer asked for are the first of more
            kept = max(2 * wanted.judged, 4 * wanted.num_poses)
            pose = distinct(visited, kept, 0.5 * wanted.spread, ligand.same).pose
            pose = minimize(pose, exact, wanted.refine).pose
        else:
            visited = Minimized(pose, exact.energy(pose.coords), 1)
        coords = pose.coords.clone()
        return Pool(
            coords,
            exact.inter(coords),
            exact.intra(coords),
            torch.full((len(coords),), number),
            crowding(coords, visited, ligand.same),
        )


def _fitted(receptor: PreparedReceptor, ligand: PreparedLigand, pool: Pool) -> Tensor:
    return fitted_energy(
        pool.coords,
        ligand.ligand.mol,
        ligand.types,
        receptor.coords,
        receptor.types,
        pool.inter,
        pool.intra,
    )


def ligand_seed(ligand: Ligand, seed: int) -> int:
    """Seed of a ligand's random numbers, from the run's and the molecule, whatever it is called."""
    text = f"{seed} {Chem.MolToSmiles(ligand.mol)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
