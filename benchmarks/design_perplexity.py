"""Held-out perplexity of generators: bounds for diffusion, exact from left to right.

    python benchmarks/design_perplexity.py qm9 qm9_absorbing qm9_ar --rows 1024 --seeds 0 1 2

Nats a letter, <pad> left out, told nothing; the mean over seeds (of times and noise) with its
standard error. Bounds in continuous time are given from t = 1e-3 on, as published, and from 1e-5
on; what lies below is hidden. The bound of a sampler with so many steps is never lower.

Source: Schiff et al. 2025 (92 M weights, 25,000 steps: 2.02 uniform, 2.12 masked, 2.19 left to
    right, on their own QM9, which the figures here do not compare with to the last digit).
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence

import torch

from bio_diffusion.design.dataset import SequenceSet, find_data
from bio_diffusion.design.pipeline import Designer
from bio_diffusion.design.tokenizer import PAD
from bio_diffusion.diffusion.categorical import Autoregressive
from bio_diffusion.diffusion.likelihood import token_bound, token_bound_in_steps
from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.schedule import uniform


def held_out(designer: Designer, rows: int, split: str) -> torch.Tensor:
    """The first rows of a fixed shuffle of the split, (rows, L)."""
    data = SequenceSet(
        find_data(designer.settings["data"]), split, designer.settings["column"], designer.tokenizer
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.x[order[:rows]].long()


def nats(designer: Designer, x: torch.Tensor, kind: str, seed: int, draws: int) -> float:
    """Mean nats a letter by one of the bounds."""
    letters = designer.tokenizer.letters
    real = x != (letters.index(PAD) if PAD in letters else -1)
    generator, total = torch.Generator().manual_seed(seed), 0.0
    with evaluating(designer.model):
        for part, counted in zip(x.split(256), real.split(256), strict=True):
            cond = designer.labels({}).expand(len(part), -1)
            if kind.startswith("T"):
                each = token_bound_in_steps(
                    designer.process, designer.model, part, uniform(int(kind[2:])), cond, generator
                )
            else:
                each = token_bound(
                    designer.process, designer.model, part, cond, draws, float(kind), generator
                )
            total += float((each * counted).sum())
    return total / int(real.sum())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=8, help="times a sequence is looked at")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bounds", nargs="+", default=["1e-3", "1e-5", "T=8", "T=32"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"{args.rows} sequences of {args.split}, seeds {' '.join(map(str, args.seeds))}, "
          f"commit {commit.stdout.strip()}\n")  # fmt: skip
    print("| model | process | weights | bound | nats a letter | perplexity |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        designer = Designer.load(name)
        x = held_out(designer, args.rows, args.split)
        count = sum(p.numel() for p in designer.model.parameters())
        exact = isinstance(designer.process, Autoregressive)
        for kind in ["1e-3"] if exact else args.bounds:
            seeds = args.seeds[:1] if exact else args.seeds
            found = [nats(designer, x, kind, seed, 1 if exact else args.draws) for seed in seeds]
            mean = statistics.mean(found)
            error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
            label = "exact" if exact else kind if kind.startswith("T") else f"t > {kind}"
            print(f"| {name} | {designer.settings['process']} | {count:,} | {label} "
                  f"| {mean:.4f} ± {error:.4f} | {math.exp(mean):.3f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
