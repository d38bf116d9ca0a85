"""Is `confidence` what it says, and what do the network, the ranker and confidence do for ranking?

Redocking into the known site (`python -m bio_diffusion.dock.pools`). The model has been fitted to
validation complexes, so that these are told by fits to nine tenths of their protein clusters, each
judging the other tenth. Weights of the score were chosen on them too: "weights held out" fits the
three anew (fitted energy, loss of denoising, preference) in the same way.

    python benchmarks/dock_confidence.py --pools data/dock_pools.csv.gz
    python benchmarks/dock_confidence.py --pools unseen.csv seen.csv --beside vina_baseline.csv
    python benchmarks/dock_confidence.py --weights data/dock_pools.csv.gz modelled.csv
    python benchmarks/dock_confidence.py --losses DATA/val --manifest manifest.csv --split val
    python benchmarks/dock_confidence.py --docked test.csv --variant network

Pools of other splits than `val`, such as test parts, are judged with what was fitted and chosen on
validation complexes, but for the weights held out, which are fitted among them. `--weights` fits
all three to each table whole and says nothing of success, so that it may see modelled poses
(`modelled_complexes.py`). `--losses` docks complexes, computes the losses of all candidates and
says what is lost where they are of the best ones only, as a docking has them. The last form takes
rows of `dock_quality.py` and the `confidence` in them, as shipped.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import operator
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bio_diffusion.command import one_thread
from bio_diffusion.dock.confidence import calibration_error, load_confidence
from bio_diffusion.dock.confidence_fit import RIGHT, Pools, folds, held_out, read_pools
from bio_diffusion.dock.metrics import mcnemar, rate, symmetric_rmsd, wilson
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pools import in_order, known_site
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.prepare import protein_file, read_ligand, read_manifest
from bio_diffusion.dock.receptor import read_receptor
from bio_diffusion.dock.settings import Settings
from bio_diffusion.dock.sources import SHIPPED, PreparedLigand

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WEIGHTS = Settings().judgement, Settings().preference


def weights(pools: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(F,) weights of columns by which the right poses of each pool get the largest share.

    Args:
        pools: columns (P, F) and whether a pose is right (P,), pool by pool. The share is that of
            a softmax over the pool, of which the mean logarithm counts; pools without a right pose
            say nothing.
    """
    pools = [p for p in pools if p[1].any()]
    w = torch.zeros(pools[0][0].shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        chances = [(x @ w).log_softmax(0)[right].logsumexp(0) for x, right in pools]
        loss = 1e-3 * w.square().sum() - torch.stack(chances).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


def by_weights_held_out(pools: Pools, columns: Tensor) -> Tensor:
    """(P,) a linear score of `columns` (P, F), each pose's by weights from other clusters."""
    fold = folds(pools)
    parts = list(zip(columns.split(pools.sizes), pools.right.split(pools.sizes), strict=True))
    out = {k: weights([p for p, f in zip(parts, fold, strict=True) if f != k]) for k in set(fold)}
    return torch.cat([x @ out[f] for (x, _), f in zip(parts, fold, strict=True)])


def terms(pools: Pools) -> Tensor:
    """(P, 3): the energy, loss and preference with the signs that a score of right poses wants."""
    return torch.stack([-pools.fitted, -pools.loss, pools.preference], 1)


def of_weights(paths: Sequence[Path]) -> None:
    """What each table would have the score weigh, beside what ships.

    Columns are scaled to one spread first: the losses of a pool are close together, so that the
    ridge would hold down their large weight more than the others. Vina's energy stands without the
    losses, since which poses these are computed for, the fitted energy decides.
    """
    print(
        "| pools | with a right pose | judgement | preference | log share "
        "| of the weights that ship | without judgement | so, Vina's energy "
        "| fitted energy alone | Vina's alone |\n" + "|---" * 10 + "|"
    )
    for split, pools in (item for path in paths for item in read_pools(path)[0].items()):
        spread = terms(pools).std(0)
        columns = terms(pools) / spread
        best, share = fitted(pools, columns)
        energy, judgement, preference = (best / spread).tolist()
        vinas = torch.stack([-pools.energy, columns[:, 2]], 1)
        others = (-pools.score[:, None], columns[:, [0, 2]], vinas, columns[:, :1], vinas[:, :1])
        shares = [share, *(fitted(pools, other)[1] for other in others)]
        print(
            f"| {len(pools)} {split} | {int(pools.any().sum())} | {judgement / energy:.1f} "
            f"| {preference / energy:.2f} | {' | '.join(f'{x:.3f}' for x in shares)} |"
        )


def fitted(pools: Pools, columns: Tensor) -> tuple[Tensor, float]:
    """Weights of columns (P, F) by all pools, and the log share that they reach on these."""
    parts = zip(columns.split(pools.sizes), pools.right.split(pools.sizes), strict=True)
    w = weights(list(parts))
    return w, log_share(pools, columns @ w)


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


def of_pools(paths: Sequence[Path], others: Sequence[Path]) -> None:
    tables = [read_pools(path) for path in paths]
    found = {split: pools for table, _ in tables for split, pools in table.items()}
    (network,) = {network for _, network in tables}
    model = load_confidence(SHIPPED, network)
    if model is None:
        raise SystemExit(f"the shipped confidence model does not belong to {network}")
    print(f"{model.name}, judgement {WEIGHTS[0]:g}, preference {WEIGHTS[1]:g}.\n")
    print(
        "| complexes | best of the candidates by | top-1 < 2 Å | p, against energy "
        "| p, against fitted energy and judgement | log share |\n|---|---|---|---|---|---|"
    )
    # the model is fitted to validation complexes: these are told by fits to other clusters
    told = {
        split: held_out(pools) if split == "val" else model(pools.evidence)
        for split, pools in found.items()
    }
    for split, pools in found.items():
        rankings(f"{len(pools)} {split}", pools, told[split])
    if len(found) > 1:
        both = reduce(Pools.joined, found.values())
        rankings(f"all {len(both)}", both, torch.cat(list(told.values())))
    spent = reduce(operator.or_, map(cpu_seconds, paths))
    for split, pools in found.items():
        chance = told[split]
        failed = pools.top(chance, pools.failed)
        shares = ", ".join(f"{n}: {rate(shown(pools, chance, n).numpy())}" for n in (3, 5, 10))
        print(
            f"\n{len(pools)} {split}: expected calibration error, ten bins, all candidates "
            f"{calibration_error(chance, pools.right):.3f}; first poses by confidence: "
            f"valid {rate((~failed).numpy())}, "
            f"right too {rate((pools.top(chance) & ~failed).numpy())}; "
            f"one right of the first {shares}; "
            f"CPU s a complex, mean {sum(spent[i] for i in pools.ids) / len(pools):.1f}\n"
        )
        print(reliability(chance, pools.right))
        for other in others:
            beside(other, pools, chance)


def shown(pools: Pools, chance: Tensor, count: int) -> Tensor:
    """(C,) bool: is one of the first `count` poses right, valid before not?"""
    order = torch.where(pools.failed, chance - 1e6, chance).split(pools.sizes)
    pairs = zip(order, pools.right.split(pools.sizes), strict=True)
    return torch.stack(
        [right[ranks.argsort(descending=True)[:count]].any() for ranks, right in pairs]
    )


def beside(path: Path, pools: Pools, chance: Tensor) -> None:
    """First poses, and those of a table of `vina_baseline.py` or `dock_quality.py`."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    theirs = {row["id"]: float(row["rmsd"]) < RIGHT for row in rows}
    pairs = zip(pools.ids, pools.top(chance).tolist(), strict=True)
    both = [(ours, theirs[key]) for key, ours in pairs if key in theirs]
    if both:
        ours, others = (np.array(side) for side in zip(*both, strict=True))
        p = mcnemar(ours, others)
        print(f"\n{len(both)} of {path.name}: ours {rate(ours)}, there {rate(others)}, p = {p:.2g}")


def cpu_seconds(path: Path) -> dict[str, float]:
    """Of each complex of a table of pools."""
    raw = path.read_bytes()
    text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    return {r["id"]: float(r["cpu_s"]) for r in csv.DictReader(io.StringIO(text.decode()))}


def rankings(name: str, pools: Pools, chance: Tensor) -> None:
    """Rows of the table of rankings; `share` is the mean log share of the right poses."""
    columns = terms(pools)
    values = {
        "energy": -pools.energy,
        "energy and preference": WEIGHTS[1] * pools.preference - pools.energy,
        "fitted energy": -pools.fitted,
        "fitted energy and judgement": -pools.fitted - WEIGHTS[0] * pools.loss,
        "fitted energy and preference": WEIGHTS[1] * pools.preference - pools.fitted,
        "score (all three)": -pools.score,
        "fitted energy and judgement, weights held out": by_weights_held_out(pools, columns[:, :2]),
        "all three, weights held out": by_weights_held_out(pools, columns),
        "confidence": chance,
    }
    tops = {ranking: pools.top(value).numpy() for ranking, value in values.items()}
    for ranking, top in tops.items():
        held = "held out" in ranking
        share = f"{log_share(pools, values[ranking]):.3f}" if held else ""
        judged = "fitted energy and judgement" + ", weights held out" * held
        p = [f"{mcnemar(top, tops[other]):.3g}" for other in ("energy", judged)]
        print(f"| {name} | {ranking} | {rate(top)} | {p[0]} | {p[1]} | {share} |")
    print(f"| {name} | (a right one is among them) | {rate(pools.any().numpy())} | | | |")


def log_share(pools: Pools, value: Tensor) -> float:
    """Mean log of the softmax share of right poses, over pools that have any."""
    parts = zip(value.split(pools.sizes), pools.right.split(pools.sizes), strict=True)
    shares = [x.log_softmax(0)[right].logsumexp(0) for x, right in parts if right.any()]
    return float(torch.stack(shares).mean())


def of_losses(data: Path, manifest: Path, split: str) -> None:
    docker, shares = Docker.load(), {"all": 1, "half": 2, "quarter": 4, "tenth": 10}
    firsts: dict[str, list[int]] = {name: [] for name in shares}
    right: dict[str, list[bool]] = {name: [] for name in shares}
    for key in in_order(read_manifest(manifest, split)):
        ligand, protein = read_ligand(data / key), protein_file(data / key)
        assert protein is not None
        site = known_site(ligand.crystal)
        receptor = docker.prepare(read_receptor(protein).without(ligand.crystal))
        with one_thread():
            found = docker.candidates(receptor, ligand, [site])
            prepared = PreparedLigand.of(ligand, 1, 0)
            pose = Pose(found.coords, prepared.graph.tree)
            loss = docker.source.losses(receptor, prepared, site, pose).mean(1)
        rmsd = symmetric_rmsd(found.coords.numpy(), ligand.crystal, ligand.mol)
        failed = torch.tensor([bool(names) for names in found.failed])
        first = torch.tensor(found.fitted) - WEIGHTS[1] * found.opinion.preference
        for name, part in shares.items():
            known = loss.clone()
            order = first.argsort(stable=True)
            best, rest = order.tensor_split([-(-len(order) // part)])
            known[rest] = loss[best].max()
            top = int((first + WEIGHTS[0] * known + 1e6 * failed).argmin())
            firsts[name].append(top)
            right[name].append(bool(rmsd[top] < RIGHT))
    print("| losses of the best | the same first pose as by all | right first |\n|---|---|---|")
    for name in shares:
        same = sum(a == b for a, b in zip(firsts[name], firsts["all"], strict=True))
        print(f"| {name} | {same} of {len(firsts[name])} | {sum(right[name])} |")


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
    parser.add_argument("--pools", type=Path, nargs="+", help="tables of pools")
    parser.add_argument("--weights", type=Path, nargs="+", help="tables of pools")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="tables of other dockings, beside pools"
    )
    parser.add_argument("--losses", type=Path, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, help="of these")
    parser.add_argument("--split", default="val", help="of these")
    parser.add_argument("--docked", type=Path, help="table of dock_quality.py")
    parser.add_argument("--variant", default="network")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.pools:
        of_pools(args.pools, args.beside)
    if args.weights:
        of_weights(args.weights)
    if args.losses:
        of_losses(args.losses, args.manifest or args.losses / "manifest.csv", args.split)
    if args.docked:
        of_docked(args.docked, args.variant)
    return 0


if __name__ == "__main__":
    sys.exit(main())
