"""Where a docking's time goes: network calls against their operations, and further ligands.

    python benchmarks/dock_speed.py --protein data/demo/protein.pdb --ligand data/demo/ligand.sdf \
        [--checkpoint FILE] [--repeats 20] [--torch]

All times are CPU seconds of one thread, the least of the repeats; shares of the peak refer to the
best matrix product measured in the same run, so they compare across machines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bio_diffusion.dock.complex import Ligand, read_ligands, read_receptor, site_from_ligand
from bio_diffusion.dock.network import NetworkPoses
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.sources import PreparedLigand
from bio_diffusion.dock.validity import Validator


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds of `repeats` calls, after one that is not counted."""
    call()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def peak(repeats: int) -> float:
    """Operations a second of the fastest square matrix product here."""
    rates = []
    for n in (256, 512, 1024):
        a, b = torch.randn(n, n), torch.randn(n, n)
        rates.append(2 * n**3 / seconds(lambda a=a, b=b: a @ b, repeats))
    return max(rates)


def operations(call: Callable[[], Any]) -> int:
    """Multiplications and additions in the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def network_rows(source: NetworkPoses, given: Any, pose: Pose, repeats: int) -> list[str]:
    """Table rows of network calls for 1, 10 and 32 poses."""
    best = peak(repeats)
    lines = [
        f"Peak of matrix products in this run: {best / 1e9:.1f} GFLOP/s on one thread.",
        "",
        "| network call | ms | ms a pose | MFLOP in products | share of peak |",
        "|---|---|---|---|---|",
    ]
    model = source.model

    def row(name: str, call: Callable[[], Any], poses: int) -> str:
        spent, count = seconds(call, repeats), operations(call)
        return (
            f"| {name} | {1e3 * spent:.1f} | {1e3 * spent / poses:.2f} | {count / 1e6:.0f} "
            f"| {100 * count / spent / best:.0f} % |"
        )

    graph = given.receptor.graph
    size = f"{len(graph.coords)} atoms, {len(graph.residue_type)} residues"
    lines.append(row(f"receptor, once ({size})", lambda: model.score.encode_receptor(graph), 1))
    for count in (1, 10, 32):
        chosen = Pose(pose.coords[:1].repeat(count, 1, 1), pose.tree)
        latents = source.draw(given, count, torch.Generator().manual_seed(0))
        conditioned = given.with_latents(latents)
        t = torch.full((count,), 0.5)
        lines.append(
            row(
                f"score of {count} poses ({pose.coords.shape[1]} atoms, {len(pose.tree)} torsions)",
                lambda c=chosen, t=t, g=conditioned: model.score(c, t, g),
                count,
            )
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--protein", type=Path, required=True)
    parser.add_argument("--ligand", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="without the compiled loops")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.torch:
        sys.modules["numba"] = None  # type: ignore[assignment]  # what a machine without it does
    docker = Docker.load(args.checkpoint, "cpu")
    if not isinstance(docker.source, NetworkPoses):
        parser.error("no trained model: give --checkpoint")
    ligand = next(iter(read_ligands([str(args.ligand)])))
    assert isinstance(ligand, Ligand) and ligand.crystal is not None
    site = site_from_ligand(ligand.crystal)

    began = time.process_time()
    receptor = docker.prepare(read_receptor(args.protein))
    reading = time.process_time() - began
    prepared = PreparedLigand.of(ligand, docker.settings.conformers, 0)
    with torch.inference_mode():
        given = docker.source.complex(receptor, prepared, site)
        start = Pose(torch.as_tensor(ligand.crystal, dtype=torch.float32)[None], given.ligand.tree)
        print("\n".join(network_rows(docker.source, given, start, args.repeats)))

    fresh = docker.prepare(read_receptor(args.protein))
    took = []
    for _ in range(4):
        began = time.process_time()
        docker.dock_one(fresh, ligand, [site])
        took.append(time.process_time() - began)
    shaken = ligand.crystal + np.random.default_rng(0).normal(0, 0.5, (10, 1, 3))
    checks = seconds(lambda: Validator(ligand.mol, receptor.receptor).check(shaken), 3)
    print(
        "\n| docking, 10 poses | CPU s |\n|---|---|\n"
        f"| reading and featurising the receptor | {reading:.2f} |\n"
        f"| first ligand (its maps and encoded pocket are made) | {took[0]:.2f} |\n"
        f"| further ligand, median of {len(took) - 1} | {statistics.median(took[1:]):.2f} |\n"
        f"| of it, validity checks | {checks:.2f} |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
