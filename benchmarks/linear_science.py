"""What auxiliary variables are worth: properties of drug-like molecules.

    python benchmarks/linear_science.py train --out runs.jsonl      21 networks, some 10 s each
    python benchmarks/linear_science.py table runs.jsonl

QED, logP, synthetic accessibility and the number of rings of the molecules of
`data/zinc250k.csv.gz` that have them, in its own splits (47,113 to train on, test 12,887). Rings
are counts: each gets even noise in [0, 1), the usual dequantisation. Every column is scaled to unit
width and the figures hold for that scale; bits a dimension, lower is better.

Every process gets the same network, steps, batches and mixing (slowest mode at rate 1), beta from
0.1 to 10; auxiliaries start with variance 0.01 as published, or 1, their stationary one. Beside
them a normal density and a kernel density estimate, its width chosen on the validation rows.
A run that was interrupted goes on with what its file lacks.
"""

import argparse
import csv
import gzip
import json
import math
import statistics
import time
from pathlib import Path

import torch
from tables import spread

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import alda, cld, malda, vpsde
from bio_diffusion.diffusion.linear_learned import LearnedDiffusion, NoisePrediction
from bio_diffusion.diffusion.linear_likelihood import bits_per_dim, bound
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.training import EMA, fit, keyed_generator

DATA = Path(__file__).parents[1] / "data"
COLUMNS = ("qed", "logp", "sa", "rings")
RECIPES = {"VPSDE": vpsde, "CLD": cld, "ALDA": alda, "MALDA": malda}
PROCESSES = (*RECIPES, "learned-2", "learned-3")
NAMES = (*PROCESSES, "CLD, v 1")


def make(name, seed=0):
    kind, _, wide = name.partition(", v ")
    init_var = float(wide or 0.01)
    if kind in RECIPES:
        return LinearDiffusion(RECIPES[kind](), rate=1.0, init_var=init_var)
    generator = keyed_generator(seed, 17)
    return LearnedDiffusion(int(kind[-1]), rate=1.0, init_var=init_var, generator=generator)


class Properties:
    """The columns, scaled, by split."""

    d, batch, lr, decay, samples = len(COLUMNS), 256, 2e-3, 0.995, 3000

    def __init__(self):
        rows = {"train": [], "val": [], "test": []}
        with gzip.open(DATA / "zinc250k.csv.gz", "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["qed"]:
                    rows[row["split"]].append([float(row[name]) for name in COLUMNS])
        parts = []
        for number, values in enumerate(rows.values()):
            x = torch.tensor(values)
            x[:, 3] += torch.rand(len(x), generator=keyed_generator(number))
            parts.append(x)
        mean, std = parts[0].mean(0), parts[0].std(0)
        self.train, self.val, self.rest = ((x - mean) / std for x in parts)
        self.test = self.rest[:4000]

    def draw(self, count, generator):
        return self.train[torch.randint(len(self.train), (count,), generator=generator)]

    def baselines(self):
        """Kernels of the shape of the covariance, of the width that is best on validation rows."""
        shape = torch.linalg.cholesky(self.train.T.cov())
        train, val, test = (
            torch.linalg.solve_triangular(shape, x.T, upper=False).T
            for x in (self.train, self.val[:2000], self.test)
        )

        def nats(x, width):
            total = 0.0
            for rows in x.split(500):
                squares = torch.cdist(rows, train).square() / (2 * width**2)
                total += float((-squares).logsumexp(-1).sum())
            norm = math.log(len(train)) + self.d * math.log(width * math.sqrt(2 * math.pi))
            return total / len(x) - norm - float(shape.diagonal().log().sum())

        width = max((0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4), key=lambda w: nats(val, w))
        best = float(bits_per_dim(torch.tensor(nats(test, width)), self.d))
        return {f"kernel density estimate, width {width}": best}

    def distance(self, x):
        """Of samples to 6,000 test rows."""
        return energy_distance(x, self.rest[-6000:])


class Network(torch.nn.Module):
    """Three hidden layers on the state and ln tau."""

    def __init__(self, variables, d, width=128):
        super().__init__()
        sizes, parts = (d * variables + 1, width, width, width), []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            parts += [torch.nn.Linear(a, b), torch.nn.SiLU()]
        self.layers = torch.nn.Sequential(*parts, torch.nn.Linear(width, d * variables))
        torch.nn.init.zeros_(self.layers[-1].weight)  # begins as the bound of normal data
        torch.nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x, noise, cond=None):
        return self.layers(torch.cat([x.flatten(1), noise[:, None] / 4], -1)).view_as(x)


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, without bias."""
    own = (torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(2 * torch.cdist(x, y).mean() - sum(own))


def trained(data, process, network, seed, steps):
    """Adam and the bound, the rate falling as a cosine.

    Returns:
        The denoiser, its weights averaged; mean losses of tenths of the run; CPU seconds.
    """
    denoiser = NoisePrediction(network, process)
    optimizer = torch.optim.Adam(denoiser.parameters(), data.lr)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema, start, losses = EMA(denoiser, data.decay), time.process_time(), []

    def batches():
        for k in range(steps):
            generator = keyed_generator(seed, k)
            yield process.lift(data.draw(data.batch, generator), generator), None

    for step in fit(
        process, denoiser, batches(), optimizer, ema=ema, quantile=process.quantile, seed=seed
    ):
        cool.step()
        losses.append(step.loss)
    seconds = time.process_time() - start
    denoiser.load_state_dict(ema.average)
    curve = torch.tensor(losses).tensor_split(min(10, steps))
    return denoiser, [float(part.mean()) for part in curve], seconds


def seeded(seed, make, *arguments):
    """A network whose first weights follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments)


