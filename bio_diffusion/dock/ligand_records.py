"""Cutting files into records, one a ligand, by the format that the suffix names.

Records are parsed later, each by itself (`Record.parse`). Files are cut in `records`; a row of a
table that names a file is cut in its turn.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rdkit import Chem

from bio_diffusion.files import InputError, one_line, read_text

from .bonds import apply_template
from .components import components, molecule_of_structure
from .ligand import Refused
from .ligand_formats import parse_mol2, parse_molblock, parse_smiles

__all__ = [
    "MOL2",
    "SDF",
    "SMI",
    "SUFFIXES",
    "TABLE",
    "Record",
    "file_records",
    "kind_of",
    "named_files",
    "records",
]

SDF, MOL2, _PDB = (".sdf", ".mol", ".sd", ".mdl"), (".mol2",), (".pdb", ".ent")
_CIF, SMI, TABLE = (".cif", ".mmcif"), (".smi", ".smiles", ".txt", ".ism"), (".csv", ".tsv")
SUFFIXES = SDF + MOL2 + _PDB + _CIF + SMI + TABLE


@dataclass(frozen=True)
class Record:
    """One ligand not yet parsed: its wished name, where it stands, and how to parse it."""

    name: str
    source: str
    parse: Callable[[], Chem.Mol]
    protein: str | None = None
    failure: tuple[str, str] | None = None


def file_records(path: Path) -> Iterator[Record]:
    """Records of a file; a file that cannot be opened or cut is one failed record."""
    try:
        yield from records(path, read_text(path))
    except InputError as error:
        yield Record(_stem(path), one_line(path), _nothing, None, (error.code, str(error)))


def kind_of(path: Path) -> str:
    """The suffix that says the format, `.gz` put aside."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _nothing() -> Chem.Mol:
    raise Refused("empty", "no molecule")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def records(path: Path, text: str) -> Iterator[Record]:
    """Cuts the text of a file into records by its suffix.

    Raises:
        InputError: The suffix is unknown, or a table lacks its columns.
    """
    kind = kind_of(path)
    if kind in SDF:
        return _blocks(path, _split(text, "$$$$"), parse_molblock, _sdf_name)
    if kind in MOL2:
        return _blocks(path, _split_mol2(text), parse_mol2, _mol2_name)
    if kind in _PDB + _CIF:
        return _structure(path, text)
    if kind in SMI:
        return _smi(path, text)
    if kind in TABLE:
        return _table(path, text)
    raise InputError(
        "format", f"{one_line(path)}: unknown kind of ligand file; use {', '.join(SUFFIXES)}"
    )


def _blocks(
    path: Path,
    blocks: Sequence[str],
    parse: Callable[[str], Chem.Mol],
    name_of: Callable[[str], str],
) -> Iterator[Record]:
    """One record a block, named by its title or else by the file and its number."""
    many = len(blocks) > 1
    for number, block in enumerate(blocks, start=1):
        where = f"{one_line(path.name)} record {number}" if many else one_line(path.name)
        name = name_of(block) or (f"{_stem(path)}_{number}" if many else _stem(path))
        yield Record(name, where, partial(parse, block))
    if not blocks:
        failure = ("empty", f"{one_line(path.name)}: no records")
        yield Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _structure(path: Path, text: str) -> Iterator[Record]:
    """The one molecule of a PDB or mmCIF file, or the components of a dictionary.

    Raises:
        InputError: As `components`.
    """
    file = one_line(path.name)
    found = components(text, one_line(path))
    if not found:
        return iter([Record(_stem(path), file, partial(molecule_of_structure, text))])
    return (
        Record(name, f"{file} component {name}" if len(found) > 1 else file, entry.molecule)
        for name, entry in found.items()
    )


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


def _smi(path: Path, text: str) -> Iterator[Record]:
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
        yield Record(name, where, partial(parse_smiles, fields[0]))
    if not found:
        failure = ("empty", f"{one_line(path.name)}: no records")
        yield Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _table(path: Path, text: str) -> Iterator[Record]:
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


def named_files(path: Path) -> Iterator[str]:
    """Files of ligands that the rows of a table name; none for files of another kind."""
    if kind_of(path) not in TABLE or not path.is_file():
        return
    for line in read_text(path).splitlines():
        for cell in re.split("[,\t;]", line):
            file = cell.strip(' "')
            if Path(file).suffix.lower() in SUFFIXES:
                yield str(_beside(path, file))


_COLUMNS = {
    "id": "id",
    "name": "id",
    "ligand_id": "id",
    "smiles": "smiles",
    "path": "path",
    "protein": "protein",
}


def _rows(path: Path, rows: Iterator[list[str]], columns: dict[str, int]) -> Iterator[Record]:
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
            yield Record(f"{_stem(path)}_{number}", "", _nothing, None, ("parse", reason))
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
            yield Record(name, where, partial(parse_smiles, smiles), protein)
            continue
        for record in file_records(_beside(path, file)):
            single = replace(record, name=name, source=f"{where}, {record.source}", protein=protein)
            if record.failure:
                code, reason = record.failure
                single = replace(single, failure=(code, f"{where}: {reason}"))
            elif smiles:
                single = replace(single, parse=partial(_templated, record.parse, smiles))
            yield single
    if not found:
        failure = ("empty", f"{one_line(path.name)}: no rows below the header line")
        yield Record(_stem(path), one_line(path.name), _nothing, None, failure)


def _templated(parse: Callable[[], Chem.Mol], smiles: str) -> Chem.Mol:
    """Coordinates by `parse`, bond orders by a SMILES."""
    return apply_template(parse(), parse_smiles(smiles))


def _beside(table: Path, file: str) -> Path:
    """A path of a table: absolute, else relative to the table, else to the working folder."""
    target = Path(file)
    near = table.parent / target
    return near if not target.is_absolute() and near.exists() else target
