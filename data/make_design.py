"""Make the sequence sets of this folder from the source files.

    python data/make_design.py --source DIR

`DIR` holds ``molecules/`` and ``genomics/``. Only the columns that training and reports use are
kept. Genomes of the ten labelled species are cut into windows of 256 nt: evaluation windows from
the source's own val and test rows, training windows at even distances along the training fragments,
at most `WINDOWS` a species. Output is a plain gzipped CSV, the same bytes at every run.
"""

import argparse
import csv
import gzip
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
WINDOW, WINDOWS = 256, 2000
RENAMED = {"n_rings": "rings", "expression_defined": "expression"}
KEPT = {
    "molecules/qm9": ("smiles", "qed", "rings", "logp", "sa", "split"),
    "molecules/zinc250k": ("smiles", "qed", "rings", "logp", "sa", "split"),
    "molecules/kinase_activity": ("smiles", "gsk3b", "jnk3", "split"),
    "genomics/ecoli_promoters": ("sequence", "expression", "split"),
    "genomics/yeast_promoters": ("sequence", "expression", "kind", "split"),
}
SPECIES = (
    "human", "mouse", "fly", "zebrafish", "worm", "chicken", "chimp", "dog", "tetraodon", "thale",
)  # fmt: skip


def read(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [RENAMED.get(name, name) for name in reader.fieldnames or ()]
        yield from reader


def write(path: Path, columns: Iterable[str], rows: Iterable[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"{path}: {path.stat().st_size:,} bytes")


def fragments(path: Path) -> dict[str, list[str]]:
    """Training sequence of each labelled species."""
    found = defaultdict(list)
    with gzip.open(path, "rt") as file:
        species = ""
        for line in file:
            if line.startswith(">"):
                species = line[1:].split("|")[0]
                found[species].append("")
            else:
                found[species][-1] += line.strip()
    return {name: found[name] for name in SPECIES}


def windows(source: Path) -> Iterator[dict[str, str]]:
    for species, pieces in fragments(source / "genomics/species_train.fasta.gz").items():
        stride = max(WINDOW, sum(map(len, pieces)) // WINDOWS)
        starts = [(piece, i) for piece in pieces for i in range(0, len(piece) - WINDOW, stride)]
        for piece, i in starts[:WINDOWS]:
            sequence = piece[i : i + WINDOW]
            if set(sequence) <= set("ACGT"):
                yield {"sequence": sequence, "species": species, "split": "train"}
    for row in read(source / "genomics/species_eval.csv.gz"):
        sequence = row["sequence"][:WINDOW]
        if row["species"] in SPECIES and set(sequence) <= set("ACGT"):
            yield {"sequence": sequence, "species": row["species"], "split": row["split"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    source = parser.parse_args().source
    for name, columns in KEPT.items():
        write(HERE / f"{Path(name).name}.csv.gz", columns, read(source / f"{name}.csv.gz"))
    write(HERE / "species.csv.gz", ("sequence", "species", "split"), windows(source))
    return 0


if __name__ == "__main__":
    sys.exit(main())
