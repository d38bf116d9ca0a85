"""Reading ligands record by record: one bad record never costs its neighbours.

| source | records | coordinates |
|---|---|---|
| `.sdf`, `.mol` | each up to `$$$$` | where not a flat drawing |
| `.mol2` | each `@<TRIPOS>MOLECULE` | the same |
| `.pdb`, `.ent` | one molecule, bond orders from geometry (`bonds`) | yes |
| `.smi`, `.smiles`, `.txt` | a line: SMILES, then an optional name | no |
| `.csv`, `.tsv` | a row: `id`, `smiles` or `path`, optional `protein` | by the path |
| anything else | a SMILES string | no |

All also gzipped. A row of a table with both `smiles` and `path` takes the bond orders from the
SMILES and the coordinates from the file.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from bio_diffusion.files import InputError, one_line, read_text, require_file, slug

from .bonds import apply_template, molecule_from_pdb
from .ligand import (
    MAX_HEAVY_ATOMS,
    Failure,
    Ligand,
    Refused,
    check_size,
    in_space,
    prepare,
)
from .residues import read_groups, read_structure

MAX_SMILES = 5000
"""Longest SMILES parsed, in characters; a ligand of 150 atoms needs a tenth of it."""

_SDF, _MOL2, _PDB = (".sdf", ".mol", ".sd", ".mdl"), (".mol2",), (".pdb", ".ent")
_SMI, _TABLE = (".smi", ".smiles", ".txt", ".ism"), (".csv", ".tsv")
_SUFFIXES = _SDF + _MOL2 + _PDB + _SMI + _TABLE


@dataclass(frozen=True)
class _Record:
    """One ligand not yet parsed: its wished name, where it stands, and how to parse it."""

    name: str
    source: str
    parse: Callable[[], Chem.Mol]
    protein: str | None = None
    failure: tuple[str, str] | None = None


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
    listed: Iterator[_Record] = iter(())
    if table is not None:
        require_file(table)
        listed = _records(Path(table), read_text(table))

    def records() -> Iterator[_Record]:
        for source, is_file in plan:
            if is_file:
                yield from _file_records(Path(source))
            else:
                text = str(source).strip()
                yield _Record("", one_line(text, 60), partial(_parse_argument, text))
        yield from listed

    return _finish(records())


def _finish(records: Iterator[_Record]) -> Iterator[Ligand | Failure]:
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


def _kind(path: Path) -> str:
    """The suffix that says the format, `.gz` put aside."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_file(source: str | Path) -> bool:
    """Whether an argument names a file: it has a known suffix, or exists and is no SMILES."""
    if isinstance(source, Path) or _kind(Path(source)) in _SUFFIXES or source.endswith(".gz"):
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


def _file_records(path: Path) -> Iterator[_Record]:
    """Records of a file; a file that cannot be opened or cut is one failed record."""
    try:
        yield from _records(path, read_text(path))
    except InputError as error:
        yield _Record(_stem(path), one_line(path), _nothing, None, (error.code, str(error)))


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
    if _kind(path) in (".sdf", ".mol", ".sd", ".mdl", ".mol2"):
        record = next(_records(path, read_text(path)))
        try:
            mol = record.parse()
        except Refused as error:
            raise InputError(error.code, f"{name}: {error}") from None
        if not in_space(mol):
            raise InputError("flat", f"{name}: a drawing; give a ligand with coordinates in space")
        heavy = [atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()]
        return mol.GetConformer().GetPositions()[heavy]
    if _kind(path) in _SMI + _TABLE:
        require_file(path)
        raise InputError("flat", f"{name}: holds no coordinates; give a ligand in space, as SDF")
    groups = [g for g in read_groups(read_structure(path), Counter()) if g.kind != "water"]
    coords = np.concatenate([np.zeros((0, 3)), *(g.coords for g in groups)])
    if len(coords) == 0 or len(coords) > 4 * MAX_HEAVY_ATOMS:
        raise InputError(
            "no_ligand", f"{name}: holds {len(coords)} heavy atoms; give the ligand's own file"
        )
    return coords


