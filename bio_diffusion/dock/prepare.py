"""Make a compact docking set from a folder of complexes.

    python -m bio_diffusion.dock.prepare --data DIR [--manifest FILE] [--split NAME] --out FILE

`DIR/<id>/` holds ``protein.pdb`` (or .cif, also .gz) and ``ligand.sdf``; the manifest, a CSV file,
gives the ids with their ``split`` and whatever else is kept in the index. Complexes that cannot be
read are listed and left out.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["example_from_files", "main", "read_manifest"]

logger = logging.getLogger(__name__)

CONFORMERS = 2
_KEPT_COLUMNS = ("split", "test_part", "cluster", "het_stripped", "n_rot")


def read_manifest(path: Path, split: str | None = None) -> dict[str, dict[str, str]]:
    """Rows by id, of one split or of all."""
    with path.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    return {k: row for k, row in rows.items() if split in (None, row.get("split"))}


def example_from_files(
    folder: Path, notes: dict[str, Any] | None = None, crop: float | None = None, seed: int = 0
) -> Any:  # noqa: ANN401 - an Example; its module imports torch, which --help must not
    """Read ``protein.*`` and ``ligand.*`` of `folder` into an `Example` named after it.

    Args:
        notes: goes to the index.
        crop: keep whole residues within so many Å of any ligand atom; None keeps all.
        seed: of the conformers.

    Raises:
        InputError: when the protein or the ligand cannot be used.
    """
    import numpy as np
    import torch

    from bio_diffusion.dock.complex import Failure, InputError, read_ligands, read_receptor
    from bio_diffusion.dock.conformer import matched_conformer
    from bio_diffusion.dock.dataset import Example
    from bio_diffusion.dock.featurize import ligand_graph, receptor_graph

    torch.set_num_threads(1)
    proteins = sorted(folder.glob("protein.*"))
    if not proteins:
        raise InputError("missing", f"{folder}: no protein.pdb or protein.cif")
    receptor = read_receptor(proteins[0])
    ligand = next(iter(read_ligands([str(folder / "ligand.sdf")])))
    if isinstance(ligand, Failure):
        raise InputError(ligand.code, ligand.reason)
    if ligand.crystal is None:
        raise InputError("pose", f"{folder}/ligand.sdf: has no 3D coordinates")
    if crop is not None:
        from scipy.spatial import cKDTree

        near = cKDTree(ligand.crystal).query(receptor.coords, distance_upper_bound=crop)[0]
        receptor = receptor.select(np.unique(receptor.residue_index[np.isfinite(near)]))
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


def rotatable_bonds(graph: Any) -> Any:  # noqa: ANN401 - LigandGraph -> Tensor, see above
    """(E / 2,) bool: which bonds, each once, are in the torsion tree."""
    import torch

    turning = {frozenset(bond) for bond in graph.tree.bonds.tolist()}
    return torch.tensor([frozenset(bond) in turning for bond in graph.bonds[::2].tolist()])


def _prepare(task: tuple[Path, dict[str, Any], float | None]) -> Any:  # noqa: ANN401
    folder, notes, crop = task
    try:
        return example_from_files(folder, notes, crop)
    except ValueError as error:
        return f"{folder.name}: {error}"


def prepare_folder(
    data: Path, rows: dict[str, dict[str, str]], crop: float | None, workers: int
) -> Iterator[Any]:
    """Examples in the order of `rows`; a complex that fails is logged and left out."""
    tasks = [
        (data / key, {c: row[c] for c in _KEPT_COLUMNS if c in row}, crop)
        for key, row in rows.items()
    ]
    with ProcessPoolExecutor(workers) as pool:
        for result in pool.map(_prepare, tasks, chunksize=4):
            if isinstance(result, str):
                logger.warning("left out %s", result)
            else:
                yield result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bio_diffusion.dock.prepare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of complexes")
    parser.add_argument("--manifest", type=Path, help="CSV with id and split; default: all folders")
    parser.add_argument("--split", help="only the manifest's rows of this split")
    parser.add_argument("--exclude-source", help="leave out rows whose source holds this word")
    parser.add_argument("--crop", type=float, help="keep residues within so many Å of the ligand")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if args.manifest:
        rows = read_manifest(args.manifest, args.split)
    else:
        rows = {p.name: {} for p in sorted(args.data.iterdir()) if p.is_dir()}
    if args.exclude_source:
        rows = {k: r for k, r in rows.items() if args.exclude_source not in r.get("source", "")}
    if not rows:
        print(f"{args.manifest or args.data}: no complexes to prepare", file=sys.stderr)
        return 2
    from bio_diffusion.dock.dataset import write_compact

    examples = list(prepare_folder(args.data, rows, args.crop, args.workers))
    write_compact(args.out, examples)
    logger.info("%s: %d of %d complexes", args.out, len(examples), len(rows))
    return 0 if len(examples) == len(rows) else 3


if __name__ == "__main__":
    sys.exit(main())
