"""Noise levels to train at: the usual densities against a curve that follows the network.

    python benchmarks/schedule_online.py line [--toys two cantor]
    python benchmarks/schedule_online.py digits [--steps 300] [--arms ...]

Every arm trains the same network from the same weights on the same data for as many steps; only
the density of the noise level differs. `log-normal` is EDM's (-1.2, 1.2) on the line and the
shipped model's (-0.6, 1.5) on digits. An `online` arm begins with it and measures one interval of
its 40 by two calls every second step; from the moment when all have been seen three times (step
240) it trains at times that are even in its curve.

`line`: a small network on modes of .05 (`two`) or .01 (`cantor`), see `schedule_toys`. `bound`: by
how many nats the network's bound on -log p exceeds that of the exact denoiser,
int |D - D*|^2 / a^3 da; `score`: a |score - exact|, root mean square over levels even in ln a; KL
and W1 times 1,000 of 20 Heun steps (rho 7).
`digits`: the U-Net that ships, batches of 64; bound on bits/dim of held-out digits, and Frechet
distance (MNIST classifier features) of 9 Heun steps (rho 7).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import torch
from schedule_toys import LINES, spread
from torch import Tensor, nn

from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.lengths import CorrectorOptimised, TruncationError
from bio_diffusion.diffusion.online import Online
from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.sampling import Heun, sample
from bio_diffusion.diffusion.schedule import karras, times_at
from bio_diffusion.diffusion.training import EMA, fit, keyed_generator

ONLINE = {"online, corrector": CorrectorOptimised, "online, truncation": TruncationError}
ARMS = ("log-normal", "even in ln sigma", "even in t (rho 7)", *ONLINE)


class Times:
    """The density of t in training: quantile function, and what follows the network."""

    def __init__(self, arm: str, process: GaussianDiffusion, usual: tuple[float, float]) -> None:
        self.arm, self.process, self.usual = arm, process, usual
        self.online = Online(process, ONLINE[arm](), 40, visits=3) if arm in ONLINE else None

    def __call__(self, u: Tensor) -> Tensor:
        if self.arm == "even in t (rho 7)":
            return u
        if self.online is not None and min(self.online.seen) >= self.online.visits:
            return self.online.curve.at(u).to(u)
        low, high = math.log(0.002), math.log(80.0)
        if self.arm == "even in ln sigma":
            log_sigma = low + (high - low) * u.double()
        else:
            mean, std = self.usual
            log_sigma = mean + std * torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
        return times_at(self.process, log_sigma.clamp(low, high).exp()).to(u)

    def after(self, index: int, denoiser, x_0: Tensor) -> None:
        if self.online is not None and index % 2 == 0:
            self.online.update(denoiser, x_0, generator=keyed_generator(index, 5))


def trained(process, model, batches, times: Times, steps: int, lr: float, seed: int) -> None:
    """Trains, and leaves the averaged weights in the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    ema = EMA(model, 0.99)
    last: list[Tensor] = []

    def seen() -> Iterator[tuple[Tensor, None]]:
        for x_0 in batches:
            last[:] = [x_0]
            yield x_0, None

    running = fit(process, model, seen(), optimizer, ema=ema, quantile=times, seed=seed)
    for step in range(steps):
        done = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr * done * min(1.0, (step + 1) / 100)
        next(running)
        times.after(step, model, last[0])
    model.load_state_dict(ema.average)


