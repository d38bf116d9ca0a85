"""Time grids on words whose posteriors are exact: masking and uniform noise, no sampling error.

    python benchmarks/schedule_tokens.py

Every figure is KL(data || samples) in nats of the sampler's own law, by propagating the chances of
all states. Masking, eight binary sites: `chain`, a Markov chain that stays with chance .9; `copy`,
four free bits written twice; `ising`, a 2 x 4 lattice of coupling .6; `parity`, eight bits of even
sum, twice as likely each for a leading one. Uniform noise, five ternary sites: `copies`, two
letters written twice and a free one, errors 2 %; `codes`, six words of unequal weight, errors 2 %.

Adaptive grids are measured on 4,096 drawn words, as on data (means over fits); `optimum` is the
path of N edges through 65 knots with the least exact path divergence, which no data would tell.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from schedule_toys import shortest
from torch import Tensor

from bio_diffusion.diffusion import information, schedule
from bio_diffusion.diffusion.categorical import Absorbing, Tokens, Uniform
from bio_diffusion.diffusion.online import fit_losses
from bio_diffusion.diffusion.training import keyed_generator

Grid = Callable[[int], Tensor]


class Words:
    """All words of n sites with their chances p, under a process whose posteriors are sums.

    Attributes:
        states: (S, n) all x_t: (V + 1)^n under masking, V^n under uniform noise.
    """

    def __init__(self, process: Tokens, sites: int, p: Tensor) -> None:
        self.process, self.p, letters = process, p.double() / p.sum(), process.letters
        self.words = torch.cartesian_prod(*[torch.arange(letters)] * sites)
        held = letters + isinstance(process, Absorbing)
        self.states = torch.cartesian_prod(*[torch.arange(held)] * sites)
        self.place = held ** torch.arange(sites - 1, -1, -1)
        self.one_hot = torch.nn.functional.one_hot(self.words, letters).double()
        self.known: dict[float, Tensor] = {}

    def draw(self, count: int, seed: int) -> Tensor:
        source = keyed_generator(seed)
        return self.words[torch.multinomial(self.p, count, True, generator=source)]

    def table(self, t: float) -> Tensor:
        """What the minimiser of the loss predicts at every state, log p (S, n, V)."""
        if isinstance(self.process, Absorbing):
            t = 0.5  # a mask tells nothing of the time
        if t not in self.known:
            same = self.states[:, None] == self.words
            if isinstance(self.process, Absorbing):
                seen = (same | (self.states[:, None] == self.process.mask)).double()
                weights = self.p * seen.prod(-1)
                p = torch.einsum("sw,wnv->snv", weights, self.one_hot)
            else:
                alpha = float(self.process.schedule.alpha(torch.tensor(t, dtype=torch.float64)))
                seen = alpha * same.double() + (1 - alpha) / self.process.letters
                others = seen.prod(-1, keepdim=True) / seen.clamp(min=1e-300)
                p = torch.einsum("w,swn,wnv->snv", self.p, others, self.one_hot)
            if len(self.known) > 400:
                self.known.clear()
            self.known[t] = (p / p.sum(-1, keepdim=True).clamp(min=1e-300)).log()
        return self.known[t]

    def denoiser(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """By looking up; times that differ within a batch are taken one by one."""
        rows = (x_t * self.place).sum(-1)
        out = torch.empty(*x_t.shape, self.process.letters, dtype=torch.float64)
        for value in t.unique().tolist() if isinstance(self.process, Uniform) else [0.5]:
            here = t == value if isinstance(self.process, Uniform) else torch.ones_like(t).bool()
            out[here] = self.table(value)[rows[here]]
        return out

    def divergence(self, times: Tensor) -> float:
        """KL(data || samples)."""
        law = (self.masked if isinstance(self.process, Absorbing) else self.redrawn)(times.double())
        return float((torch.xlogy(self.p, self.p) - torch.xlogy(self.p, law)).sum())

    def masked(self, times: Tensor) -> Tensor:
        """The law of words (V^n,): every way from a state to a state that writes masked sites."""
        V, n = self.process.letters, self.words.shape[1]
        if "ways" not in self.__dict__:
            pairs = [(v, v) for v in range(V)] + [(V, V)] + [(V, v) for v in range(V)]
            ways = torch.cartesian_prod(*[torch.arange(len(pairs))] * n)
            at, to = torch.tensor(pairs).T
            source, written = (at[ways] * self.place).sum(-1), ways > V
            chance = self.table(0.5)[source].gather(-1, to[ways].clamp(max=V - 1)[..., None])
            log = torch.where(written, chance[..., 0], 0.0).sum(-1)
            stays = (ways == V).sum(-1)
            self.ways = source, (to[ways] * self.place).sum(-1), log.exp(), written.sum(-1), stays
        source, target, chance, written, stays = self.ways
        law = torch.zeros(len(self.states), dtype=torch.float64)
        law[-1] = 1.0  # all masked
        alpha = self.process.schedule.alpha(times)
        for a, b in zip(alpha[:-1], alpha[1:], strict=True):
            r = (b - a) / (1 - a)
            flow = law[source] * chance * r**written * (1 - r) ** stays
            law = torch.zeros_like(law).index_add(0, target, flow)
        return law[(self.states < V).all(-1)]

    def redrawn(self, times: Tensor) -> Tensor:
        states, process = self.states, self.process
        law = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
        for t, s in zip(times[:-1], times[1:], strict=True):
            each = t.expand(len(states)), s.expand(len(states))
            sites = process.transition(states, self.table(float(t)), *each).law()
            moved = torch.ones(len(states), len(states), dtype=torch.float64)
            for i in range(states.shape[1]):
                moved *= sites[:, i][:, states[:, i]]
            law = law @ moved
        return law


# --- worlds --------------------------------------------------------------------------------------


def bits() -> Tensor:
    return torch.cartesian_prod(*[torch.arange(2)] * 8)


def masked_worlds() -> dict[str, Words]:
    x = bits()
    spins = (2 * x - 1).double().reshape(-1, 2, 4)
    bonds = (spins[:, 0] * spins[:, 1]).sum(-1) + (spins[..., 1:] * spins[..., :-1]).sum((1, 2))
    p = {
        "chain": torch.where(x[:, 1:] == x[:, :-1], 0.9, 0.1).prod(-1),
        "copy": (x[:, :4] == x[:, 4:]).all(-1).double(),
        "ising": (0.6 * bonds).exp(),
        "parity": (x.sum(-1) % 2 == 0) * (1.0 + x[:, 0]),
    }
    return {name: Words(Absorbing(2), 8, chances) for name, chances in p.items()}


def uniform_worlds() -> dict[str, Words]:
    x = torch.cartesian_prod(*[torch.arange(3)] * 5)

    def blurred(centres: Tensor, weights: Tensor) -> Tensor:
        same = x[:, None] == centres
        return (torch.where(same, 0.98, 0.01).prod(-1) * weights).sum(-1)

    free = torch.cartesian_prod(*[torch.arange(3)] * 3)
    copies = free[:, [0, 1, 0, 1, 2]]
    codes = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [0, 1, 2, 0, 1],
                          [1, 2, 0, 1, 2], [2, 0, 1, 2, 0]])  # fmt: skip
    p = {
        "copies": blurred(copies, torch.ones(len(copies))),
        "codes": blurred(codes, torch.arange(1.0, 7.0)),
    }
    return {name: Words(Uniform(3), 5, chances) for name, chances in p.items()}


# --- grids ---------------------------------------------------------------------------------------


def even(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def hand(kind: str) -> dict[str, Grid]:
    """u -> 1 - alpha, with u from 1 to 0."""
    common = {
        "linear": lambda n: 1 - even(n),
        "sine": lambda n: 1 - torch.sin(torch.pi / 2 * even(n)),
    }
    if kind == "uniform":

        def log_linear(n: int) -> Tensor:  # 1 - alpha geometric, from 1 to .005
            times = 0.005 ** even(n)
            times[-1] = 0
            return times

        return common | {"log-linear": log_linear}
    return common | {
        "cosine": lambda n: torch.cos(torch.pi / 2 * even(n)),
        "Fisher-Rao": lambda n: torch.cos(torch.pi / 2 * even(n)) ** 2,
        "square": lambda n: 1 - even(n) ** 2,
    }


def fitted(world: Words, seed: int) -> dict[str, Grid]:
    batches = [(world.draw(1024, 4 * seed + k), None) for k in range(4)]
    source = keyed_generator(50, seed)
    path = information.PathDivergence(source)
    arguments = (world.process, world.denoiser)
    found = {"path": schedule.fit_curve(*arguments, path, batches, 40, source)}
    if isinstance(world.process, Absorbing):  # else a table of posteriors is made for each time
        readings = {"entropy rate": information.EntropyRate(), "unmasking": information.Unmasking()}
        for name, reading in readings.items():
            found[name] = fit_losses(*arguments, reading, batches, 40, source)
    return {name: curve.knots for name, curve in found.items()}


def optimum(world: Words, knots: int = 64) -> Grid:
    """By the exact path divergence L = n [(alpha_s - alpha_t) h(alpha_t) - Int h]."""
    log_p = world.table(0.5)
    blank = world.states == world.process.mask
    entropy = -(torch.xlogy(log_p.exp(), log_p.exp()).sum(-1) * blank).sum(-1)  # of all masks
    seen = torch.stack([
        (world.p * ((state == world.words) | (state == world.process.mask)).all(-1)).sum()
        for state in world.states
    ])  # fmt: skip
    alpha = torch.linspace(0, 1, 8 * knots + 1, dtype=torch.float64)
    shown, hidden = (~blank).sum(-1), blank.sum(-1)
    h = torch.stack([
        (seen * a**shown * (1 - a) ** (hidden - 1).clamp(min=0) * entropy).sum() for a in alpha
    ])  # fmt: skip
    total = torch.cat([h.new_zeros(1), torch.cumulative_trapezoid(h, alpha)])
    h, total, alpha = h[::8], total[::8], alpha[::8]
    costs = (alpha - alpha[:, None]) * h[:, None] - (total - total[:, None])
    costs = torch.where(alpha > alpha[:, None], costs, torch.inf)
    return lambda n: 1 - alpha[shortest(costs, n)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3, help="fits of each adaptive grid")
    parser.add_argument("--kinds", nargs="+", default=["masking", "uniform"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    for kind in args.kinds:
        worlds = masked_worlds() if kind == "masking" else uniform_worlds()
        tables, reach = {}, []
        for name, world in worlds.items():
            grids = {key: [grid] for key, grid in hand(kind).items()}
            fits = [fitted(world, seed) for seed in range(args.seeds)]
            grids |= {key: [fit[key] for fit in fits] for key in fits[0]}
            if kind == "masking":
                grids["optimum"] = [optimum(world)]

            def mean(key: str, n: int, world: Words = world, grids=grids) -> float:
                return statistics.mean(world.divergence(grid(n)) for grid in grids[key])

            tables[name] = {key: [mean(key, n) for n in args.steps] for key in grids}
            best = {key: mean(key, 32) for key in hand(kind)}
            champion = min(best, key=lambda key: best[key])
            told = [
                str(next((n for n in range(4, 33) if mean(key, n) <= best[champion]), "not in 32"))
                for key in ("path", "unmasking")[: 2 if kind == "masking" else 1]
            ]
            reach.append(f"| {name} | {champion}, {best[champion]:.5f} | {', '.join(told)} |")
        print(f"\n### {kind}\n\n| grid | " + " | ".join(
            f"{name} {n}" for name, n in itertools.product(tables, args.steps)) + " |")  # fmt: skip
        print("|---|" + "---|" * (len(tables) * len(args.steps)))
        for key in next(iter(tables.values())):
            cells = (f"{value:.4f}" for table in tables.values() for value in table[key])
            print(f"| {key} | {' | '.join(cells)} |", flush=True)
        second = ", of unmasking" if kind == "masking" else ""
        print(f"\n| world | best by hand at 32 | steps of path to it{second} |\n|---|---|---|")
        print("\n".join(reach), flush=True)
    print(f"\n{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
