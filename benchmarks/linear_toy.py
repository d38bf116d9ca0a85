"""What auxiliary variables are worth: bounds of linear diffusions, fixed and learned, on toys.

    python benchmarks/linear_toy.py exact                        with exact scores: a minute
    python benchmarks/linear_toy.py train --out runs.jsonl       36 networks, some seconds each
    python benchmarks/linear_toy.py table runs.jsonl

`exact` holds the bound against the known log-density of a mixture, so that what is lost is lost to
the process. `train` gives every process the same small network, steps, batches and mixing (the
slowest mode falls by e^-5.05 from t = 0 to 1), and measures the bound on held-out data. A run that
was interrupted goes on with what its file lacks.

Data: `mixture`, eight Gaussians of unequal weight on a circle; `torsions`, the angles (radians,
trans at 0, cut at cis) about pairs of neighbouring rotatable bonds of crystal ligands in
`data/dock_train.safetensors`, held out: `data/dock_val.safetensors`. Both are scaled to unit width,
and the figures scaled back.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from linear_science import Network, train_missing
from tables import spread

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import alda, cld, malda, vpsde
from bio_diffusion.diffusion.linear_learned import LearnedDiffusion, NoisePrediction
from bio_diffusion.diffusion.linear_likelihood import bits_per_dim, bound
from bio_diffusion.diffusion.training import EMA, fit, keyed_generator
from bio_diffusion.dock.dataset import CompactSet
from bio_diffusion.toy import CENTERS, SHARES, SPREAD

DATA = Path(__file__).parents[1] / "data"
RATE = 1.0
RECIPES = {"VPSDE": vpsde(), "CLD": cld(), "ALDA": alda(), "MALDA": malda()}
NAMES = [*RECIPES, "learned-2", "learned-3"]


def make(name, rate=RATE, seed=0):
    if name in RECIPES:
        return LinearDiffusion(RECIPES[name], rate=rate)
    return LearnedDiffusion(int(name[-1]), rate=rate, generator=keyed_generator(seed, 17))


# --- data ----------------------------------------------------------------------------------------


class Mixture:
    """Eight Gaussians; density and scores are known."""

    def __init__(self):
        self.centers, self.weights = torch.tensor(CENTERS), torch.tensor(SHARES)
        self.scale = 4 / math.sqrt(2)
        self.centers, self.spread = self.centers / self.scale, SPREAD / self.scale

    def draw(self, count, generator):
        modes = torch.multinomial(self.weights, count, True, generator=generator)
        return self.centers[modes] + self.spread * torch.randn(count, 2, generator=generator)

    def log_density(self, x):
        squares = torch.cdist(x, self.centers).square() / (2 * self.spread**2)
        norm = math.log(2 * math.pi * self.spread**2)
        return (self.weights.log() - squares).logsumexp(-1) - norm

    def score(self, process):
        """The denoiser that knows it all."""

        def score(u, t, cond=None):
            E, Sigma, _ = process.conditional(t)
            E = E[..., 0]
            L = torch.linalg.cholesky(Sigma + self.spread**2 * E[:, :, None] * E[:, None])
            means = torch.einsum("bk,md->bmkd", E, self.centers.double())
            z = torch.linalg.solve_triangular(L[:, None], u.double()[:, None] - means, upper=False)
            weights = (self.weights.log() - z.square().flatten(2).sum(-1) / 2).softmax(-1)
            scores = torch.linalg.solve_triangular(L.mT[:, None], -z, upper=True)
            return torch.einsum("bm,bmkd->bkd", weights, scores).to(u)

        return score


def dihedral(a, b, c, d):
    """Angle (radians) of four points."""
    u, v, w = b - a, c - b, d - c
    n, m = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    return torch.atan2(v.norm() * (u @ m), n @ m)


def torsion_pairs(path):
    """(n, 2) angles about neighbouring rotatable bonds i-j and j-k, minus pi, in [-pi, pi)."""
    pairs = []
    for example in CompactSet(path):
        neighbours = {}
        for i, j in example.ligand.bonds.tolist():
            neighbours.setdefault(i, set()).add(j)
        turning = {frozenset(bond) for bond in example.ligand.tree.bonds.tolist()}
        x = example.crystal
        for j, around in neighbours.items():
            ends = sorted(i for i in around if frozenset((i, j)) in turning)
            for i, k in ((i, k) for i in ends for k in ends if i < k):
                a, b = (min(neighbours[p] - {j}, default=None) for p in (i, k))
                if a is not None and b is not None:
                    pair = dihedral(x[a], x[i], x[j], x[k]), dihedral(x[i], x[j], x[k], x[b])
                    pairs.append(torch.stack(pair))
    return torch.stack(pairs) % (2 * math.pi) - math.pi


class Torsions:
    """Pairs of neighbouring torsion angles of crystal ligands."""

    def __init__(self):
        train, self.held_out = (
            torsion_pairs(DATA / f"dock_{part}.safetensors") for part in ("train", "val")
        )
        self.scale = float(train.std())
        self.train, self.held_out = train / self.scale, self.held_out / self.scale

    def draw(self, count, generator):
        return self.train[torch.randint(len(self.train), (count,), generator=generator)]


# --- networks ------------------------------------------------------------------------------------


def train(data, held_out, name, seed, steps, batch, draws):
    process = make(name, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = NoisePrediction(Network(process.variables, 2, 96), process)
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema, start, skipped = EMA(denoiser, 0.99), time.process_time(), 0

    def batches():
        for k in range(steps):
            generator = keyed_generator(seed, k)
            yield process.lift(data.draw(batch, generator), generator), None

    for step in fit(
        process, denoiser, batches(), optimizer, ema=ema, quantile=process.quantile, seed=seed
    ):
        cool.step()
        skipped += step.skipped
    with ema.applied():
        nats = bound(process, denoiser, held_out, draws=draws).mean()
        recipe = process.recipe
    return {
        "nats": float(nats) / 2 - math.log(data.scale),
        "bits": float(bits_per_dim(nats, 2, -2 * math.log(data.scale))),
        "seconds": time.process_time() - start,
        "skipped": skipped,
        "Q": recipe.Q.tolist(),
        "D": recipe.D.tolist(),
    }


# --- commands ------------------------------------------------------------------------------------


def exact(arguments):
    data = Mixture()
    x = data.draw(arguments.count, keyed_generator(1))
    truth = float(data.log_density(x).mean()) / 2
    print(f"log p of {arguments.count} points: {truth - math.log(data.scale):.4f} nats/dim\n")
    print("| process | speed | slowest mode | bound - log p, nats/dim | +- (draws) |")
    print("|---|---|---|---|---|")
    for name in RECIPES:
        for speed, rate in (("as published", None), ("matched", RATE)):
            process = make(name, rate)
            slowest = -float(torch.linalg.eigvals(process.recipe.A).real.max())
            gaps = [
                float(bound(process, data.score(process), x, draws=arguments.draws, seed=s).mean())
                / 2 - truth
                for s in range(4)
            ]  # fmt: skip
            error = statistics.stdev(gaps) / 2
            gap = statistics.mean(gaps)
            print(f"| {name} | {speed} | {slowest:.2f} | {gap:.4f} | {error:.4f} |", flush=True)


def train_all(arguments):
    for kind in arguments.data:
        data = {"mixture": Mixture, "torsions": Torsions}[kind]()
        held_out = data.draw(1000, keyed_generator(1)) if kind == "mixture" else data.held_out

        def run(name, seed, data=data, held_out=held_out):
            found = train(
                data, held_out, name, seed, arguments.steps, arguments.batch, arguments.draws
            )
            return {"held_out": len(held_out)} | found

        train_missing(arguments.out, kind, NAMES, arguments.seeds, run)


def table(arguments):
    runs = [json.loads(line) for line in arguments.runs.open()]
    for kind in dict.fromkeys(run["data"] for run in runs):
        count = next(run["held_out"] for run in runs if run["data"] == kind)
        print(f"\n## {kind}, {count} held-out points\n")
        if kind == "mixture":
            data = Mixture()
            nats = data.log_density(data.draw(1000, keyed_generator(1))).mean()
            best = float(bits_per_dim(nats, 2, -2 * math.log(data.scale)))
            print(f"Their own density gives {best:.3f} bits/dim.\n")
        print("| process | bound, nats/dim | bound, bits/dim (lower is better) | seeds | CPU s |")
        print("|---|---|---|---|---|")
        for name in NAMES:
            mine = [r for r in runs if r["data"] == kind and r["process"] == name]
            if len(mine) > 1:
                nats, bits = (spread(r[key] for r in mine) for key in ("nats", "bits"))
                seconds = statistics.mean(r["seconds"] for r in mine)
                print(f"| {name} | {nats} | {bits} | {len(mine)} | {seconds:.0f} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("exact")
    command.add_argument("--count", type=int, default=2000, help="points")
    command.add_argument("--draws", type=int, default=32, help="of time and noise a point, x 4")
    command.set_defaults(run=exact)
    command = commands.add_parser("train")
    command.add_argument("--out", type=Path, required=True, help="one line a network")
    command.add_argument("--data", nargs="+", default=["mixture", "torsions"])
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, default=600)
    command.add_argument("--batch", type=int, default=256)
    command.add_argument("--draws", type=int, default=64, help="of time and noise a point")
    command.set_defaults(run=train_all)
    command = commands.add_parser("table")
    command.add_argument("runs", type=Path)
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
