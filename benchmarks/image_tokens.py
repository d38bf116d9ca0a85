"""Digits as tokens of 16 greys: uniform noise against masks, each on its time grids.

    python benchmarks/image_tokens.py train RUNS                    15 networks
    python benchmarks/image_tokens.py measure RUNS --out rows.jsonl
    python benchmarks/image_tokens.py table rows.jsonl
    python benchmarks/image_tokens.py draw RUNS --png digits.png    a row of each process

All are the shipped configurations, with equal steps and pictures; a seed is one of weights, order,
times and noise in training, and one of test digits and noise in judging.

    udlm       `image/mnist_udlm`, ancestral steps
    mdlm       `image/mnist_mdlm`, ancestral steps
    ..._logistic   the same with a truncated logistic law in place of the softmax
    gaussian   `image/mnist`, the peer: 256 greys, Heun with no more calls of the network

Frechet distances are of features of the MNIST classifier that ships, to all test digits. The bound
in bits a pixel is of the 16 greys. A fitted grid is measured on 64 validation digits: `path`, what
a step loses by drawing all sites at once; `unmasking`, the same read off the losses of masks.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from image_disco import heading
from pictures_lab import Lab
from schedule_tokens import hand
from tables import spread
from trainings import trained

from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.sampling import Heun, Reverse, sample
from bio_diffusion.diffusion.schedule import karras
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.grids import Probe
from bio_diffusion.grids import measure as fitted
from bio_diffusion.image.pipeline import ImageSampler, schedule_probe
from bio_diffusion.image.results import grid_png

KINDS = {
    "udlm": ["experiment=image/mnist_udlm"],
    "mdlm": ["experiment=image/mnist_mdlm"],
    "udlm_logistic": ["experiment=image/mnist_udlm", "experiment.head=logistic"],
    "mdlm_logistic": ["experiment=image/mnist_mdlm", "experiment.head=logistic"],
    "gaussian": ["experiment=image/mnist"],
}
HAND = {"udlm": ("linear", "sine"), "mdlm": ("linear", "cosine")}
FITTED = {"udlm": ("path",), "mdlm": ("unmasking",), "gaussian": ("heun-terminal",)}
CALLS = (8, 12, 32)
GOAL = 32  # calls of the best grid by hand, to be reached with fewer


def process_of(kind):
    return kind.partition("_")[0]


def model_of(runs, kind, seed):
    return runs / f"{kind}-{seed}" / "model.safetensors"


def train(args):
    for seed in range(args.seeds):
        for kind, words in KINDS.items():
            trained(
                model_of(args.runs, kind, seed).parent, *words,
                f"seed={seed}", f"experiment.seed={seed}", f"experiment.batch={args.batch}",
                f"fit.max_steps={args.steps}", f"fit.evaluate_every={args.steps}",
            )  # fmt: skip


def grids_of(kind, path):
    """Name -> grid of so many calls."""
    probe = Probe(*schedule_probe(path, 64))
    curves = {name: fitted(probe, name, 40).knots for name in FITTED[process_of(kind)]}
    if kind == "gaussian":
        curves = {"Karras": lambda n: karras(probe.process, n), **curves}
        return {name: lambda n, grid=grid: grid(n // 2) for name, grid in curves.items()}
    known = hand("uniform" if process_of(kind) == "udlm" else "masking")
    return {name: known[name] for name in HAND[process_of(kind)]} | curves


def drawn(model, count, times, seed):
    """uint8 digits; a seed's noise is the same for all grids of a model."""
    step, found = Reverse() if model.discrete else Heun(), []
    for number, part in enumerate(torch.arange(count).split(64)):
        source = keyed_generator(seed, number, 10)
        noise = model.process.prior(model.like(len(part)), source)
        found.append(
            sample(model.process, model.denoiser, noise, times, generator=source, step=step)
        )
    return model.pixels(torch.cat(found))


