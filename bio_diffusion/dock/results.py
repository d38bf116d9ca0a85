"""The result folder of a run: tables that grow, never half written, and a journal to go on from.

`.journal.jsonl` gets one line a finished ligand, flushed to the disk before anything else happens;
a line cut by a kill is dropped on the next start. The tables are made from it, each written beside
its old version and then renamed over it, so that a reader sees the old or the new one and never a
part. Ligands stand in natural order of their ids (`lig2` before `lig10`), whatever order they were
given or finished in. Every byte but the seconds follows from inputs, settings, seed and device.

A journal line belongs to the key of `job_key`: protein, ligand, site, settings, checkpoint and
version. A changed one has another key, and a stale result is never used.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bio_diffusion.files import cell, one_line, write_atomic
from bio_diffusion.folders import Folder, append, check_folder, open_journal, spare_inputs

__all__ = ["COLUMNS", "Journal", "ResultFolder", "job_key", "sd_record"]

JOURNAL = ".journal.jsonl"
FILES = ("poses.sdf", "results.csv", "failures.csv", "summary.json", "report.html", "config.yaml")

_NOTED = 1000  # ligands whose notes go into the summary

SD_FIELDS = (
    "ligand_id", "rank", "confidence", "energy", "valid", "rmsd", "seed", "checkpoint", "version",
    "failed_checks", "score", "protein", "site",
)  # fmt: skip
COLUMNS = (*SD_FIELDS, "seconds")


def job_key(*parts: Any) -> str:
    """One name for all that a result follows from; `parts` are bytes or plain JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which runs of digits count as numbers."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((0, int(p), p) if p.isdigit() else (1, 0, p) for p in pieces), (-1, 0, name))


def sd_record(molblock: str, row: Mapping[str, Any]) -> str:
    """One record of an SDF file: a MOL block and the fields of a pose, empty ones left out.

    A value is one line and never begins like a field or the end of a record.
    """
    lines = [molblock.rstrip("\n")]
    for name in SD_FIELDS:
        value = row.get(name)
        if value is not None and value != "":
            text = ("false", "true")[value] if isinstance(value, bool) else one_line(value, 400)
            # a leading space keeps text apart from what an SDF reader takes for syntax
            lines += [f">  <{name}>", " " + text if text.startswith((">", "$$$$")) else text, ""]
    return "\n".join([*lines, "$$$$", ""])


class Journal:
    """Finished ligands by key: an append-only file of JSON lines, read back by position.

    Args:
        file: Open for reading and appending. A damaged line is passed over, a cut end removed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self.ligands: set[str] = set()  # that it has docked, whatever the settings
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                self._places[record["key"]] = (end, len(line))
                self.ligands.update(row["ligand_id"] for row in record.get("rows", [])[:1])
            end += len(line)
        self._file.truncate(end)
        self._end = end

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, Any]:
        start, length = self._places[key]
        self._file.seek(start)
        record: dict[str, Any] = json.loads(self._file.read(length))
        return record

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Stores a record for good.

        Raises:
            OSError: The disk is full or failing; what was there before stays readable.
        """
        line = json.dumps({"key": key, **record}, separators=(",", ":")).encode() + b"\n"
        append(self._file, line)
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def close(self) -> None:
        self._file.close()


class ResultFolder(Folder):
    """What one run leaves behind. Made with `ResultFolder.open`.

    Args:
        path: The folder.
        journal: Its journal.

    Attributes:
        counts: Of ligands, poses and failures in the tables last written.
        notes: On ligands in them, at most `_NOTED`.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        super().__init__(path)
        self.journal = journal
        self._keys: dict[str, str] = {}  # ligand id -> key of its journal line
        self._failures: dict[str, tuple[str, str]] = {}  # ligand id -> code, reason
        self._next_tables = 0.0
        self.counts: dict[str, int] = {}
        self.notes: dict[str, list[str]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Iterable[str | None] = (),
    ) -> ResultFolder:
        """Makes or takes over a folder.

        Args:
            path: The folder; parents are made.
            resume: Go on with the run in it.
            overwrite: Remove the results in it; other files stay.
            inputs: What the run reads, file names among it; none may be one of the results.

        Raises:
            InputError: As `folders.check_folder` and `folders.spare_inputs`; or it cannot be
                written, or another run does.
        """
        check_folder(path, JOURNAL, resume, overwrite)
        spare_inputs(path, FILES, inputs)
        return cls(path, Journal(open_journal(path, JOURNAL, FILES, overwrite)))

    def __len__(self) -> int:
        return len(self._keys) + len(self._failures)

    def __contains__(self, ligand_id: str) -> bool:
        return ligand_id in self._keys or ligand_id in self._failures

    def reuse(self, ligand_id: str, key: str) -> bool:
        """Takes over a stored result, if there is one for this key."""
        if key not in self.journal:
            return False
        self._keys[ligand_id] = key
        return True

    def has_docked(self, ligand_id: str) -> bool:
        """Whether a ligand of this name was docked before, whatever the settings."""
        return ligand_id in self.journal.ligands

    def add(self, ligand_id: str, key: str, record: Mapping[str, Any]) -> None:
        """Stores the result of a ligand: `rows` (mappings) and `sdf` (text), or `failure`."""
        self.journal.append(key, record)
        self._keys[ligand_id] = key

    def fail(self, ligand_id: str, code: str, reason: str) -> None:
        """Notes a ligand that could not be docked; it is tried anew by the next run."""
        self._failures[ligand_id] = (code, reason)

    def records(self) -> Iterator[dict[str, Any]]:
        """The stored results of this run in natural order of the ligands."""
        for ligand_id in sorted(self._keys, key=natural):
            record = self.journal[self._keys[ligand_id]]
            if "rows" in record:
                yield {**record, "ligand_id": ligand_id}

    def failures(self) -> list[tuple[str, str, str]]:
        """Id, code and reason of the ligands without a result, in natural order."""
        found = {i: self.journal[k].get("failure") for i, k in self._keys.items()}
        known = {i: (f[0], f[1]) for i, f in found.items() if f} | self._failures
        return [(i, *known[i]) for i in sorted(known, key=natural)]

    def write_tables(self, force: bool = False) -> bool:
        """Writes `poses.sdf`, `results.csv` and `failures.csv` anew, at most 5 % of the time."""
        now = time.monotonic()
        if not force and now < self._next_tables:
            return False
        counts: Counter[str] = Counter(docked=0, poses=0, valid_poses=0)
        notes: dict[str, list[str]] = {}
        with (
            write_atomic(self.path / "poses.sdf") as poses,
            write_atomic(self.path / "results.csv") as table,
        ):
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(COLUMNS)
            for record in self.records():
                poses.write(record["sdf"])
                rows.writerows([cell(row.get(c)) for c in COLUMNS] for row in record["rows"])
                counts["docked"] += 1
                counts["poses"] += len(record["rows"])
                counts["valid_poses"] += sum(row["valid"] for row in record["rows"])
                if record["notes"] and len(notes) < _NOTED:
                    notes[record["ligand_id"]] = record["notes"]
        failures = self.failures()
        self.write_text("failures.csv", _failure_table(failures))
        self.counts = {"ligands": len(self), **counts, "failed": len(failures)}
        self.notes = notes
        spent = time.monotonic() - now
        self._next_tables = time.monotonic() + max(1.0, 20 * spent)
        return True

    def close(self) -> None:
        self.journal.close()


def _failure_table(failures: Iterable[tuple[str, str, str]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("ligand_id", "code", "reason"))
    rows.writerows([cell(value) for value in failure] for failure in failures)
    return text.getvalue()
