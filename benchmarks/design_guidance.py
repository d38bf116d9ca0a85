"""Guided generation of small molecules: what steers how well, at how many network calls.

Every row draws the same number of molecules with the same seeds, and says what it cost in calls of
the generator for one molecule (calls of the predictor beside it). Controls: a wrong label (what
the model does when told the opposite), a predictor that was trained on shuffled labels
(`--control`; without it, one with random weights), and the best of 2 draws by
the exact property, at as many calls as guidance takes. From left to right, guidance by a
predictor is FUDGE: exact, at the one site that is written. NOS moves the hidden states by a value
head that `experiment=design/value` trains. The ceiling of gamma = 1 is the mean of
the training molecules of the wanted class.

    python benchmarks/design_guidance.py --model qm9 --target qed --n 512 --seeds 0 1 2

Columns: valid; unique among valid; novel by canonical SMILES (not in the set, any split) and by raw
string; mean property of the distinct novel molecules with its standard error over seeds; their mean
number of heavy atoms, since larger molecules are novel by construction.

Source: Schiff et al. 2025, Section 5 (the published curves, on raw-string novelty).
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import spread

from bio_diffusion import checkpoint
from bio_diffusion.design.model import Predictor
from bio_diffusion.design.pipeline import Designer
from bio_diffusion.design.properties import canonical, measure, molecule
from bio_diffusion.design.trained import restored
from bio_diffusion.diffusion.categorical import Autoregressive
from bio_diffusion.diffusion.guidance import ExactClassifier, FirstOrderClassifier
from bio_diffusion.diffusion.process import Guidance


class Drawn(NamedTuple):
    """Molecules and the CPU seconds that they took."""

    smiles: list[str]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One way to draw n molecules.

    Attributes:
        name: in the table.
        calls: of the generator for one molecule that is kept; under NOS also of its last linear map
            and the value head, by the clock a twelfth each.
        draw: seed -> molecules.
    """

    name: str
    calls: int | str
    draw: Callable[[int], Drawn]


