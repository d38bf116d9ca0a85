"""Docking with momentum: the ligand's place as position and velocity of a linear diffusion.

    python benchmarks/dock_momentum.py train runs.jsonl       pairs of small networks
    python benchmarks/dock_momentum.py shipped runs.jsonl     the shipped network, as it is
    python benchmarks/dock_momentum.py table runs.jsonl

Translation follows critically damped Langevin dynamics (K = 2) in place of Brownian motion;
rotation and torsions keep theirs. Time is such that the state tells as much of the clean centre as
under the shipped process (`momentum`). Compared are

    scalar      the network sees the ligand at x + sigma eps, as under the shipped process
    momentum    the same weights under the process with velocity: the network sees the ligand at
                the place that position and velocity tell of together
    heard       a network trained to see the ligand at its position, some 1.8 sigma off, and to hear
                the velocity as a vector on every atom

at equal network, steps, batches and seeds. Poses are as drawn, without search: 8 a complex, about a
site 2 Å an axis off the crystal's centre. RMSD is not corrected for symmetry. A run that was
interrupted goes on with what its file lacks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from momentum import Flight, Hearing, Momentum, Pilot, draw
from tables import spread
from torch import Tensor, nn

from bio_diffusion.diffusion.linear_kernels import cld, vpsde
from bio_diffusion.diffusion.linear_learned import DataPrediction
from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.training import EMA, fit, keyed_generator
from bio_diffusion.dock.dataset import CompactSet, Example, PoseBatches, crop_radius
from bio_diffusion.dock.experiment import docking_process, find_data
from bio_diffusion.dock.layers import Size
from bio_diffusion.dock.network import load_model
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.score_model import ScoreModel
from bio_diffusion.dock.sources import SHIPPED
from bio_diffusion.dock.trunk import Complex

SMALL = Size(24, 8, 16, layers=2, receptor_layers=1, neighbours=8, receptor_neighbours=8)
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)  # times of `docking_process` at which centres are predicted
STEPS = (4, 8, 16)
POSES, JITTER = 8, 2.0  # poses a complex; Å an axis from the crystal's centre to the site
WAYS = (("ancestral", "flow"), ("ancestral", "flow", "splitting"))  # of K = 1, and of K = 2


def lifted(pose: Pose, variables: int, origin: Tensor | None = None) -> Flight:
    """Poses at rest, about their own centroid unless another place is given."""
    u = pose.coords.new_zeros(len(pose), variables, 3)
    return Flight(pose, u, pose.coords[0].mean(0) if origin is None else origin)


def centres(denoiser: Pilot, examples: list[Example]) -> dict[str, list[float]]:
    """By level: noise of the position, and root mean square error of the clean centre, in Å."""
    process, stream, found = denoiser.process, PoseBatches(examples, POSES), {}
    K = process.linear.variables
    for told in LEVELS:
        t = process.time(torch.full((POSES,), told)).float()
        squares = []
        for number, example in enumerate(examples):
            pose, pocket = stream.pocket(example, np.random.default_rng(number))
            x_0 = lifted(pose, K)
            noised = process.perturb(x_0, t, keyed_generator(number, round(10 * told)))
            out = denoiser(noised.x_t, t, denoiser.score.encode(*pocket))
            squares.append(process.parts(out, noised, x_0, t)["tr"].mean())
        E, Sigma, _ = process.linear.conditional(t[:1])
        sigma = DataPrediction(nn.Identity(), process.linear).statistic(t[:1])[1]
        error = process.unit * float(sigma) * math.sqrt(3 * float(torch.stack(squares).mean()))
        marginal = process.unit * float(Sigma[0, 0, 0].sqrt() / E[0, 0, 0])
        found[f"{process.unit * float(sigma):.2f}"] = [marginal, error]
    return found


def quality(denoiser: Pilot, examples: list[Example], way: str, count: int, seed: int) -> dict:
    """What raw poses are worth: shares within 2 Å, medians in Å."""
    rmsd, off = [], []
    for number, example in enumerate(examples):
        generator = keyed_generator(seed, number)
        site = example.crystal.mean(0) + JITTER * torch.randn(3, generator=generator)
        pocket, _ = example.receptor.crop(site, crop_radius(example.crystal))
        cond = denoiser.score.encode(pocket, example.ligand)
        chosen = example.conformers[torch.arange(POSES) % len(example.conformers)]
        start = lifted(Pose(chosen, example.ligand.tree), denoiser.process.linear.variables, site)
        pose = draw(denoiser.process, denoiser, start, cond, count, way, generator)
        rmsd.append((pose.coords - example.crystal).square().sum(-1).mean(1).sqrt())
        off.append((pose.coords.mean(1) - example.crystal.mean(0)).norm(dim=-1))
    rmsds, offs = torch.stack(rmsd), torch.stack(off)
    return {
        "rmsd": float(rmsds.median()),
        "hit": float((rmsds < 2).float().mean()),
        "off": float(offs.median()),
        "placed": float((offs < 2).float().mean()),
    }


def judged(arm: str, denoiser: Pilot, ways: tuple[str, ...], examples: list[Example], seed: int,
           record: Callable[[dict], None], known: set) -> None:  # fmt: skip
    """Qualities of an arm at all numbers of steps, each recorded once."""
    with evaluating(denoiser):
        for way, count in itertools.product(ways, STEPS):
            if (arm, way, count, seed) in known:
                continue
            began = time.process_time()
            row = {"arm": arm, "way": way, "steps": count, "seed": seed}
            row |= quality(denoiser, examples, way, count, seed)
            record(row | {"seconds": time.process_time() - began})


def trained(hears: bool, seed: int, steps: int) -> tuple[Pilot, float, float]:
    """A small network for scalar noise or for position and velocity, its last loss and CPU time."""
    process = Momentum(cld() if hears else vpsde())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Hearing if hears else ScoreModel
        denoiser = Pilot(process, made(docking_process(), SMALL))
    optimizer = torch.optim.AdamW(denoiser.parameters(), 2e-3, weight_decay=0.01)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema, began, curve = EMA(denoiser, 0.99), time.process_time(), []
    stream = PoseBatches(CompactSet(find_data("dock_train.safetensors")), POSES, seed)

    def batches() -> Iterator[tuple[Flight, Any]]:
        for pose, pocket in itertools.islice(stream.batches(), steps):
            yield lifted(pose, process.linear.variables), pocket

    def condition(x_0: Flight, cond: Any, generator: torch.Generator) -> Complex:
        return denoiser.score.encode(*cond)

    def quantile(u: Tensor) -> Tensor:  # as the shipped network's: more often at high noise
        return process.time(u.sqrt().clamp(min=1e-4)).float()

    for step in fit(process, denoiser, batches(), optimizer, condition=condition, ema=ema,
                    quantile=quantile, seed=seed):  # fmt: skip
        cool.step()
        curve.append(step.loss)
    denoiser.load_state_dict(ema.average)
    return denoiser, float(np.mean(curve[-200:])), time.process_time() - began


def render(rows: list[dict]) -> str:
    """Tables of predicted centres and of poses as drawn; ± over seeds, differences seed by seed."""
    lines = ["| network | sigma, Å | noise of its position, Å | error of the centre, Å |",
             "|---|---|---|---|"]  # fmt: skip
    fitted = [row for row in rows if "centres" in row]
    for sigma, arm in itertools.product(
        fitted[0]["centres"] if fitted else (), ("scalar", "heard")
    ):
        each = [row["centres"][sigma] for row in fitted if row["arm"] == arm]
        lines.append(f"| {arm} | {sigma} | {each[0][0]:.2f} | {spread(e for _, e in each)} |")
    lines += ["", "| poses | steps | seeds | < 2 Å, % | centre < 2 Å, % | centre off by, median, Å "
              "| median RMSD, Å | less that of scalar, ancestral |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    cells: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        if "way" in row:
            cells.setdefault((row["arm"], row["way"], row["steps"]), {})[row["seed"]] = row
    for (arm, way, steps), each in cells.items():
        first = cells["shipped, scalar" if "shipped" in arm else "scalar", "ancestral", steps]
        shares = (spread((100 * row[key] for row in each.values()), 1) for key in ("hit", "placed"))
        medians = (spread((row[key] for row in each.values()), 2) for key in ("off", "rmsd"))
        gaps = (row["rmsd"] - first[k]["rmsd"] for k, row in each.items() if k in first)
        text = " | ".join((*shares, *medians, "" if each is first else spread(gaps, 2)))
        lines.append(f"| {arm}, {way} | {steps} | {len(each)} | {text} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("train", "shipped", "table"))
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs.jsonl"))
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--complexes", type=int, default=16, help="of validation")
    parser.add_argument("--ways", nargs="+", choices=WAYS[1], default=WAYS[1])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.runs.open()] if args.runs.exists() else []
    if args.what == "table":
        print(render(rows))
        return 0
    known = {(row["arm"], row.get("way"), row.get("steps"), row["seed"]) for row in rows}

    def record(row: dict) -> None:
        with args.runs.open("a") as file:
            file.write(json.dumps(row) + "\n")

    val = list(CompactSet(find_data("dock_val.safetensors")))
    if args.what == "shipped":
        model, _ = load_model(SHIPPED, torch.device("cpu"))
        arms = [
            ("shipped, scalar", Pilot(Momentum(vpsde()), model.score), WAYS[0]),
            ("shipped, momentum", Pilot(Momentum(cld()), model.score), WAYS[1]),
        ]
        for seed, (arm, denoiser, ways) in itertools.product(range(args.seeds), arms):
            chosen = tuple(way for way in ways if way in args.ways)
            judged(arm, denoiser, chosen, val[: args.complexes], seed, record, known)
        return 0
    for seed, hears in itertools.product(range(args.seeds), (False, True)):
        arm = "heard" if hears else "scalar"
        if (arm, None, None, seed) in known:
            continue
        denoiser, loss, seconds = trained(hears, seed, args.steps)
        with evaluating(denoiser):
            found = centres(denoiser, val[: args.complexes])
        chosen = tuple(way for way in WAYS[hears] if way in args.ways)
        judged(arm, denoiser, chosen, val[: args.complexes], seed, record, known)
        record({"arm": arm, "seed": seed, "loss": loss, "seconds": seconds, "centres": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
