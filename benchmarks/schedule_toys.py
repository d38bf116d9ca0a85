"""Time grids on toys whose scores are exact: every length beside every grid made by hand.

    python benchmarks/schedule_toys.py line        one dimension, unequal modes
    python benchmarks/schedule_toys.py field       a Gaussian field with the spectrum of images
    python benchmarks/schedule_toys.py cylinder    R x S^1, as in docking

Toys on the line: `two`, .7 N(-1, .05^2) + .3 N(1, .05^2); `cantor`, the eight intervals of Cantor's
set as modes of width .01 (scale .5, weights 1 to 8 over 36); `normal`, N(0, .5^2). sigma runs from
80 to .002, and the last step goes to the data. KL(truth || samples) on 200 bins of equal mass sees
the fine scale (10,000 samples of the truth itself have about .01), W1 and the energy distance the
coarse one, masses of modes included.

Grids by hand: Karras (rho 7 and 3), even in log SNR, cosine, linear-beta VP, AYS-Gaussian (cosine
at the data's width). GITS-like: the path of N edges through 61 knots of a teacher's trajectories
with the least sum of |y_i + (sigma_j - sigma_i) eps_bar_i - y_j|. All others are fitted, to 512
samples, with what `bio_diffusion.diffusion.lengths` and `information` measure.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bio_diffusion.diffusion import information, lengths, schedule
from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.online import fit_losses
from bio_diffusion.diffusion.process import broadcast
from bio_diffusion.diffusion.product import Euclidean, ProductDiffusion, Torus
from bio_diffusion.diffusion.sampling import Heun, sample, trajectory
from bio_diffusion.diffusion.schedule import Curve
from bio_diffusion.diffusion.training import keyed_generator

Grid = Callable[[int], Tensor]  # N -> N + 1 falling times
HAND = ("EDM rho 7", "EDM rho 3", "log SNR", "cosine", "VP linear", "AYS-Gaussian")
SAMPLERS = ("Euler", "Heun", "ancestral")
OURS = {  # what docs/methods/adaptive-schedules.md advises
    "Euler": "terminal, walked",
    "Heun": "heun, walked",
    "ancestral": "terminal, walked",
}


# --- grids ---------------------------------------------------------------------------------------


def by_hand(process: GaussianDiffusion, width: float) -> dict[str, Grid]:
    """The grids that know nothing of the data but their width."""

    def vp_linear(n: int) -> Tensor:
        low, high = (float(process.level(torch.tensor([t]))) for t in (0.0, 1.0))

        def u(level: float) -> float:  # sigma^2 = exp(9.95 u^2 + .1 u) - 1
            return (-0.1 + math.sqrt(0.01 + 4 * 9.95 * math.log1p(level**2))) / 19.9

        even = torch.linspace(u(high), u(low), n + 1).double()
        levels = torch.expm1(9.95 * even**2 + 0.1 * even).sqrt()
        times = schedule.times_at(process, levels)
        times[0], times[-1] = 1.0, 0.0
        return times

    return {
        "EDM rho 7": functools.partial(schedule.karras, process),
        "EDM rho 3": functools.partial(schedule.karras, process, rho=3.0),
        "log SNR": functools.partial(schedule.log_snr, process),
        "cosine": functools.partial(schedule.cosine, process),
        "VP linear": vp_linear,
        "AYS-Gaussian": functools.partial(schedule.cosine, process, scale=width),
    }


def gits(process: GaussianDiffusion, denoiser, x_1: Tensor, knots: int = 60) -> Grid:
    """The GITS-like path; its trajectories are Heun's on a Karras grid."""
    times = schedule.karras(process, knots)
    walk = list(trajectory(process, denoiser, x_1, times, step=Heun()))
    sigma = process.sigma(times).clone()
    sigma[-1] = 0
    y = torch.stack([
        x / broadcast(process.schedule.alpha(t.expand(len(x))), x)
        for x, t in zip(walk, times, strict=True)
    ])  # fmt: skip
    costs = torch.full((knots + 1, knots + 1), torch.inf, dtype=torch.float64)
    for i in range(knots):
        t = times[i].expand(y.shape[1])
        drift = -sigma[i] * process.score(denoiser(walk[i], t, None), walk[i], t)
        shape = (-1, *(1,) * (y.ndim - 1))
        ends = y[i] + (sigma[i + 1 :] - sigma[i]).reshape(shape) * drift
        costs[i, i + 1 :] = (ends - y[i + 1 :]).flatten(2).norm(dim=-1).mean(1)

    def grid(n: int) -> Tensor:
        return times[shortest(costs, n)]

    return grid


