"""Success against CPU seconds: our docking with and without its network, and AutoDock Vina.

One run, one machine, the same complexes and boxes, every method at several budgets, so that what
comes out is a curve for each and not a point: `starts` for ours (chains of the search, and poses
drawn by the network), `exhaustiveness` for Vina. Complexes are the first of the sample order of
`vina_baseline.py`; ligands start from RDKit conformers.

    python benchmarks/dock_vs_peers.py run --data DATA/val --manifest manifest.csv --split val \
        --sample 20 --max-torsions 13 --starts 8 16 32 64 128 --exhaustiveness 1 2 4 8 --out RUN
    python benchmarks/dock_vs_peers.py table RUN --data DATA/val [--exhaustiveness 1 2 8]
    python benchmarks/dock_vs_peers.py layers --data DATA/val --ids IDS

`run` appends to RUN/ours.csv (rows of `dock_quality.py`) and to RUN/vina_E.csv with poses in
RUN/vina_poses_E (`vina_baseline.py`), and goes on where it was stopped; rows and poses that were
made elsewhere by those two scripts can be laid there. `--starts` or `--exhaustiveness` without a
number leaves that side out. A sample is a prefix of a larger one, so a `--sample` that grows call
by call docks complex after complex at all budgets. `table` counts the complexes that every method
and budget has docked. `layers` times DiffDock-S's layers (`diffdock_layers.py`) and a call of our
network. CPU seconds are user and system time of one process on one thread. Ours hold reading,
featurising, conformers, search, checks and ranking; Vina's its maps and docking alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dock_quality
import numpy as np
from diffdock_layers import measure
from diffdock_layers import render as render_layers
from dock_quality import CELLS, Outcome, cells, vina_rows
from vina_baseline import chosen, pick

from bio_diffusion.dock.metrics import mcnemar

HERE = Path(__file__).parent
NETWORK, PHYSICS, VINA = "network", "no network", "vina"
RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """One method at one budget: the outcome of each complex."""

    method: str
    budget: str
    outcomes: Mapping[str, Outcome]

    @property
    def cpu(self) -> float:
        """Mean CPU seconds a complex."""
        return float(np.mean([o.cpu for o in self.outcomes.values()]))

    @property
    def name(self) -> str:
        return f"{self.method}, {self.budget}"

    def hits(self, ids: Sequence[str]) -> list[bool]:
        return [self.outcomes[i].top for i in ids]


def points(rows: Sequence[Mapping[str, str]]) -> list[Point]:
    """The points of all curves over the complexes that all of them have, cheapest first."""
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        groups.setdefault(row["variant"], {}).setdefault(row["id"], []).append(dict(row))
    common = set.intersection(*(set(g) for g in groups.values()))
    found = []
    for variant, complexes in groups.items():
        method, _, budget = variant.replace(" (", ", ").rstrip(")").partition(", ")
        outcomes = {i: Outcome.of(r) for i, r in complexes.items() if i in common}
        found.append(Point(method, budget, outcomes))
    return sorted(found, key=lambda p: ((NETWORK, PHYSICS, VINA).index(p.method), p.cpu))


def cheapest(cpu: Sequence[float], success: Sequence[float], wanted: float) -> float:
    """CPU seconds at which a curve first reaches `wanted`, between its points linear in log time.

    Args:
        cpu: of its points, rising.
        success: of its points.
        wanted: success to be reached.

    Returns:
        Those of the first point where it already suffices (so no more than that are needed), and
        infinity where no point does.
    """
    best = np.maximum.accumulate(success)
    for k, value in enumerate(best):
        if value >= wanted:
            if k == 0:
                return float(cpu[0])
            part = (wanted - best[k - 1]) / (value - best[k - 1])
            return float(cpu[k - 1] * (cpu[k] / cpu[k - 1]) ** part)
    return math.inf


def saving(curve: Sequence[Point], peer: Point, ids: Sequence[str]) -> float:
    """How many times less CPU time `curve` takes to reach the success of `peer` on these ids."""
    cpu = [float(np.mean([p.outcomes[i].cpu for i in ids])) for p in curve]
    success = [float(np.mean(p.hits(ids))) for p in curve]
    theirs = float(np.mean([peer.outcomes[i].cpu for i in ids]))
    return theirs / cheapest(cpu, success, float(np.mean(peer.hits(ids))))


def saving_line(curve: Sequence[Point], peer: Point, ids: Sequence[str]) -> str:
    """The saving with its interval from resampled complexes, as the cells of a table."""
    generator = np.random.default_rng(0)
    drawn = [
        saving(curve, peer, generator.choice(np.asarray(ids), len(ids)).tolist())
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    whole = saving(curve, peer, ids)
    at_once = np.mean(curve[0].hits(ids)) >= np.mean(peer.hits(ids))
    told = "not reached" if whole == 0 else f"{'at least ' if at_once else ''}{whole:.1f}"
    return f"{told} | {low:.1f} to {high:.1f}"


def render(found: Sequence[Point]) -> str:
    """The curves, the paired tests at matched budgets and the savings at equal success."""
    ids = sorted(found[0].outcomes)
    curves = {m: [p for p in found if p.method == m] for m in (NETWORK, PHYSICS, VINA)}
    lines = [f"| method | budget | {CELLS} |", "|---" * 9 + "|"]
    for p in found:
        lines.append("| " + " | ".join([p.method, p.budget, *cells(list(p.outcomes.values()))]))
        lines[-1] += " |"
    lines += [
        "",
        "| pair | CPU s, mean | top-1 < 2 Å, of the first and of the second | McNemar p |",
        "|---|---|---|---|",
    ]
    physics = {p.budget: p for p in curves[PHYSICS]}
    pairs = [(p, physics[p.budget]) for p in curves[NETWORK] if p.budget in physics]
    for peer in curves[VINA]:
        for method in (NETWORK, PHYSICS):
            within = [p for p in curves[method] if p.cpu <= peer.cpu]
            if within:
                pairs.append((within[-1], peer))
    for first, second in pairs:
        hits = first.hits(ids), second.hits(ids)
        lines.append(
            f"| {first.name} against {second.name} | {first.cpu:.1f} against {second.cpu:.1f} "
            f"| {sum(hits[0])} and {sum(hits[1])} of {len(ids)} | {mcnemar(*hits):.3g} |"
        )
    lines += [
        "",
        "| ours | reaches the success of | CPU time saved, times | 95 %, complexes resampled |",
        "|---|---|---|---|",
    ]
    for peer in curves[VINA]:
        for method in (NETWORK, PHYSICS):
            if curves[method]:
                lines.append(
                    f"| {method} | {peer.name} ({sum(peer.hits(ids))}/{len(ids)}) "
                    f"| {saving_line(curves[method], peer, ids)} |"
                )
    return "\n".join(lines)


def sample(args: argparse.Namespace) -> list[str]:
    """Ids in their order, those of very flexible ligands left out."""
    with args.manifest.open() as handle:
        rows = [r for r in csv.DictReader(handle) if r["split"] == args.split]
    rows = [r for r in rows if args.part in ("", r["test_part"])]
    small = [r["id"] for r in rows if int(r["n_rot"]) <= args.max_torsions]
    return pick(small, args.sample, args.seed)


def run(args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    ids = args.out / "ids.txt"
    ids.write_text("\n".join(sample(args)) + "\n")
    common = ["--data", str(args.data), "--manifest", str(args.manifest), "--ids", str(ids)]
    for level in args.exhaustiveness:
        out = ["--out", str(args.out / f"vina_{level}.csv")]
        poses = ["--poses", str(args.out / f"vina_poses_{level}")]
        wanted = ["--exhaustiveness", str(level)]
        # a program of its own: it starts a process a complex, which should not load torch
        script = [sys.executable, str(HERE / "vina_baseline.py")]
        subprocess.run([*script, *common, *wanted, *out, *poses], check=True)
    variants = [
        f"{name}, {starts} starts:{settings}starts={starts}"
        for name, settings in ((NETWORK, ""), (PHYSICS, "checkpoint=none,"))
        for starts in args.starts
    ]
    if not variants:
        return 0
    flags = [word for variant in variants for word in ("--variant", variant)]
    return dock_quality.main(["run", *common, *flags, "--out", str(args.out / "ours.csv")])


def table(args: argparse.Namespace) -> int:
    ours = args.run / "ours.csv"
    rows = dock_quality.read([ours] if ours.exists() else [])
    for level in args.exhaustiveness:
        if (vina := args.run / f"vina_{level}.csv").exists():
            rows += vina_rows(vina, args.run / f"vina_poses_{level}", args.data)
    print(render(points(rows)))
    return 0


def layers(args: argparse.Namespace) -> int:
    import torch

    from bio_diffusion.dock.network import NetworkPoses
    from bio_diffusion.dock.pipeline import Docker

    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = Docker.load(args.checkpoint, "cpu").source
    if not isinstance(source, NetworkPoses):
        raise SystemExit("no trained model: give --checkpoint")
    costs = [measure(source, args.data / key, args.times) for key, _, _ in chosen(args)]
    print(render_layers(costs, args.times))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("run", help="dock with all methods at all budgets")
    p.set_defaults(call=run)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--manifest", type=Path, required=True)
    p.add_argument("--split", default="val")
    p.add_argument("--part", default="", help="test part to sample (all by default)")
    p.add_argument("--sample", type=int, default=20, help="complexes to take (0: all)")
    p.add_argument("--seed", type=int, default=0, help="seed of the sample")
    p.add_argument("--max-torsions", type=int, default=100, help="leave out more flexible ligands")
    p.add_argument("--starts", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    p.add_argument("--exhaustiveness", type=int, nargs="*", default=[1, 2, 4, 8])
    p.add_argument("--out", type=Path, required=True, help="folder of tables")
    p = commands.add_parser("table", help="print the curves of a run")
    p.set_defaults(call=table)
    p.add_argument("run", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--exhaustiveness", type=int, nargs="*", default=[1, 2, 4, 8])
    p = commands.add_parser("layers", help="time DiffDock-S's layers and our network")
    p.set_defaults(call=layers)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--ids", type=Path, required=True, help="file of ids")
    p.add_argument("--manifest", type=Path)
    p.add_argument("--split", default="")
    p.add_argument("--part", default="")
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--times", type=float, nargs="+", default=[0.05, 0.5, 1.0])
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
