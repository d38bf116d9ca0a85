"""AutoDock Vina as the baseline for re-docking into a known site.

Each complex ``DATA/<id>/{protein.pdb,ligand.sdf}`` goes through the usual Vina recipe: receptor
hydrogens and atom types from Open Babel at pH 7.4, a ligand prepared by Meeko from a fresh ETKDG
conformer (never from the crystal coordinates; only its stereo is kept), a box of the crystal
ligand plus 4 Å a side and at least 15 Å an edge, exhaustiveness 8 on one core. One CSV row is
written per pose, all rows of a complex in one write, so that an interrupted run goes on with the
complexes that its table lacks; a complex that fails leaves one row with the reason, and delete
that row to have it tried again. A sample is the first n ids ordered by sha256("seed:id"), so a
smaller sample is a prefix of a larger one and an unfinished run is itself a fair sample.

    python benchmarks/vina_baseline.py --data DATA/val --manifest manifest.csv --split val \
        --sample 60 --out vina_val.csv --poses POSES
    python benchmarks/vina_baseline.py --summary vina_val.csv vina_unseen.csv

Needs ``vina``, ``meeko``, ``rdkit``, ``spyrmsd`` and the program ``obabel``.

Source: Eberhardt et al. 2021 (Vina 1.2); Forli et al. 2016 (preparation); Meli and Biggin 2020
(symmetry-corrected RMSD).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import logging
import math
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rdkit import Chem

log = logging.getLogger("vina_baseline")

PADDING = 4.0  # Å on each side of the crystal ligand, the autobox convention
MIN_EDGE = 15.0  # Å, so that a small ligand can still turn over in its box
ENERGY_RANGE = 5.0  # kcal/mol kept above the best mode
SUCCESS = 2.0  # Å, heavy-atom RMSD
METALS = frozenset("MG MN ZN CA FE CO CD CU NI NA K HG".split())


@dataclass(frozen=True)
class Task:
    """One complex to dock and the settings to dock it with."""

    id: str
    split: str
    part: str
    folder: Path
    poses: Path
    exhaustiveness: int
    n_poses: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One line of the table: a pose, or a failure with its reason and no pose."""

    id: str
    split: str
    part: str
    rank: int | str = ""  # 1 = best energy
    energy: float | str = ""  # kcal/mol
    rmsd: float | str = ""  # Å, symmetry-corrected, heavy atoms, no alignment
    cpu_seconds: float | str = ""  # user + system, maps and docking of the whole complex
    wall_seconds: float | str = ""
    n_heavy: int | str = ""
    n_rot: int | str = ""
    box: str = ""  # edge lengths, Å
    exhaustiveness: int | str = ""
    seed: int | str = ""
    vina: str = ""
    failure: str = ""


def pick(ids: Iterable[str], n: int, seed: int) -> list[str]:
    """First n ids in the order of sha256("seed:id"); n = 0 takes all."""
    ordered = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest())
    return ordered[:n] if n else ordered