class Rows:
    """The ways that are compared, at one number of steps.

    Molecules that are told nothing, or told the class, are drawn once for each seed: the first n of
    2 n are one row, and the best n of all are another.

    Args:
        designer: the model.
        target: the property; its last class is wanted.
        n: molecules a row and seed.
        steps: of the sampler.
        schedule: of the steps.
        control: a predictor that knows nothing of the labels, and its name.
    """

    def __init__(
        self,
        designer: Designer,
        target: str,
        n: int,
        steps: int,
        schedule: str = "uniform",
        control: tuple[str, Designer] | None = None,
    ) -> None:
        self.designer, self.target, self.n = designer, target, n
        self.steps, self.schedule, self.control = steps, schedule, control
        self.told = {target: designer.properties[target][-1]}
        self.label = designer.labels(self.told)
        self.calls = len(designer.times(steps, schedule)) - 1
        self._pools: dict[tuple[int, bool], Drawn] = {}

    def table(
        self, gammas: Sequence[float], cbg: Sequence[float], exact: int, nos: Sequence[str]
    ) -> list[Row]:
        """All rows, by gammas of D-CFG and D-CBG; `exact` molecules only of the exact D-CBG."""
        worst = self.designer.properties[self.target][0]
        calls, n = self.calls, self.n
        table = [
            Row("told nothing", calls, lambda seed: self._first(seed, told=False)),
            Row(
                "told the opposite",
                calls,
                lambda seed: self._draw(seed, n, targets={self.target: worst}),
            ),
            Row(
                "best of 2 by the exact property",
                2 * calls,
                lambda seed: self._best(seed, told=False),
            ),
            Row("told (D-CFG, gamma 1)", calls, lambda seed: self._first(seed, told=True)),
            Row("told, best of 2", 2 * calls, lambda seed: self._best(seed, told=True)),
        ]
        for gamma in gammas:
            how = {"targets": self.told, "guidance": "cfg", "gamma": gamma}
            table.append(Row(f"D-CFG, gamma {gamma:g}", 2 * calls, partial(self._draw, n=n, **how)))
        if self.control:
            table += self._predictors(cbg, exact, *self.control)
        if _beside(self.designer, "value"):
            table += self._hidden(nos)
        return table

    def _predictors(
        self, gammas: Sequence[float], exact: int, control: str, blind: Designer
    ) -> list[Row]:
        one_site = isinstance(self.designer.process, Autoregressive)
        kind, name = (
            (ExactClassifier, "FUDGE") if one_site else (FirstOrderClassifier, "D-CBG first order")
        )
        log_p = self.designer.log_p(self.label)
        guides: list[tuple[str, Guidance, int]] = [
            (f"{name}, gamma {gamma:g}", kind(log_p, gamma), self.n) for gamma in gammas
        ]
        if exact and not one_site:
            for gamma in gammas:
                title = f"D-CBG exact, gamma {gamma:g}, n = {exact}"
                guides.append((title, ExactClassifier(log_p, gamma), exact))
        last = gammas[-1]
        blunt = kind(blind.log_p(self.label), last)
        guides.append((f"{name}, {control}, gamma {last:g}", blunt, self.n))
        return [
            Row(title, self.calls, partial(self._draw, n=count, constraints=[guide]))
            for title, guide, count in guides
        ]

    def _hidden(self, settings: Sequence[str]) -> list[Row]:
        """NOS by settings COUNT:SIZE:STABILITY, the last also by a head with random weights."""
        blind = copy(self.designer)
        blind.value = scrambled(self.designer.value)
        asked = [("NOS", self.designer, text) for text in settings]
        table = []
        for name, designer, text in [*asked, ("NOS, random head", blind, settings[-1])]:
            count, size, stability = text.split(":")
            network = designer.steered(self.told, float(size), int(count), float(stability))
            title = f"{name}, {count} x {size}, stability {stability}"
            calls = f"{self.calls} + {int(count) * self.calls} heads"
            table.append(Row(title, calls, partial(self._draw, n=self.n, network=network)))
        return table

    def _draw(self, seed: int, n: int, **how: Any) -> Drawn:
        began = time.process_time()
        parts = self.designer.design(n, steps=self.steps, schedule=self.schedule, seed=seed, **how)
        smiles = [each for part in parts for each in part]
        return Drawn(smiles, time.process_time() - began)

    def _pool(self, seed: int, told: bool) -> Drawn:
        if (seed, told) not in self._pools:
            targets = self.told if told else {}
            self._pools[seed, told] = self._draw(seed, 2 * self.n, targets=targets)
        return self._pools[seed, told]

    def _first(self, seed: int, told: bool) -> Drawn:
        pool = self._pool(seed, told)
        return Drawn(pool.smiles[: self.n], pool.seconds / 2)

    def _best(self, seed: int, told: bool) -> Drawn:
        pool = self._pool(seed, told)
        value = measure([self.target], pool.smiles)[self.target]
        order = sorted(
            range(len(value)), key=lambda i: -value[i] if value[i] == value[i] else math.inf
        )
        return Drawn([pool.smiles[i] for i in order[: self.n]], pool.seconds)


def _beside(designer: Designer, what: str) -> bool:
    """Whether the file NAME_what stands beside the model's."""
    return designer.path.with_name(f"{designer.path.stem}_{what}.safetensors").is_file()


def _control(designer: Designer, file: str | None) -> tuple[str, Designer] | None:
    """The model with a predictor that knows nothing of the labels, and what that is."""
    if not _beside(designer, "predictor"):
        return None
    blind = copy(designer)
    if file is None:
        blind.predictor = scrambled(designer.predictor)
        return "random weights", blind
    blind.predictor = restored(checkpoint.load(Path(file), "predictor"), Predictor)[1]
    return "random labels", blind


