"""Make a compact docking set from a folder of complexes.

    python -m bio_diffusion.dock.prepare --data DIR [--manifest FILE] [--split NAME] --out FILE

`DIR/<id>/` holds ``protein.pdb`` (or .cif) and ``ligand.sdf`` (or .mol2), also gzipped, or as
PDBbind names them ``<id>_protein.pdb`` and ``<id>_ligand.sdf``. Where there is an SDF and a MOL2
file and one cannot be read, the other is. A group of the protein's file that lies where the ligand
does is taken out.

The manifest, a CSV file with a column ``id``, says which complexes are meant; its columns
``split``, ``test_part``, ``cluster``, ``het_stripped`` and ``n_rot`` are kept in the index. Without
--manifest it is ``DIR/manifest.csv``, and without that every folder of a complex is taken.

Exit status: 0 done; 2 bad usage or input, before any work; 3 some complexes could not be used:
they are named and left out (no file is written when none could); 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from bio_diffusion.command import Parser
from bio_diffusion.files import InputError, one_line, read_text, replacing

__all__ = ["complex_folders", "example_from_files", "main", "read_ligand", "read_manifest"]

logger = logging.getLogger(__name__)

CONFORMERS = 2
MAX_REACH = 327.0
"""Å from the ligand's middle to the farthest atom that a compact file can hold."""

_PROTEINS = ("pdb", "cif", "ent", "mmcif")
_LIGANDS = ("sdf", "mol2", "mol", "pdb")
_KEPT_COLUMNS = ("split", "test_part", "cluster", "het_stripped", "n_rot")


def read_manifest(path: Path, split: str | None = None) -> dict[str, dict[str, str]]:
    """Rows by id, of one split or of all.

    Raises:
        InputError: the file cannot be read, lacks the column `id` (or `split` where one is asked
            for), or an id is there twice or is no name of a folder.
    """
    name = one_line(path)
    try:
        table = list(csv.DictReader(io.StringIO(read_text(path))))
    except csv.Error as error:
        raise InputError("parse", f"{name}: not a readable CSV file ({error})") from None
    for column in ("id", "split") if split is not None else ("id",):
        if table and column not in table[0]:
            raise InputError("columns", f"{name}: no column {column}; its first line names them")
    rows: dict[str, dict[str, str]] = {}
    for row in table:
        key = row["id"]
        if key != one_line(key) or key in ("", ".", "..") or set(key) & set("/\\"):
            raise InputError("id", f"{name}: id {one_line(key, 40)!r} is no name of a folder")
        if key in rows:
            raise InputError("id", f"{name}: id {key} is there twice; give each complex its own")
        rows[key] = row
    return {k: row for k, row in rows.items() if split in (None, row.get("split"))}


def protein_file(folder: Path) -> Path | None:
    """The protein of a complex: ``protein.*``, else ``<id>_protein.*``."""
    return next(iter(_files(folder, "protein", _PROTEINS)), None)


def ligand_files(folder: Path) -> list[Path]:
    """The files of a complex's ligand, the one to prefer first: ``ligand.*``, ``<id>_ligand.*``."""
    return _files(folder, "ligand", _LIGANDS)


def _files(folder: Path, role: str, suffixes: tuple[str, ...]) -> list[Path]:
    names = [
        f"{stem}.{suffix}{packed}"
        for stem in (role, f"{folder.name}_{role}")
        for suffix in suffixes
        for packed in ("", ".gz")
    ]
    return [folder / name for name in names if (folder / name).is_file()]


