"""The result folder of a run: tables that grow, never half written, and a journal to go on from.

`.journal.jsonl` holds the settings in its first line and then every batch that was drawn, as
strings; what is worth keeping follows from them anew. A line cut by a kill is dropped. The tables
are written beside their old versions and renamed over them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bio_diffusion.files import cell, write_atomic
from bio_diffusion.folders import Folder, append, check_folder, open_journal, same_run

__all__ = ["FILES", "ResultFolder"]

JOURNAL = ".journal.jsonl"
FILES = ("designs.csv", "designs.fasta", "summary.json", "report.html", "config.yaml")


class ResultFolder(Folder):
    """What one run leaves behind. Made with `ResultFolder.open`.

    Args:
        path: The folder.
        journal: Its journal, open at the end.
        drawn: Batches of an earlier part of the run, by start.
    """

    def __init__(self, path: Path, journal: BinaryIO, drawn: list[list[list[str]]]) -> None:
        super().__init__(path)
        self._journal, self.drawn = journal, drawn

    @classmethod
    def check(cls, path: Path, resume: bool, overwrite: bool) -> None:
        """Refuses a folder that cannot be used, see `folders.check_folder`."""
        check_folder(path, JOURNAL, resume, overwrite)

    @classmethod
    def open(
        cls, path: Path, key: Mapping[str, Any], starts: int, resume: bool, overwrite: bool
    ) -> ResultFolder:
        """Makes or takes over a folder.

        Args:
            path: The folder; parents are made.
            key: Everything that the draws follow from.
            starts: How many there are.
            resume: Go on with the run in it.
            overwrite: Remove the results in it; other files stay.

        Raises:
            InputError: As `check`; or it cannot be written, another run writes there, or the run to
                go on with had other settings.
        """
        cls.check(path, resume, overwrite)
        journal = open_journal(path, JOURNAL, FILES, overwrite)
        drawn: list[list[list[str]]] = [[] for _ in range(starts)]
        lines, end = _whole_lines(journal)
        journal.truncate(end)
        known = json.loads(json.dumps(key))
        if lines:
            same_run(path, lines[0], known)
        folder = cls(path, journal, drawn)
        if not lines:
            folder._append(known)
        for line in lines[1:]:
            drawn[line["start"]].append(line["drawn"])
        return folder

    def draw(self, start: int, batch: Sequence[str]) -> None:
        """Stores one batch for good.

        Raises:
            OSError: The disk is full or failing.
        """
        self._append({"start": start, "drawn": list(batch)})

    def _append(self, line: Mapping[str, Any]) -> None:
        append(self._journal, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def write_designs(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes `designs.csv`, and `designs.fasta` where the rows have a sequence."""
        rows = list(rows)
        with write_atomic(self.path / "designs.csv") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(name, row.get(name)) for name in columns] for row in rows)
        if "sequence" not in columns:
            return
        with write_atomic(self.path / "designs.fasta") as fasta:
            told = [c for c in columns if c not in ("id", "sequence", "start")]
            for row in rows:
                about = " ".join(f"{name}={_cell(name, row.get(name))}" for name in told)
                fasta.write(f">{row['id']} {about}\n{row['sequence']}\n")


def _cell(name: str, value: Any) -> str:
    # A SMILES is written as it is: one may begin with [ or a letter, never with = + or @.
    return str(value) if name in ("smiles", "sequence") else cell(value)


def _whole_lines(journal: BinaryIO) -> tuple[list[dict[str, Any]], int]:
    """The lines that are whole, and where the last of them ends."""
    journal.seek(0)
    lines, end = [], 0
    for line in journal:
        if not line.endswith(b"\n"):
            break
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        end += len(line)
    return lines, end
