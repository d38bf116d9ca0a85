"""What discrete latents give a sampler: distance against calls, straight paths, guidance, grids.

    python benchmarks/disco_toy.py train --out RUNS
    python benchmarks/disco_sampling.py measure RUNS --out sampling.json      minutes
    python benchmarks/disco_sampling.py table sampling.json
    python benchmarks/disco_sampling.py figure RUNS sampling.json --out docs/methods/disco.png

Distances are to 4,000 fresh points, as many of each mode, from 3,000 samples; latents are drawn
from the prior. Heun's N steps cost 2 N - 1 calls of the denoiser, with latents one call of the
prior more, whose multiplications are given beside. Two grids: Karras's (rho 7), and the adaptive
one fitted to each model (local error of Heun, left at the end).
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from disco_toy import (
    ARMS,
    CENTERS,
    LEVELS,
    MODES,
    PROCESS,
    SPREAD,
    Exact,
    Model,
    coverage,
    energy_distance,
    load,
    points,
)
from paths import walk
from tables import additive, spread

from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.guidance import ClassifierFree
from bio_diffusion.diffusion.lengths import TruncationError
from bio_diffusion.diffusion.sampling import Heun, Reverse, sample, trajectory
from bio_diffusion.diffusion.schedule import fit_curve, karras
from bio_diffusion.diffusion.training import keyed_generator

STEPS = (2, 3, 4, 6, 9, 18)
COUNT = 3000
WEIGHTS = (0.0, 0.5, 1.0)
DEFAULT = [
    "none, decay",
    "none, decay, wider",
    "k-means, decay",
    "beside, soft",
    "beside, soft, bonus",
    "published, soft",
    "published, soft, all three",
    "beside, 2 x 4 codes, all three",
]


class Field:
    """A denoiser with the latents that samples and data get."""

    def __init__(self, model=None, known=False):
        self.model, self.known = model, known
        self.denoiser = Exact() if model is None else model.denoiser

    def drawn(self, count, generator):
        if self.known:
            modes = torch.randint(MODES, (count,), generator=generator)
            return Model.shown(torch.nn.functional.one_hot(modes, MODES)[:, None].float())
        if self.model is None or not self.model.m:
            return None
        return self.model.drawn(count, generator)

    def of_data(self, x_0, modes, generator):
        if self.known:
            return Model.shown(torch.nn.functional.one_hot(modes, MODES)[:, None].float())
        if self.model is None or not self.model.m:
            return None
        return self.model.oracle(x_0, generator)

    def adaptive(self, seed):
        """The fitted curve."""
        x_0, modes = points(1024, 11, seed)
        batches = [(x_0, self.of_data(x_0, modes, keyed_generator(seed, 12)))]
        length = TruncationError(2, data_scale=PROCESS.sigma_data)
        return fit_curve(PROCESS, self.denoiser, length, batches, 48, keyed_generator(seed, 13))


def sliced(x, y, directions=64):
    """Wasserstein-2 of projections, root of the mean square; the sizes must agree."""
    angles = math.pi * torch.arange(directions) / directions
    line = torch.stack([angles.cos(), angles.sin()])
    a, b = (torch.sort(points @ line, 0).values for points in (x, y))
    return float((a - b).square().mean().sqrt())


def start(seed, count=COUNT):
    return PROCESS.prior(torch.zeros(count, 2), keyed_generator(seed, 14))


def distances(field, seed, reference, within):
    """By grid and steps: energy distance, sliced distance and coverage."""
    out = {}
    curve = field.adaptive(seed)
    cond, x = field.drawn(COUNT, keyed_generator(seed, 15)), start(seed)
    for grid, times in (("Karras", lambda n: karras(PROCESS, n)), ("adaptive", curve.knots)):
        for n in STEPS:
            got = sample(PROCESS, field.denoiser, x, times(n), cond, step=Heun())
            row = {
                "energy": energy_distance(got, reference, within),
                "sliced": sliced(got, reference[:COUNT]),
            }
            out[f"{grid} {n}"] = row | coverage(got)
    return out


def curvature(field, seed, count=500, steps=50):
    """Of Heun's paths, float64; see `paths`."""
    cond = field.drawn(count, keyed_generator(seed, 16))
    if cond is not None:
        cond = cond._replace(z=cond.z.double())  # the exact field's
    x, times = start(seed, count).double(), karras(PROCESS, steps).double()
    return walk(PROCESS, field.denoiser, x, times, cond).figures(LEVELS[:-1])


def guided(field, seed, reference, within, steps=30):
    """The probability flow (Euler), pushed away from what the hidden latents say."""
    process, out = PROCESS, {}
    bridge, process.bridge = process.bridge, Bridge(eta=0.0)
    cond, x = field.drawn(COUNT, keyed_generator(seed, 15)), start(seed)
    for weight in WEIGHTS:
        guide = ClassifierFree(process, field.denoiser, weight, lambda given: given.hidden())
        got = sample(
            process, field.denoiser, x, karras(process, steps), cond, [guide], step=Reverse()
        )
        out[str(weight)] = {"energy": energy_distance(got, reference, within)} | coverage(got)
    process.bridge = bridge
    return out


