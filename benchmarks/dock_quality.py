"""Redocking quality: the diffusion network, its ablations and physics alone, on the same complexes.

Each variant is ``NAME[:key=value,...]`` over the settings of ``configs/dock.yaml``. The key
``checkpoint`` names a model file (default: the shipped one) or ``none`` for physics alone: random
poses in the box go through the same search and minimisation and are ranked by the fitted energy.
``start=random`` keeps the model's judgement of poses but starts from random ones, ``start=half``
from its own and as many random ones; ``judgement=0`` keeps its starts but asks for no losses;
``rank_by=score`` ranks without the confidence model; ``hetero=false`` takes metals and cofactors
out of the receptor first. The box of a known site is that of AutoDock Vina's rows: the crystal
ligand plus 4 Å a side and at least 15 Å an edge. Ligands start from RDKit conformers, never from
crystal coordinates.

    python benchmarks/dock_quality.py run --data DATA/val --manifest manifest.csv --split val \
        --variant network --variant random:checkpoint=none --out val.csv
    python benchmarks/dock_quality.py table val.csv [--vina vina_val.csv --vina-poses POSES]

A run that was interrupted goes on with what its table lacks. CPU seconds are user and system time
of one process on one thread: conformers, network, search, checks and, since every complex here has
a receptor of its own, reading and featurising it.
"""

from __future__ import annotations

import argparse
import csv
import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import spread
from vina_baseline import chosen, sample_flags, search_box

from bio_diffusion.dock.complex import Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.docked import Docked
from bio_diffusion.dock.metrics import mcnemar, rate
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.sources import PoseSource, PriorPoses

COLUMNS = (
    "id", "split", "part", "site", "variant", "seed", "rank", "energy", "score", "confidence",
    "rmsd", "valid", "failed_checks", "cpu_seconds", "failure",
)  # fmt: skip
SUCCESS = 2.0  # Å


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME:key=value,...`` with values as numbers or booleans where they look like them."""
    name, _, words = text.partition(":")
    settings: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        literal: Any = {"true": True, "false": False}.get(value, value)
        for kind in (int, float):
            if isinstance(literal, str):
                try:
                    literal = kind(literal)
                except ValueError:
                    continue
        settings[key] = literal
    return name, settings


class RandomStarts(PriorPoses):
    """Random start poses beside some of another source, which judges all."""

    def __init__(self, other: PoseSource, share: float) -> None:
        self.other, self.share = other, share
        self.losses, self.preferences = other.losses, other.preferences

    def poses(self, *of: Any) -> Pose:
        *of, count, generator = of
        random = count - round(self.share * count)
        drawn = super().poses(*of, random, generator)
        if random == count:
            return drawn
        others = self.other.poses(*of, count - random, generator)
        return Pose(torch.cat([others.coords, drawn.coords]), drawn.tree)


def load(settings: dict[str, Any], seed: int) -> Docker:
    """The docker that a variant names."""
    settings = dict(settings)
    path, start = settings.pop("checkpoint", None), settings.pop("start", "network")
    settings.pop("hetero", None)  # of the receptor, not of the docker
    docker = Docker.load(path, "cpu", seed=seed, **settings)
    if start != "network":
        share = {"random": 0.0, "half": 0.5}[start]
        docker.source, docker.confidence = RandomStarts(docker.source, share), None
    return docker


def redock(docker: Docker, folder: Path, site: str, hetero: bool) -> Docked:
    """Dock ``folder/ligand.sdf`` into ``folder/protein.pdb``, at its site or blind."""
    read = read_receptor(folder / "protein.pdb")
    if not hetero:
        read = read.select(np.unique(read.residue_index[~read.hetero]))
    receptor = docker.prepare(read)
    ligand = next(iter(read_ligands([str(folder / "ligand.sdf")])))
    if not isinstance(ligand, Ligand):
        raise ValueError(ligand.reason)
    assert ligand.crystal is not None
    center, size = search_box(ligand.crystal)
    sites = [Site(center, size, "crystal")] if site == "known" else None
    result = next(iter(docker.dock(receptor, [ligand], sites)))
    if not isinstance(result, Docked):
        raise ValueError(result.reason)
    return result


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    done = set()
    if args.out.exists():
        done = {(r["id"], r["site"], r["variant"], r["seed"]) for r in read([args.out])}
    dockers = [
        (name, seed, load(settings, seed), settings.get("hetero", True))
        for name, settings in map(parse_variant, args.variant)
        for seed in args.docking_seed
    ]
    for number, (key, split, part) in enumerate(chosen(args)):
        for name, seed, docker, hetero in dockers:
            if (key, args.site, name, str(seed)) in done:
                continue
            began = cpu_seconds()
            base = {"id": key, "split": split, "part": part, "site": args.site}
            base |= {"variant": name, "seed": seed}
            try:
                rows: Sequence[Any] = redock(docker, args.data / key, args.site, hetero).rows
            except ValueError as error:
                rows = [{"failure": str(error)}]
            base["cpu_seconds"] = round(cpu_seconds() - began, 2)
            append(args.out, [{c: row.get(c, "") for c in COLUMNS} | base for row in rows])
        print(number + 1, key, flush=True)
    return 0


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(paths: Sequence[Path]) -> list[dict[str, str]]:
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def vina_rows(table: Path, poses: Path, data: Path) -> Iterator[dict[str, str]]:
    """Vina's rows in the form of ours, its poses, where kept, put through our validity check."""
    from rdkit import Chem

    from bio_diffusion.dock.validity import Validator

    by_id: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read([table]):
        by_id[row["id"]].append(row)
    for key, rows in by_id.items():
        valid: dict[int, bool] = {}
        if not rows[0]["failure"] and (poses / key / "poses.sdf").is_file():
            receptor = read_receptor(data / key / "protein.pdb")
            mols = [Chem.RemoveAllHs(m) for m in Chem.SDMolSupplier(str(poses / key / "poses.sdf"))]
            coords = np.stack([m.GetConformer().GetPositions() for m in mols])
            checks = Validator(mols[0], receptor).check(coords)
            valid = dict(enumerate(np.all(list(checks.values()), axis=0).tolist(), start=1))
        for row in rows:
            rank = int(row["rank"]) if row["rank"] else 0
            yield {
                **{c: row.get(c, "") for c in COLUMNS},
                "site": "known",
                "variant": f"vina (exhaustiveness {row['exhaustiveness'] or 8})",
                "valid": str(valid.get(rank, "")),
            }


