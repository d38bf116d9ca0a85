"""How good drawn digits are: Frechet distance against network calls, by sampler, grid and latents.

    python benchmarks/image_quality.py run --out rows.jsonl [--models mnist mnist_disco]
    python benchmarks/image_quality.py table rows.jsonl

Distances are between features of the MNIST classifier that ships, of `--count` drawn pictures and
of the 9,000 held-out ones; the yardstick is as many training pictures. Steps are chosen so that
euler (one call a step) and heun (two, one in the last) cost the same calls; the longest are
measured with the first seed alone. bits/dim is the bound for infinitely many steps, which no
sampler changes. An interrupted run goes on with what its file lacks.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.grids import Probe, measure
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.metrics import frechet_distance
from bio_diffusion.image.pipeline import ImageSampler, load_classifier, schedule_probe

CALLS = (5, 9, 17, 35)
FIXED = ("logsnr", "karras")
ARMS = {  # sampler -> grids, the adaptive ones by their length
    "mnist": {"heun": (*FIXED, "velocity", "heun-terminal"), "euler": ("karras", "terminal")},
    "mnist_disco": {"heun": ("karras", "velocity", "heun-terminal")},
}
YARDSTICK = "training pictures"


class Lab:
    """What all rows share."""

    def __init__(self, count):
        self.count = count
        self.classifier, _, _ = load_classifier("mnist_classifier", torch.device("cpu"))
        self.test, self.train = (open_pictures("mnist.npz", s) for s in ("test", "train"))
        self.real = self.classifier.describe(self.test.x)

    def distance(self, pixels):
        return frechet_distance(self.classifier.describe(pixels), self.real)

    def yardstick(self, seed):
        index = torch.randperm(len(self.train), generator=keyed_generator(seed))[: self.count]
        return self.distance(self.train.x[index])


def curves(path, probes=64, intervals=40):
    """The adaptive curves of a model, by grid and sampler."""
    return {
        name: measure(Probe(*schedule_probe(path, probes)), name, intervals)
        for name in dict.fromkeys(g for arms in ARMS.values() for gs in arms.values() for g in gs)
        if name not in FIXED
    }


def wanted(models, seeds):
    for seed in seeds:
        counts = CALLS if seed == 0 else CALLS[:-1]  # the longest once: it changes little
        yield {"model": YARDSTICK, "seed": seed}
        for model in models:
            yield {"model": model, "sampler": "bits", "latents": "prior", "seed": seed}
            for sampler, grids in ARMS[model].items():
                for grid in grids:
                    for calls in counts:
                        row = {"model": model, "sampler": sampler, "grid": grid, "calls": calls}
                        yield {**row, "latents": "prior", "seed": seed}
            if model == "mnist_disco":
                for calls in counts:
                    row = {"model": model, "sampler": "heun", "grid": "karras", "calls": calls}
                    yield {**row, "latents": "null", "seed": seed}


def figure(row, lab, sampler, fitted):
    if row["model"] == YARDSTICK:
        return {"distance": lab.yardstick(row["seed"])}
    if row["sampler"] == "bits":
        index = torch.randperm(len(lab.test), generator=keyed_generator(row["seed"]))[:128]
        bits = sampler.bits_per_dim(lab.test.x[index], 16, row["seed"])
        return {"bits": float(bits.mean())}
    steps = (row["calls"] + 1) // 2 if row["sampler"] == "heun" else row["calls"]
    times = (
        fitted[row["grid"]].knots(steps)
        if row["grid"] in fitted
        else sampler.times(steps, row["grid"])
    )
    drawn = sampler.draw(
        lab.count, times=times, sampler=row["sampler"], seed=row["seed"], latents=row["latents"]
    )
    return {"distance": lab.distance(torch.cat(list(drawn)))}


def run(args):
    torch.set_num_threads(1)
    done = []
    if args.out.exists():
        done = [json.loads(line) for line in args.out.read_text().splitlines()]
    known = [{k: v for k, v in row.items() if k in KEYS} for row in done]
    lab, samplers, fitted = Lab(args.count), {}, {}
    for row in wanted(args.models, range(args.seeds)):
        if row in known:
            continue
        model = row["model"]
        if model != YARDSTICK and model not in samplers:
            samplers[model] = ImageSampler.load(model, "cpu")
            fitted[model] = curves(samplers[model].path)
        began = time.process_time()
        found = figure(row, lab, samplers.get(model), fitted.get(model, {}))
        line = {**row, **found, "seconds": round(time.process_time() - began, 1)}
        print(json.dumps(line), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


KEYS = {"model", "sampler", "grid", "calls", "latents", "seed"}


def named(grid):
    return grid if grid in FIXED else f"adaptive, {grid}"


def shown(values):
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def table(args):
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    yardstick = [row["distance"] for row in rows if row["model"] == YARDSTICK]
    print(f"{YARDSTICK}: {shown(yardstick)}\n")
    print("| model | latents | sampler | grid | " + " | ".join(f"{c} calls" for c in CALLS) + " |")
    print("|---" * (4 + len(CALLS)) + "|")
    arms = dict.fromkeys(
        (r["model"], r["latents"], r["sampler"], r["grid"]) for r in rows if "calls" in r
    )
    for arm in sorted(arms):
        cells = []
        for calls in CALLS:
            cells.append(shown([
                r["distance"] for r in rows if r.get("calls") == calls
                and (r["model"], r["latents"], r["sampler"], r["grid"]) == arm
            ]))  # fmt: skip
        latents = arm[1] if arm[0].endswith("disco") else "-"
        print("| " + " | ".join([arm[0], latents, arm[2], named(arm[3]), *cells]) + " |")
    print("\n| model | bits/dim, at most |\n|---|---|")
    for model in dict.fromkeys(r["model"] for r in rows if "bits" in r):
        bits = [r["bits"] for r in rows if "bits" in r and r["model"] == model]
        error = statistics.stdev(bits) / len(bits) ** 0.5 if len(bits) > 1 else 0.0
        print(f"| {model} | {statistics.mean(bits):.3f} ± {error:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--models", nargs="+", choices=ARMS, default=list(ARMS))
    command.add_argument("--count", type=int, default=256)
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=run)
    command = commands.add_parser("table")
    command.add_argument("rows", type=Path)
    command.set_defaults(do=table)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