def quadratic(count):
    """Times from 1 to 0, dense near the data."""
    return 1 - (1 - (1 - torch.linspace(0, 1, count + 1)) ** 2)


def matrices(process):
    return {"Q": process.recipe.Q.tolist(), "D": process.recipe.D.tolist()}


def train(data, name, seed, steps, draws):
    process, d = make(name, seed), data.d
    network = seeded(seed, Network, process.variables, d)
    denoiser, curve, seconds = trained(data, process, network, seed, steps)
    nats = bound(process, denoiser, data.test, draws=draws).mean()
    like = process.lift(data.train[: data.samples], keyed_generator(seed, 1))
    distances = {}
    for count in (10, 30):
        prior = process.prior(like, keyed_generator(seed, 2))
        generator = keyed_generator(seed, 3)
        x = sample(process, denoiser, prior, quadratic(count), generator=generator)[:, 0]
        distances[str(count)] = data.distance(x)
    return {
        "bits": float(bits_per_dim(nats, d)),
        "distances": distances,
        "seconds": seconds,
        "curve": curve,
    } | matrices(process)


def normal_nats(train, test):
    """Log-density of rows under the normal law of others; (n,)."""
    law = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    return law.log_prob(test)


def train_missing(path, kind, names, seeds, train):
    """Adds what `train(name, seed)` says, a line each, for the networks that a file lacks."""
    done = [json.loads(line) for line in path.open()] if path.exists() else []
    keys = {(run["data"], run["process"], run["seed"]) for run in done}
    for seed in range(seeds):
        for name in names:
            if (kind, name, seed) not in keys:
                run = {"data": kind, "process": name, "seed": seed} | train(name, seed)
                with path.open("a") as file:
                    file.write(json.dumps(run) + "\n")


def train_all(arguments):
    data = Properties()
    train_missing(
        arguments.out, "properties", arguments.processes, arguments.seeds,
        lambda name, seed: train(data, name, seed, arguments.steps, arguments.draws),
    )  # fmt: skip


def learned(runs):
    """Prints D and the coupling of the datum to its auxiliaries, of every learned process."""
    for run in runs:
        if run["process"].startswith("learned"):
            noise = ", ".join(f"{row[i]:.2f}" for i, row in enumerate(run["D"]))
            pull = ", ".join(f"{q:.2f}" for q in run["Q"][0][1:])
            print(f"* {run['process']}, seed {run['seed']}: D = diag({noise}), Q_xv = {pull}")


def table(arguments):
    runs, data = [json.loads(line) for line in arguments.runs.open()], Properties()
    normal = float(bits_per_dim(normal_nats(data.train, data.test).mean(), data.d))
    known = {"normal density": normal} | data.baselines()
    floor = 1000 * data.distance(data.train[-data.samples :])
    print(f"\n## properties, {len(data.test)} held-out rows of {data.d}\n")
    print("; ".join(f"{name} {bits:.3f} bits/dim" for name, bits in known.items()), end=". ")
    print(f"Energy distance x 1000 of {data.samples} training rows: {floor:.2f}.\n")
    print("| process | seeds | bound, bits/dim | distance x 1000, 10 steps | 30 steps | CPU s |")
    print("|---" * 6 + "|")
    for name in NAMES:
        mine = [run for run in runs if run["process"] == name]
        if len(mine) > 1:
            far = [[1000 * r["distances"][n] for r in mine] for n in ("10", "30")]
            cells = [spread(r["bits"] for r in mine), *(spread(values, 1) for values in far)]
            seconds = statistics.mean(r["seconds"] for r in mine)
            print(f"| {name} | {len(mine)} | {' | '.join(cells)} | {seconds:.0f} |")
    print()
    learned(runs)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("--out", type=Path, required=True, help="one line a network")
    command.add_argument("--processes", nargs="+", choices=NAMES, default=NAMES)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, default=1000)
    command.add_argument("--draws", type=int, default=24, help="of time and noise a row")
    command.set_defaults(run=train_all)
    command = commands.add_parser("table")
    command.add_argument("runs", type=Path)
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