@torch.no_grad()
def measure(args):
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(row["kind"], row["seed"]) for row in map(json.loads, lines)}
    lab = Lab(args.count)
    for seed, kind in itertools.product(range(args.seeds), KINDS):
        if (kind, seed) not in done:
            path = model_of(args.runs, kind, seed)
            row = {"kind": kind, "seed": seed, **figures(lab, kind, path, seed, args.draws)}
            with args.out.open("a") as file:
                print(json.dumps(row), file=file)
            print(kind, seed, flush=True)


def figures(lab, kind, path, seed, draws):
    """All of one model with one seed's digits and noise."""
    sampler = ImageSampler.load(path, "cpu")
    model = sampler.model
    test, training = (lab.some(x, lab.count, seed) for x in (lab.test, lab.train))
    with evaluating(model):
        return {
            "real": lab.distance(model.pixels(model.state(training))),
            "bits": float(sampler.bits_per_dim(test, draws, seed).mean()),
            "looks": {
                grid: {n: lab.look(drawn(model, lab.count, times(n), seed)) for n in CALLS}
                for grid, times in grids_of(kind, path).items()
            },
        }


def table(args):
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    models = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    models = {kind: found for kind, found in models.items() if found}
    print("| process | bits a pixel, at most | distance of training digits in its greys |")
    print("|---|---|---|")
    for kind, found in models.items():
        bits, real = (spread((row[name] for row in found), 3) for name in ("bits", "real"))
        print(f"| {kind} | {bits} | {real} |")
    for title, name, unit in (
        ("Frechet distance by calls", "distance", 1),
        ("Digits that the classifier is sure of, %, by calls", "sure", 0.01),
    ):
        heading(title, "process", "grid", *map(str, CALLS))
        for kind, found in models.items():
            for grid in found[0]["looks"]:
                cells = (
                    spread((look(row, grid, n)[name] / unit for row in found), 1) for n in CALLS
                )
                print(f"| {kind} | {grid} | {' | '.join(cells)} |")
    heading(
        f"Distance less that of the best grid by hand at {GOAL} calls, seed by seed",
        "process", "by hand", "grid", *map(str, CALLS),
    )  # fmt: skip
    for kind, found in models.items():
        best = min(
            (grid for grid in found[0]["looks"] if grid not in FITTED[process_of(kind)]),
            key=lambda grid, found=found: sum(look(r, grid, GOAL)["distance"] for r in found),
        )
        for grid in found[0]["looks"]:
            cells = (
                spread(
                    (look(r, grid, n)["distance"] - look(r, best, GOAL)["distance"] for r in found),
                    1,
                )
                for n in CALLS
            )
            print(f"| {kind} | {best} | {grid} | {' | '.join(cells)} |")


def look(row, grid, calls):
    return row["looks"][grid][str(calls)]


def draw(args):
    """Twelve digits of each process on its last grid, 32 calls."""
    found = []
    for kind in KINDS:
        path = model_of(args.runs, kind, args.seed)
        model, grids = ImageSampler.load(path, "cpu").model, grids_of(kind, path)
        with evaluating(model):
            found.append(drawn(model, 12, list(grids.values())[-1](GOAL), args.seed))
    args.png.write_bytes(grid_png(torch.cat(found).permute(0, 2, 3, 1).numpy(), across=12))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("runs", type=Path)
    command.add_argument("--steps", type=int, default=1000)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=train)
    command = commands.add_parser("measure")
    command.add_argument("runs", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--count", type=int, default=128, help="digits drawn, and told in bits")
    command.add_argument("--draws", type=int, default=16, help="times a digit's bound is drawn at")
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=measure)
    command = commands.add_parser("table")
    command.add_argument("rows", type=Path)
    command.set_defaults(do=table)
    command = commands.add_parser("draw")
    command.add_argument("runs", type=Path)
    command.add_argument("--png", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(do=draw)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.do(args)


if __name__ == "__main__":
    main()