def _nothing() -> Chem.Mol:
    raise Refused("empty", "no molecule")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _records(path: Path, text: str) -> Iterator[_Record]:
    """Cuts the text of a file into records by its suffix.

    Raises:
        InputError: The suffix is unknown, or a table lacks its columns.
    """
    kind = _kind(path)
    if kind in _SDF:
        return _blocks(path, _split(text, "$$$$"), parse_molblock, _sdf_name)
    if kind in _MOL2:
        return _blocks(path, _split_mol2(text), parse_mol2, _mol2_name)
    if kind in _PDB:
        return _blocks(path, [text], molecule_from_pdb, lambda block: "")
    if kind in _SMI:
        return _smi(path, text)
    if kind in _TABLE:
        return _table(path, text)
    raise InputError(
        "format", f"{one_line(path)}: unknown kind of ligand file; use {', '.join(_SUFFIXES)}"
    )


def _blocks(
    path: Path,
    blocks: Sequence[str],
    parse: Callable[[str], Chem.Mol],
    name_of: Callable[[str], str],
) -> Iterator[_Record]:
    """One record a block, named by its title or else by the file and its number."""
    many = len(blocks) > 1
    for number, block in enumerate(blocks, start=1):
        where = f"{one_line(path.name)} record {number}" if many else one_line(path.name)
        name = name_of(block) or (f"{_stem(path)}_{number}" if many else _stem(path))
        yield _Record(name, where, partial(parse, block))
    if not blocks:
        failure = ("empty", f"{one_line(path.name)}: no records")
        yield _Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _split(text: str, mark: str) -> list[str]:
    """Blocks that end with a line beginning with `mark`; blank rests at the end do not count."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.startswith(mark):
            blocks.append([])
        else:
            blocks[-1].append(line)
    if not "".join(blocks[-1]).strip():
        blocks.pop()
    return ["\n".join(block) for block in blocks]


def _split_mol2(text: str) -> list[str]:
    """Blocks that begin with `@<TRIPOS>MOLECULE`."""
    mark = "@<TRIPOS>MOLECULE"
    return [mark + rest for rest in text.split(mark)[1:]]


def _sdf_name(block: str) -> str:
    """Title of a record, or its field `id`, `name` or the like."""
    lines = block.split("\n")
    title = lines[0].strip()
    if title and not title.startswith((">", "$")):
        return title
    for line, value in zip(lines, lines[1:], strict=False):
        if line.startswith(">") and any(
            f"<{key}>" in line.lower() for key in ("id", "name", "ligand_id", "_name", "title")
        ):
            return value.strip()
    return ""


def _mol2_name(block: str) -> str:
    lines = block.split("\n", 2)
    name = lines[1].strip() if len(lines) > 1 else ""
    return "" if name == "*****" else name


def parse_molblock(block: str) -> Chem.Mol:
    """Parses one record of an SDF file.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    with BlockLogs():
        raw = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        if raw is None:
            raise Refused("parse", "not a readable MOL record")
        check_size(raw)
        # The sanitising parser also reads wedges; where it refuses, `prepare` tells why.
        return Chem.MolFromMolBlock(block, sanitize=True, removeHs=False) or raw


def parse_mol2(block: str) -> Chem.Mol:
    """Parses one record of a MOL2 file.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    with BlockLogs():
        raw = Chem.MolFromMol2Block(block, sanitize=False, removeHs=False)
        if raw is None:
            raise Refused("parse", "not a readable MOL2 record")
        check_size(raw)
        if all(atom.GetAtomicNum() != 1 for atom in raw.GetAtoms()):
            return _without_hydrogens(raw)
        return Chem.MolFromMol2Block(block, sanitize=True, removeHs=False) or raw


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """A MOL2 record that leaves hydrogens out, with charges by atom types and valences open.

    The format means every hydrogen to be written, so that RDKit reads a bare atom as a radical or
    an ion. Only the types that are charged by themselves keep their charge.
    """
    charged = {"O.co2", "N.4", "C.cat"}
    types = [atom.GetPropsAsDict().get("_TriposAtomType", "") for atom in mol.GetAtoms()]
    for atom in mol.GetAtoms():
        around = {types[n.GetIdx()] for n in atom.GetNeighbors()}
        if types[atom.GetIdx()] not in charged and "C.cat" not in around:
            atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)
    return mol


def parse_smiles(text: str) -> Chem.Mol:
    """Parses a SMILES string.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    if len(text) > MAX_SMILES:
        raise Refused("too_large", f"a SMILES of {len(text)} characters, at most {MAX_SMILES}")
    if not text:
        raise Refused("empty", "no SMILES")
    with BlockLogs():
        raw = Chem.MolFromSmiles(text, sanitize=False)
        if raw is None:
            raise Refused("parse", f"{one_line(text, 60)} is no readable SMILES")
        check_size(raw)
        return Chem.MolFromSmiles(text) or raw


