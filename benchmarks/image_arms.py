"""DisCo latents on pictures against networks without, trained alike: do they pay, and with a grid?

    python benchmarks/image_arms.py train RUNS                      12 networks and 6 priors
    python benchmarks/image_arms.py measure RUNS --out rows.jsonl
    python benchmarks/image_arms.py table rows.jsonl
    python benchmarks/image_arms.py draw RUNS --png digits.png      a row of each arm

All arms are `experiment=image/SET_disco` by settings, with equal steps and pictures; a seed is one
of weights, order, times and noise in training, and one of test pictures and noise in judging, the
same for all arms. `--arms` leaves out the others. The set is `mnist`, or `--set cifar10`, for whose
features `train` fits a classifier as well.

    plain          without latents
    wide           without, of at least as many weights as network, encoder and prior of `latents`
    latents        6 of 16 codes, seen by every attention
    hierarchical   the same codes in two groups, each seen by one level on the way up

Measures and tables are those of `image_disco`.
"""

import argparse
from pathlib import Path

import torch
from image_disco import judge, table
from pictures_lab import Lab, drawn
from trainings import trained

from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.schedule import karras
from bio_diffusion.image.pipeline import ImageSampler
from bio_diffusion.image.results import grid_png

BARE = "experiment.latents=null"
ARMS = {
    "plain": [BARE],
    "wide": [BARE, "experiment.network.widths={wide}"],
    "latents": [],
    "hierarchical": ["experiment.latents.hierarchical=true"],
}
DATA = {"mnist": "mnist.npz", "cifar10": "images/cifar10_jpeg.npz"}
WIDE = {"mnist": "[40,84]", "cifar10": "[60,120]"}


def model_of(runs, arm, seed):
    return runs / f"{arm}-{seed}{'' if BARE in ARMS[arm] else '-prior'}" / "model.safetensors"


def classifier(args):
    """That ships, or of a set that none ships for."""
    if args.set == "mnist":
        return "mnist_classifier"
    return trained(
        args.runs / "classifier", "experiment=image/mnist_classifier",
        f"experiment.data={DATA[args.set]}",
    )  # fmt: skip


def train(args):
    classifier(args)
    for seed in range(args.seeds):
        seeded = [f"seed={seed}", f"experiment.seed={seed}"]
        for arm in args.arms:
            words = [word.format(wide=WIDE[args.set]) for word in ARMS[arm]]
            file = trained(
                args.runs / f"{arm}-{seed}", f"experiment=image/{args.set}_disco", *seeded, *words,
                f"experiment.batch={args.batch}", f"fit.max_steps={args.steps}",
                f"fit.evaluate_every={args.steps}",
            )  # fmt: skip
            if BARE not in words:
                trained(
                    args.runs / f"{arm}-{seed}-prior", f"experiment=image/{args.set}_prior",
                    *seeded, *words, f"experiment.model={file}",
                    f"fit.max_steps={args.prior_steps}",
                )  # fmt: skip


def measure(args):
    files = {arm: lambda seed, arm=arm: model_of(args.runs, arm, seed) for arm in args.arms}
    lab = Lab(args.count, DATA[args.set], str(classifier(args)))
    judge(args.out, lab, args.seeds, files, args.paths)


def draw(args):
    """Twelve pictures of each arm of a seed from the same noise, 17 calls on Karras's grid."""
    rows = []
    for arm in args.arms:
        model = ImageSampler.load(model_of(args.runs, arm, args.seed), "cpu").model
        blank = torch.zeros(12, *model.shape, dtype=torch.uint8)
        source = "prior" if model.encoder else "none"
        with evaluating(model):
            rows.append(drawn(model, source, blank, karras(model.process, 9), args.seed))
    pixels = torch.cat(rows).permute(0, 2, 3, 1).numpy()
    args.png.write_bytes(grid_png(pixels, across=12))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="only these")
    some.add_argument("--set", choices=DATA, default="mnist")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", parents=[some])
    command.add_argument("runs", type=Path)
    command.add_argument("--steps", type=int, default=1200)
    command.add_argument("--batch", type=int, default=128)
    command.add_argument("--prior-steps", type=int, default=1500)
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=train)
    command = commands.add_parser("measure", parents=[some])
    command.add_argument("runs", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--count", type=int, default=192, help="pictures of losses and distances")
    command.add_argument("--paths", type=int, default=16)
    command.add_argument("--seeds", type=int, default=3)
    command.set_defaults(do=measure)
    command = commands.add_parser("table")
    command.add_argument("rows", type=Path)
    command.set_defaults(do=table)
    command = commands.add_parser("draw", parents=[some])
    command.add_argument("runs", type=Path)
    command.add_argument("--png", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(do=draw)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.do(args)


if __name__ == "__main__":
    main()
