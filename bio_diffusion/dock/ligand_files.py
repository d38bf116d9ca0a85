"""Reading ligands record by record: one bad record never costs its neighbours.

| source | records | coordinates |
|---|---|---|
| `.sdf`, `.mol` | each up to `$$$$` | where not a flat drawing |
| `.mol2` | each `@<TRIPOS>MOLECULE` | the same |
| `.pdb`, `.ent` | one molecule, bond orders by component or geometry (`components`) | yes |
| `.cif`, `.mmcif` | the same; or the components of a dictionary, bond orders as there | no |
| `.smi`, `.smiles`, `.txt` | a line: SMILES, then an optional name | no |
| `.csv`, `.tsv` | a row: `id`, `smiles` or `path`, optional `protein` | by the path |
| anything else | a SMILES string | no |

All also gzipped. A row of a table with both `smiles` and `path` takes the bond orders from the
SMILES and the coordinates from the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from bio_diffusion.files import InputError, one_line, read_text, require_file, slug

from .ligand import MAX_HEAVY_ATOMS, Failure, Ligand, Refused, in_space, prepare
from .ligand_formats import MAX_SMILES, parse_smiles
from .ligand_records import MOL2, SDF, SMI, SUFFIXES, TABLE, Record, file_records, kind_of
from .ligand_records import records as cut
from .residues import read_groups, read_structure


def read_ligands(
    sources: Sequence[str | Path], table: str | Path | None = None
) -> Iterator[Ligand | Failure]:
    """Reads ligands from files and SMILES strings, lazily, in order.

    Every record gives exactly one `Ligand` or one `Failure`, each with an id of its own: the
    record's title or `id` field, the name beside a SMILES, the column of a table, else the file's
    stem and record number. A repeated id gets `_2`, `_3` and so on.

    Args:
        sources: Files (see the module) or SMILES strings.
        table: One more file, read after them; a list of many ligands.

    Returns:
        An iterator over ligands and failures.

    Raises:
        InputError: At once, for a named file that does not exist or is a folder, and for a table
            that cannot be read or lacks its columns.
    """
    plan: list[tuple[str | Path, bool]] = [(s, _is_file(s)) for s in sources]
    for source, is_file in plan:
        if is_file:
            require_file(source)
    listed: Iterator[Record] = iter(())
    if table is not None:
        require_file(table)
        listed = cut(Path(table), read_text(table))

    def records() -> Iterator[Record]:
        for source, is_file in plan:
            if is_file:
                yield from file_records(Path(source))
            else:
                text = str(source).strip()
                yield Record("", one_line(text, 60), partial(_parse_argument, text))
        yield from listed

    return _finish(records())


def as_ligands(items: Iterable[str | Path | Ligand | Failure]) -> Iterator[Ligand | Failure]:
    """What was read already as it is, and between it what files and SMILES strings hold."""
    unread: list[str | Path] = []  # read together, so that each gets an id of its own
    for item in items:
        if isinstance(item, str | Path):
            unread.append(item)
            continue
        yield from read_ligands(unread)
        unread = []
        yield item
    yield from read_ligands(unread)


def _finish(records: Iterator[Record]) -> Iterator[Ligand | Failure]:
    """Parses and checks each record, and gives each its own id."""
    taken: set[str] = set()
    repeats: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        wished = slug(record.name) or f"ligand_{number}"
        name = wished
        while name.lower() in taken:  # file names differ by more than case
            repeats[wished] = repeats.get(wished, 1) + 1
            name = f"{wished}_{repeats[wished]}"
        taken.add(name.lower())
        if record.failure:
            yield Failure(name, record.failure[0], one_line(record.failure[1], 400))
            continue
        try:
            yield prepare(record.parse(), name, record.source, record.protein)
        except (Refused, InputError) as error:
            reason = str(error)
            lead = "" if reason.startswith(record.source) else f"{record.source}: "
            yield Failure(name, error.code, one_line(lead + reason, 400))


def _is_file(source: str | Path) -> bool:
    """Whether an argument names a file: it has a known suffix, or exists and is no SMILES."""
    if isinstance(source, Path) or kind_of(Path(source)) in SUFFIXES or source.endswith(".gz"):
        return True
    if len(source) > MAX_SMILES:
        return False
    with BlockLogs():
        if Chem.MolFromSmiles(source, sanitize=False) is not None:
            return False
    try:
        return Path(source).exists()
    except (OSError, ValueError):
        return False


def reference_coords(path: Path) -> np.ndarray:
    """Heavy atoms in space of the first molecule of a file, whatever its chemistry.

    Args:
        path: SDF, MOL, MOL2, PDB or mmCIF, also gzipped.

    Returns:
        (N, 3) coordinates in Å.

    Raises:
        InputError: The file cannot be read, or holds no coordinates in space.
    """
    name = one_line(path)
    if kind_of(path) in SDF + MOL2:
        record = next(cut(path, read_text(path)))
        try:
            mol = record.parse()
        except Refused as error:
            raise InputError(error.code, f"{name}: {error}") from None
        if not in_space(mol):
            raise InputError("flat", f"{name}: a drawing; give a ligand with coordinates in space")
        heavy = [atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()]
        return mol.GetConformer().GetPositions()[heavy]
    if kind_of(path) in SMI + TABLE:
        require_file(path)
        raise InputError("flat", f"{name}: holds no coordinates; give a ligand in space, as SDF")
    try:
        structure = read_structure(path)
    except InputError as error:
        if error.code != "no_atoms":
            raise
        reason = f"{name}: holds no pose; give a ligand in the coordinates of the protein"
        raise InputError("flat", reason) from None
    groups = [g for g in read_groups(structure, Counter()) if g.kind != "water"]
    coords = np.concatenate([np.zeros((0, 3)), *(g.coords for g in groups)])
    if len(coords) == 0 or len(coords) > 4 * MAX_HEAVY_ATOMS:
        raise InputError(
            "no_ligand", f"{name}: holds {len(coords)} heavy atoms; give the ligand's own file"
        )
    return coords


def _parse_argument(text: str) -> Chem.Mol:
    """Parses what the user gave in place of a file."""
    try:
        return parse_smiles(text)
    except Refused as error:
        if error.code != "parse":
            raise
        raise Refused("parse", f"{one_line(text, 60)} is neither a file nor a SMILES") from None