def shortest(costs: Tensor, n: int) -> list[int]:
    """The n edges from the first knot to the last with the least sum of costs (K + 1, K + 1)."""
    reach = torch.full((len(costs),), torch.inf, dtype=costs.dtype)
    reach[0], back = 0.0, []
    for _ in range(n):
        best = (reach[:, None] + costs).min(0)
        reach = best.values
        back.append(best.indices)
    path = [len(costs) - 1]
    for before in reversed(back):
        path.append(int(before[path[-1]]))
    return path[::-1]


def fitted(process, denoiser, x_0: Tensor, width: float, small: bool = True) -> dict[str, Curve]:
    """Every length's curve, from samples of the data."""
    source = keyed_generator(11)
    ancestral = information.AncestralDivergence(source)
    found = {
        "corrector": lengths.CorrectorOptimised(),
        "velocity": lengths.VelocityNormalised(),
        "predictor": lengths.PredictorOptimised(),
        "truncation": lengths.TruncationError(1),
        "heun": lengths.TruncationError(2),
        "terminal": lengths.TruncationError(1, width),
        "heun, terminal": lengths.TruncationError(2, width),
        "ancestral": ancestral,
    }
    if not small:  # states of 3,072 numbers: no Jacobians
        del found["predictor"]
    curves = {
        name: schedule.fit_curve(process, denoiser, length, [(x_0, None)], 100, source)
        for name, length in found.items()
    }
    for q, name in ((1, "terminal, walked"), (2, "heun, walked")):
        walked = lengths.TerminalError(schedule.karras(process, 40), q)
        curves[name] = schedule.fit_curve(
            process, denoiser, walked, [(x_0[:128], None)], 60, source
        )
    entropic = information.RescaledEntropic()
    curves["entropic"] = fit_losses(process, denoiser, entropic, [(x_0, None)], 100, source)
    curves["mixture"] = Curve.mixture(curves["ancestral"], curves["entropic"])
    return curves


# --- the line ------------------------------------------------------------------------------------