def multiplications(model):
    """Of one call of the denoiser and one draw of the prior, a sample."""
    linear = [layer for layer in model.network.modules() if isinstance(layer, torch.nn.Linear)]
    call = sum(layer.weight.numel() for layer in linear)
    prior = sum(p.numel() for p in model.prior.parameters() if p.ndim > 1) if model.m else 0
    return call, model.m**2 * prior


def measure(arguments):
    reference = points(4000, 17)[0]
    within = float(torch.cdist(reference, reference).mean())
    modes = torch.randint(MODES, (8, COUNT), generator=keyed_generator(19))
    iid = CENTERS[modes] + SPREAD * torch.randn(8, COUNT, 2, generator=keyed_generator(20))
    drawn = [energy_distance(x, reference, within) for x in iid]
    sides = [sliced(x, reference[:COUNT]) for x in iid]
    results = {"floor": {"energy": drawn, "sliced": sides}, "runs": []}
    fields = [("exact, none", seed, Field()) for seed in range(3)]
    fields += [("exact, the mode", seed, Field(known=True)) for seed in range(3)]
    fields += [
        (run["arm"], run["seed"], Field(model))
        for run, model in load(arguments.runs)
        if run["arm"] in arguments.arms
    ]
    for name, seed, field in fields:
        row = {"arm": name, "seed": seed}
        with torch.no_grad():
            row["distances"] = distances(field, seed, reference, within)
            if field.model is not None and field.model.m:
                row["guided"] = guided(field, seed, reference, within)
        if field.model is not None:
            row["multiplications"] = multiplications(field.model)
            field.model.double()
        row["curvature"] = curvature(field, seed)
        results["runs"].append(row)
        arguments.out.write_text(json.dumps(results))


# --- tables --------------------------------------------------------------------------------------


def by_arm(results):
    groups = {}
    for run in results["runs"]:
        groups.setdefault(run["arm"], []).append(run)
    return groups


def table(arguments):
    results = json.loads(arguments.results.read_text())
    groups, floor = by_arm(results), results["floor"]
    calls = [2 * n - 1 for n in STEPS]
    print("## Energy distance x 1000 against calls of the denoiser (Heun)\n")
    free = [1000 * v for v in floor["energy"]]
    print(f"Of true points: {spread(free, 2)} over 8 sets, a single one strays by "
          f"{statistics.stdev(free):.2f}.\n")  # fmt: skip
    print(f"| model | grid | {' | '.join(map(str, calls))} |")
    print("|---" * (2 + len(calls)) + "|")
    for arm, runs in groups.items():
        for grid in ("Karras", "adaptive"):
            cells = [
                spread([1000 * run["distances"][f"{grid} {n}"]["energy"] for run in runs], 1)
                for n in STEPS
            ]
            print(f"| {arm} | {grid} | {' | '.join(cells)} |")
    print("\n## Do the gains add? Logarithm of the energy distance, less that of the model without "
          "latents on Karras's grid\n")  # fmt: skip
    print("| model | calls | latents alone | grid alone | their sum | both |")
    print("|---" * 6 + "|")
    base = {run["seed"]: run["distances"] for run in groups["none, decay"]}
    for arm, runs in groups.items():
        if "guided" not in runs[0]:
            continue
        for n in STEPS[:5]:
            parts = []
            for run in runs:
                none, mine = base[run["seed"]], run["distances"]
                four = (which[f"{grid} {n}"]["energy"] for which in (none, mine)
                        for grid in ("Karras", "adaptive"))  # fmt: skip
                zero, grid, latents, both = (max(value, 1e-6) for value in four)
                parts.append(additive(zero, latents, grid, both))
            columns = zip(*parts, strict=True)
            print(f"| {arm} | {2 * n - 1} | {' | '.join(spread(v, 2) for v in columns)} |")
    print("\n## Coverage and width at 35 calls, Karras's grid\n")
    print("| model | least share / even | total variation of shares | strays, % | spread (0.2) "
          "| sliced Wasserstein-2 | multiplications a call + a draw of the prior |")  # fmt: skip
    print("|---" * 7 + "|")
    for arm, runs in groups.items():
        rows = [run["distances"]["Karras 18"] for run in runs]
        cells = [spread([r["least"] for r in rows], 2), spread([r["tv"] for r in rows])]
        cells += [spread([100 * r["strays"] for r in rows], 2), spread([r["spread"] for r in rows])]
        cells += [spread([r["sliced"] for r in rows])]
        cost = runs[0].get("multiplications")
        print(
            f"| {arm} | {' | '.join(cells)} | {'' if cost is None else '{} + {}'.format(*cost)} |"
        )
    print(f"\nSliced distance of true points: {spread(floor['sliced'])}.")
    print("\n## Curvature of the probability flow, 500 paths of 50 Heun steps\n")
    names = [f"median at a = {s:g}" for s in LEVELS[:-1]]
    print("| model | path / chord, mean | its 90th percentile | curvature, median "
          f"| 90th percentile | {' | '.join(names)} |")  # fmt: skip
    print("|---" * (5 + len(names)) + "|")
    for arm, runs in groups.items():
        rows = [run["curvature"] for run in runs]
        cells = [spread([r[key] for r in rows]) for key in ("ratio", "ratio_90", "median", "p90")]
        cells += [spread([r["by_level"][i] for r in rows]) for i in range(len(names))]
        print(f"| {arm} | {' | '.join(cells)} |")
    print("\n## Guidance on the latent, 30 Euler steps: D(z) + w (D(z) - D(null))\n")
    print("| model | w | calls | energy distance x 1000 | spread (0.2) | least share / even "
          "| strays, % |")  # fmt: skip
    print("|---" * 7 + "|")
    for arm, runs in groups.items():
        for weight in map(str, WEIGHTS) if "guided" in runs[0] else ():
            rows = [run["guided"][weight] for run in runs]
            cells = [spread([1000 * r["energy"] for r in rows], 1)]
            cells += [spread(r["spread"] for r in rows)]
            cells += [spread([r["least"] for r in rows], 2)]
            cells += [spread([100 * r["strays"] for r in rows], 2)]
            print(f"| {arm} | {weight} | {60 if float(weight) else 30} | {' | '.join(cells)} |")


