"""Guided generation of small molecules: what steers how well, at how many network calls.

Every row draws the same number of molecules with the same seeds, and says what it cost in calls of
the generator for one molecule (calls of the predictor beside it). Controls: a wrong label (what
the model does when told the opposite), a predictor with random weights, and the best of 2 draws by
the exact property, at as many calls as guidance takes. From left to right, guidance by a
predictor is FUDGE: exact, at the one site that is written. The ceiling of gamma = 1 is the mean of
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
from copy import deepcopy
from dataclasses import dataclass

import torch

from bio_diffusion.design.pipeline import Designer
from bio_diffusion.design.properties import canonical, measure, molecule
from bio_diffusion.diffusion.categorical import Autoregressive
from bio_diffusion.diffusion.guidance import ExactClassifier, FirstOrderClassifier
from bio_diffusion.diffusion.process import Guidance


@dataclass(frozen=True)
class Row:
    """One way to draw n molecules.

    Attributes:
        name: in the table.
        calls: of the generator for one molecule that is kept.
        draw: seed -> SMILES.
    """

    name: str
    calls: int
    draw: Callable[[int], list[str]]


def rows(designer: Designer, target: str, n: int, steps: int, cbg: int) -> list[Row]:
    """The ways that are compared; `cbg` molecules only of the exact predictor guidance."""
    best = designer.properties[target][-1]
    worst = designer.properties[target][0]
    label = designer.labels({target: best})
    calls = len(designer.times(steps)) - 1

    def draw(seed: int, count: int = n, first: int = 0, **arguments: object) -> list[str]:
        parts = designer.design(count, steps=steps, seed=seed, first=first, **arguments)  # type: ignore[arg-type]
        return [smiles for part in parts for smiles in part]

    def best_of(k: int, seed: int, **arguments: object) -> list[str]:
        pool = draw(seed, k * n, **arguments)
        value = measure([target], pool)[target]
        order = sorted(range(len(pool)), key=lambda i: -value[i] if value[i] == value[i] else 9e9)
        return [pool[i] for i in order[:n]]

    def steered(guide: Guidance, count: int) -> Callable[[int], list[str]]:
        return lambda seed: draw(seed, count, constraints=[guide])

    told = {target: best}
    table = [
        Row("told nothing", calls, lambda seed: draw(seed)),
        Row("told the opposite", calls, lambda seed: draw(seed, targets={target: worst})),
        Row("best of 2 by the exact property", 2 * calls, lambda seed: best_of(2, seed)),
        Row("told (D-CFG, gamma 1)", calls, lambda seed: draw(seed, targets=told)),
        Row("told, best of 2", 2 * calls, lambda seed: best_of(2, seed, targets=told)),
    ]
    for gamma in (2.0, 3.0, 5.0):
        table.append(
            Row(
                f"D-CFG, gamma {gamma:g}",
                2 * calls,
                lambda seed, g=gamma: draw(seed, targets=told, guidance="cfg", gamma=g),  # type: ignore[misc]
            )
        )
    if designer.path.with_name(f"{designer.path.stem}_predictor.safetensors").is_file():
        log_p = designer.log_p(label)
        one_site = isinstance(designer.process, Autoregressive)
        kind, name = (
            (ExactClassifier, "FUDGE") if one_site else (FirstOrderClassifier, "D-CBG first order")
        )
        for gamma in (1.0, 5.0):
            guide = kind(log_p, gamma)
            table.append(Row(f"{name}, gamma {gamma:g}", calls, steered(guide, n)))
        if cbg and not one_site:
            table.append(
                Row(
                    f"D-CBG exact, gamma 5, n = {cbg}",
                    calls,
                    steered(ExactClassifier(log_p, 5.0), cbg),
                )
            )
        table.append(
            Row(
                f"{name}, random predictor, gamma 5",
                calls,
                steered(kind(_blind(designer, label), 5.0), n),
            )
        )
    return table


def _blind(
    designer: Designer, label: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """log p of a predictor that was never trained."""
    blind = deepcopy(designer.predictor)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in blind.parameters():
            p.copy_(p.std(correction=0) * torch.randn(p.shape, generator=generator))
    wanted = [(i, int(y)) for i, y in enumerate(label) if y < designer.labelled[i].classes]
    return lambda x, t: sum((blind(x, t)[i][:, y] for i, y in wanted), torch.zeros(len(x)))


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


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard error over seeds."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return "none"
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--target", default="qed")
    parser.add_argument("--n", type=int, default=512, help="molecules a row and seed")
    parser.add_argument(
        "--cbg", type=int, default=0, help="molecules of exact D-CBG (0: leave out)"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    designer = Designer.load(args.model)
    raw = set(designer.training)
    known = {form for s in raw if (form := canonical(s))}
    wanted = designer.labelled[[p.name for p in designer.labelled].index(args.target)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"Model {args.model} (sha256 {designer.sha256[:12]}), target {args.target}: "
          f"{wanted.describe()[-1]}; {args.n} molecules a row and seed, seeds "
          f"{' '.join(map(str, args.seeds))}, commit {commit.stdout.strip()}\n")  # fmt: skip
    print("| steps | row | calls | valid, % | unique, % | novel, % | novel by raw string, % "
          f"| mean {args.target} of novel | heavy atoms | CPU s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for steps in args.steps:
        for row in rows(designer, args.target, args.n, steps, args.cbg):
            began = time.process_time()
            found = [figures(row.draw(seed), args.target, known, raw) for seed in args.seeds]
            spent = time.process_time() - began
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