class Line:
    """A mixture of normal modes on the line, (B, 1) float64, with exact denoiser and quantiles."""

    def __init__(self, means: list[float], weights: list[float], width: float) -> None:
        self.means, self.width = torch.tensor(means).double(), width
        self.weights = torch.tensor(weights).double() / sum(weights)
        second = float((self.weights * self.means**2).sum())
        self.scale = math.sqrt(second + width**2 - float((self.weights * self.means).sum()) ** 2)
        self.process = GaussianDiffusion(EDM(0.002, 80.0), sigma_data=self.scale)
        fine = torch.linspace(-6, 6, 1_200_001).double() * max(self.scale, 0.3)
        z = (fine[:, None] - self.means) / width
        self.cdf = (0.5 * (1 + torch.erf(z / math.sqrt(2))) * self.weights).sum(-1)
        self.fine = fine

    def denoiser(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        variance = self.width**2 + self.process.sigma(t)[:, None] ** 2
        away = x_t - self.means
        posterior = (self.weights.log() - away**2 / (2 * variance)).softmax(-1)
        inside = self.means + self.width**2 / variance * away
        return (posterior * inside).sum(-1, keepdim=True)

    def draw(self, count: int, seed: int) -> Tensor:
        source = keyed_generator(seed, 1)
        modes = torch.multinomial(self.weights, count, True, generator=source)
        noise = torch.randn(count, generator=source, dtype=torch.float64)
        return (self.means[modes] + self.width * noise)[:, None]

    def quantile(self, u: Tensor) -> Tensor:
        return self.fine[torch.searchsorted(self.cdf, u).clamp(max=len(self.fine) - 1)]

    def distances(self, x: Tensor) -> tuple[float, float, float]:
        """KL on 200 bins, W1, energy distance between samples (B, 1) and the truth."""
        x = x[:, 0].nan_to_num(1e6).sort().values
        cuts = self.quantile(torch.arange(1, 200).double() / 200)
        share = torch.bincount(torch.bucketize(x, cuts), minlength=200).double() + 0.5
        share = share / share.sum()
        kl = float((1 / 200 * (1 / 200 / share).log()).sum())
        u = (torch.arange(len(x)).double() + 0.5) / len(x)
        w1 = float((x - self.quantile(u)).abs().mean())
        place = torch.searchsorted(x, self.fine).double() / len(x)
        inside = (x > self.fine[0]) & (x < self.fine[-1])
        gap = ((place - self.cdf) ** 2).sum() * float(self.fine[1] - self.fine[0])
        return kl, w1, float(2 * gap) if bool(inside.all()) else math.nan


LINES = {
    "two": lambda: Line([-1, 1], [0.7, 0.3], 0.05),
    "cantor": lambda: Line(
        [
            0.5 * (2 * sum(d / 3 ** (k + 1) for k, d in enumerate(bits)) + 1 / 27 - 1)
            for bits in [(a, b, c) for a in (0, 2) for b in (0, 2) for c in (0, 2)]
        ],
        list(range(1, 9)),
        0.01,
    ),  # fmt: skip
    "normal": lambda: Line([0], [1], 0.5),
}


def walked(toy, sampler: str, times: Tensor, count: int, seed: int) -> Tensor:
    toy.process.bridge = Bridge(1.0 if sampler == "ancestral" else 0.0)
    source = keyed_generator(seed, 2)
    x_1 = toy.process.prior(torch.zeros(count, 1, dtype=torch.float64), source)
    step = Heun() if sampler == "Heun" else None
    return sample(toy.process, toy.denoiser, x_1, times, generator=source, step=step)


def spread(values: list[float], scale: float = 1.0, digits: int = 3) -> str:
    mean = scale * statistics.mean(values)
    error = scale * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def line(args: argparse.Namespace) -> None:
    reach = []
    for name in args.toys:
        toy = LINES[name]()
        grids = by_hand(toy.process, toy.scale)
        x_1 = toy.process.prior(torch.zeros(256, 1, dtype=torch.float64), keyed_generator(5))
        grids["GITS-like"] = gits(toy.process, toy.denoiser, x_1)
        curves = fitted(toy.process, toy.denoiser, toy.draw(512, 99), toy.scale)
        grids |= {key: curve.knots for key, curve in curves.items()}

        @functools.cache
        def figures(key: str, sampler: str, n: int, toy=toy, grids=grids):
            runs = [walked(toy, sampler, grids[key](n), args.count, s) for s in range(args.seeds)]
            return list(zip(*map(toy.distances, runs), strict=True))

        for sampler in SAMPLERS:
            print(f"\n### {name}, {sampler}\n\n| grid | {' | '.join(map(str, args.steps))} |")
            print(f"|---|{'---|' * len(args.steps)}")
            for key in grids:
                cells = []
                for n in args.steps:
                    kl, w1, energy = figures(key, sampler, n)
                    cells.append(
                        f"{spread(kl)} / {1000 * statistics.mean(w1):.1f} "
                        f"/ {1000 * statistics.mean(energy):.2f}"
                    )
                print(f"| {key} | {' | '.join(cells)} |", flush=True)
            for which, metric in enumerate(("KL", "W1")):
                best = {k: statistics.mean(figures(k, sampler, 32)[which]) for k in HAND}
                champion = min(best, key=best.get)
                cells = []
                for key in (OURS[sampler], "truncation", "mixture", "GITS-like"):
                    needed = (
                        n for n in (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)
                        if statistics.mean(figures(key, sampler, n)[which]) <= best[champion]
                    )  # fmt: skip
                    cells.append(str(next(needed, "more than 32")))
                reach.append(
                    f"| {name} | {sampler} | {metric} | {champion}, {best[champion]:.4f} "
                    f"| {OURS[sampler]}: {cells[0]} | {' | '.join(cells[1:])} |"
                )
    print("\n### Steps to what the best grid by hand reaches in 32\n")
    print(
        "| toy | sampler | metric | best by hand at 32 "
        "| advised | truncation | mixture | GITS-like |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(reach))


# --- a field -------------------------------------------------------------------------------------


class Field:
    """3 x 32 x 32 numbers, Gaussian with spectrum 1 / f^2, in the basis where they are free."""

    scale = 0.5

    def __init__(self) -> None:
        f = torch.fft.fftfreq(32).double() * 32
        square = f[:, None] ** 2 + f**2
        square[0, 0] = 1.0
        power = (1 / square).flatten().repeat(3)
        self.power = power * self.scale**2 / power.mean()
        self.process = GaussianDiffusion(EDM(0.002, 80.0), sigma_data=self.scale)

    def denoiser(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        a = self.process.sigma(t)[:, None]
        return self.power / (self.power + a**2) * x_t

    def w2(self, sampler: str, times: Tensor) -> float:
        """sqrt sum (width of samples - width)^2: the steps are linear, so no sample is drawn."""
        process, one = self.process, torch.ones(1, len(self.power), dtype=torch.float64)
        process.bridge = Bridge(1.0 if sampler == "ancestral" else 0.0)
        spread = (80.0**2 * one[0]).clone()
        for t, s in zip(times[:-1].double(), times[1:].double(), strict=True):
            t, s = t[None], s[None]
            if sampler == "Heun":
                moved = Heun()(process, self.denoiser, one, t, s, None, (), None)
                spread = spread * moved[0] ** 2
            else:
                q = process.transition(one, self.denoiser(one, t), t, s)
                spread = spread * q.mean[0] ** 2 + q.variance
        return float((spread.sqrt() - self.power.sqrt()).norm())


def field(args: argparse.Namespace) -> None:
    toy = Field()
    grids = by_hand(toy.process, toy.scale)
    x_0 = toy.power.sqrt() * torch.randn(32, 3072, generator=keyed_generator(3)).double()
    x_1 = 80 * torch.randn(16, 3072, generator=keyed_generator(4)).double()
    grids["GITS-like"] = gits(toy.process, toy.denoiser, x_1)
    curves = fitted(toy.process, toy.denoiser, x_0, toy.scale, small=False)
    grids |= {key: curve.knots for key, curve in curves.items()}
    columns = [(sampler, n) for sampler in SAMPLERS for n in args.steps]
    print("\n### Gaussian field, W2\n")
    print("| grid | " + " | ".join(f"{sampler} {n}" for sampler, n in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for key, grid in grids.items():
        print(f"| {key} | " + " | ".join(f"{toy.w2(s, grid(n)):.2f}" for s, n in columns) + " |")
    print("\n| sampler | best by hand at 32 | steps of the fitted grids to it |\n|---|---|---|")
    for sampler in SAMPLERS:
        best = {k: toy.w2(sampler, grids[k](32)) for k in HAND}
        champion = min(best, key=best.get)
        needed = {
            k: next((n for n in range(2, 33) if toy.w2(sampler, grids[k](n)) <= best[champion]), 99)
            for k in grids if k not in HAND
        }  # fmt: skip
        told = ", ".join(
            f"{k} {n}" for k, n in sorted(needed.items(), key=lambda i: i[1]) if n < 33
        )
        print(f"| {sampler} | {champion}, {best[champion]:.3f} | {told or 'none in 32'} |")


# --- a cylinder ----------------------------------------------------------------------------------


class Point(tuple):
    """Heights and angles, (B, 1) each."""

    def __len__(self) -> int:
        return tuple.__len__(self[0]) if isinstance(self[0], tuple) else len(self[0])

    def tangent_shapes(self):
        return {"height": (len(self), 1), "angle": (len(self), 1)}

    def moved(self, tangent):
        return Point((self[0] + tangent["height"], self[1] + tangent["angle"]))


class Around:
    """Four unequal modes on R x S^1, of widths .4 and .3."""

    heights, angles = torch.tensor([-3.0, -1.0, 1.5, 3.0]), torch.tensor([0.5, 2.6, -2.0, -0.5])
    weights, widths = torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), (0.4, 0.3)

    def __init__(self) -> None:
        self.process = ProductDiffusion(
            {"height": (Euclidean(), 0.05, 10.0, 1.0), "angle": (Torus(), 0.05, math.pi, 1.0)}
        )

    def draw(self, count: int, seed: int) -> Point:
        source = keyed_generator(seed, 3)
        modes = torch.multinomial(self.weights, count, True, generator=source)
        noise = torch.randn(count, 2, generator=source)
        return Point((
            (self.heights[modes] + self.widths[0] * noise[:, 0])[:, None],
            (self.angles[modes] + self.widths[1] * noise[:, 1])[:, None],
        ))  # fmt: skip

    def denoiser(self, x: Point, t: Tensor, cond: None = None) -> dict[str, Tensor]:
        sigma = self.process.sigma(t)
        v = sigma["height"][:, None] ** 2 + self.widths[0] ** 2
        wide = (sigma["angle"] ** 2 + self.widths[1] ** 2).sqrt()
        height, angle = x[0].double() - self.heights, x[1].double() - self.angles
        log_p = self.weights.log() - height**2 / (2 * v) + Torus().log_density(angle, wide)
        scores = {"height": -height / v, "angle": Torus().score(angle, wide)}
        return {k: (log_p.softmax(-1) * s).sum(-1, keepdim=True).float() for k, s in scores.items()}

    def histogram(self, x: Point) -> Tensor:
        row = ((x[0][:, 0] + 5) / 10 * 26).long().clamp(0, 25)
        turn = (x[1][:, 0] + math.pi) % (2 * math.pi)
        cell = row * 26 + (turn / (2 * math.pi) * 26).long().clamp(0, 25)
        return torch.bincount(cell, minlength=676).double()


def cylinder(args: argparse.Namespace) -> None:
    toy = Around()
    truth = sum(toy.histogram(toy.draw(500_000, s)) for s in range(100, 104)) + 1e-3
    truth = truth / truth.sum()
    source = keyed_generator(12)
    data = [(toy.draw(512, 77), None)]
    widths = {"height": 2.1, "angle": 1.8}
    found = {
        "corrector": lengths.CorrectorOptimised(),
        "velocity": lengths.VelocityNormalised(),
        "truncation": lengths.TruncationError(1),
        "terminal": lengths.TruncationError(1, widths),
        "ancestral": information.AncestralDivergence(source),
    }
    grids: dict[str, Grid] = {
        "even in log sigma": schedule.uniform,
        "EDM rho 7": functools.partial(schedule.karras, toy.process),
        "cosine": functools.partial(schedule.cosine, toy.process),
    }
    for name, length in found.items():
        curve = schedule.fit_curve(toy.process, toy.denoiser, length, data, 80, source)
        grids[name] = curve.knots
    columns = [(sampler, n) for sampler in ("Euler", "ancestral") for n in args.steps]
    print(f"\n### R x S^1, KL of a 26 x 26 histogram of {args.count} samples\n")
    print("| grid | " + " | ".join(f"{sampler} {n}" for sampler, n in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for key, grid in grids.items():
        cells = []
        for sampler, n in columns:
            toy.process.bridge = Bridge(1.0 if sampler == "ancestral" else 0.0)
            values = []
            for seed in range(args.seeds):
                source = keyed_generator(seed, 4)
                zero = torch.zeros(args.count, 1)
                x = toy.process.prior(Point((zero, zero)), source)
                x = sample(toy.process, toy.denoiser, x, grid(n), generator=source)
                share = (toy.histogram(x) + 0.01) / (args.count + 6.76)
                values.append(float(torch.xlogy(truth, truth / share).sum()))
            cells.append(spread(values, digits=4))
        print(f"| {key} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("line", "field", "cylinder"))
    parser.add_argument("--toys", nargs="+", default=list(LINES), choices=LINES)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 12, 20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=10_000, help="samples a seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    {"line": line, "field": field, "cylinder": cylinder}[args.part](args)
    print(f"\n{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