def _parse_argument(text: str) -> Chem.Mol:
    """Parses what the user gave in place of a file."""
    try:
        return parse_smiles(text)
    except Refused as error:
        if error.code != "parse":
            raise
        raise Refused("parse", f"{one_line(text, 60)} is neither a file nor a SMILES") from None


def _smi(path: Path, text: str) -> Iterator[_Record]:
    """SMILES and name a line; blank lines and `#` comments are passed over, a header too."""
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split(None, 1)
        if not fields or fields[0].startswith("#"):
            continue
        if not found and fields[0].lower() in ("smiles", "smi", "canonical_smiles"):
            continue
        found = True
        name = fields[1].strip() if len(fields) > 1 else f"{_stem(path)}_{number}"
        where = f"{one_line(path.name)} line {number}"
        yield _Record(name, where, partial(parse_smiles, fields[0]))
    if not found:
        failure = ("empty", f"{one_line(path.name)}: no records")
        yield _Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _table(path: Path, text: str) -> Iterator[_Record]:
    """Rows of a table with a header line.

    Raises:
        InputError: Neither a column `smiles` nor `path`.
    """
    header = text.lstrip("\n").split("\n", 1)[0]
    comma = next((c for c in ",\t;" if c in header), ",")
    rows = csv.reader(io.StringIO(text), delimiter=comma)
    columns: dict[str, int] = {}
    try:
        titles = next((row for row in rows if any(row)), [])
    except csv.Error as error:
        reason = f"{one_line(path)}: the header line cannot be read: {error}; mend it"
        raise InputError("columns", reason) from None
    for i, cell in enumerate(titles):
        columns.setdefault(_COLUMNS.get(cell.strip().lower(), ""), i)
    if "smiles" not in columns and "path" not in columns:
        raise InputError(
            "columns",
            f"{one_line(path)}: no column smiles or path; the header line needs id and one of them",
        )
    return _rows(path, rows, columns)


_COLUMNS = {
    "id": "id",
    "name": "id",
    "ligand_id": "id",
    "smiles": "smiles",
    "path": "path",
    "protein": "protein",
}


def _rows(path: Path, rows: Iterator[list[str]], columns: dict[str, int]) -> Iterator[_Record]:
    number, found = 1, False
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            found = True
            reason = f"{one_line(path.name)} row {number}: {error}"
            yield _Record(f"{_stem(path)}_{number}", "", _nothing, None, ("parse", reason))
            continue
        if not any(cell.strip() for cell in row):
            continue
        found = True
        cell = {key: row[i].strip() if i < len(row) else "" for key, i in columns.items()}
        name = cell.get("id") or f"{_stem(path)}_{number}"
        where = f"{one_line(path.name)} row {number}"
        protein = cell.get("protein") or None
        smiles, file = cell.get("smiles", ""), cell.get("path", "")
        if not file:
            yield _Record(name, where, partial(parse_smiles, smiles), protein)
            continue
        for record in _file_records(_beside(path, file)):
            single = replace(record, name=name, source=f"{where}, {record.source}", protein=protein)
            if record.failure:
                code, reason = record.failure
                single = replace(single, failure=(code, f"{where}: {reason}"))
            elif smiles:
                single = replace(single, parse=partial(_templated, record.parse, smiles))
            yield single
    if not found:
        failure = ("empty", f"{one_line(path.name)}: no rows below the header line")
        yield _Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _templated(parse: Callable[[], Chem.Mol], smiles: str) -> Chem.Mol:
    """Coordinates by `parse`, bond orders by a SMILES."""
    return apply_template(parse(), parse_smiles(smiles))


def _beside(table: Path, file: str) -> Path:
    """A path of a table: absolute, else relative to the table, else to the working folder."""
    target = Path(file)
    near = table.parent / target
    return near if not target.is_absolute() and near.exists() else target
