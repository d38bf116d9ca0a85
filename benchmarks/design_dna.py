"""Promoters asked for the strongest class: what the oracle finds, and what it costs in realism.

    python benchmarks/design_dna.py --model yeast --n 128 --seeds 0 1 2

Every row draws n sequences with the same seeds. The oracle has another architecture and its own
training run; neither the generator nor the predictor that guides has seen it. A sequence that fools
an oracle scores too, so beside each score stand the Jensen-Shannon distance of 3-mers and 6-mers to
the real sequences of that class (held-out ones, so that the first row is the floor for a sample of
its size) and the discriminator's area under the ROC curve (0.5: not told from real). References:
real sequences of the class and of all classes, and their dinucleotide shuffles. Controls: the
opposite class, a predictor with random weights, and, at four times the network calls, best of 4 and
chains (noise a quarter of the way, denoise, accept or not) by what the predictor says of clean
sequences.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from design_guidance import scrambled
from tables import spread

from bio_diffusion.design import metrics
from bio_diffusion.design.dataset import find_data, read_rows
from bio_diffusion.design.pipeline import Designer
from bio_diffusion.diffusion.guidance import ExactClassifier, FirstOrderClassifier
from bio_diffusion.diffusion.montecarlo import Metropolis
from bio_diffusion.diffusion.process import Guidance, evaluating
from bio_diffusion.diffusion.schedule import uniform

Draw = Callable[[int], list[str]]


def by_class(designer: Designer, target: str, split: str) -> dict[int, list[str]]:
    """Real sequences of a split by their class."""
    known = next(p for p in designer.labelled if p.name == target)
    found: dict[int, list[str]] = {}
    for row in read_rows(find_data(designer.settings["data"]), split):
        found.setdefault(known.label(row[target]), []).append(row[designer.settings["column"]])
    return found


def sample_of(pool: Sequence[str], n: int, seed: int) -> list[str]:
    chosen = np.random.default_rng(seed).choice(len(pool), min(n, len(pool)), replace=False)
    return [pool[i] for i in chosen]


def references(designer: Designer, target: str, n: int) -> dict[str, Draw]:
    """Rows that no network drew, all from the training part."""
    real = by_class(designer, target, "train")
    best = len(designer.properties[target]) - 1
    every = [s for part in real.values() for s in part]

    def shuffled(seed: int) -> list[str]:
        source = np.random.default_rng(seed)
        return [metrics.dinucleotide_shuffle(s, source) for s in sample_of(real[best], n, seed)]

    return {
        "real, strongest class": lambda seed: sample_of(real[best], n, seed),
        "real, all classes": lambda seed: sample_of(every, n, seed),
        "real, strongest class, dinucleotides shuffled": shuffled,
    }


def ways(designer: Designer, target: str, n: int, steps: int, exact: int) -> dict[str, Draw]:
    """The generator's rows; `exact` sequences only of guidance by the exact predictor."""
    classes = designer.properties[target]
    told, opposite = {target: classes[-1]}, {target: classes[0]}
    label = designer.labels(told)

    def draw(seed: int, count: int = n, **arguments: object) -> list[str]:
        parts = designer.design(count, steps=steps, seed=seed, **arguments)  # type: ignore[arg-type]
        return [s for part in parts for s in part]

    def steered(guide: Guidance, count: int = n) -> Draw:
        return lambda seed: draw(seed, count, constraints=[guide])

    def best_of(k: int, seed: int, **arguments: object) -> list[str]:
        pool = draw(seed, k * n, **arguments)
        x = torch.tensor([designer.tokenizer.encode(s) for s in pool])
        with torch.no_grad():
            judged = designer.log_p(label)(x, torch.zeros(len(x)))
        return [pool[i] for i in judged.topk(n).indices.tolist()]

    def chains(seed: int, beta: float) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        judge = designer.log_p(label)
        walk = Metropolis(
            designer.process,
            designer.model,
            lambda x: judge(x, torch.zeros(len(x))),
            0.25 * uniform(4),
            beta,
            designer.labels({}).expand(n, -1),
        )
        x = torch.tensor([designer.tokenizer.encode(s) for s in draw(seed)])
        with evaluating(designer.model):
            for state, _ in walk.chains(x, 3 * steps // 4, generator):
                x = state
        return [designer.tokenizer.decode(ids) for ids in x.tolist()]

    found: dict[str, Draw] = {
        "told nothing": lambda seed: draw(seed),
        "told the weakest class": lambda seed: draw(seed, targets=opposite),
        "told the strongest class (D-CFG, gamma 1)": lambda seed: draw(seed, targets=told),
        "told nothing, best of 4 by the predictor": lambda seed: best_of(4, seed),
        "told, best of 4 by the predictor": lambda seed: best_of(4, seed, targets=told),
        "chains by the predictor, beta 1": lambda seed: chains(seed, 1.0),
        "chains by the predictor, beta 5": lambda seed: chains(seed, 5.0),
    }
    for gamma in (2.0, 3.0, 5.0):
        found[f"D-CFG, gamma {gamma:g}"] = lambda seed, g=gamma: draw(  # type: ignore[misc]
            seed, targets=told, guidance="cfg", gamma=g
        )
    log_p = designer.log_p(label)
    for gamma in (1.0, 3.0, 10.0):
        guide = FirstOrderClassifier(log_p, gamma)
        found[f"D-CBG first order, gamma {gamma:g}"] = steered(guide)
    if exact:
        for gamma in (1.0, 3.0):
            guide = ExactClassifier(log_p, gamma)
            found[f"D-CBG exact, gamma {gamma:g}, n = {exact}"] = steered(guide, exact)
    found["D-CBG first order, random predictor, gamma 3"] = steered(
        FirstOrderClassifier(_blind(designer, label), 3.0)
    )
    return found


def _blind(
    designer: Designer, label: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The predictor with weights of the same spread, drawn at random."""
    blind = copy(designer)
    blind.predictor = scrambled(designer.predictor)
    return blind.log_p(label)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="yeast")
    parser.add_argument("--target", default="expression")
    parser.add_argument("--n", type=int, default=128, help="sequences a row and seed")
    parser.add_argument("--exact", type=int, default=0, help="of exact D-CBG (0: leave out)")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    designer = Designer.load(args.model, device="cpu")
    oracle = designer.oracles[args.target]
    held = by_class(designer, args.target, "test")
    best = len(designer.properties[args.target]) - 1
    edge = next(p for p in designer.labelled if p.name == args.target).edges[-1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"Model {args.model} (sha256 {designer.sha256[:12]}), target "
          f"{designer.properties[args.target][-1]}, {args.steps} steps, {args.n} sequences a row "
          f"and seed, seeds {' '.join(map(str, args.seeds))}, distances to {len(held[best])} "
          f"held-out sequences of the class, commit {commit.stdout.strip()}\n")  # fmt: skip
    print(f"| row | {args.target} by the oracle | in the class by the oracle, % "
          "| 3-mer distance | 6-mer distance | AUROC | CPU s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    rows = references(designer, args.target, args.n)
    rows |= ways(designer, args.target, args.n, args.steps, args.exact)
    for name, draw in rows.items():
        began = time.process_time()
        drawn = [draw(seed) for seed in args.seeds]
        spent = time.process_time() - began
        score = [np.asarray(oracle(group)) for group in drawn]
        columns = [
            spread([float(s.mean()) for s in score], 2),
            spread([100 * float((s > edge).mean()) for s in score], 0),
            spread([metrics.kmer_distance(group, held[best], 3) for group in drawn]),
            spread([metrics.kmer_distance(group, held[best], 6) for group in drawn]),
            spread([metrics.discriminator_auroc(group, held[best]) for group in drawn], 2),
        ]
        print(f"| {name} | {' | '.join(columns)} | {spent:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
