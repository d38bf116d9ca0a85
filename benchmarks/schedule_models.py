"""Time grids on trained models: molecules under uniform noise and under masks, and digits.

    python benchmarks/schedule_models.py tokens [--model qm9] [--gamma 3]
    python benchmarks/schedule_models.py pictures [--model mnist | --model FILE FILE FILE]

`tokens`: valid molecules (RDKit), and how far the valid ones are from held-out molecules, the mean
over QED, logP, molecular weight and rings of W1 in standard deviations of the data; told nothing,
or with --gamma told the top class of QED by classifier-free guidance. `bound`: the bound on -log p
in these very steps, nats a site, on held-out molecules and the same noise for all grids.

`pictures`: the deterministic samplers against their own end, root mean square over pixels in
[-1, 1] beside 40 steps of Heun from the same noise, and for digits the Frechet distance (classifier
features) to test digits. A step of Heun is two calls, the last one. Each seed has noise of its own,
and pictures of its own to fit the grids on, and where several models are given a model of its own;
the rows go to a file, and a run goes on with what it lacks. Grids by hand, and the GITS-like one,
are those of `schedule_toys.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from schedule_toys import HAND, by_hand, gits
from tables import spread
from torch import Tensor

from bio_diffusion import grids
from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.training import keyed_generator

Grid = Callable[[int], Tensor]
FITTED = (
    "corrector", "velocity", "truncation", "heun", "terminal", "heun-terminal",
    "terminal, walked", "heun, walked",
)  # fmt: skip
GITS = "GITS-like"
ENDS = ("the flow's own end", "other real digits")


# --- molecules -----------------------------------------------------------------------------------


def tokens(args: argparse.Namespace) -> None:
    from bio_diffusion.design.pipeline import Designer
    from bio_diffusion.design.pipeline import schedule_probe as designed
    from bio_diffusion.design.properties import measure, molecule
    from bio_diffusion.diffusion.guidance import ClassifierFree
    from bio_diffusion.diffusion.likelihood import token_bound_in_steps
    from bio_diffusion.diffusion.process import evaluating
    from bio_diffusion.diffusion.sampling import sample

    designer = Designer.load(args.model)
    process, model = designer.process, designer.model
    probe = functools.partial(designed, designer.path)
    usual = grids.usual_length(process)
    count = 256 if usual == "unmasking" else 64
    fitted = grids.measure(grids.Probe(*probe(count)), usual, 40)

    def cosine(n: int) -> Tensor:
        return torch.cos(torch.pi / 2 * torch.linspace(0, 1, n + 1)).clamp(min=0)

    every: dict[str, Grid] = {
        "uniform": schedule.uniform, "sine": schedule.sine, "cosine": cosine, usual: fitted.knots,
    }  # fmt: skip
    label = designer.labels({"qed": designer.properties["qed"][-1]} if args.gamma else {})
    guides = (
        [ClassifierFree(process, model, args.gamma - 1, model.unlabelled)] if args.gamma else []
    )
    held_out = torch.cat([x for x, _ in grids.Probe(*probe(2048)).batches])
    real = [designer.tokenizer.decode(ids) for ids in held_out.tolist()]
    names = ["qed", "logp", "mw", "rings"]
    if args.gamma:
        names = names[1:]  # told to be high
    known = {
        name: torch.tensor(values).sort().values for name, values in measure(names, real).items()
    }

    def draw(times: Tensor, seed: int) -> list[str]:
        found: list[str] = []
        for start in range(0, args.n, 64):
            rows = [keyed_generator(seed, start + i) for i in range(min(64, args.n - start))]
            like = torch.zeros(len(rows), designer.length, dtype=torch.long)
            with evaluating(model):
                x = sample(
                    process, model, process.prior(like, rows), times, label.expand(len(rows), -1),
                    guides, rows,
                )  # fmt: skip
            found += [designer.tokenizer.decode(ids) for ids in x.tolist()]
        return found

    def away(smiles: list[str]) -> float:
        """Mean of W1 over the properties, in standard deviations."""
        if not smiles:
            return math.nan
        found, total = measure(names, smiles), 0.0
        for name in names:
            ours, data = torch.tensor(found[name]).sort().values, known[name]
            u = (torch.arange(400) + 0.5) / 400
            gap = [values[(u * len(values)).long()] for values in (ours, data)]
            total += float((gap[0] - gap[1]).abs().mean() / data.std())
        return total / len(names)

    floor = [away(real[i : i + args.n]) for i in (0, 700, 1400)]
    print(
        f"\nModel {designer.name} {designer.sha256[:12]}, {args.n} molecules x {args.seeds} seeds; "
        f"gamma {args.gamma or 'none'}; as many held-out ones are {spread(floor, 3)} away\n"
    )
    print("| grid | steps | valid, % | distance | QED | bound, nats a site | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for key in args.grids or every:
        grid = every[key]
        for n in args.steps:
            began = time.process_time()
            valid, far, qed = [], [], []
            for seed in range(args.seeds):
                smiles = draw(grid(n), seed)
                kept = [s for s in smiles if s and molecule(s) is not None]
                valid.append(100 * len(kept) / len(smiles))
                far.append(away(kept))
                qed.append(float(measure(["qed"], kept)["qed"].mean()) if kept else math.nan)
            bound = "-"
            if not args.gamma:
                cond = designer.labels({}).expand(args.bound, -1)
                with evaluating(model):
                    nats = token_bound_in_steps(
                        process, model, held_out[: args.bound], grid(n), cond, keyed_generator(7)
                    ).mean(1)
                bound = f"{float(nats.mean()):.4f}"
            spent = time.process_time() - began
            print(f"| {key} | {n} | {spread(valid, 1)} | {spread(far, 3)} | {spread(qed, 3)} "
                  f"| {bound} | {spent:.0f} |", flush=True)  # fmt: skip


# --- digits --------------------------------------------------------------------------------------


def pictures(args: argparse.Namespace) -> None:
    rows = Path(args.rows)
    columns = [(rule, int(n)) for rule, _, n in (word.partition(":") for word in args.columns)]
    names = args.grids or [*HAND, GITS, *FITTED]
    if len(args.model) not in (1, args.seeds):
        raise SystemExit(f"{len(args.model)} models for {args.seeds} seeds: give one, or one each")
    done = {tuple(row[:4]): row[4:] for row in map(json.loads, _lines(rows))}
    wanted = {(seed, key, *column): None
              for seed in range(args.seeds) for key in names for column in columns}  # fmt: skip
    if missing := [cell for cell in wanted if cell not in done]:
        with rows.open("a") as file:
            for row in _walk(args, missing):
                print(json.dumps(row), file=file, flush=True)
                done[tuple(row[:4])] = row[4:]
    floors = [[done[seed, name, "", 0][1] for seed in range(args.seeds)] for name in ENDS]
    print(f"\n{args.n} pictures x {args.seeds} seeds of {', '.join(args.model)}")
    titles, rival = ["RMS to the flow's own end"], []
    if floors[0][0] is not None:
        print(
            f"Frechet distance of the flow's own end {spread(floors[0], 2)}, of other real digits "
            f"{spread(floors[1], 2)}"
        )
        column = _column(args.rival[1])
        rival = [done[seed, args.rival[0], *column][1] for seed in range(args.seeds)]
        titles.append("Frechet distance")
        titles.append(f"Frechet distance less that of {' '.join(args.rival)}, seed by seed")
    print()
    for number, title in enumerate(titles):
        print(f"{title}:\n")
        print("| grid | " + " | ".join(f"{rule} {n}" for rule, n in columns) + " |")
        print("|---|" + "---|" * len(columns))
        for key in names:
            cells = []
            for column in columns:
                found = [done[seed, key, *column] for seed in range(args.seeds)]
                values = [row[0] for row in found] if number == 0 else [row[1] for row in found]
                if number == 2:
                    values = [a - b for a, b in zip(values, rival, strict=True)]
                blank = number == 0 and column[0] == "ancestral"
                cells.append("-" if blank else spread(values, 4 if number == 0 else 1))
            print(f"| {key} | {' | '.join(cells)} |")
        print()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _column(word: str) -> tuple[str, int]:
    rule, _, steps = word.partition(":")
    return rule, int(steps)


def _walk(args: argparse.Namespace, missing: list[tuple]) -> Iterator[list]:
    """[seed, grid, sampler, steps, RMS to the flow's end, Frechet distance] of missing cells."""
    from bio_diffusion.diffusion.bridge import Bridge
    from bio_diffusion.diffusion.process import evaluating
    from bio_diffusion.diffusion.sampling import Heun, sample
    from bio_diffusion.image.dataset import open_pictures
    from bio_diffusion.image.metrics import frechet_distance
    from bio_diffusion.image.pipeline import ImageSampler, load_classifier, schedule_probe

    classifier, taught, _ = load_classifier("mnist_classifier", torch.device("cpu"))
    samplers = [ImageSampler.load(name, "cpu") for name in args.model]
    data = samplers[0].data
    known = Path(data).name == Path(taught).name  # else its features say nothing
    test = open_pictures(data, "test").x
    test = test[torch.randperm(len(test), generator=keyed_generator(0))]  # it lies sorted by class
    if known:
        real = classifier.describe(test[: args.real])
    found = schedule_probe(samplers[0].path, args.probes * args.seeds)[2]
    probes = torch.cat([x for x, _ in found])
    named = {"terminal, walked": "walked", "heun, walked": "heun-walked"}

    def grid(name: str, seed: int) -> Grid:
        """Fitted on pictures of the seed's own where it is fitted."""
        if name in HAND:
            return by_hand(process, process.sigma_data)[name]
        if name == GITS:
            rows = [keyed_generator(seed, i, 5) for i in range(args.probes)]
            noise = process.prior(model.like(args.probes), rows)
            with evaluating(model):
                return gits(process, model.denoiser, noise)
        few = name in named  # as dear as the square of the intervals
        own = probes[args.probes * seed :][: args.probes // 2 if few else args.probes]
        probe = grids.Probe(process, model.denoiser, [(own, None)])
        return grids.measure(probe, named.get(name, name), 20 if few else 32).knots

    def draw(times: Tensor, rule: str, seed: int) -> Tensor:
        process.bridge = Bridge(1.0 if rule == "ancestral" else 0.0)
        ends = []
        for start in range(0, args.n, 32):
            rows = [keyed_generator(seed, start + i) for i in range(min(32, args.n - start))]
            like = model.like(len(rows))
            with evaluating(model):
                ends.append(sample(
                    process, model.denoiser, process.prior(like, rows), times, None, (), rows,
                    Heun() if rule == "Heun" else None,
                ))  # fmt: skip
        return torch.cat(ends)

    def far(pixels: Tensor) -> float | None:
        return frechet_distance(classifier.describe(pixels), real) if known else None

    for seed in sorted({cell[0] for cell in missing}):
        model = samplers[seed % len(samplers)].model
        process = model.process
        teacher = draw(schedule.karras(process, args.teacher), "Heun", seed)
        others = test[args.real :][args.n * seed : args.n * (seed + 1)]
        yield [seed, ENDS[0], "", 0, 0.0, far(model.pixels(teacher))]
        yield [seed, ENDS[1], "", 0, 0.0, far(others)]
        fitted: dict[str, Grid] = {}
        for _, name, rule, n in (cell for cell in missing if cell[0] == seed):
            if name not in fitted:
                fitted[name] = grid(name, seed)
            x = draw(fitted[name](n), rule, seed)
            off = (x - teacher).square().flatten(1).mean(1).sqrt()
            yield [seed, name, rule, n, float(off.mean()), far(model.pixels(x))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("tokens")
    command.add_argument("--model", default="qm9")
    command.add_argument("--gamma", type=float, default=0.0)
    command.add_argument("--n", type=int, default=192, help="molecules a seed")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    command.add_argument("--bound", type=int, default=256, help="held-out molecules of the bound")
    command.add_argument("--grids", nargs="+", help="leave out the others")
    command.set_defaults(run=tokens)
    command = commands.add_parser("pictures")
    command.add_argument("--model", nargs="+", default=["mnist"], help="one, or one a seed")
    command.add_argument("--n", type=int, default=192, help="pictures a seed")
    command.add_argument("--seeds", type=int, default=4)
    command.add_argument("--real", type=int, default=2000)
    command.add_argument("--probes", type=int, default=16)
    command.add_argument("--teacher", type=int, default=40)
    command.add_argument(
        "--columns", nargs="+", metavar="SAMPLER:STEPS",
        default=["Euler:8", "Euler:16", "Heun:5", "Heun:9", "ancestral:16"],
    )  # fmt: skip
    command.add_argument("--grids", nargs="+", help="leave out the others")
    command.add_argument("--rival", nargs=2, metavar=("GRID", "SAMPLER:STEPS"),
                         default=("EDM rho 7", "Heun:9"))  # fmt: skip
    command.add_argument("--rows", default="rows.jsonl", help="what was measured; grows")
    command.set_defaults(run=pictures)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