def complex_folders(data: Path) -> list[str]:
    """Ids of the folders that hold a protein or a ligand, in order; other folders are not meant.

    Raises:
        InputError: `data` is no folder that can be read.
    """
    try:
        folders = sorted(path for path in data.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError("missing", f"{one_line(data)}: {error.strerror}; name a folder") from None
    return [path.name for path in folders if protein_file(path) or ligand_files(path)]


def read_ligand(folder: Path) -> Any:  # noqa: ANN401 - a Ligand, imported by the caller alone
    """The first readable ligand of a complex with its pose, or the fault of its first file.

    Raises:
        InputError: there is no such file, or none can be used.
    """
    from .ligand import Failure
    from .ligand_files import read_ligands

    refusal: InputError | None = None
    for path in ligand_files(folder):
        ligand = next(iter(read_ligands([path])))
        if isinstance(ligand, Failure):
            refusal = refusal or InputError(ligand.code, ligand.reason)
        elif ligand.crystal is None:
            refusal = refusal or InputError("flat", f"{path.name}: has no coordinates in space")
        else:
            return ligand
    raise refusal or InputError("missing", "no ligand.sdf and no ligand.mol2")


def example_from_files(
    folder: Path, notes: dict[str, Any] | None = None, crop: float | None = None, seed: int = 0
) -> Any:  # noqa: ANN401 - an Example; its module imports torch, which --help must not
    """Read protein and ligand of `folder` into an `Example` named after it.

    Args:
        notes: goes to the index.
        crop: keep whole residues within so many Å of any ligand atom; None keeps all.
        seed: of the conformers.

    Raises:
        InputError: when the protein or the ligand cannot be used, or they lie apart.
    """
    import numpy as np
    import torch
    from scipy.spatial import cKDTree

    from .conformer import matched_conformer
    from .dataset import Example
    from .featurize import ligand_graph, receptor_graph
    from .receptor import read_receptor

    torch.set_num_threads(1)
    protein = protein_file(folder)
    if protein is None:
        raise InputError("missing", "no protein.pdb and no protein.cif")
    receptor = read_receptor(protein)
    ligand = read_ligand(folder)
    receptor = receptor.without(ligand.crystal)  # a deposited file often holds the ligand too
    distance = cKDTree(ligand.crystal).query(receptor.coords)[0]
    if distance.min() > _TOUCH:
        raise InputError(
            "site_away",
            f"the ligand is {distance.min():.1f} Å away from the protein; "
            "both files must share their coordinates",
        )
    if crop is not None:
        receptor = receptor.select(np.unique(receptor.residue_index[distance <= crop]))
    reach = np.abs(receptor.coords - ligand.crystal.mean(0)).max()
    if reach > MAX_REACH:
        raise InputError("too_large", f"reaches {reach:.0f} Å from the ligand; say --crop 14")
    matched = [
        matched_conformer(ligand.mol, ligand.crystal, 4, seed + i) for i in range(CONFORMERS)
    ]
    graph = ligand_graph(ligand.mol)
    return Example(
        id=folder.name,
        receptor=receptor_graph(
            receptor.coords,
            receptor.elements,
            receptor.atom_names,
            receptor.residue_index,
            receptor.residue_names,
        ),
        ligand=graph,
        rotatable=rotatable_bonds(graph),
        crystal=torch.as_tensor(ligand.crystal, dtype=torch.float32),
        conformers=torch.stack([torch.as_tensor(coords) for coords, _ in matched]),
        notes={**(notes or {}), "match_rmsd": round(min(rmsd for _, rmsd in matched), 3)},
    )


_TOUCH = 6.0  # Å: a ligand with no atom this near lies in another frame than the protein


def rotatable_bonds(graph: Any) -> Any:  # noqa: ANN401 - LigandGraph -> Tensor, see above
    """(E / 2,) bool: which bonds, each once, are in the torsion tree."""
    import torch

    turning = {frozenset(bond) for bond in graph.tree.bonds.tolist()}
    return torch.tensor([frozenset(bond) in turning for bond in graph.bonds[::2].tolist()])


def _prepare(task: tuple[Path, dict[str, Any], float | None]) -> Any:  # noqa: ANN401
    """An `Example`, or why there is none."""
    folder, notes, crop = task
    try:
        return example_from_files(folder, notes, crop)
    except ValueError as error:
        return f"{folder.name}: {one_line(error)}"
    except Exception as error:  # a fault of ours with one complex must not cost the others
        logger.debug("%s", folder.name, exc_info=True)
        return f"{folder.name}: {type(error).__name__}: {one_line(error)}"


def prepare_folder(
    data: Path, rows: dict[str, dict[str, str]], crop: float | None, workers: int
) -> Iterator[Any]:
    """Examples in the order of `rows`; a complex that fails is logged and left out."""
    tasks = [
        (data / key, {c: row[c] for c in _KEPT_COLUMNS if row.get(c) is not None}, crop)
        for key, row in rows.items()
    ]
    with ProcessPoolExecutor(workers) as pool:
        for result in pool.map(_prepare, tasks, chunksize=4):
            if isinstance(result, str):
                logger.warning("left out %s", result)
            else:
                yield result


def _distance(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no distance in Å")
    return value


def _workers(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least one is needed")
    return value


def _chosen(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The complexes that the command line asks for.

    Raises:
        InputError: the manifest or the folder cannot be used, or nothing is left.
    """
    folders = complex_folders(args.data)
    manifest = args.manifest or args.data / "manifest.csv"
    if args.manifest or manifest.exists():
        rows = read_manifest(manifest, args.split)
    elif args.split:
        raise InputError("columns", f"--split {args.split}: {one_line(args.data)} has no manifest")
    else:
        rows = {name: {} for name in folders}
    if args.exclude_source:
        rows = {k: r for k, r in rows.items() if args.exclude_source not in (r.get("source") or "")}
    if not rows:
        where = one_line(manifest if manifest.exists() else args.data)
        raise InputError("empty", f"{where}: no complexes to prepare")
    if args.out.is_dir() or not os.access(args.out.parent, os.W_OK):
        raise InputError("out_unwritable", f"{one_line(args.out)}: no file can be written there")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = Parser(
        prog="python -m bio_diffusion.dock.prepare",
        description=(__doc__ or "").split("\n")[0],
        epilog=(__doc__ or "").partition("--out FILE\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, help="CSV with id and split")
    parser.add_argument("--split", help="only the manifest's rows of this split")
    parser.add_argument("--exclude-source", help="leave out rows whose source holds this word")
    parser.add_argument(
        "--crop", type=_distance, help="keep residues within so many Å of the ligand"
    )
    parser.add_argument("--workers", type=_workers, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        return _run(args, _chosen(args))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing written", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, rows: dict[str, dict[str, str]]) -> int:
    """Prepares the complexes and writes them. The exit status."""
    from .dataset import write_compact

    try:
        examples = list(prepare_folder(args.data, rows, args.crop, args.workers))
    except BrokenProcessPool:
        print(
            "a process was killed, maybe for lack of memory; use fewer --workers", file=sys.stderr
        )
        return 1
    if examples:
        with replacing(args.out) as part:
            write_compact(part, examples)
    logger.info("%s: %d of %d complexes", args.out, len(examples), len(rows))
    return 0 if len(examples) == len(rows) else 3


if __name__ == "__main__":
    sys.exit(main())
