"""What DisCo latents do on digits: told, shuffled, hidden or drawn; and what their prior knows.

    python benchmarks/image_disco.py measure mnist_disco --out rows.jsonl
    python benchmarks/image_disco.py table rows.jsonl

Models are named, or files of `experiment=image/mnist_prior`; a model without latents may stand
beside them. Each seed has test digits, noise and latents of its own. Latents are drawn from the
prior, told by the encoder (oracle), told of another digit (shuffled) or hidden (null).

Losses are mean squares of D - x_0 a pixel. Distances are between features of the MNIST classifier
that ships, of `--count` digits drawn by Heun on Karras's grid and of the test part; there oracle
latents are of as many training digits, which are the yardstick. Nats are a latent, on test digits:
of the prior, of independent codes with the histogram's frequencies, and of the encoder's own laws,
below which no prior can come.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from tables import spread

from bio_diffusion.diffusion.latents import (
    Latents,
    gumbel_softmax,
    prior_loss,
    sample_prior,
    usage,
)
from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.sampling import Heun, sample
from bio_diffusion.diffusion.schedule import karras, times_at
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.metrics import frechet_distance
from bio_diffusion.image.pipeline import ImageSampler, load_classifier

LEVELS = (0.3, 1.0, 3.0, 10.0, 30.0, 80.0)
SOURCES = ("prior", "oracle", "shuffled", "null")
CALLS = (9,)


class Lab:
    """The digits, and what describes them."""

    def __init__(self, count):
        self.count = count
        self.classifier = load_classifier("mnist_classifier", torch.device("cpu"))[0]
        self.train, self.test = (open_pictures("mnist.npz", s).x for s in ("train", "test"))
        self.real = self.classifier.describe(self.test)

    def distance(self, pixels):
        return frechet_distance(self.classifier.describe(pixels), self.real)

    def some(self, pixels, count, seed):
        order = torch.randperm(len(pixels), generator=keyed_generator(seed, 6))
        return pixels[order[:count]]


def told(model, source, pixels, generator):
    """Latents of pictures by their source; None for a model without."""
    if model.encoder is None:
        return None
    shown = torch.zeros(len(pixels), dtype=torch.bool)
    if source == "prior":
        like = torch.zeros(len(pixels), model.encoder.latents, model.encoder.codes)
        return Latents(sample_prior(model.prior, like, generator=generator), shown)
    z = gumbel_softmax(model.encoder(pixels.float() / 127.5 - 1), 1.0, True, generator)
    if source == "shuffled":
        return Latents(z.roll(1, 0), shown)
    return Latents(z, ~shown if source == "null" else shown)


def losses(model, source, pixels, seed):
    """Mean square of D - x_0 a pixel, at each of LEVELS."""
    x_0, found = model.state(pixels), []
    for number, level in enumerate(LEVELS):
        t = times_at(model.process, torch.tensor([level]).double()).float().expand(len(x_0))
        x_t = model.process.perturb(x_0, t, keyed_generator(seed, number, 7)).x_t
        cond = told(model, source, pixels, keyed_generator(seed, number, 8))
        found.append(float((model.denoiser(x_t, t, cond) - x_0).square().mean()))
    return found


def drawn(model, source, pixels, calls, seed):
    """As many digits as there are pictures that oracle latents are read from."""
    times, found = karras(model.process, (calls + 1) // 2), []
    for number, part in enumerate(pixels.split(64)):
        generator = keyed_generator(seed, number, 9)
        cond = told(model, source, part, generator)
        noise = model.process.prior(model.like(len(part)), generator)
        found.append(sample(model.process, model.denoiser, noise, times, cond, step=Heun()))
    return model.pixels(torch.cat(found))


def nats(model, pixels, seed):
    """A latent: of the prior, the histogram, the encoder's own laws, and log K."""
    logits = torch.cat([model.encoder(part.float() / 127.5 - 1) for part in pixels.split(500)])
    cost, found = prior_loss(model.prior, logits, None, keyed_generator(seed)), usage(logits)
    return {
        "prior": float(cost.mean()) / logits.shape[1],
        "histogram": float(found.marginal.mean()),
        "encoder": float(found.conditional.mean()),
        "log K": math.log(logits.shape[2]),
    }


@torch.no_grad()
def figures(lab, sampler, seed):
    model = sampler.model
    sources = SOURCES if model.encoder else ("none",)
    test, training = (lab.some(x, lab.count, seed) for x in (lab.test, lab.train))
    with evaluating(model):
        return {
            "yardstick": lab.distance(training),
            "loss": {source: losses(model, source, test, seed) for source in sources},
            "distance": {
                source: [lab.distance(drawn(model, source, training, calls, seed))
                         for calls in CALLS]
                for source in sources if source != "shuffled"
            },
            "nats": nats(model, lab.some(lab.test, 2000, seed), seed) if model.encoder else None,
        }  # fmt: skip


def measure(args):
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(row["model"], row["seed"]) for row in map(json.loads, lines)}
    lab = Lab(args.count)
    for name in args.models:
        sampler = ImageSampler.load(name, "cpu")
        for seed in range(args.seeds):
            if (name, seed) not in done:
                row = {"model": name, "seed": seed, **figures(lab, sampler, seed)}
                with args.out.open("a") as file:
                    print(json.dumps(row), file=file)


def table(args):
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    models = {name: [r for r in rows if r["model"] == name]
              for name in dict.fromkeys(row["model"] for row in rows)}  # fmt: skip
    yardstick = spread((row["yardstick"] for row in next(iter(models.values()))), 1)
    parts = (
        ("loss", "E|D - x_0|^2 a pixel, x 1000, by noise", [f"{a:g}" for a in LEVELS], 1000, 2),
        ("distance", f"Frechet distance (as many training digits {yardstick})",
         [f"{n} calls" for n in CALLS], 1, 1),
    )  # fmt: skip
    for key, title, columns, scale, digits in parts:
        print(f"\n{title}:\n\n| model | latents | {' | '.join(columns)} |")
        print("|---" * (2 + len(columns)) + "|")
        for name, runs in models.items():
            for source in runs[0][key]:
                by_column = zip(*(run[key][source] for run in runs), strict=True)
                cells = (spread([scale * v for v in values], digits) for values in by_column)
                print(f"| {name} | {source} | {' | '.join(cells)} |")
    told = {name: runs for name, runs in models.items() if runs[0]["nats"]}
    if told:
        columns = list(next(iter(told.values()))[0]["nats"])
        print(f"\nNats a latent:\n\n| model | {' | '.join(columns)} |")
        print("|---" * (1 + len(columns)) + "|")
        for name, runs in told.items():
            cells = (spread(run["nats"][column] for run in runs) for column in columns)
            print(f"| {name} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("models", nargs="+")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--count", type=int, default=192, help="digits of losses and distances")
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