def figure(arguments):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = by_arm(json.loads(arguments.results.read_text()))
    stored = load(arguments.runs)
    fig, ((health, loss), (paths, calls)) = plt.subplots(2, 2, figsize=(10, 8.4))
    shown = {"beside, soft": "tab:blue", "beside, hard": "tab:red", arguments.best: "tab:green"}
    for run, _ in stored:
        if run["arm"] in shown:
            information = [point["information"] for point in run["history"]]
            steps = 250 * torch.arange(1, len(information) + 1)
            label = run["arm"] if run["seed"] == 0 else None
            health.plot(steps, information, c=shown[run["arm"]], alpha=0.7, label=label)
    health.axhline(math.log(8), c="gray", ls="--")
    health.set(xlabel="training step", ylabel="I(z; x), nats", title="log 8 dashed; a line a seed")
    health.legend()
    colors = {"none": "black", "oracle": "tab:green", "null": "tab:orange", "shuffled": "tab:red"}
    for name, color in colors.items():
        arm = "none, decay" if name == "none" else arguments.best
        rows = torch.tensor([run["loss"][name] for run, _ in stored if run["arm"] == arm])
        label = "no latents" if name == "none" else f"{name} latents"
        loss.plot(LEVELS, rows.mean(0), marker="o", c=color, label=label)
    loss.plot(LEVELS, [2 * SPREAD**2 * s**2 / (SPREAD**2 + s**2) for s in LEVELS], c="gray",
              ls="--", label="mode known, exact")  # fmt: skip
    loss.set(xscale="log", yscale="log", xlabel="noise a", ylabel="E|D - x|²")
    loss.legend()
    first = {run["arm"]: model for run, model in stored if run["seed"] == 0}
    for arm, color in (("none, decay", "black"), (arguments.best, "tab:green")):
        field = Field(first[arm])
        cond, begin = field.drawn(24, keyed_generator(21)), start(22, 24)
        states = torch.stack(
            list(trajectory(PROCESS, field.denoiser, begin, karras(PROCESS, 50), cond, step=Heun()))
        )
        for i in range(24):
            label = ("no latents" if color == "black" else arm) if i == 0 else None
            paths.plot(*states[:, i].T, c=color, lw=1, alpha=0.8, label=label)
    paths.set(xlim=(-9, 9), ylim=(-9, 9), aspect="equal", title="paths of the probability flow")
    paths.legend()
    for arm, color in (("none, decay", "black"), (arguments.best, "tab:green")):
        for grid, style in (("Karras", "-"), ("adaptive", ":")):
            rows = torch.tensor(
                [[r["distances"][f"{grid} {n}"]["energy"] for n in STEPS] for r in groups[arm]]
            )
            label = f"{'no latents' if color == 'black' else arm}, {grid}"
            calls.plot([2 * n - 1 for n in STEPS], rows.mean(0).clamp(min=1e-4), style, marker="o",
                       c=color, label=label)  # fmt: skip
    calls.set(xscale="log", yscale="log", xlabel="calls of the denoiser", ylabel="energy distance")
    calls.set_xticks([2 * n - 1 for n in STEPS], [2 * n - 1 for n in STEPS])
    calls.minorticks_off()
    calls.legend()
    fig.tight_layout()
    fig.savefig(arguments.out, dpi=80)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("runs", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--arms", nargs="*", default=DEFAULT, choices=list(ARMS))
    command.set_defaults(run=measure)
    command = commands.add_parser("table")
    command.add_argument("results", type=Path)
    command.set_defaults(run=table)
    command = commands.add_parser("figure")
    command.add_argument("runs", type=Path)
    command.add_argument("results", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--best", default="beside, soft, bonus", help="model with latents")
    command.set_defaults(run=figure)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