def table(columns: tuple[str, ...], rows: dict[str, list[list[float]]], digits: list[int]) -> None:
    print(f"| times | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for arm, runs in rows.items():
        cells = (
            spread(list(v), 1.0, d) for v, d in zip(zip(*runs, strict=True), digits, strict=True)
        )
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


def line(args: argparse.Namespace) -> None:
    for name in args.toys:
        toy = LINES[name]()
        process = toy.process
        levels = torch.logspace(math.log10(0.002), math.log10(80), 160).double()
        held = toy.draw(2048, 77)

        def figures(model, toy=toy, process=process, levels=levels, held=held) -> list[float]:
            nats, score = 0.0, 0.0
            share = float(levels.log().diff()[0])
            for number, a in enumerate(levels):
                t = times_at(process, a[None]).expand(len(held))
                x_t = held + a * torch.randn(held.shape, generator=keyed_generator(number)).double()
                gap = model(x_t.float(), t, None).double() - toy.denoiser(x_t, t)
                nats += float(gap.square().mean() / a**2) * share
                score += float(gap.square().mean() / a**2) / len(levels)
            noise = process.prior(torch.zeros(10_000, 1), keyed_generator(9))
            drawn = sample(process, model, noise, karras(process, 20), step=Heun())
            kl, w1, _ = toy.distances(drawn.double())
            return [nats, math.sqrt(score), kl, 1000 * w1]

        rows: dict[str, list[list[float]]] = {arm: [] for arm in args.arms}
        for seed in range(args.seeds):
            for arm in args.arms:
                torch.manual_seed(seed)
                network = MLP(args.width)
                model = Preconditioned(network, process)
                batches = (toy.draw(256, 1000 * seed + k).float() for k in range(args.steps))
                times = Times(arm, process, (-1.2, 1.2))
                began = time.process_time()
                trained(process, model, batches, times, args.steps, 2e-3, seed)
                spent = time.process_time() - began
                with evaluating(model):
                    rows[arm].append([*figures(model), spent])
        print(f"\n{name}, {args.steps} steps of 256, {args.seeds} seeds:\n")
        table(("bound, nats", "score", "KL", "W1", "CPU s"), rows, [4, 4, 3, 1, 0])


class MLP(nn.Module):
    """(B, 1) and ln(a) / 4 to (B, 1); the point enters as waves too, for narrow modes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(14, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, noise: Tensor, cond: None = None) -> Tensor:
        phase = x * 2.0 ** torch.arange(6)
        return self.layers(torch.cat([x, noise[:, None].to(x), phase.sin(), phase.cos()], 1))


def digits(args: argparse.Namespace) -> None:
    from bio_diffusion.diffusion.likelihood import gaussian_bound
    from bio_diffusion.image.dataset import open_pictures
    from bio_diffusion.image.metrics import frechet_distance
    from bio_diffusion.image.model import ImageModel
    from bio_diffusion.image.pipeline import load_classifier

    train, test = (open_pictures("mnist.npz", split).x for split in ("train", "test"))
    test = test[torch.randperm(len(test), generator=keyed_generator(0))]
    classifier = load_classifier("mnist_classifier", torch.device("cpu"))[0]
    real = classifier.describe(test[:2000])
    network = {"widths": [48, 96], "blocks": 1, "attention": [1], "patch": 2}
    values = torch.arange(256) / 127.5 - 1
    rows: dict[str, list[list[float]]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        for arm in args.arms:
            torch.manual_seed(seed)
            model = ImageModel([1, 28, 28], network=network)
            process = model.process
            times = Times(arm, process, (-0.6, 1.5))

            def batches(seed=seed, model=model) -> Iterator[Tensor]:
                for k in range(args.steps):
                    source = keyed_generator(seed, k, 4)
                    yield model.state(train[torch.randint(len(train), (64,), generator=source)])

            began = time.process_time()
            trained(process, model.denoiser, batches(), times, args.steps, 2e-3, seed)
            spent = time.process_time() - began
            with evaluating(model):
                x_0 = model.state(test[2000 : 2000 + args.n])
                nats = [
                    gaussian_bound(
                        process, model.denoiser, part, values, None, 16, keyed_generator(1)
                    )
                    for part in x_0.split(64)
                ]
                bits = torch.cat(nats) / (math.log(2) * 784)
                noise = process.prior(model.like(args.n), keyed_generator(2))
                drawn = [
                    sample(process, model.denoiser, part, karras(process, 9), step=Heun())
                    for part in noise.split(64)
                ]
                far = frechet_distance(classifier.describe(model.pixels(torch.cat(drawn))), real)
            rows[arm].append([float(bits.mean()), far, spent])
            print(f"seed {seed}, {arm}: {rows[arm][-1]}", flush=True)
    print(f"\n{args.steps} steps of 64, {args.n} digits, {args.seeds} seeds:\n")
    columns = ("bits/dim, at most", "Frechet distance", "CPU s")
    table(columns, rows, [3, 1, 0])
    first, *others = rows
    less = {
        arm: [
            [value - usual for value, usual in zip(run, base, strict=True)]
            for run, base in zip(rows[arm], rows[first], strict=True)
        ]
        for arm in others
    }
    print(f"\nLess those of {first}, seed by seed:\n")
    table(columns, less, [3, 1, 0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM")
    command = commands.add_parser("line", parents=[some])
    command.add_argument("--toys", nargs="+", choices=LINES, default=["two", "cantor"])
    command.add_argument("--steps", type=int, default=2000)
    command.add_argument("--width", type=int, default=64)
    command.add_argument("--seeds", type=int, default=4)
    command.set_defaults(run=line)
    command = commands.add_parser("digits", parents=[some])
    command.add_argument("--steps", type=int, default=300)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--n", type=int, default=128)
    command.set_defaults(run=digits)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


if __name__ == "__main__":
    main()
