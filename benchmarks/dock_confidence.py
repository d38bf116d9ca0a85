"""Is `confidence` what it says, and does ranking by it help?

Redocking into the known site (`python -m bio_diffusion.dock.pools`). The model has been fitted to
the rows `train` and its two numbers of calibration to the rows `val`; the rows `check` are other
validation complexes that nothing was fitted to. On `val` calibration is fitted anew, each time
without the protein clusters that it is then tested on. Ranking needs no calibration, which leaves
the order alone.

    python benchmarks/dock_confidence.py --pools data/dock_pools.csv.gz
    python benchmarks/dock_confidence.py --docked test.csv --variant network

The second form takes rows of `dock_quality.py` and the `confidence` in them, as shipped.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bio_diffusion.dock.confidence import Confidence, calibration_error, load_confidence
from bio_diffusion.dock.confidence_fit import RIGHT, Pools, read_pools
from bio_diffusion.dock.metrics import mcnemar, rate, wilson
from bio_diffusion.dock.pool import EVIDENCE
from bio_diffusion.dock.sources import SHIPPED

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FOLDS = 5


def platt(logit: Tensor, right: Tensor) -> tuple[float, float]:
    """Scale and shift of least cross-entropy, by Newton's method."""
    x = torch.stack([logit, torch.ones_like(logit)], 1).double()
    y, w = right.double(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        p = (x @ w).sigmoid()
        curvature = (x.T * (p * (1 - p))) @ x + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, x.T @ (p - y))
        w = w - step * min(1.0, 2.0 / float(step.abs().max() + 1e-12))
    return float(w[0]), float(w[1])


def cross_calibrated(model: Confidence, pools: Pools, seed: int) -> Tensor:
    """(P,) probabilities, each calibrated on other protein clusters."""
    names = sorted(set(pools.clusters))
    turn = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(place) % FOLDS for name, place in zip(names, turn, strict=True)}
    of_pose = torch.tensor(
        [fold[c] for c, n in zip(pools.clusters, pools.sizes, strict=True) for _ in range(n)]
    )
    logit = model.logits(pools.evidence).detach()
    chance = torch.zeros_like(logit)
    for k in range(FOLDS):
        scale, shift = platt(logit[of_pose != k], pools.right[of_pose != k])
        chance[of_pose == k] = (scale * logit[of_pose == k] + shift).sigmoid()
    return chance


def reliability(chance: Tensor, right: Tensor) -> str:
    """A table of bins: poses, mean confidence, share that is right with Wilson's interval."""
    lines = ["| confidence | poses | mean confidence | share right [95 %] |", "|---|---|---|---|"]
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        here = (chance >= low) & ((chance < high) | (high == 1.0))
        if count := int(here.sum()):
            hits = int(right[here].sum())
            less, more = wilson(hits, count)
            lines.append(
                f"| {low:.2f} to {high:.2f} | {count} | {float(chance[here].mean()):.3f} | "
                f"{hits / count:.3f} [{less:.3f}, {more:.3f}] |"
            )
    return "\n".join(lines)


def of_pools(path: Path, seeds: int) -> None:
    found, network = read_pools(path)
    model = load_confidence(SHIPPED, network)
    if model is None:
        raise SystemExit(f"the shipped confidence model does not belong to {network}")
    train, val, check = (found[split] for split in ("train", "val", "check"))
    print(f"Fitted to {len(train)} training complexes, calibrated on {len(val)}: {model.name}.\n")
    print(
        "| complexes | best of the candidates by | top-1 < 2 Å | against energy | against score |"
    )
    print("|---|---|---|---|---|")
    rankings(f"{len(val)} of the calibration", val, model)
    rankings(f"{len(check)} others", check, model)
    runs = [cross_calibrated(model, val, seed) for seed in range(seeds)]
    errors = torch.tensor([calibration_error(chance, val.right) for chance in runs])
    bare = model.logits(val.evidence).detach().sigmoid()
    chance = model(check.evidence)
    print(
        "\nExpected calibration error, ten bins, all candidates:\n\n"
        f"* {len(check)} complexes that nothing was fitted to: "
        f"{calibration_error(chance, check.right):.3f}\n"
        f"* {len(val)} of the calibration, each calibrated on other protein clusters: "
        f"{float(errors.mean()):.3f} ± {float(errors.std()):.3f} in {seeds} foldings\n"
        f"* the same without calibration: {calibration_error(bare, val.right):.3f}\n"
    )
    print(f"Reliability on the {len(check)} complexes that nothing was fitted to:\n")
    print(reliability(chance, check.right))


def rankings(name: str, pools: Pools, model: Confidence) -> None:
    """Rows of the table of rankings."""
    tops = {
        "energy": pools.top(-pools.evidence[:, EVIDENCE.index("energy")]),
        "score (energy and the network's judgement)": pools.top(-pools.score),
        "confidence": pools.top(model(pools.evidence)),
    }
    rows = {ranking: values.numpy() for ranking, values in tops.items()}
    first, second, _ = rows.values()
    for ranking, values in rows.items():
        p = [f"p = {mcnemar(values, other):.3g}" for other in (first, second)]
        print(f"| {name} | {ranking} | {rate(values)} | {p[0]} | {p[1]} |")
    print(f"| {name} | (a right one is among them) | {rate(pools.any().numpy())} | | |")


def of_docked(path: Path, variant: str) -> None:
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["variant"] == variant and r["confidence"]]
    parts = sorted({(row["part"] or row["split"], row["site"]) for row in rows})
    for part, site in parts:
        here = [r for r in rows if (r["part"] or r["split"], r["site"]) == (part, site)]
        chance = torch.tensor([float(row["confidence"]) for row in here])
        right = torch.tensor([float(row["rmsd"]) < RIGHT for row in here])
        first = torch.tensor([row["rank"] == "1" for row in here])
        print(
            f"{part}, {site} site: {int(first.sum())} complexes, {len(here)} poses, expected "
            f"calibration error {calibration_error(chance, right):.3f}; of the first poses mean "
            f"confidence {float(chance[first].mean()):.3f}, share right "
            f"{float(right[first].float().mean()):.3f}\n"
        )
        print(reliability(chance, right) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pools", type=Path, help="table of pools")
    parser.add_argument("--seeds", type=int, default=5, help="divisions into folds")
    parser.add_argument("--docked", type=Path, help="table of dock_quality.py")
    parser.add_argument("--variant", default="network")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.pools:
        of_pools(args.pools, args.seeds)
    if args.docked:
        of_docked(args.docked, args.variant)
    return 0


if __name__ == "__main__":
    sys.exit(main())
