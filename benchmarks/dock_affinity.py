"""Ranking within congeneric series: do energies follow measured affinities?

The poses are models (experts placed each ligand by analogy with a crystal ligand), so nothing is
said of pose accuracy here; and none of the numbers compared was fitted to these affinities.

    python benchmarks/dock_affinity.py ours --data MODELLED --table modelled.csv --out ours.csv
    python benchmarks/dock_affinity.py vina --data MODELLED --table modelled.csv --out vina.csv \
        [--series 20]
    python benchmarks/dock_affinity.py docked --data MODELLED --table modelled.csv \
        --out docked.csv --series 6 --ligands 10
    python benchmarks/dock_affinity.py report ours.csv [vina.csv] [docked.csv]

`ours`: Vina's energy as this package computes it of each modelled pose after descent to the nearest
minimum, and the score, which adds what the network thinks of the pose; heavy atoms and logP beside
them. `vina`: the `vina` package on the same poses, as they are and after its own descent. `docked`:
the first pose of a docking at the site with its confidence. Series of at least 8 ligands; a sample
of series or of a series' ligands is the first n by sha256, as in `vina_baseline.py`. Each command
appends a series at a time and goes on where it was stopped.

`report`: rank correlations with the measured free energy within each series, averaged over series
with their standard error; a quantity with one value throughout a series ranks nothing and counts
as 0. Signs are such that a positive correlation is what one hopes for.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem
from scipy.stats import kendalltau, spearmanr
from tables import spread
from vina_baseline import ligand_pdbqt, pick, prepare_receptor, search_box

PADDING = 8.0  # Å round all ligands of a series: nothing here should touch a wall

Row = dict[str, str | float]

QUANTITIES: dict[str, tuple[str, int]] = {
    "energy": ("energy, minimised", 1),
    "score": ("energy and judgement, the former score", 1),
    "loss": ("judgement alone", 1),
    "placed": ("energy, as placed", 1),
    "heavy": ("heavy atoms", -1),
    "logp": ("logP", -1),
    "vina": ("Vina package, minimised", 1),
    "vina_placed": ("Vina package, as placed", 1),
    "docked_energy": ("energy, docked", 1),
    "docked_score": ("score, docked", 1),
    "confidence": ("confidence, docked (not an affinity)", -1),
}
"""Column -> its name and the sign with which it should follow the free energy."""


def series(args: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The series asked for and their rows with a measured affinity."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with args.table.open() as handle:
        for row in csv.DictReader(handle):
            if row["affinity"]:
                found[row["target"]].append(row)
    large = {target: rows for target, rows in found.items() if len(rows) >= args.minimum}
    for target in pick(large, args.series, 0):
        wanted = set(pick([r["id"] for r in large[target]], args.ligands, 0))
        yield target, [r for r in large[target] if r["id"] in wanted]


def each_series(
    args: argparse.Namespace, work: Callable[[Path, list[dict[str, str]]], list[Row]]
) -> int:
    """Appends what `work` makes of each series that the table lacks."""
    done = set()
    if args.out.exists():
        with args.out.open() as handle:
            done = {row["target"] for row in csv.DictReader(handle)}
    for target, rows in series(args):
        if target in done:
            continue
        made = [
            {"id": row["id"], "target": target, "affinity": row["affinity"], **values}
            for row, values in zip(rows, work(args.data / target, rows), strict=True)
        ]
        new = not args.out.exists()
        with args.out.open("a", newline="") as handle:
            writer = csv.DictWriter(handle, list(made[0]))
            if new:
                writer.writeheader()
            writer.writerows(made)
        print(target, len(made), flush=True)
    return 0


def ours(args: argparse.Namespace) -> int:
    import torch
    from rdkit.Chem.Crippen import MolLogP

    from bio_diffusion.dock.atom_types import active_torsions, ligand_types
    from bio_diffusion.dock.complex import Ligand, Site, read_ligands
    from bio_diffusion.dock.featurize import ligand_graph
    from bio_diffusion.dock.ligand import atom_orders
    from bio_diffusion.dock.pipeline import Docker
    from bio_diffusion.dock.pose import Pose
    from bio_diffusion.dock.search import minimize
    from bio_diffusion.dock.sources import PreparedLigand

    torch.set_num_threads(1)
    docker = Docker.load(args.checkpoint, "cpu")

    def work(folder: Path, rows: list[dict[str, str]]) -> list[Row]:
        receptor = docker.prepare(folder / "protein.pdb")
        read = [item for item in read_ligands([folder / "ligands.sdf"]) if isinstance(item, Ligand)]
        ligands = {ligand.id: ligand for ligand in read if ligand.crystal is not None}
        center, size = box([ligands[row["id"]].crystal for row in rows])
        site = Site(center, size, "modelled poses")
        made: list[Row] = []
        for row in rows:
            ligand = ligands[row["id"]]
            coords = torch.as_tensor(ligand.crystal, dtype=torch.float32)[None]
            graph = ligand_graph(ligand.mol)
            # the pose stands for the conformers: nothing is docked
            prepared = PreparedLigand(
                ligand,
                graph,
                torch.as_tensor(ligand_types(ligand.mol)),
                coords,
                active_torsions(ligand.mol),
                torch.as_tensor(atom_orders(ligand.mol)),
            )
            vina = prepared.energy(receptor, site)
            found = minimize(Pose(coords, graph.tree), vina, docker.settings.refine)
            energy = float(vina.affinity(found.pose.coords))
            loss = float(docker.source.losses(receptor, prepared, site, found.pose).mean())
            made.append(
                {
                    "energy": round(energy, 4),
                    "score": round(energy + docker.settings.judgement * loss, 4),
                    "loss": round(loss, 5),
                    "placed": round(float(vina.affinity(coords)), 4),
                    "heavy": ligand.mol.GetNumAtoms(),
                    "logp": round(MolLogP(ligand.mol), 4),
                }
            )
        return made

    return each_series(args, work)


def docked(args: argparse.Namespace) -> int:
    import torch

    from bio_diffusion.dock.complex import Ligand, Site, read_ligands
    from bio_diffusion.dock.pipeline import Docker

    torch.set_num_threads(1)
    docker = Docker.load(args.checkpoint, "cpu")

    def work(folder: Path, rows: list[dict[str, str]]) -> list[Row]:
        receptor = docker.prepare(folder / "protein.pdb")
        wanted = {row["id"] for row in rows}
        read = read_ligands([folder / "ligands.sdf"])
        ligands = {x.id: x for x in read if isinstance(x, Ligand) and x.id in wanted}
        middle, edges = box([x.crystal for x in ligands.values()], 4.0)
        site = Site(middle, edges, "modelled poses")
        made: list[Row] = []
        for row in rows:
            first = docker.dock_one(receptor, ligands[row["id"]], [site]).rows[0]
            made.append(
                {
                    "docked_energy": first["energy"],
                    "docked_score": first["score"],
                    "confidence": first["confidence"],
                }
            )
        return made

    return each_series(args, work)


def vina(args: argparse.Namespace) -> int:
    from vina import Vina

    def work(folder: Path, rows: list[dict[str, str]]) -> list[Row]:
        supplier = Chem.SDMolSupplier(str(folder / "ligands.sdf"))
        mols = {mol.GetProp("id"): mol for mol in supplier if mol is not None}
        chosen = [Chem.AddHs(mols[row["id"]], addCoords=True) for row in rows]
        center, size = box([mol.GetConformer().GetPositions() for mol in chosen])
        engine = Vina(sf_name="vina", cpu=1, seed=1, verbosity=0)
        with tempfile.TemporaryDirectory() as place:
            receptor = Path(place) / "receptor.pdbqt"
            prepare_receptor(folder / "protein.pdb", receptor)
            engine.set_receptor(str(receptor))
        # before any ligand: maps for all kinds of atoms, not only those of the first
        engine.compute_vina_maps(center=center.tolist(), box_size=size.tolist())
        made: list[Row] = []
        for mol in chosen:
            engine.set_ligand_from_string(ligand_pdbqt(mol))
            placed = float(engine.score()[0])
            made.append({"vina": float(engine.optimize()[0]), "vina_placed": placed})
        return made

    return each_series(args, work)


def box(coords: Sequence[np.ndarray], padding: float = PADDING) -> tuple[np.ndarray, np.ndarray]:
    """Centre and edges of the box round several molecules, (3,) each, at least 15 Å an edge."""
    everything = np.concatenate(list(coords))
    center, size = search_box(everything)
    return center, np.maximum(np.ptp(everything, axis=0) + 2 * padding, size)


def correlations(rows: Sequence[Mapping[str, float]], name: str, sign: int) -> tuple[float, float]:
    """Spearman's rho and Kendall's tau-b of a column with the affinity; 0 if either is constant."""
    x, y = (np.array([row[key] for row in rows]) for key in (name, "affinity"))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 0.0
    return float(spearmanr(sign * x, y)[0]), float(kendalltau(sign * x, y)[0])


def render(tables: Sequence[Sequence[Mapping[str, str]]]) -> str:
    """One table for each file beyond the first, on its ligands; the first alone comes first.

    Series whose ligands lack a quantity in part are left out for all, so that a table's lines
    compare.
    """
    known = {row["id"]: dict(row) for row in tables[0]}
    blocks = []
    for extra in ([], *tables[1:]):
        here = [known[r["id"]] | dict(r) for r in extra if r["id"] in known] or list(known.values())
        names = [name for name in QUANTITIES if name in here[0]]
        groups: dict[str, list[dict[str, float]]] = defaultdict(list)
        for row in here:
            values = {name: float(row[name] or "nan") for name in ("affinity", *names)}
            groups[row["target"]].append(values)
        whole = [g for g in groups.values() if all(v == v for row in g for v in row.values())]
        found = {
            name: np.array([correlations(g, name, QUANTITIES[name][1]) for g in whole])
            for name in names
        }
        lines = [
            f"{len(whole)} series, {sum(map(len, whole))} ligands",
            "",
            "| quantity | Spearman | Kendall | Spearman beyond heavy atoms' | series above 0 |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            rho, tau = found[name].T
            more = spread(rho - found["heavy"][:, 0]) if name != "heavy" else ""
            lines.append(
                f"| {QUANTITIES[name][0]} | {spread(rho)} | {spread(tau)} "
                f"| {more} | {(rho > 0).sum()}/{len(rho)} |"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def report(args: argparse.Namespace) -> int:
    tables = []
    for path in args.tables:
        with path.open() as handle:
            tables.append(list(csv.DictReader(handle)))
    print(render(tables))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, call in (("ours", ours), ("vina", vina), ("docked", docked)):
        p = commands.add_parser(name)
        p.set_defaults(call=call)
        p.add_argument("--data", type=Path, required=True, help="folder of series")
        p.add_argument("--table", type=Path, required=True, help="modelled.csv")
        p.add_argument("--out", type=Path, required=True, help="table to append to")
        p.add_argument("--minimum", type=int, default=8, help="ligands a series must have")
        p.add_argument("--series", type=int, default=0, help="series to take (0: all)")
        p.add_argument("--ligands", type=int, default=0, help="ligands of each (0: all)")
        p.add_argument("--checkpoint", type=Path)
    p = commands.add_parser("report", help="print the correlations")
    p.set_defaults(call=report)
    p.add_argument("tables", nargs="+", type=Path)
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
