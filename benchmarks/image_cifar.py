"""CIFAR-10 from end to end: what short trainings reach, beside codecs and a Gaussian.

    for seed in 0 1 2; do
        python -m bio_diffusion.train experiment=image/cifar10 seed=$seed experiment.seed=$seed \
            run=runs/cifar$seed; done
    python -m bio_diffusion.train experiment=image/mnist_classifier \
        experiment.data=images/cifar10_jpeg.npz fit.max_steps=500 run=runs/cifar-classifier
    python benchmarks/image_cifar.py runs/cifar?/model.safetensors \
        --classifier runs/cifar-classifier/model.safetensors

Bits/dim on held-out pictures: of the models the bound for infinitely many steps; of PNG and
lossless WebP the size of one tall picture of all; of the Gaussian with the training part's mean and
covariance the bound by uniform dequantisation. The set's pixels were decoded from JPEG files, and
those files are the last row: nothing here compares with figures on the original pixels.

Frechet distance of a small classifier's features to the held-out part, `--n` pictures a side that
is drawn: by Heun from the models, from that Gaussian, and from the training part.
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tables import spread

from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.files import find_data
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.metrics import frechet_distance
from bio_diffusion.image.pipeline import ImageSampler, load_classifier
from bio_diffusion.image.results import grid_png

SHOWN = 16  # pictures in the grid


class Gaussian:
    """The normal law of pixels in [0, 256) with a set's mean and covariance."""

    def __init__(self, pixels):
        x = pixels.flatten(1).float() + 0.5
        self.mean = x.mean(0).double()
        cov = torch.cov(x.T).double() + torch.eye(x.shape[1]).double() / 12  # of the rounding
        self.factor = torch.linalg.cholesky(cov)

    def bits(self, pixels, generator):
        """Bits a pixel and channel, (N,)."""
        x = (
            pixels.flatten(1).double()
            + torch.rand(len(pixels), self.mean.numel(), generator=generator).double()
        )
        z = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False).T
        nats = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + self.factor.diag().log().sum()
        return nats / (math.log(2) * x.shape[1])

    def draw(self, count, shape, generator):
        z = torch.randn(count, len(self.mean), generator=generator).double()
        x = self.mean + z @ self.factor.T
        return x.floor().clamp(0, 255).to(torch.uint8).unflatten(1, shape)


def codecs(pixels):
    """Bits a pixel and channel of one tall picture, by codec."""
    tall = Image.fromarray(pixels.permute(0, 2, 3, 1).flatten(0, 1).numpy())
    for name, given in (
        ("PNG", {"format": "PNG", "optimize": True}),
        ("WebP, lossless", {"format": "WEBP", "lossless": True, "quality": 100, "method": 6}),
    ):
        file = io.BytesIO()
        tall.save(file, **given)
        yield name, 8 * len(file.getvalue()) / pixels.numel()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--classifier")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--grid", type=Path, help="write a PNG of the first model's pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    samplers = [ImageSampler.load(str(path), "cpu") for path in args.models]
    data = samplers[0].data
    test, train = (open_pictures(data, split).x for split in ("test", "train"))
    chosen = test[torch.randperm(len(test), generator=keyed_generator(0))[: args.n]]
    began = time.process_time()

    seeds = range(len(samplers))
    gaussian = Gaussian(train)
    bits = [float(s.bits_per_dim(chosen, 16, i).mean()) for i, s in enumerate(samplers)]
    rows = [(f"ours, {len(samplers)} trainings", spread(bits))]
    flat = [float(gaussian.bits(chosen, keyed_generator(seed, 1)).mean()) for seed in seeds]
    rows.append(("Gaussian", spread(flat)))
    rows += [(name, f"{value:.3f}") for name, value in codecs(chosen)]
    with np.load(find_data(data, "")) as file:
        if "offset_test" in file:
            total = int(file["offset_test"][-1]) * 8 / (len(test) * chosen[0].numel())
            rows.append(("the JPEG files themselves", f"{total:.3f}"))
    print(f"\n| {args.n} held-out pictures | bits/dim, at most |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))

    count, asked = (args.n, samplers) if args.classifier else (SHOWN, samplers[:1])
    drawn = [
        torch.cat(list(s.draw(count, times=s.times(args.steps, "karras"), seed=i)))
        for i, s in enumerate(asked)
    ]
    if args.grid:
        args.grid.write_bytes(grid_png(drawn[0][:SHOWN].permute(0, 2, 3, 1).numpy()))
    if args.classifier:
        network = load_classifier(args.classifier, torch.device("cpu"))[0]
        real = network.describe(test)

        def far(pixels):
            return frechet_distance(network.describe(pixels), real)

        normal = [
            gaussian.draw(args.n, chosen.shape[1:], keyed_generator(seed, 2)) for seed in seeds
        ]
        order = torch.randperm(len(train), generator=keyed_generator(3))
        own = [train[order[args.n * seed : args.n * (seed + 1)]] for seed in seeds]
        print(f"\n| {args.n} pictures x {len(samplers)} | Frechet distance |\n|---|---|")
        for name, sets in (("ours", drawn), ("Gaussian", normal), ("training part", own)):
            print(f"| {name} | {spread([far(each) for each in sets], 2)} |")
    print(f"\n{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