def table(args: argparse.Namespace) -> int:
    rows = read(args.tables)
    if args.vina:
        rows += vina_rows(args.vina, args.vina_poses, args.data)
    if args.ids_of:
        common = {r["id"] for r in rows if r["variant"].startswith(args.ids_of)}
        rows = [r for r in rows if r["id"] in common]
    print(render(rows))
    return 0


@dataclass(frozen=True)
class Outcome:
    """How a complex was docked once; one without a pose is a miss.

    Attributes:
        top: the first pose is right.
        best: one of the first ten is.
        rmsd: of the first pose, Å.
        valid: whether the first pose is, None where nobody checked.
        cpu: seconds, NaN where it failed.
    """

    top: bool
    best: bool
    rmsd: float
    valid: bool | None
    cpu: float

    @property
    def both(self) -> bool | None:
        return self.valid if self.top else False

    @classmethod
    def of(cls, poses: Sequence[dict[str, str]]) -> Outcome:
        """From the rows of a complex, one a pose, or one that tells why there is none."""
        ranked = sorted((p for p in poses if p["rmsd"]), key=lambda p: int(p["rank"]))[:10]
        rmsds = [float(p["rmsd"]) for p in ranked] or [np.inf]
        told = ranked[0]["valid"] if ranked else "False"
        return cls(
            top=rmsds[0] < SUCCESS,
            best=min(rmsds) < SUCCESS,
            rmsd=rmsds[0],
            valid={"True": True, "False": False}.get(told),
            cpu=float(poses[0]["cpu_seconds"] or "nan"),
        )


def checked_rate(outcomes: Sequence[bool | None]) -> str:
    """The rate of true ones, or that it is not known."""
    known = [o for o in outcomes if o is not None]
    return str(rate(known)) if len(known) == len(outcomes) else "not checked"


def cells(outcomes: Sequence[Outcome]) -> list[str]:
    """n, rates, median RMSD and time of some complexes, as cells of a table."""
    spent = [o.cpu for o in outcomes if o.cpu == o.cpu]
    seconds = f"{statistics.mean(spent):.1f} ({statistics.median(spent):.1f})" if spent else ""
    return [
        str(len(outcomes)),
        *(checked_rate([getattr(o, name) for o in outcomes]) for name in ("top", "both", "best")),
        f"{statistics.median(o.rmsd for o in outcomes):.2f}",
        checked_rate([o.valid for o in outcomes]),
        seconds,
    ]


