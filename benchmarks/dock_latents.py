"""What pointer latents give when docking: sampled, told by the crystal pose, shuffled, hidden.

The same network draws poses and judges them with latents from

* its prior, as it ships (sampled);
* its encoder on the crystal pose (oracle: what a perfect prior could give);
* its encoder on a random pose in the box (shuffled: latents that say nothing true);
* nowhere (hidden, as in a tenth of the training);

beside the network without latents. Drawn: 16 poses as they come from the sampler. Docked: the
command's search and ranking from such poses. McNemar's test pairs complexes and docking seeds.

    python benchmarks/dock_latents.py run --data DATA/val --manifest manifest.csv --split val \
        --sample 40 --docking-seed 0 1 --out latents.csv
    python benchmarks/dock_latents.py table latents.csv

A run that was interrupted goes on with what its table lacks.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from dock_quality import read
from torch import Tensor
from vina_baseline import chosen, sample_flags, search_box

from bio_diffusion.diffusion.latents import Latents
from bio_diffusion.dock.complex import Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.metrics import mcnemar, rate, symmetric_rmsd
from bio_diffusion.dock.network import NetworkPoses, load_model
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.search import random_poses
from bio_diffusion.dock.sources import SHIPPED, PreparedLigand
from bio_diffusion.dock.trunk import Complex
from bio_diffusion.grids import kept

POSES = 16
WAYS = ("sampled", "oracle", "shuffled", "hidden", "without latents")
COLUMNS = ("id", "seed", "latents", "drawn_rmsd", "drawn_right", "top", "best")
LATENTS = SHIPPED.with_name("dock_disco.safetensors")


class Told(NetworkPoses):
    """Poses with latents of the encoder, or none; set `way` and `crystal` before each complex."""

    way = "sampled"
    crystal: Tensor
    site: Site
    ligand: PreparedLigand

    def draw(self, given: Complex, count: int, generator: torch.Generator) -> Latents | None:
        drawn = super().draw(given, count, generator)
        if drawn is None or self.way == "sampled":
            return drawn
        if self.way == "hidden":
            return drawn.hidden()
        told = Pose(self.crystal[None], given.ligand.tree)
        if self.way == "shuffled":
            center, size = (
                torch.as_tensor(v, dtype=torch.float32) for v in (self.site.center, self.site.size)
            )
            template = Pose(self.ligand.conformers, given.ligand.tree)
            told = random_poses(template, center, size - 4.0, 1, generator)
        logits = self.model.encoder(given, told)
        picks = torch.distributions.Categorical(logits=logits)
        picked = torch.multinomial(picks.probs, count, replacement=True, generator=generator)
        z = torch.nn.functional.one_hot(picked.T, logits.shape[-1]).to(drawn.z)
        return Latents(z, torch.zeros(count, dtype=torch.bool))


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    done = set()
    if args.out.exists():
        done = {(r["id"], r["seed"], r["latents"]) for r in read([args.out])}
    sources = {}
    for path in (LATENTS, SHIPPED):
        model, loaded = load_model(path, torch.device("cpu"))
        sources[path] = Told(model, kept(loaded))
    for key, _, _ in chosen(args):
        ligand = next(iter(read_ligands([str(args.data / key / "ligand.sdf")])))
        assert isinstance(ligand, Ligand) and ligand.crystal is not None
        site = Site(*search_box(ligand.crystal), "crystal")
        read_in = read_receptor(args.data / key / "protein.pdb")
        for seed in args.docking_seed:
            prepared = PreparedLigand.of(ligand, 8, seed)
            for way in WAYS:
                if (key, str(seed), way) in done:
                    continue
                source = sources[SHIPPED if way == "without latents" else LATENTS]
                source.way = "sampled" if way == "without latents" else way
                source.crystal = torch.as_tensor(ligand.crystal, dtype=torch.float32)
                source.site, source.ligand = site, prepared
                docker = Docker.load("none", "cpu", seed=seed)
                docker.source = source
                receptor = docker.prepare(read_in)
                generator = torch.Generator().manual_seed(seed)
                drawn = source.poses(receptor, prepared, site, POSES, generator).coords.numpy()
                rmsd = symmetric_rmsd(drawn, ligand.crystal, ligand.mol)
                found = docker.dock_one(receptor, ligand, [site], ligand.crystal)
                ranked = [row["rmsd"] for row in found.rows]
                row = (key, seed, way, rmsd.mean(), (rmsd < 2).mean(), ranked[0], min(ranked))
                append(args.out, [round(v, 4) if isinstance(v, float) else v for v in row])
        print(key, flush=True)
    return 0


def append(path: Path, row: Sequence[object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


def table(args: argparse.Namespace) -> int:
    """Prints means over complexes and seeds; errors are over complexes."""
    by_way: dict[str, dict[tuple[str, str], dict[str, str]]] = {way: {} for way in WAYS}
    for row in read([args.table]):
        by_way[row["latents"]][row["id"], row["seed"]] = row
    pairs = sorted(set.intersection(*(set(rows) for rows in by_way.values())))
    ids = sorted({key for key, _ in pairs})
    print(f"{len(ids)} complexes, {len(pairs)} runs of each row\n")
    print(
        "| latents | drawn: mean RMSD, Å | drawn < 2 Å | docked: top-1 < 2 Å | best of 10 < 2 Å |"
    )
    print("|---|---|---|---|---|")
    top = {way: [float(rows[p]["top"]) < 2 for p in pairs] for way, rows in by_way.items()}
    for way, rows in by_way.items():
        best = [float(rows[p]["best"]) < 2 for p in pairs]
        cells = [_mean(rows, pairs, ids, "drawn_rmsd", 1.0, "")]
        cells += [_mean(rows, pairs, ids, "drawn_right", 100.0, " %"), rate(top[way]), rate(best)]
        print(f"| {way} | {' | '.join(map(str, cells))} |")
    print()
    for way in WAYS[1:]:
        p = mcnemar(top["sampled"], top[way])
        print(
            f"sampled against {way}: {sum(top['sampled'])} to {sum(top[way])}, McNemar p = {p:.2g}"
        )
    return 0


def _mean(
    rows: dict[tuple[str, str], dict[str, str]],
    pairs: Sequence[tuple[str, str]],
    ids: Sequence[str],
    column: str,
    factor: float,
    unit: str,
) -> str:
    each = [np.mean([float(rows[p][column]) for p in pairs if p[0] == key]) for key in ids]
    error = np.std(each, ddof=1) / np.sqrt(len(each))
    return f"{factor * np.mean(each):.2f} ± {factor * error:.2f}{unit}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("run", help="draw, dock and append to a table")
    p.set_defaults(call=run)
    p.add_argument("--data", type=Path, required=True)
    sample_flags(p)
    p.add_argument("--docking-seed", type=int, nargs="+", default=[0])
    p.add_argument("--out", type=Path, required=True)
    p = commands.add_parser("table", help="print the table of a run")
    p.set_defaults(call=table)
    p.add_argument("table", type=Path)
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
