"""Beyond guidance: an exact reward of finished molecules, and other ways to take a step.

    python benchmarks/design_rewards.py --model qm9 --masked qm9_absorbing --n 64 --seeds 0 1 2

First table: QED as a reward, no predictor, every row at the same number of network calls for one
molecule that is kept (8 draws of 16 steps). Best-of-8 is the baseline to beat; diversity stands
beside, since a population can end as copies of a few. Second table: the laws of steps that edit, of
temperature and of time grids, told nothing, at equal calls; each is judged by what it was made for,
valid molecules that stay new and unlike each other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tables import spread

from bio_diffusion.design.metrics import internal_diversity
from bio_diffusion.design.pipeline import CHUNK, Designer
from bio_diffusion.design.properties import canonical, measure
from bio_diffusion.diffusion.editing import Remasking, Renoising
from bio_diffusion.diffusion.leave_one_out import Sharpened
from bio_diffusion.diffusion.montecarlo import Metropolis, Particles, best_of
from bio_diffusion.diffusion.process import Process, evaluating
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.schedule import sine, uniform

DRAWS, STEPS = 8, 16
Draw = Callable[[int], list[str]]


class Drawing:
    """Molecules of one designer, a chunk at once."""

    def __init__(self, designer: Designer) -> None:
        self.designer = designer
        self.like = torch.zeros(CHUNK, designer.length, dtype=torch.long)

    def strings(self, x: torch.Tensor) -> list[str]:
        return [self.designer.tokenizer.decode(ids) for ids in x.tolist()]

    def reward(self, x: torch.Tensor) -> torch.Tensor:
        """QED, (B,); what is no molecule is not allowed."""
        return torch.from_numpy(measure(["qed"], self.strings(x))["qed"]).nan_to_num(-torch.inf)

    def one(self, generator: torch.Generator, times: torch.Tensor, **how: Any) -> torch.Tensor:
        """A chunk of states from the prior to the data."""
        process: Process = how.pop("process", self.designer.process)
        network = how.pop("network", self.designer.model)
        cond = self.designer.labels(how.pop("targets", {})).expand(CHUNK, -1)
        with evaluating(self.designer.model):
            prior = process.prior(self.like, generator)
            return sample(process, network, prior, times, cond, (), generator)

    def many(self, n: int, seed: int, times: torch.Tensor, **how: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [self.one(generator, times, **how) for _ in range(-(-n // CHUNK))]
        return torch.cat(parts)[:n]


def rewarded(drawing: Drawing, n: int) -> dict[str, Callable[[int], torch.Tensor]]:
    """Rows of the first table: seed -> states (n, L)."""
    designer = drawing.designer
    told = {"qed": designer.properties["qed"][-1]}

    def best(seed: int, **how: Any) -> torch.Tensor:
        pool = drawing.many(DRAWS * n, seed, uniform(STEPS), **how)
        return best_of(pool, drawing.reward, n)

    def chains(seed: int, beta: float, t: float, targets: dict[str, Any]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        cond = designer.labels(targets).expand(CHUNK, -1)
        steps = round(t * STEPS)
        rounds = (DRAWS - 1) * STEPS // steps
        kept = []
        for _ in range(-(-n // CHUNK)):
            x = drawing.one(generator, uniform(STEPS), targets=targets)
            walk = Metropolis(
                designer.process, designer.model, drawing.reward, t * uniform(steps), beta, cond
            )
            with evaluating(designer.model):
                for state, _ in walk.chains(x, rounds, generator):
                    x = state
            kept.append(x)
        return torch.cat(kept)[:n]

    def population(seed: int, beta: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = DRAWS * n
        like = torch.zeros(size, designer.length, dtype=torch.long)
        cond = designer.labels({}).expand(size, -1)
        walk = Particles(
            designer.process, designer.model, drawing.reward, uniform(STEPS), beta, cond
        )
        with evaluating(designer.model):
            x = walk(designer.process.prior(like, generator), generator)
        return x[torch.randperm(size, generator=generator)[:n]]

    return {
        "one draw, told nothing (1/8 of the calls)": lambda seed: drawing.many(
            n, seed, uniform(STEPS)
        ),
        f"best of {DRAWS}, told nothing": best,
        f"best of {DRAWS}, told": lambda seed: best(seed, targets=told),
        "chains, t = 0.5, beta 30": lambda seed: chains(seed, 30.0, 0.5, {}),
        "chains, t = 0.5, beta 100": lambda seed: chains(seed, 100.0, 0.5, {}),
        "chains, t = 0.25, beta 100": lambda seed: chains(seed, 100.0, 0.25, {}),
        "chains, t = 0.5, beta 100, told": lambda seed: chains(seed, 100.0, 0.5, told),
        "population, beta 30": lambda seed: population(seed, 30.0),
        "population, beta 100": lambda seed: population(seed, 100.0),
    }


def stepped(
    uniform_: Drawing, masked: Drawing | None, steps: int
) -> dict[str, tuple[Drawing, Any]]:
    """Rows of the second table: how each draws."""
    model, letters = uniform_.designer.model, uniform_.designer.process.letters
    rows: dict[str, tuple[Drawing, Any]] = {
        "uniform noise": (uniform_, {}),
        "uniform noise, sine grid": (uniform_, {"times": sine(steps)}),
        "uniform noise, temperature 0.9": (uniform_, {"network": Sharpened(model, 0.9)}),
        "uniform noise, temperature 0.8": (uniform_, {"network": Sharpened(model, 0.8)}),
        "uniform noise, share 0.05 renoised": (uniform_, {"process": Renoising(letters)}),
    }
    if masked is not None:
        model, letters = masked.designer.model, masked.designer.process.letters
        rows |= {
            "masks": (masked, {}),
            "masks, temperature 0.9": (masked, {"network": Sharpened(model, 0.9)}),
            "masks, temperature 0.8": (masked, {"network": Sharpened(model, 0.8)}),
            "masks, share 0.05 remasked": (masked, {"process": Remasking(letters, share=0.05)}),
            "masks, share 0.2 remasked": (masked, {"process": Remasking(letters, share=0.2)}),
        }
    return rows


def columns(drawn: Sequence[Sequence[str]], known: set[str]) -> list[str]:
    """valid, distinct, novel of all drawn (%); QED of distinct novel ones; diversity."""
    found: dict[str, list[float]] = {k: [] for k in ("valid", "distinct", "novel", "qed", "apart")}
    for group in drawn:
        forms = [canonical(s) for s in group]
        distinct = sorted({f for f in forms if f})
        novel = [f for f in distinct if f not in known]
        found["valid"].append(100 * sum(f is not None for f in forms) / len(group))
        found["distinct"].append(100 * len(distinct) / len(group))
        found["novel"].append(100 * len(novel) / len(group))
        found["qed"].append(float(measure(["qed"], novel)["qed"].mean()) if novel else float("nan"))
        found["apart"].append(internal_diversity(distinct) if len(distinct) > 1 else float("nan"))
    digits = {"valid": 1, "distinct": 1, "novel": 1, "qed": 3, "apart": 3}
    return [spread(values, digits[name]) for name, values in found.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="qm9", help="under uniform noise")
    parser.add_argument("--masked", default="", help="the same under masks (empty: leave out)")
    parser.add_argument("--n", type=int, default=64, help="molecules kept a row and seed")
    parser.add_argument("--steps", type=int, default=16, help="of the second table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    drawing = Drawing(Designer.load(args.model, device="cpu"))
    masked = Drawing(Designer.load(args.masked, device="cpu")) if args.masked else None
    known = {form for s in drawing.designer.training if (form := canonical(s))}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    seeds = " ".join(map(str, args.seeds))
    head = "valid, % | distinct, % | novel, % | QED of distinct novel | diversity | CPU s |"
    print(f"Model {args.model}, QED as exact reward, {DRAWS * STEPS} network calls a molecule "
          f"kept, {args.n} kept a row and seed, seeds {seeds}, commit "
          f"{commit.stdout.strip()}\n")  # fmt: skip
    print(f"| row | {head}\n|---|---|---|---|---|---|---|")
    for name, draw in rewarded(drawing, args.n).items():
        began = time.process_time()
        drawn = [drawing.strings(draw(seed)) for seed in args.seeds]
        spent = time.process_time() - began
        print(f"| {name} | {' | '.join(columns(drawn, known))} | {spent:.0f} |", flush=True)
    n = 4 * args.n
    print(f"\nTold nothing, {args.steps} calls a molecule, {n} a row and seed\n")
    print(f"| steps | {head}\n|---|---|---|---|---|---|---|")
    for name, (source, how) in stepped(drawing, masked, args.steps).items():
        times = how.pop("times", uniform(args.steps))
        began = time.process_time()
        drawn = [source.strings(source.many(n, seed, times, **dict(how))) for seed in args.seeds]
        spent = time.process_time() - began
        print(f"| {name} | {' | '.join(columns(drawn, known))} | {spent:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
