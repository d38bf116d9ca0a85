"""Sequences with labels, from gzipped CSV to tensors; no chemistry and no tables package needed.

Shapes: B batch, L sites, P properties.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bio_diffusion import files
from bio_diffusion.design.tokenizer import Tokenizer

__all__ = ["Property", "SequenceSet", "find_data", "read_rows"]


@dataclass(frozen=True)
class Property:
    """A labelled property, cut into classes.

    Attributes:
        name: of the column.
        edges: a number belongs to class k if k of the edges lie below it; empty for named classes.
        names: of the classes, where the column holds words.
    """

    name: str
    edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return len(self.names) or len(self.edges) + 1

    def label(self, value: str) -> int:
        """The class of a value as it stands in a table; `classes` where it is empty.

        Raises:
            ValueError: for a word that is no class, or no number.
        """
        if not value:
            return self.classes
        if not self.names:
            return bisect.bisect_left(self.edges, float(value))
        if value not in self.names:
            raise ValueError(f"{self.name} {value!r} is none of {', '.join(self.names)}")
        return self.names.index(value)

    def describe(self) -> tuple[str, ...]:
        """What each class holds, in words."""
        if self.names:
            return self.names
        bounds = [-math.inf, *self.edges, math.inf]
        return tuple(
            f"{low:g} < {self.name} <= {high:g}".removeprefix("-inf < ").removesuffix(" <= inf")
            for low, high in zip(bounds, bounds[1:], strict=False)
        )


def cut(name: str, spec: Sequence[float | str], values: Sequence[str]) -> Property:
    """The property that a setting describes.

    Args:
        name: of the column.
        spec: names of the classes, or the quantiles of the training values at which to cut.
        values: of the training rows, as text; empty where unknown.
    """
    if all(isinstance(item, str) for item in spec):
        return Property(name, names=tuple(map(str, spec)))
    known = torch.tensor([float(v) for v in values if v], dtype=torch.float64).sort().values
    places = [min(int(float(q) * len(known)), len(known) - 1) for q in spec]
    return Property(name, edges=tuple(float(known[place]) for place in places))


def find_data(name: str) -> Path:
    """A table by path or name, see `files.find_data`."""
    return files.find_data(name, "name a .csv.gz with a column split")


def read_rows(path: Path, split: str) -> Iterator[dict[str, str]]:
    """The rows of one split of a gzipped CSV.

    Raises:
        ValueError: if the file is no such table.
    """
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "split" not in (reader.fieldnames or ()):
                raise files.InputError(
                    "format", f"{path}: has no column split (train, val or test)"
                )
            yield from (row for row in reader if row["split"] == split)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise files.InputError("format", f"{path}: is no gzipped CSV ({error})") from error


class SequenceSet:
    """The sequences of one split as ids, with their labels.

    Sequences that the tokenizer refuses (too long, a letter that it lacks) are left out and counted
    in `refused`.

    Attributes:
        x: (N, L) uint8 ids.
        labels: (N, P) classes; the number of classes where unknown.
        strings: the sequences as they stand in the file.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        column: str,
        tokenizer: Tokenizer,
        properties: Sequence[Property] = (),
    ) -> None:
        ids, labels, self.strings, self.refused = [], [], [], 0
        for row in read_rows(path, split):
            try:
                ids.append(bytes(tokenizer.encode(row[column])))
            except ValueError:
                self.refused += 1
                continue
            except KeyError as error:
                raise files.InputError("format", f"{path}: has no column {column}") from error
            labels.append([p.label(row[p.name]) for p in properties])
            self.strings.append(row[column])
        if not ids:
            raise files.InputError("format", f"{path}: no usable {column} in its split {split}")
        self.x = torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.uint8).view(len(ids), -1)
        self.labels = torch.tensor(labels, dtype=torch.long).view(len(ids), len(properties))

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences (B, L) long and labels (B, P)."""
        return self.x[index].long(), self.labels[index]


def open_sets(
    name: str, column: str, tokenizer: Tokenizer, properties: Mapping[str, Sequence[float | str]]
) -> tuple[SequenceSet, SequenceSet, tuple[Property, ...]]:
    """Training and validation sequences, and the properties as cut on the training part."""
    path = find_data(name)
    rows = list(read_rows(path, "train"))
    for key in properties:
        if rows and key not in rows[0]:
            raise files.InputError(
                "format", f"{path}: has no column {key}; there are {', '.join(rows[0])}"
            )
    cuts = tuple(cut(key, spec, [row[key] for row in rows]) for key, spec in properties.items())
    train, val = (SequenceSet(path, split, column, tokenizer, cuts) for split in ("train", "val"))
    return train, val, cuts
