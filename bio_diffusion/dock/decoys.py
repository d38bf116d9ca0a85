"""Poses that the physics finds in complexes of known pose, right and wrong ones, to learn from.

    python -m bio_diffusion.dock.decoys --data DIR [--manifest FILE] --split NAME [--sample N]
        --out FILE.safetensors

Each complex of `DIR/<id>/` (as for `bio_diffusion.dock.prepare`) is searched from random poses in
the box of its crystal ligand, as in `bio_diffusion.dock.pools`, and its lowest minima are kept
together with poses that were minimised from near the crystal's, so that there is mostly a right
one. The file is a compact set (`dock.dataset`) whose conformers are these poses; its notes hold
their RMSD in Å and their energies in kcal/mol. What is done is kept beside the file, one part a
complex, until all is done, so that a run that was stopped goes on.

Exit status: 0 done; 2 bad usage or input; 3 some complexes could not be searched: they are named.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from bio_diffusion.command import Parser
from bio_diffusion.files import InputError, one_line, replacing

from .pools import complex_flags, in_order, known_site
from .prepare import protein_file, read_ligand, read_manifest

__all__ = ["main"]

logger = logging.getLogger(__name__)

STARTS, ROUNDS, CONFORMERS = 40, 15, 4  # of the search
POSES, APART = 32, 0.8  # kept at most, and their RMSD in Å at least
NEAR, NOISE = 8, (0.15, 0.45)  # poses from near the crystal's, and their times of noise
REFINE = 60  # evaluations of the last minimisation
POCKET = 24.0  # Å about the site's centre


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = Parser(
        prog="python -m bio_diffusion.dock.decoys",
        description=(__doc__ or "").split("\n")[0],
        epilog=(__doc__ or "").partition("FILE.safetensors\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complex_flags(parser)
    parser.add_argument("--out", type=Path, required=True, help="compact set to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        rows = read_manifest(args.manifest or args.data / "manifest.csv", args.split)
        return _run(args, in_order(rows, args.sample))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{args.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, ids: list[str]) -> int:
    from .dataset import CompactSet, write_compact
    from .pipeline import Docker

    if not ids:
        raise InputError("empty", f"{args.data}: its manifest has no row of {args.split}")
    parts = args.out.with_name(f"{args.out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    docker = Docker.load("none", "cpu", starts=STARTS, rounds=ROUNDS, conformers=CONFORMERS)
    done: list[Path] = []
    for key in ids:
        part = parts / f"{key}.safetensors"
        if not part.exists():
            try:
                example = decoys(docker, args.data / key, key)
            except InputError as error:
                logger.warning("left out %s: %s", key, one_line(error))
                continue
            with replacing(part) as fresh:
                write_compact(fresh, [example])
            logger.info("%s: %d poses", key, len(example.conformers))
        done.append(part)
    if not done:
        raise InputError("empty", f"{args.data}: no complex of the split could be searched")
    with replacing(args.out) as fresh:
        write_compact(fresh, [CompactSet(part)[0] for part in done])
    shutil.rmtree(parts)
    return 3 if len(done) < len(ids) else 0


def decoys(docker: Any, folder: Path, key: str) -> Any:  # noqa: ANN401 - Docker -> Example
    """Poses of one complex as an `Example`, minima of the search first, lowest first.

    Raises:
        InputError: protein or ligand cannot be used.
    """
    import torch

    from bio_diffusion.command import one_thread

    from .conformer import matched_conformer
    from .dataset import Example
    from .experiment import docking_process
    from .maps import mapped
    from .metrics import symmetric_rmsd
    from .pipeline import ligand_seed
    from .pool import TORSION_WEIGHT
    from .pose import Pose
    from .prepare import rotatable_bonds
    from .receptor import read_receptor
    from .search import anneal, distinct, minimize
    from .sources import PreparedLigand

    protein = protein_file(folder)
    if protein is None:
        raise InputError("missing", "no protein.pdb and no protein.cif")
    ligand = read_ligand(folder)
    site = known_site(ligand.crystal)
    receptor = docker.prepare(read_receptor(protein).without(ligand.crystal))
    wanted = docker.settings
    generator = torch.Generator().manual_seed(ligand_seed(ligand, wanted.seed))
    with one_thread():
        prepared = PreparedLigand.of(ligand, wanted.conformers, wanted.seed)
        start = docker.source.poses(receptor, prepared, site, wanted.starts, generator)
        exact = prepared.energy(receptor, site)
        fast = mapped(exact, receptor.maps(site))
        visited = anneal(start, fast, generator, wanted.rounds, wanted.evaluations)
        found = minimize(distinct(visited, POSES, APART).pose, exact, REFINE)
        matched = [
            torch.as_tensor(matched_conformer(ligand.mol, ligand.crystal, 2, seed)[0])
            for seed in range(2)
        ]
        near = Pose(torch.stack(matched * (NEAR // 2)).float(), prepared.graph.tree)
        noised = docking_process().perturb(near, torch.linspace(*NOISE, NEAR), generator).x_t
        coords = torch.cat([found.pose.coords, minimize(noised, exact, REFINE).pose.coords])
        energy = exact.energy(coords) / (1 + TORSION_WEIGHT * prepared.torsions)
    pocket, _ = receptor.graph.crop(torch.as_tensor(site.center, dtype=torch.float32), POCKET)
    return Example(
        id=key,
        receptor=pocket,
        ligand=prepared.graph,
        rotatable=rotatable_bonds(prepared.graph),
        crystal=torch.as_tensor(ligand.crystal, dtype=torch.float32),
        conformers=coords,
        notes={
            "rmsd": symmetric_rmsd(coords.numpy(), ligand.crystal, ligand.mol).round(3).tolist(),
            "energy": [round(float(e), 3) for e in energy],
        },
    )


if __name__ == "__main__":
    sys.exit(main())
