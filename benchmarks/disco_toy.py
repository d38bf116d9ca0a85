"""Discrete latents on eight Gaussians in the plane: what they give, when they collapse, what helps.

    python benchmarks/disco_toy.py train --out RUNS      17 models a seed, some 15 CPU seconds each
    python benchmarks/disco_toy.py table RUNS            health, losses and one distance for each
    python benchmarks/disco_sampling.py ...              the sampler's side, on those models

The world is that of the paper: eight Gaussians of spread 0.2 on a circle of radius 3, 1,000 points
each; a denoiser of 4 layers, an encoder of 3, m = 1 latent of k = 8 codes, Adam at 0.001. Not given
there, and ours: width 96, ReLU (SiLU was far slower to learn), batches of 256, noise from 0.01 to
10 at even times of Karras's grid, the loss of Karras et al., averaged weights. The latent comes in
in one of two ways:

    published   D = (c^2 x + a^2 F(z)) / (a^2 + c^2) + H(x, a),  c the known spread: H sees no z
    beside      z beside x at the input of the same network

A run that was interrupted goes on with what its folder lacks.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tables import spread
from torch import nn

from bio_diffusion.diffusion.collapse import balanced, joined, revive, shared
from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.latents import (
    CausalPrior,
    Latents,
    gumbel_softmax,
    hide,
    prior_loss,
    sample_prior,
    usage,
)
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.sampling import Heun, sample
from bio_diffusion.diffusion.schedule import karras
from bio_diffusion.diffusion.training import EMA, fit, keyed_generator

SPREAD, MODES = 0.2, 8
ANGLES = torch.arange(MODES) * math.pi / 4
CENTERS = 3 * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)
PROCESS = GaussianDiffusion(EDM(0.01, 10.0), sigma_data=math.sqrt(4.5 + SPREAD**2))
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)

# form of the latent, m, K, and what differs from the plain recipe: soft relaxation, constant rate
BESIDE, PUBLISHED = ("beside", 1, 8), ("published", 1, 8)
ARMS = {
    "none": (("none", 0, 0), {}),
    "none, decay": (("none", 0, 0), {"decay": True}),
    "none, decay, wider": (("none", 0, 0), {"decay": True, "width": 117}),
    "k-means, decay": (("k-means", 1, 8), {"decay": True}),
    "beside, soft": (BESIDE, {}),
    "beside, soft, decay": (BESIDE, {"decay": True}),
    "beside, soft, bonus": (BESIDE, {"bonus": 0.1}),
    "beside, soft, restart": (BESIDE, {"restart": True}),
    "beside, soft, all three": (BESIDE, {"decay": True, "bonus": 0.1, "restart": True}),
    "beside, hard": (BESIDE, {"hard": True}),
    "beside, hard, decay": (BESIDE, {"hard": True, "decay": True}),
    "beside, hard, bonus": (BESIDE, {"hard": True, "bonus": 0.1}),
    "beside, hard, restart": (BESIDE, {"hard": True, "restart": True}),
    "published, soft": (PUBLISHED, {}),
    "published, hard": (PUBLISHED, {"hard": True}),
    "published, soft, all three": (PUBLISHED, {"decay": True, "bonus": 0.1, "restart": True}),
    "beside, 2 x 4 codes, all three": (
        ("beside", 2, 4),
        {"decay": True, "bonus": 0.1, "restart": True},
    ),
}


def points(count, *key):
    """Points and their modes, as many of each."""
    modes = torch.arange(count) % MODES
    return CENTERS[modes] + SPREAD * torch.randn(count, 2, generator=keyed_generator(*key)), modes


def time_of(sigma):
    """The t with noise sigma."""
    low, high = (s ** (1 / PROCESS.schedule.rho) for s in (0.01, 10.0))
    return (sigma ** (1 / PROCESS.schedule.rho) - low) / (high - low)


class Exact:
    """E[x_0 | x_t], given the mode in cond (one-hot of 8, a row a sample) or not."""

    def __call__(self, x_t, t, cond=None):
        a2 = PROCESS.sigma(t)[:, None] ** 2
        means = CENTERS.double()
        log_p = -(x_t.double()[:, None] - means).square().sum(-1) / (2 * (a2 + SPREAD**2))
        posterior = log_p.softmax(-1) if cond is None else cond.z[:, 0].double()
        pulled = SPREAD**2 * x_t.double() + a2 * (posterior @ means)
        return (pulled / (a2 + SPREAD**2)).to(x_t)


# --- models --------------------------------------------------------------------------------------


def layers(*sizes):
    parts = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Network(nn.Module):
    """Four layers on x, the noise, and the codes of the latents if there are any."""

    def __init__(self, width, codes):
        super().__init__()
        self.layers = layers(3 + codes + (codes > 0), width, width, width, 2)

    def forward(self, x, noise, cond=None):
        seen = [x, noise[:, None]]
        if cond is not None:
            shown = ~cond.null[:, None]
            seen += [cond.z.flatten(1) * shown, cond.null[:, None].to(x)]
        return self.layers(torch.cat(seen, -1))

    def table(self, m, k):
        """What the network knows of each code, (m, K, width), a view."""
        return self.layers[0].weight[:, 3 : 3 + m * k].T.unflatten(0, (m, k))


class Published(nn.Module):
    """The score of one Gaussian about F(z), and a network that sees no z but whether it is hidden.

    The paper's t^2 H is c_out H(c_in x) here, the same functions at unit size.
    """

    def __init__(self, width, k):
        super().__init__()
        self.F = nn.Embedding(k + 1, 2)  # the last is that of no latent
        self.H = layers(4, width, width, width, 2)

    def forward(self, x_t, t, cond):
        a, c = PROCESS.sigma(t).to(x_t)[:, None], PROCESS.sigma_data
        null = cond.null[:, None].to(x_t)
        center = (1 - null) * (cond.z[:, 0] @ self.F.weight[:-1]) + null * self.F.weight[-1]
        pulled = (SPREAD**2 * x_t + a**2 * center) / (a**2 + SPREAD**2)
        scale = (a**2 + c**2).sqrt()
        return pulled + a * c / scale * self.H(torch.cat([x_t / scale, a.log() / 4, null], -1))

    def table(self, m, k):
        return self.F.weight[:k][None]


class Model(nn.Module):
    """Denoiser, encoder and prior of one arm."""

    def __init__(self, arm):
        super().__init__()
        (self.form, self.m, self.k), self.recipe = ARMS[arm]
        width = self.recipe.get("width", 96)
        if self.form == "published":
            self.network = Published(width, self.k)
            self.denoiser = self.network
        else:
            self.network = Network(width, self.m * self.k)
            self.denoiser = Preconditioned(self.network, PROCESS)
        if self.form == "k-means":
            self.register_buffer("means", torch.zeros(self.k, 2))
        elif self.m:
            self.encoder = layers(2, 64, 64, self.m * self.k)
        if self.m:
            self.prior = CausalPrior(self.m, self.k, width=16, depth=1, heads=2)

    def encode(self, x_0):
        """Logits (B, m, K)."""
        if self.form == "k-means":
            nearest = torch.cdist(x_0, self.means).argmin(-1)
            return 50.0 * nn.functional.one_hot(nearest, self.k)[:, None].float()
        return self.encoder(x_0 / PROCESS.sigma_data).unflatten(-1, (self.m, self.k))

    def condition(self, x_0, cond, generator):
        if not self.m:
            return None
        logits = balanced(self.encode(x_0), self.recipe.get("bonus", 0.0))
        return hide(gumbel_softmax(logits, 1.0, self.recipe.get("hard", False), generator), 0.1)

    def oracle(self, x_0, generator):
        return self.shown(gumbel_softmax(self.encode(x_0), 1.0, True, generator))

    def drawn(self, count, generator):
        """From the prior."""
        like = self.prior.place.new_zeros(count, self.m, self.k)
        return self.shown(sample_prior(self.prior, like, generator=generator))

    @staticmethod
    def shown(z):
        return Latents(z, torch.zeros(len(z), dtype=torch.bool))

    def revive(self, x_0, generator):
        last = self.encoder[-1]
        tables = [last.weight.unflatten(0, (self.m, self.k)), self.network.table(self.m, self.k)]
        bias = last.bias.unflatten(0, (self.m, self.k))
        return int(revive(self.encode(x_0), bias, tables, generator).sum())

    @property
    def size(self):
        return sum(p.numel() for p in self.parameters())


def k_means(x, k, generator, starts=10, rounds=30):
    """The best of several runs (k-means++), (K, 2)."""
    best = None
    for _ in range(starts):
        means = x[torch.randint(len(x), (1,), generator=generator)]
        while len(means) < k:
            far = torch.cdist(x, means).amin(-1).square()
            means = torch.cat([means, x[torch.multinomial(far, 1, generator=generator)]])
        for _ in range(rounds):
            nearest = torch.cdist(x, means).argmin(-1)
            sums = torch.zeros_like(means).index_add(0, nearest, x)
            means = sums / torch.bincount(nearest, minlength=k).clamp(min=1)[:, None]
        cost = float(torch.cdist(x, means).amin(-1).square().sum())
        if best is None or cost < best[0]:
            best = cost, means
    return best[1]


# --- training ------------------------------------------------------------------------------------


def health(model, x, modes):
    logits = model.encode(x)
    every = joined(logits)
    figures = usage(every)
    return {
        "marginal": float(figures.marginal[0]),
        "information": float(figures.information[0]),
        "of_mode": float(shared(every, modes)[0]),
        "used": int((every.softmax(-1).mean((0, 1)) >= 0.1 / every.shape[-1]).sum()),
    }


def train(arm, seed, steps):
    """The model with averaged weights, and how its codes fared on the way."""
    torch.manual_seed(seed)
    model = Model(arm)
    x, modes = points(8000, 1)  # all seeds have the same data
    if model.form == "k-means":
        model.means.copy_(k_means(x, model.k, keyed_generator(seed, 3)))
    learned = [p for name, p in model.named_parameters() if not name.startswith("prior")]
    optimizer = torch.optim.Adam(learned, 1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema, history, revived = EMA(model, 0.999), [], 0

    def batches():
        for k in range(steps):
            rows = torch.randint(len(x), (256,), generator=keyed_generator(seed, 2, k))
            yield x[rows], None

    for step in fit(
        PROCESS, model.denoiser, batches(), optimizer, condition=model.condition, ema=ema, seed=seed
    ):
        if model.recipe.get("decay"):
            decay.step()
        number = step.index + 1
        if model.recipe.get("restart") and number % 100 == 0 and number <= 2 * steps / 3:
            revived += model.revive(x[:2000], keyed_generator(seed, 4, number))
        if model.m and number % 250 == 0:
            with torch.no_grad():
                history.append(health(model, x[:2000], modes[:2000]))
    model.load_state_dict(ema.state_dict()["average"])
    if model.m:
        fit_prior(model, x, seed)
    return model.eval(), history, revived


def fit_prior(model, x, seed, steps=300):
    optimizer = torch.optim.Adam(model.prior.parameters(), 3e-3)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        generator = keyed_generator(seed, 5, k)
        rows = torch.randint(len(x), (256,), generator=generator)
        with torch.no_grad():
            logits = model.encode(x[rows])
        loss = prior_loss(model.prior, logits, None, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cool.step()


# --- measures ------------------------------------------------------------------------------------


def energy_distance(x, y, within=None):
    """2 E|x - y| - E|x - x'| - E|y - y'|, x drawn freely, y as many of each mode.

    Without bias in x. Of y all pairs count: their modes are even already, and leaving out those of
    a point with itself would make them less so. `within` is that last term if it is known.
    """
    own = torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
    if within is None:
        within = torch.cdist(y, y).mean()
    return float(2 * torch.cdist(x, y).mean() - own - within)


def coverage(x):
    """Least share of a mode in units of even, total variation of shares, strays, spread."""
    apart, nearest = torch.cdist(x, CENTERS).min(-1)
    share = torch.bincount(nearest, minlength=MODES) / len(x)
    near = apart < 4 * SPREAD
    return {
        "least": float(share.min() * MODES),
        "tv": float((share - 1 / MODES).abs().sum() / 2),
        "strays": float(1 - near.float().mean()),
        "spread": float((apart[near].square().mean() / 2).sqrt()),
    }


def losses(denoise, x, count=1):
    """E |D - x_0|^2 at each of LEVELS; the same noise for everyone."""
    out = []
    for number, sigma in enumerate(LEVELS):
        t = torch.full((len(x),), time_of(sigma)).clamp(max=1.0)
        x_t = PROCESS.perturb(x, t, keyed_generator(6, number)).x_t
        out.append(float((denoise(x_t, t) - x).square().sum(-1).mean()))
    return out


@torch.no_grad()
def judge(model, seed):
    x, modes = points(8000, 7)
    figures = {"size": model.size, "loss": {}}
    cond, n = None, 4000
    if model.m:
        figures |= health(model, x, modes)
        generator = keyed_generator(seed, 8)
        logits = model.encode(x)
        figures["prior"] = float(prior_loss(model.prior, logits, None, generator).mean())
        oracle, prior = model.oracle(x, generator), model.drawn(len(x), generator)
        turned = model.shown(oracle.z[torch.randperm(len(x), generator=generator)])
        for name, given in {
            "oracle": oracle,
            "sampled": prior,
            "shuffled": turned,
            "null": oracle.hidden(),
        }.items():
            figures["loss"][name] = losses(lambda y, t, c=given: model.denoiser(y, t, c), x)
        cond = model.drawn(n, generator)
    else:
        figures["loss"]["none"] = losses(lambda y, t: model.denoiser(y, t, None), x)
    start = PROCESS.prior(torch.zeros(n, 2), keyed_generator(seed, 9))
    out = sample(PROCESS, model.denoiser, start, karras(PROCESS, 18), cond, step=Heun())
    figures["distance"] = energy_distance(out, points(8000, 10)[0])
    return figures | coverage(out)


# --- commands ------------------------------------------------------------------------------------


def train_all(arguments):
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for arm in ARMS:
            path = arguments.out / f"{arm.replace(', ', '_').replace(' ', '-')}_{seed}.pt"
            if path.exists():
                continue
            start = time.process_time()
            model, history, revived = train(arm, seed, arguments.steps)
            seconds = time.process_time() - start
            run = {"arm": arm, "seed": seed, "seconds": seconds, "revived": revived}
            run |= {"history": history} | judge(model, seed)
            torch.save({"run": json.dumps(run), "weights": model.state_dict()}, path)


def load(folder):
    """(run, model) of each file, in the order of ARMS."""
    out = []
    for path in sorted(folder.glob("*.pt")):
        stored = torch.load(path, weights_only=True)
        run = json.loads(stored["run"])
        model = Model(run["arm"])
        model.load_state_dict(stored["weights"])
        out.append((run, model.eval()))
    return sorted(out, key=lambda pair: (list(ARMS).index(pair[0]["arm"]), pair[0]["seed"]))


def table(arguments):
    runs = [run for run, _ in load(arguments.runs)]
    of = {arm: [run for run in runs if run["arm"] == arm] for arm in ARMS}
    of = {arm: group for arm, group in of.items() if group}
    print("## Use of the codes, held-out data; log 8 = 2.079 nats\n")
    columns = ["model", "seeds", "codes used", "by seed", "I(z; x_0)", "I(z; mode)", "H(z)"]
    columns += ["prior, nats", "least share of a mode / even", "strays, %", "distance x 1000"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * 11 + "|")
    for arm, group in of.items():
        cells = [[run[key] for run in group if key in run] for key in
                 ("used", "information", "of_mode", "marginal", "prior", "least")]  # fmt: skip
        by_seed = " ".join(str(n) for n in cells[0])
        cells = [spread(cells[0], 1), by_seed, *(spread(values, 2) for values in cells[1:])]
        cells += [spread([100 * r["strays"] for r in group], 1)]
        cells += [spread([1000 * r["distance"] for r in group], 1)]
        print(f"| {arm} | {len(group)} | {' | '.join(cells)} |")
    print("\n## Denoising loss E|D - x_0|^2 by noise level, held-out data\n")
    print(f"| model | latents | {' | '.join(f'{s:g}' for s in LEVELS)} |")
    print("|---" * (2 + len(LEVELS)) + "|")
    x, modes = points(8000, 7)
    known = Model.shown(nn.functional.one_hot(modes, MODES)[:, None].float())
    for name, cond in (("none", None), ("the mode", known)):
        values = losses(lambda y, t, c=cond: Exact()(y, t, c), x)
        print(f"| exact | {name} | {' | '.join(f'{v:.4f}' for v in values)} |")
    for arm in arguments.arms or of:
        for name in of[arm][0]["loss"]:
            rows = zip(*(run["loss"][name] for run in of[arm]), strict=True)
            print(f"| {arm} | {name} | {' | '.join(spread(list(row)) for row in rows)} |")
    print("\n## Parameters and CPU seconds of training\n")
    for arm, group in of.items():
        print(f"* {arm}: {group[0]['size']}; {spread([r['seconds'] for r in group], 0)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("--out", type=Path, required=True, help="folder, a file a model")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, default=3000)
    command.set_defaults(run=train_all)
    command = commands.add_parser("table")
    command.add_argument("runs", type=Path)
    command.add_argument("--arms", nargs="*", help="of the table of losses; all unless given")
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