CELLS = (
    "n | top-1 < 2 Å | top-1 < 2 Å and valid | best of 10 < 2 Å | median RMSD, Å | top-1 valid "
    "| CPU s, mean (median)"
)


def render(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; a complex without a pose counts as a miss everywhere."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], list[dict[str, str]]]] = {}
    for row in rows:
        group = groups.setdefault((row["split"], row["part"], row["site"], row["variant"]), {})
        group.setdefault((row["id"], row["seed"]), []).append(row)
    lines = [f"| set | site | variant | {CELLS} |", "|---|---|---|---|---|---|---|---|---|---|"]
    for (split, part, site, variant), complexes in groups.items():
        outcomes = [Outcome.of(poses) for poses in complexes.values()]
        line = [f"{split} {part}".strip(), site, variant, *cells(outcomes)]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join([*lines, "", *by_seed(groups), *paired(groups)])


def by_seed(groups: dict[tuple[str, ...], Any]) -> list[str]:
    """First poses < 2 Å of each docking seed of a variant with several, the mean over seeds, and
    how much that is above the variants with one seed on the same complexes."""
    lines = []
    tops = {key: top_by_seed(complexes) for key, complexes in groups.items()}
    for key, seeds in tops.items():
        if len(seeds) < 2:
            continue
        hits = [sum(top.values()) for top in seeds.values()]
        lines.append(f"{' '.join(filter(None, key))}, by seed: {hits}, mean {spread(hits)}")
        for other, theirs in tops.items():
            if other[:3] == key[:3] and len(theirs) == 1:
                (their,) = theirs.values()
                common = [i for i in their if all(i in top for top in seeds.values())]
                more = [
                    100 * (np.mean([top[i] for top in seeds.values()]) - their[i]) for i in common
                ]
                lines.append(
                    f"    above {other[3]} on {len(common)} complexes, in points: {spread(more)}"
                )
    return lines


def top_by_seed(complexes: dict[tuple[str, str], Any]) -> dict[str, dict[str, bool]]:
    """Of each seed: of each complex, is its first pose right?"""
    found: dict[str, dict[str, bool]] = {}
    for (key, seed), poses in complexes.items():
        found.setdefault(seed, {})[key] = Outcome.of(poses).top
    return found


def paired(groups: dict[tuple[str, ...], Any]) -> list[str]:
    """McNemar's exact test of each variant against the first of its set and site.

    Pairs are complexes and seeds; complexes alone where the two have one seed each, which another
    program may number differently.
    """
    lines = []
    for where in dict.fromkeys(key[:3] for key in groups):
        names = [key for key in groups if key[:3] == where]
        for other in names[1:]:
            both = [groups[names[0]], groups[other]]
            if all(len({seed for _, seed in runs}) == 1 for runs in both):
                both = [{(key, ""): poses for (key, _), poses in runs.items()} for runs in both]
            common = sorted(both[0].keys() & both[1].keys())
            if not common:
                continue
            hits = [[Outcome.of(runs[key]).top for key in common] for runs in both]
            p = mcnemar(*hits)
            share = " to ".join(f"{100 * np.mean(h):.1f} %" for h in hits)
            label = " ".join(filter(None, where))
            lines.append(
                f"{label}: {names[0][3]} against {other[3]} on {len(common)} pairs: {share}, "
                f"McNemar p = {p:.3g}"
            )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("run", help="dock and append to a table")
    p.set_defaults(call=run)
    p.add_argument("--data", type=Path, required=True)
    sample_flags(p)
    p.add_argument("--docking-seed", type=int, nargs="+", default=[0])
    p.add_argument("--variant", action="append", required=True)
    p.add_argument("--site", choices=("known", "blind"), default="known")
    p.add_argument("--out", type=Path, required=True)
    p = commands.add_parser("table", help="print the table of runs")
    p.set_defaults(call=table)
    p.add_argument("tables", nargs="+", type=Path)
    p.add_argument("--vina", type=Path, help="table of vina_baseline.py")
    p.add_argument("--vina-poses", type=Path)
    p.add_argument("--data", type=Path, help="folder of complexes, to check Vina's poses")
    p.add_argument("--ids-of", help="keep the complexes that variants of this name have docked")
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
