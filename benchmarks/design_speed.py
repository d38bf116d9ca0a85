"""What a design costs: the network's calls against its operations, and what stands around them.

    python benchmarks/design_speed.py --models qm9 zinc yeast

One thread. Operations are counted by PyTorch's own counter over one call of 64 rows; the machine's
best is a product of two matrices of 1,024 in the same run. Overhead is the time of the sampler
above that of its bare network calls on the same states, which are replayed afterwards; ratios of
one run, medians over repeats.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bio_diffusion.design.pipeline import CHUNK, Designer
from bio_diffusion.diffusion.categorical import Autoregressive
from bio_diffusion.diffusion.guidance import ClassifierFree, ExactClassifier, FirstOrderClassifier
from bio_diffusion.diffusion.process import Guidance, evaluating
from bio_diffusion.diffusion.sampling import sample


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds of a call, after one that warms up."""
    work()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


class Replay:
    """A network that keeps what it was asked, so that its calls can be made again bare."""

    def __init__(self, model: Callable[..., torch.Tensor]) -> None:
        self.model, self.asked = model, []  # type: ignore[var-annotated]

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.asked.append(arguments)
        return self.model(*arguments)

    def bare(self) -> None:
        with torch.no_grad():
            for arguments in self.asked:
                self.model(*arguments)


def drawing(
    designer: Designer, model: Callable[..., torch.Tensor], steps: int, guides: Sequence[Guidance]
) -> Callable[[], torch.Tensor]:
    """One chunk of sequences as the pipeline draws it."""
    like = torch.zeros(CHUNK, designer.length, dtype=torch.long)
    cond = designer.labels({}).expand(CHUNK, -1)
    times = designer.times(steps)

    def work() -> torch.Tensor:
        rows = [torch.Generator().manual_seed(i) for i in range(CHUNK)]
        with evaluating(designer.model):
            prior = designer.process.prior(like, rows)
            return sample(designer.process, model, prior, times, cond, guides, rows)

    return work


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qm9", "zinc", "yeast"])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    square = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / seconds(lambda: square @ square, 20)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"{CHUNK} rows, {args.steps} steps (a left-to-right model: a site a step), one thread, "
          f"matrix product {peak / 1e9:.0f} GFLOP/s, commit {commit.stdout.strip()}\n")  # fmt: skip
    print("| model | L | MFLOP a row and call | ms a call of 64 rows | share of the machine's best "
          "| tokens/s and call | sampler's overhead |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    designers = {name: Designer.load(name, device="cpu") for name in args.models}
    for name, designer in designers.items():
        replay = Replay(designer.model)
        drawing(designer, replay, args.steps, ())()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            designer.model(*replay.asked[-1])
        operations = counter.get_total_flops()
        with torch.no_grad():
            call = seconds(lambda d=designer, r=replay: d.model(*r.asked[-1]), args.repeats)  # type: ignore[misc]
        bare = seconds(replay.bare, args.repeats)
        whole = seconds(drawing(designer, designer.model, args.steps, ()), args.repeats)
        print(f"| {name} | {designer.length} | {operations / CHUNK / 1e6:.1f} | {1e3 * call:.1f} "
              f"| {operations / call / peak:.0%} | {CHUNK * designer.length / call:,.0f} "
              f"| {whole / bare - 1:+.1%} |", flush=True)  # fmt: skip
    print("\n| model | guidance | time, in draws told nothing |")
    print("|---|---|---|")
    for name, designer in designers.items():
        if not designer.path.with_name(f"{designer.path.stem}_predictor.safetensors").is_file():
            continue
        if isinstance(designer.process, Autoregressive):
            continue
        target = designer.labelled[0].name
        log_p = designer.log_p(designer.labels({target: designer.properties[target][-1]}))
        free = ClassifierFree(designer.process, designer.model, 1.0, designer.model.unlabelled)
        plain = seconds(drawing(designer, designer.model, args.steps, ()), args.repeats)
        rows: list[tuple[str, Guidance, int]] = [
            ("D-CFG", free, args.repeats),
            ("D-CBG first order", FirstOrderClassifier(log_p, 1.0), args.repeats),
            ("D-CBG exact", ExactClassifier(log_p, 1.0), 1),
        ]
        for label, guide, repeats in rows:
            spent = seconds(drawing(designer, designer.model, args.steps, [guide]), repeats)
            print(f"| {name} | {label} | {spent / plain:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
