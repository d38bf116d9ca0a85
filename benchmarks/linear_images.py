"""What auxiliary variables are worth on pictures: MNIST at its full 28 x 28, under a small U-Net.

    python benchmarks/linear_images.py train --out runs    18 networks, a minute of one core each
    python benchmarks/linear_images.py judge --out runs    their bounds on the test part
    python benchmarks/linear_images.py table --out runs
    python benchmarks/linear_images.py draw --out runs --png samples.png

VPSDE, CLD, ALDA, MALDA and two learned processes: same U-Net (0.42 M weights) up to the channels of
its first and last layer, same pictures, noise, steps and mixing (slowest mode at rate 1); beta from
0.1 to 10, auxiliaries start with variance 0.01.

Bits a pixel, lower is better, are true upper bounds: even noise in [0, 1 / 256) makes pixels
continuous, then comes the logit of 0.05 + 0.9 x (Singhal et al. 2023), whose log-determinant is
counted; below t_min = 0.001 the Gaussian decoder stands in (`linear_likelihood.offset`), and the
entropy of v_0 is taken off. The test part is looked at by `judge` alone; `--part val` is for trying
things. Both `train` and `judge` go on with what their files lack.

Beside them, on the same pictures: the histogram of each pixel, and normal densities with the
training part's mean and covariance, of the logits and of the pixels. `draw` puts a row of
validation digits above a row of each process.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from image_cifar import Gaussian
from linear_science import (
    PROCESSES,
    learned,
    make,
    matrices,
    normal_nats,
    quadratic,
    seeded,
    train_missing,
    trained,
)
from safetensors.torch import load_file, save_file
from tables import spread
from torch.nn.attention import SDPBackend, sdpa_kernel

from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import vpsde
from bio_diffusion.diffusion.linear_learned import DataPrediction, NoisePrediction
from bio_diffusion.diffusion.linear_likelihood import bits_per_dim, bound
from bio_diffusion.diffusion.linear_steps import ProbabilityFlow
from bio_diffusion.diffusion.sampling import Reverse, sample
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.results import grid_png
from bio_diffusion.image.unet import UNet

WIDTHS, PATCH = (32, 64), 2
BORROWED = tuple(f"{name} by VPSDE" for name in PROCESSES[:4])
STEPS = {"ancestral": Reverse(), "flow": ProbabilityFlow()}


class Digits:
    """MNIST in logits of unit width; shapes (n, 28, 28)."""

    d, batch, lr, decay = 784, 64, 2e-3, 0.98

    def __init__(self):
        self.pixels = digits("train")
        self.mean, self.std = 0.0, 1.0
        x = self.logits(self.pixels[::11], keyed_generator(0))[0]
        self.mean, self.std = float(x.mean()), float(x.std())

    def logits(self, pixels, generator):
        """Also the log-determinant of the way from [0, 1] there; (n,)."""
        noise = torch.rand(pixels.shape, generator=generator)
        x = 0.05 + 0.9 * (pixels + noise) / 256
        slope = math.log(0.9 / self.std) - (x * (1 - x)).log()
        return (torch.logit(x) - self.mean) / self.std, slope.flatten(1).sum(1)

    def draw(self, count, generator):
        rows = torch.randint(len(self.pixels), (count,), generator=generator)
        return self.logits(self.pixels[rows], generator)[0]

    def back(self, x):
        """uint8 pixels of logits."""
        x = 256 * (torch.sigmoid(x * self.std + self.mean) - 0.05) / 0.9
        return x.floor().clamp(0, 255).to(torch.uint8)

    def baselines(self, pixels):
        """Bits a pixel of pictures (n, 28, 28), by name."""
        cells = self.pixels.flatten(1).long() + 256 * torch.arange(self.d)
        counts = torch.bincount(cells.flatten(), minlength=256 * self.d).view(self.d, 256) + 0.1
        bits = -(counts / counts.sum(1, keepdim=True)).log2()
        x, log_det = self.logits(pixels, keyed_generator(1))
        nats = normal_nats(self.logits(self.pixels, keyed_generator(2))[0].flatten(1), x.flatten(1))
        flat = Gaussian(self.pixels).bits(pixels, keyed_generator(3))
        return {
            "histogram of each pixel": bits[torch.arange(self.d), pixels.flatten(1).long()].mean(),
            "normal density of the logits": bits_per_dim(nats, self.d, log_det, 256).mean(),
            "normal density of the pixels": flat.mean(),
        }


class Network(torch.nn.Module):
    """The U-Net with variables as channels, told ln tau; multiplies in bfloat16."""

    def __init__(self, variables):
        super().__init__()
        self.unet = UNet(variables, variables, WIDTHS, blocks=1, attention=(), patch=PATCH)

    def forward(self, x, noise, cond=None):
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return self.unet(x, noise / 8).float()


def digits(part):
    """uint8, (n, 28, 28)."""
    return open_pictures("mnist.npz", part).x[:, 0]


def chosen(pictures, n):
    """n of them, from all over the set, which goes by class."""
    return pictures[:: len(pictures) // n][:n]


def weights(folder, name, seed):
    return folder / f"{name}-{seed}.safetensors"


class Plain(torch.nn.Module):
    """E[x | x + sigma eps], x + sigma eps (n, *), of a network that was trained under VPSDE.

    Below the noise that it was trained with the score is held, so that D - y goes as sigma^2.
    """

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        tau = self.process.clock.tau(torch.tensor(self.process.t_min))
        self.least = float(torch.expm1(2 * tau).sqrt())  # VPSDE at rate 1: sigma^2 = e^2tau - 1

    def forward(self, y, sigma, cond=None):
        tau = 0.5 * sigma.clamp(min=self.least).square().log1p()
        shrunk = (-tau)[:, None, None].exp()
        score = self.denoiser((shrunk * y)[:, None].float(), self.process.clock.time(tau).float())
        return y + sigma.square()[:, None, None] * shrunk * score[:, 0]


def load(folder, name, seed):
    """Process and denoiser; `CLD by VPSDE` is CLD under VPSDE's network.

    Auxiliaries look at x through far less noise at t_min than VPSDE does, as it does at 1e-6.
    """
    name, _, by = name.partition(" by ")
    if by:
        process = LinearDiffusion(vpsde(), rate=1.0, t_min=1e-6) if name == by else make(name)
        return process, DataPrediction(Plain(load(folder, by, seed)[1]), process)
    process = make(name, seed)
    denoiser = NoisePrediction(Network(process.variables), process)
    denoiser.load_state_dict(load_file(weights(folder, name, seed)))
    return process, denoiser.eval()


# --- commands ------------------------------------------------------------------------------------


def train(arguments):
    data = Digits()
    arguments.out.mkdir(parents=True, exist_ok=True)

    def run(name, seed):
        process = make(name, seed)
        network = seeded(seed, Network, process.variables)
        denoiser, curve, seconds = trained(data, process, network, seed, arguments.steps)
        save_file(denoiser.state_dict(), weights(arguments.out, name, seed))
        size = sum(p.numel() for p in network.parameters())
        return {"weights": size, "seconds": seconds, "curve": curve} | matrices(process)

    path = arguments.out / "trained.jsonl"
    train_missing(path, "mnist", arguments.processes, arguments.seeds, run)


def judge(arguments):
    data = Digits()
    every = digits(arguments.part)
    pixels = chosen(every, arguments.n)
    x, log_det = data.logits(pixels, keyed_generator(1))

    def run(name, seed):
        began = time.process_time()
        process, denoiser = load(arguments.out, name, seed)
        seen = x.double() if name in BORROWED else x  # x itself has noise of 1e-10 at first
        nats = (bound(process, denoiser, seen, draws=1, seed=i) for i in range(arguments.draws))
        # each over all pictures, their times stratified
        sweeps = [float(bits_per_dim(each, data.d, log_det, 256).mean()) for each in nats]
        return {
            "bits": statistics.mean(sweeps),
            "sweeps": sweeps,
            "pictures": len(x),
            "judged": time.process_time() - began,
        }

    path = arguments.out / f"{arguments.part}.jsonl"
    train_missing(path, "mnist", arguments.processes, arguments.seeds, run)


def table(arguments):
    data = Digits()
    train_rows, rows = (
        {(run["process"], run["seed"]): run for run in map(json.loads, path.open())}
        for path in (arguments.out / "trained.jsonl", arguments.out / f"{arguments.part}.jsonl")
    )
    first = next(iter(rows.values()))
    every = digits(arguments.part)
    n = first["pictures"]
    print(f"\n{n} pictures of the {arguments.part} part, {len(first['sweeps'])} draws each:\n")
    print("| baseline | bits/dim |\n|---|---|")
    for name, bits in data.baselines(chosen(every, n)).items():
        print(f"| {name} | {float(bits):.3f} |")
    print("\n| process | weights | seeds | bound, bits/dim | minus VPSDE's, by seed | CPU s |")
    print("|---" * 6 + "|")
    for name in (*PROCESSES, *BORROWED):
        mine = {seed: run for (process, seed), run in rows.items() if process == name}
        ahead = [run["bits"] - rows["VPSDE", seed]["bits"] for seed, run in mine.items()]
        cells = [spread(run["bits"] for run in mine.values()), spread(ahead)]
        made = [train_rows[name.split(" by ")[-1], seed] for seed in mine]
        seconds = sum(run["seconds"] for run in made) / len(made)
        size = f"{made[0]['weights']:,}"
        print(f"| {name} | {size} | {len(mine)} | {' | '.join(cells)} | {seconds:.0f} |")
    sweeps = [run["sweeps"] for run in rows.values()]
    noise = math.sqrt(statistics.mean(map(statistics.variance, sweeps)) / len(sweeps[0]))
    print(f"\nMonte Carlo's standard error of one bound: {noise:.3f} bits/dim.")
    print("\nLoss (bound without offset, nats a coordinate of the logits), tenths of training:\n")
    print("| process | " + " | ".join(map(str, range(1, 11))) + " |")
    print("|---" * 11 + "|")
    for name in PROCESSES:
        curves = [run["curve"] for (process, _), run in train_rows.items() if process == name]
        means = (sum(tenth) / len(tenth) for tenth in zip(*curves, strict=True))
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    print()
    learned(train_rows.values())


@torch.no_grad()
def draw(arguments):
    data, across = Digits(), 12
    rows, times = [chosen(digits("val"), across)], quadratic(arguments.calls)
    for name in PROCESSES:
        process, denoiser = load(arguments.out, name, 0)
        blank = torch.zeros(across, process.variables, 28, 28)
        prior, generator = process.prior(blank, keyed_generator(2)), keyed_generator(3)
        step = STEPS[arguments.step]
        u = sample(process, denoiser, prior, times, step=step, generator=generator)
        rows.append(data.back(u[:, 0]))
    arguments.png.write_bytes(grid_png(torch.cat(rows)[..., None].numpy(), across=across))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    runs = (train, judge, table, draw)
    made, judged, shown, drawn = parsers = [commands.add_parser(run.__name__) for run in runs]
    for given, run in zip(parsers, runs, strict=True):
        given.add_argument("--out", type=Path, required=True, help="folder of the networks")
        given.set_defaults(run=run)
    for given, names in ((made, PROCESSES), (judged, (*PROCESSES, *BORROWED))):
        given.add_argument("--processes", nargs="+", choices=names, default=names)
        given.add_argument("--seeds", type=int, default=3)
    for given in (judged, shown):
        given.add_argument("--part", default="test", choices=("val", "test"))
    made.add_argument("--steps", type=int, default=400)
    judged.add_argument("--n", type=int, default=1000, help="pictures")
    judged.add_argument("--draws", type=int, default=2, help="of time and noise a picture")
    drawn.add_argument("--step", choices=STEPS, default="ancestral")
    drawn.add_argument("--calls", type=int, default=50, help="of the network a digit")
    drawn.add_argument("--png", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