def scrambled(module: torch.nn.Module) -> Any:
    """A copy that was never trained: random weights of the same size."""
    blind = deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in blind.parameters():
            p.copy_(p.std(correction=0) * torch.randn(p.shape, generator=generator))
    return blind


def figures(smiles: Sequence[str], target: str, known: set[str], raw: set[str]) -> dict[str, float]:
    """The columns of one row and seed."""
    valid = [s for s in smiles if molecule(s) is not None]
    forms = {canonical(s) for s in valid}
    novel = sorted(form for form in forms if form and form not in known)
    values = measure([target], novel)[target] if novel else torch.tensor([math.nan]).numpy()
    heavy = [mol.GetNumHeavyAtoms() for s in novel if (mol := molecule(s)) is not None]
    n = len(smiles)
    return {
        "valid": len(valid) / n,
        "unique": len(forms) / max(1, len(valid)),
        "novel": len(novel) / n,
        "novel raw": len({s for s in valid if s not in raw}) / n,
        "mean": float(values.mean()),
        "heavy": statistics.mean(heavy) if heavy else math.nan,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--target", default="qed")
    parser.add_argument("--n", type=int, default=512, help="molecules a row and seed")
    parser.add_argument(
        "--exact", type=int, default=0, help="molecules of exact D-CBG (0: leave out)"
    )
    parser.add_argument("--gammas", type=float, nargs="+", default=[2.0, 3.0, 5.0], help="of D-CFG")
    parser.add_argument("--cbg", type=float, nargs="+", default=[1.0, 5.0], help="gammas of D-CBG")
    parser.add_argument(
        "--control", metavar="FILE", help="predictor trained with experiment.shuffled=true"
    )
    parser.add_argument(
        "--nos",
        nargs="+",
        metavar="COUNT:SIZE:STABILITY",
        default=["1:0.1:0.01", "10:0.1:0.01"],
        help="gradient steps on hidden states, where NAME_value stands beside the model",
    )
    parser.add_argument("--schedule", default="uniform", help="time grid of the sampler")
    parser.add_argument(
        "--rows", nargs="+", default=[""], help="only rows whose names begin so (all)"
    )
    parser.add_argument("--bf16", action="store_true", help="networks multiply in bfloat16")
    parser.add_argument("--compile", action="store_true", help="the generator, by torch.compile")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    designer = Designer.load(args.model)
    if args.compile:
        designer.model.body.compile()
    control = _control(designer, args.control)
    raw = set(designer.training)
    written_one_way = all(canonical(s) == s for s in designer.training[:200])
    known = raw if written_one_way else {form for s in raw if (form := canonical(s))}
    wanted = designer.labelled[[p.name for p in designer.labelled].index(args.target)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"Model {args.model} (sha256 {designer.sha256[:12]}), target {args.target}: "
          f"{wanted.describe()[-1]}; {args.n} molecules a row and seed, seeds "
          f"{' '.join(map(str, args.seeds))}, {args.schedule} grid, "
          f"{'bfloat16, ' * args.bf16}commit {commit.stdout.strip()}\n")  # fmt: skip
    print("| steps | row | calls | valid, % | unique, % | novel, % | novel by raw string, % "
          f"| mean {args.target} of novel | heavy atoms | CPU s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for steps in args.steps:
        ways = Rows(designer, args.target, args.n, steps, args.schedule, control)
        for row in ways.table(args.gammas, args.cbg, args.exact, args.nos):
            if not row.name.startswith(tuple(args.rows)):
                continue
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                drawn = [row.draw(seed) for seed in args.seeds]
            found = [figures(each.smiles, args.target, known, raw) for each in drawn]
            spent = sum(each.seconds for each in drawn)
            share = [
                spread([100 * f[key] for f in found], 1)
                for key in ("valid", "unique", "novel", "novel raw")
            ]
            print(f"| {steps} | {row.name} | {row.calls} | {' | '.join(share)} "
                  f"| {spread([f['mean'] for f in found])} "
                  f"| {spread([f['heavy'] for f in found], 2)} | {spent:.0f} |",
                  flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
