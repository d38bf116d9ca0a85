"""What DisCo latents do in pictures: told, shuffled, hidden or drawn; and what their prior knows.

    python benchmarks/image_disco.py measure mnist_disco [plain=FILE] --out rows.jsonl
    python benchmarks/image_disco.py table rows.jsonl

Models are named, or NAME=FILE with a file of `experiment=image/mnist_prior`, or of
`experiment=image/mnist_disco experiment.latents=null` for a rival without. Each seed has test
digits, noise and latents of its own. Latents are drawn from the prior, told by the encoder
(oracle), told of another digit (shuffled) or hidden (null). Several trainings: `image_arms`.

Losses are mean squares of D - x_0 a pixel. Distances are between features of the MNIST classifier
that ships, of `--count` drawn digits and of the test part; there oracle latents are of as many
training digits, which are the yardstick. Digits are drawn by Heun, 2 calls a step and 1 in the
last, on Karras's grid and on the adaptive one fitted to each model with told latents (its own
error, left at the end); a seed's noise is the same for all of them. Classes are those that the
classifier names. Paths are Heun's, 30 steps on Karras's grid, `--paths` of them. Nats are a latent,
on test digits: of the prior, of independent codes with the histogram's frequencies, and of the
encoder's own laws, below which no prior can come. CPU milliseconds are the best of several rounds;
models without latents are drawn with more calls too, for the comparison at equal CPU time.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from pictures_lab import CALLS, GRIDS, LEVELS, MORE, SHOWN, Lab, costs, figures
from tables import additive, spread

from bio_diffusion.image.pipeline import ImageSampler

TRAINED = "training pictures"


def judge(path, lab, seeds, files, paths):
    """Adds to a file of rows what it lacks: of the yardstick, of models by name (name -> seed ->
    file), and what their calls cost."""
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(row["model"], row["seed"]) for row in map(json.loads, lines)}

    def keep(name, seed, found):
        with path.open("a") as file:
            print(json.dumps({"model": name, "seed": seed, **found}), file=file)

    if ("cost", 0) not in done:
        models = {name: ImageSampler.load(file(0), "cpu").model for name, file in files.items()}
        keep("cost", 0, {"cost": costs(models)})
    for seed in range(seeds):
        if (TRAINED, seed) not in done:
            keep(TRAINED, seed, {"look": lab.look(lab.some(lab.train, lab.count, seed))})
        for name, file in files.items():
            if (name, seed) not in done:
                found = figures(lab, ImageSampler.load(file(seed), "cpu"), seed, paths)
                keep(name, seed, found)


def measure(args):
    named = [word.rpartition("=") for word in args.models]
    files = {name or file: lambda seed, file=file: file for name, _, file in named}
    judge(args.out, Lab(args.count), args.seeds, files, args.paths)


# --- tables --------------------------------------------------------------------------------------


def heading(title, *columns):
    print(f"\n{title}:\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


class Rows:
    """What `judge` wrote.

    Attributes:
        models: rows by name, in order of the seeds.
        yardstick: looks at training digits.
        cost: CPU milliseconds a picture by name: of a call, and of its latents; NaN if not timed.
    """

    def __init__(self, path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.models = {}
        for row in rows:
            if "loss" in row:
                self.models.setdefault(row["model"], []).append(row)
        self.yardstick = [row["look"] for row in rows if "look" in row]
        untimed = {name: (math.nan, math.nan) for name in self.models}
        self.cost = next((row["cost"] for row in rows if "cost" in row), untimed)

    def told(self):
        """The models that have latents."""
        return {name: runs for name, runs in self.models.items() if runs[0]["nats"]}

    def spent(self, name, source):
        """CPU milliseconds a picture by number of calls."""
        call, latents = self.cost[name]
        return [n * call + latents * (source == "prior") for n in CALLS]


def distance(run, source, grid, calls):
    return run["drawn"][source][f"{grid} {calls}"]["distance"]


def show(rows):
    """Prints what every table of these rows begins with."""
    heading("The models", "model", "weights: encoder, network, prior", "CPU ms a picture, a call",
            "its latents", "bits/dim, at most")  # fmt: skip
    for name, runs in rows.models.items():
        sizes = ", ".join(f"{n:,}" for n in runs[0]["weights"].values())
        call, prior = rows.cost[name]
        bits = spread(run["bits"] for run in runs)
        print(f"| {name} | {sizes} | {call:.2f} | {prior:.2f} | {bits} |")

    heading("E|D - x_0|^2 a pixel, x 1000, by noise", "model", "latents",
            *(f"{a:g}" for a in LEVELS))  # fmt: skip
    for name, runs in rows.models.items():
        for source in runs[0]["loss"]:
            values = zip(*(run["loss"][source] for run in runs), strict=True)
            cells = (spread([1000 * v for v in each], 2) for each in values)
            print(f"| {name} | {source} | {' | '.join(cells)} |")

    if told := rows.told():
        heading("Nats a latent", "model", *next(iter(told.values()))[0]["nats"])
    for name, runs in told.items():
        cells = (spread(run["nats"][key] for run in runs) for key in runs[0]["nats"])
        print(f"| {name} | {' | '.join(cells)} |")

    free = spread((look["distance"] for look in rows.yardstick), 1)
    heading(f"Frechet distance by calls ({TRAINED} {free})", "model", "latents", "grid",
            *map(str, CALLS), "CPU ms a picture")  # fmt: skip
    for name, runs in rows.models.items():
        for source, cells in runs[0]["drawn"].items():
            for grid in dict.fromkeys(key.split()[0] for key in cells):
                shown = [spread([distance(r, source, grid, n) for r in runs], 1) for n in CALLS]
                spent = " / ".join(f"{ms:.1f}" for ms in rows.spent(name, source))
                print(f"| {name} | {source} | {grid} | {' | '.join(shown)} | {spent} |")

    heading("Paths: path over chord less 1, and curvature; both x 1000", "model", "latents",
            "path, mean", "its 90th percentile", "from a = 3", "curvature, median",
            "its 90th percentile", *(f"median at a = {a:g}" for a in SHOWN))  # fmt: skip
    for name, runs in rows.models.items():
        for source in runs[0]["paths"]:
            found = [run["paths"][source] for run in runs]
            cells = [spread([1000 * (each[key] - 1) for each in found], 2)
                     for key in ("ratio", "ratio_90", "late")]  # fmt: skip
            cells += [spread([1000 * each[key] for each in found], 2) for key in ("median", "p90")]
            by_level = zip(*(each["by_level"] for each in found), strict=True)
            cells += [spread([1000 * bend for bend in each], 2) for each in by_level]
            print(f"| {name} | {source} | {' | '.join(cells)} |")

    heading("Classes of drawn pictures, Karras's grid", "model", "latents", "calls",
            "least share / even", "entropy, nats (log 10 = 2.303)", "sure of, %")  # fmt: skip

    def classes(name, source, calls, looks):
        shown = (("least", 1, 2), ("entropy", 1, 3), ("sure", 100, 1))
        cells = [spread([each[key] * by for each in looks], n) for key, by, n in shown]
        print(f"| {name} | {source} | {calls} | {' | '.join(cells)} |")

    classes(TRAINED, "", "", rows.yardstick)
    for name, runs in rows.models.items():
        for source in runs[0]["drawn"]:
            for n in CALLS[1:]:
                classes(name, source, n, [run["drawn"][source][f"Karras {n}"] for run in runs])


def at(run, grid, milliseconds, call):
    """Distance of an arm without latents at so much CPU time, between its numbers of calls, in
    logarithms; `call`: milliseconds of one."""
    calls = sorted((*CALLS, *MORE))
    last = len(calls) - 1
    over = next(i for i in range(1, last + 1) if calls[i] * call >= milliseconds or i == last)
    near = calls[over - 1 : over + 1]
    a, b = (math.log(n * call) for n in near)
    x, y = (math.log(distance(run, "none", grid, n)) for n in near)
    return math.exp(x + (y - x) * (math.log(milliseconds) - a) / (b - a))


def against(rows, rivals):
    """Drawn latents against models without, at equal calls and at equal CPU time."""
    heading("Logarithm of the distance over a rival's, seed by seed", "model", "rival", "grid",
            *(f"{n} calls" for n in CALLS))  # fmt: skip
    for name, runs in rows.told().items():
        for rival in rivals:
            call, others = rows.cost[rival][0], rows.models[rival]
            for equal in ("calls", "CPU time"):
                for grid in GRIDS:
                    cells = []
                    for n, spent in zip(CALLS, rows.spent(name, "prior"), strict=True):
                        there = spent if equal == "CPU time" else n * call
                        gaps = (
                            math.log(distance(run, "prior", grid, n) / at(other, grid, there, call))
                            for run, other in zip(runs, others, strict=True)
                        )
                        cells.append(spread(gaps, 2))
                    print(f"| {name} | {rival}, equal {equal} | {grid} | {' | '.join(cells)} |")


def add_up(rows, rivals):
    """Do the gains of drawn latents and of the grid add? Against hidden ones and models without."""
    title = "Do the gains add? Logarithm of the distance over that without latents on Karras's grid"
    heading(title, "model", "without", "calls", "latents alone", "grid alone", "sum", "both")
    for name, runs in rows.told().items():
        for rival, others, source in [
            ("the same, hidden", runs, "null"),
            *((rival, rows.models[rival], "none") for rival in rivals),
        ]:
            for n in CALLS:
                parts = []
                for none, run in zip(others, runs, strict=True):
                    zero, grid = (distance(none, source, each, n) for each in GRIDS)
                    latents, both = (distance(run, "prior", each, n) for each in GRIDS)
                    parts.append(additive(zero, latents, grid, both))
                cells = (spread(each, 2) for each in zip(*parts, strict=True))
                print(f"| {name} | {rival} | {n} | {' | '.join(cells)} |")


def table(args):
    rows = Rows(args.rows)
    show(rows)
    rivals = [name for name, runs in rows.models.items() if not runs[0]["nats"]]
    if rivals:
        against(rows, rivals)
    add_up(rows, rivals)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("models", nargs="+")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--count", type=int, default=192, help="digits of losses and distances")
    command.add_argument("--paths", type=int, default=16)
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=measure)
    command = commands.add_parser("table")
    command.add_argument("rows", type=Path)
    command.set_defaults(do=table)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.do(args)


if __name__ == "__main__":
    main()