def search_box(crystal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and edges, each (3,) in Å, of the search box round crystal coordinates (N, 3)."""
    low, high = crystal.min(axis=0), crystal.max(axis=0)
    return (low + high) / 2, np.maximum(high - low + 2 * PADDING, MIN_EDGE)


def _xyz(line: str) -> np.ndarray:
    return np.array([float(line[30:38]), float(line[38:46]), float(line[46:54])])


def _is_atom(line: str) -> bool:
    return line.startswith(("ATOM", "HETATM"))


def donate(pdbqt: list[str], pdb: list[str]) -> list[str]:
    """Give tryptophan NE1 and bare histidines the N-H that Open Babel leaves out.

    Open Babel reads these rings as aromatic but cannot place the double bonds, so that NE1 of every
    tryptophan, and both nitrogens of about half the histidines, come out as acceptors without a
    hydrogen. Vina takes a nitrogen for a donor when an HD is bonded to it, and looks no further at
    the hydrogen. A bare histidine gets its hydrogen on NE2 (the commoner tautomer), or on ND1 where
    NE2 binds a metal. Residues are told by the input's coordinates, because Open Babel can write
    another residue's name beside an atom.

    Args:
        pdbqt: Lines of the receptor as Open Babel wrote it.
        pdb: Lines of the heavy-atom PDB file it was made from.

    Returns:
        The lines with the missing hydrogens after their nitrogens.
    """
    rings: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    metals = []
    for line in filter(_is_atom, pdb):
        if line[17:20] in ("TRP", "HIS"):
            rings[line[17:27]].setdefault(line[12:16].strip(), _xyz(line))
        elif line[76:78].strip().upper() in METALS:
            metals.append(_xyz(line))
    atoms = {tuple(_xyz(line)): k for k, line in enumerate(pdbqt) if _is_atom(line)}
    polar = np.array(
        [_xyz(line) for line in pdbqt if _is_atom(line) and line[77:79].strip() == "HD"]
    ).reshape(-1, 3)

    def near(at: np.ndarray, others: np.ndarray, reach: float) -> bool:
        return bool((np.linalg.norm(others - at, axis=1) < reach).any())

    lines = list(pdbqt)
    for residue, xyz in rings.items():
        if residue.startswith("TRP"):
            triples = [("NE1", "CD1", "CE2")]
        else:
            triples = [("NE2", "CD2", "CE1"), ("ND1", "CG", "CE1")]
        triples = [t for t in triples if all(name in xyz for name in t)]
        if not triples or any(near(xyz[t[0]], polar, 1.2) for t in triples):
            continue
        free = [t for t in triples if not near(xyz[t[0]], np.array(metals).reshape(-1, 3), 2.8)]
        if not free:
            continue
        nitrogen, one, two = (xyz[name] for name in free[0])
        k = atoms.get(tuple(nitrogen))
        if k is None:
            continue
        outward = 2 * nitrogen - one - two
        x, y, z = nitrogen + 1.01 * outward / np.linalg.norm(outward)
        bare = pdbqt[k]
        hydrogen = f"{bare[:12]} HN {bare[16:30]}{x:8.3f}{y:8.3f}{z:8.3f}{bare[54:77]}HD"
        lines[k] = f"{bare[:77]}N \n{hydrogen}"
    return "\n".join(lines).splitlines()


def prepare_receptor(protein: Path, out: Path) -> None:
    """Write the rigid PDBQT of a heavy-atom PDB file: polar hydrogens at pH 7.4, metals kept."""
    command = ["obabel", "-ipdb", str(protein), "-xr", "-p", "7.4", "-opdbqt", "-O", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not out.exists() or not out.stat().st_size:
        raise RuntimeError(f"obabel failed on {protein.name}: {done.stderr.strip()[-200:]}")
    pdb = protein.read_text().splitlines()
    lines = donate(out.read_text().splitlines(), pdb)
    heavy = sum(_is_atom(line) and line[77:79].strip() != "HD" for line in lines)
    wanted = sum(map(_is_atom, pdb))
    if heavy != wanted:
        raise RuntimeError(f"obabel kept {heavy} of {wanted} heavy atoms of {protein.name}")
    out.write_text("\n".join(lines) + "\n")


def prepare_ligand(crystal: Chem.Mol, seed: int) -> str:
    """PDBQT text of a fresh ETKDG conformer, relaxed with MMFF94, that shares only the stereo."""
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol = Chem.Mol(crystal)
    mol.RemoveAllConformers()
    mol = Chem.AddHs(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed  # type: ignore[assignment]  # rdkit stub names the wrong type
    if rdDistGeom.EmbedMolecule(mol, parameters) < 0:
        parameters.useRandomCoords = True  # type: ignore[assignment]
        if rdDistGeom.EmbedMolecule(mol, parameters) < 0:
            raise RuntimeError("ETKDG found no conformer")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=1000)
    return ligand_pdbqt(mol)


def ligand_pdbqt(mol: Chem.Mol) -> str:
    """PDBQT text of a molecule with its hydrogens, as it stands in space."""
    from meeko import MoleculePreparation, PDBQTWriterLegacy

    text, ok, error = PDBQTWriterLegacy.write_string(MoleculePreparation().prepare(mol)[0])
    if not ok:
        raise RuntimeError(f"meeko: {error.strip()}")
    return text


def symmetric_rmsd(crystal: Chem.Mol, docked: Chem.Mol) -> list[float]:
    """Heavy-atom RMSD (Å) of each conformer of docked to the crystal pose, without alignment.

    The graphs are matched by element, so neither the atom order nor the double bond of a neutral
    carboxylic acid or phosphate matters.
    """
    from spyrmsd.rmsd import symmrmsd

    heavy = Chem.RemoveAllHs(docked)
    numbers = [[a.GetAtomicNum() for a in m.GetAtoms()] for m in (crystal, heavy)]
    bonds = [Chem.GetAdjacencyMatrix(m) for m in (crystal, heavy)]
    poses = [c.GetPositions() for c in heavy.GetConformers()]
    reference = crystal.GetConformer().GetPositions()
    return [float(r) for r in symmrmsd(reference, poses, *numbers, *bonds)]


def dock(task: Task) -> list[Row]:
    """Prepare, dock and score one complex; its poses go to ``task.poses/<id>/poses.sdf``."""
    import vina
    from meeko import PDBQTMolecule, RDKitMolCreate
    from rdkit.Chem.rdMolDescriptors import CalcNumRotatableBonds

    crystal = Chem.MolFromMolFile(str(task.folder / "ligand.sdf"))
    if crystal is None:
        raise RuntimeError("rdkit cannot read ligand.sdf")
    crystal = Chem.RemoveAllHs(crystal)
    ligand = prepare_ligand(crystal, task.seed)
    folder = task.poses / task.id
    folder.mkdir(parents=True, exist_ok=True)
    receptor = folder / "receptor.pdbqt"
    prepare_receptor(task.folder / "protein.pdb", receptor)
    center, edges = search_box(crystal.GetConformer().GetPositions())

    engine = vina.Vina(sf_name="vina", cpu=1, seed=task.seed, verbosity=0)
    engine.set_receptor(str(receptor))
    engine.set_ligand_from_string(ligand)
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    engine.compute_vina_maps(center=center.tolist(), box_size=edges.tolist())
    engine.dock(exhaustiveness=task.exhaustiveness, n_poses=task.n_poses)
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - wall
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    energies = engine.energies(n_poses=task.n_poses, energy_range=ENERGY_RANGE)[:, 0]
    found = engine.poses(n_poses=task.n_poses, energy_range=ENERGY_RANGE)
    docked = RDKitMolCreate.from_pdbqt_mol(PDBQTMolecule(found, skip_typing=True))[0]
    rmsds = symmetric_rmsd(crystal, docked)
    if len(rmsds) != len(energies):
        raise RuntimeError(f"{len(energies)} energies for {len(rmsds)} poses")
    with Chem.SDWriter(str(folder / "poses.sdf")) as writer:
        docked.SetProp("_Name", task.id)
        for rank, conformer in enumerate(docked.GetConformers(), start=1):
            docked.SetIntProp("rank", rank)
            docked.SetDoubleProp("energy", float(energies[rank - 1]))
            docked.SetDoubleProp("rmsd", rmsds[rank - 1])
            writer.write(docked, confId=conformer.GetId())
    return [
        Row(
            task.id, task.split, task.part, rank, round(float(energy), 3), round(rmsd, 3),
            round(cpu, 2), round(wall, 2), crystal.GetNumAtoms(), CalcNumRotatableBonds(crystal),
            "x".join(f"{edge:.1f}" for edge in edges), task.exhaustiveness, task.seed,
            vina.__version__,
        )
        for rank, (energy, rmsd) in enumerate(zip(energies, rmsds, strict=True), start=1)
    ]  # fmt: skip


def attempt(task: Task) -> list[Row]:
    """``dock`` in a process of its own: a crash of native code costs one complex, not the run."""
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            return pool.submit(dock, task).result()
    except BrokenProcessPool:
        reason = "the docking process died"
    except Exception as error:  # every reason becomes a row, counted as a miss in the summary
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return [
        Row(
            task.id, task.split, task.part, exhaustiveness=task.exhaustiveness, seed=task.seed,
            failure=reason,
        )
    ]  # fmt: skip


def append(table: Path, rows: Sequence[Row]) -> None:
    """Add all rows of one complex in a single write, with the header when the table is new."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    if not table.exists() or not table.stat().st_size:
        writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with table.open("a") as handle:
        handle.write(text.getvalue())


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion, n > 0."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise(tables: Sequence[Path]) -> str:
    """One block per split and part: hits at rank 1 and among all modes, RMSD and time.

    A complex without a pose counts as a miss. Medians are over the complexes that docked.
    """
    groups: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for table in tables:
        with table.open() as handle:
            for row in csv.DictReader(handle):
                group = groups.setdefault((row["split"], row["part"]), {})
                group.setdefault(row["id"], []).append(row)
    lines = []
    for (split, part), complexes in sorted(groups.items()):
        docked = [rows for rows in complexes.values() if not rows[0]["failure"]]
        n = len(complexes)
        lines.append(f"{split} {part}".strip() + f": {n} complexes, {n - len(docked)} failed")
        if not docked:
            continue
        top = [float(rows[0]["rmsd"]) for rows in docked]
        best = [min(float(row["rmsd"]) for row in rows) for rows in docked]
        cpu = [float(rows[0]["cpu_seconds"]) for rows in docked]
        for name, values in (("top-1", top), ("best mode", best)):
            hits = sum(value <= SUCCESS for value in values)
            low, high = wilson(hits, n)
            median = statistics.median(values)
            lines.append(
                f"  {name:9s} <= {SUCCESS:g} Å: {hits}/{n} = {100 * hits / n:.1f} % "
                f"[{100 * low:.1f}, {100 * high:.1f}], median RMSD {median:.2f} Å"
            )
        lines.append(
            f"  CPU seconds a complex: median {statistics.median(cpu):.0f}, "
            f"mean {statistics.mean(cpu):.0f}, longest {max(cpu):.0f}, total {sum(cpu):.0f}"
        )
    return "\n".join(lines)


def sample_flags(p: argparse.ArgumentParser) -> None:
    """The flags that `chosen` reads."""
    p.add_argument("--ids", type=Path, help="file of ids, instead of a sample of the manifest")
    p.add_argument("--manifest", type=Path, help="CSV with id, split and test_part")
    p.add_argument("--split", default="", help="split to sample")
    p.add_argument("--part", default="", help="test part to sample (all by default)")
    p.add_argument("--sample", type=int, default=0, help="complexes to take (0: all)")
    p.add_argument("--seed", type=int, default=0, help="seed of the sample")


def chosen(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(id, split, part) of the complexes that the flags ask for, in the order they run."""
    rows: dict[str, dict[str, str]] = {}
    if args.manifest:
        with args.manifest.open() as handle:
            rows = {row["id"]: row for row in csv.DictReader(handle)}
    if args.ids:
        ids = args.ids.read_text().split()
    else:
        wanted = [
            i
            for i, row in rows.items()
            if row["split"] == args.split and args.part in ("", row["test_part"])
        ]
        ids = pick(wanted, args.sample, args.seed)
    return [
        (i, rows.get(i, {}).get("split", args.split), rows.get(i, {}).get("test_part", args.part))
        for i in ids
    ]


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--summary", nargs="+", type=Path, metavar="CSV", help="report tables and stop")
    p.add_argument("--data", type=Path, help="folder of <id>/protein.pdb and <id>/ligand.sdf")
    sample_flags(p)
    p.add_argument(
        "--vina-seed", type=int, default=1, help="seed of ETKDG and Vina (Vina draws one at 0)"
    )
    p.add_argument("--exhaustiveness", type=int, default=8)
    p.add_argument("--n-poses", type=int, default=10)
    p.add_argument("--out", type=Path, help="table to append to")
    p.add_argument("--poses", type=Path, help="folder for receptors and poses")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the baseline or print the summary; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.summary:
        print(summarise(args.summary))
        return 0
    if not (args.data and args.out and args.poses and (args.ids or args.manifest)):
        p.error("--data, --out, --poses and one of --ids or --manifest are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    done = set()
    if args.out.exists():
        with args.out.open() as handle:
            done = {row["id"] for row in csv.DictReader(handle)}
    todo = [c for c in chosen(args) if c[0] not in done]
    log.info("%d complexes to dock, %d already in %s", len(todo), len(done), args.out)
    for i, split, part in todo:
        task = Task(
            i, split, part, args.data / i, args.poses, args.exhaustiveness, args.n_poses,
            args.vina_seed,
        )  # fmt: skip
        rows = attempt(task)
        append(args.out, rows)
        first = rows[0]
        log.info("%s %s", i, first.failure or f"{first.energy} kcal/mol, {first.rmsd} Å, "
                 f"{first.cpu_seconds} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
