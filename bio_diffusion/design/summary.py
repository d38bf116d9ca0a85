"""Designs beside the training set and beside shuffles, as one table of numbers.

The training set stands for itself by a random sample of at most `SAMPLE`, drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bio_diffusion.design import metrics
from bio_diffusion.design.properties import Oracle, canonical, measure
from bio_diffusion.files import rounded

__all__ = ["SAMPLE", "Table", "compare"]

SAMPLE = 1000
_MOTIF_ROWS = 20
_FOLD = 10  # sequences of each kind, below which no discriminator is trained


@dataclass(frozen=True)
class Table:
    """What the summary says and what the report draws.

    Attributes:
        summary: Plain data.
        values: Of each property: set -> values (N,), for histograms.
        rows: Set -> metric -> value.
    """

    summary: dict[str, Any]
    values: dict[str, dict[str, np.ndarray]]
    rows: dict[str, dict[str, float | None]]


def compare(
    domain: str,
    designs: Sequence[Mapping[str, Any]],
    drawn: Sequence[str],
    training: Sequence[str] | None,
    properties: Sequence[str],
    oracles: Mapping[str, Oracle],
    seed: int,
) -> Table:
    """Measures the designs and what they stand beside.

    Args:
        domain: "dna" or "smiles".
        designs: Rows of the result table.
        drawn: All strings that were drawn for them.
        training: Training strings; None where they are not at hand.
        properties: Names to measure.
        oracles: For `measure`.
        seed: Of the sample and the shuffles.
    """
    text = "sequence" if domain == "dna" else "smiles"
    strings = [row[text] for row in designs]
    source = np.random.default_rng(seed)
    sets = {"designs": strings}
    if training:
        chosen = source.choice(len(training), min(SAMPLE, len(training)), replace=False)
        sets["training set"] = [training[i] for i in np.sort(chosen)]
    if domain == "dna" and strings:
        sets["dinucleotide shuffle"] = [metrics.dinucleotide_shuffle(s, source) for s in strings]
    measured = {name: measure(properties, group, oracles) for name, group in sets.items() if group}
    values = {p: {name: found[p] for name, found in measured.items()} for p in properties}
    rows: dict[str, dict[str, float | None]] = {}
    for name, group in sets.items():
        rows[name] = {"count": float(len(group))}
        for p in properties if group else ():
            mean, error = metrics.mean_with_error(values[p][name])
            rows[name] |= {p: rounded(mean), f"{p} error": rounded(error)}
    summary: dict[str, Any] = {}
    if domain == "dna":
        summary |= _dna(strings, drawn, training, sets, rows)
    else:
        summary |= _smiles(strings, drawn, training, sets, rows)
    novel = [bool(row["novel"]) for row in designs]
    summary["properties"] = {
        p: {
            "mean": rows["designs"].get(p),
            "error": rows["designs"].get(f"{p} error"),
            **dict(
                zip(
                    ("novel_mean", "novel_error"),
                    map(rounded, metrics.mean_with_error(values[p]["designs"][novel])),
                    strict=True,
                )
            ),
        }
        for p in (properties if strings else ())
    }
    summary["table"] = rows
    return Table(summary, values, rows)


def _smiles(
    strings: Sequence[str],
    drawn: Sequence[str],
    training: Sequence[str] | None,
    sets: Mapping[str, Sequence[str]],
    rows: dict[str, dict[str, float | None]],
) -> dict[str, Any]:
    found = metrics.counts(drawn, frozenset(training or ()))
    figures: dict[str, Any] = {"molecules": asdict(found)}
    if training is None:
        figures["molecules"] |= {"novel": None, "raw_novel": None}
    figures["validity"] = _share(found.valid, found.drawn)
    figures["uniqueness"] = _share(found.unique, found.valid)
    figures["novelty"] = None if training is None else _share(found.novel, found.unique)
    figures["raw_novelty"] = None if training is None else _share(found.raw_novel, found.raw_unique)
    for name, group in sets.items():
        rows[name]["internal diversity"] = rounded(metrics.internal_diversity(group))
        rows[name]["scaffolds"] = float(len(metrics.bemis_murcko(group)))
        rows[name]["different molecules"] = float(len({canonical(s) for s in group} - {None}))
    if training and strings:
        nearest = metrics.nearest_similarity(strings, sets["training set"])
        rows["designs"]["nearest training similarity"] = rounded(float(nearest.mean()))
    figures["diversity"] = rows["designs"]["internal diversity"]
    return figures


def _dna(
    strings: Sequence[str],
    drawn: Sequence[str],
    training: Sequence[str] | None,
    sets: Mapping[str, Sequence[str]],
    rows: dict[str, dict[str, float | None]],
) -> dict[str, Any]:
    known = frozenset(training or ())
    novel = None if training is None else _share(len(set(drawn) - known), len(set(drawn)))
    figures: dict[str, Any] = {
        "validity": _share(sum(map(bool, drawn)), len(drawn)),
        "uniqueness": _share(len(set(drawn)), len(drawn)),
        "novelty": novel,
    }
    reference = sets.get("training set", ())
    for name, group in sets.items():
        if name == "training set" or not reference or not group:
            continue
        for k in (3, 6):
            rows[name][f"{k}-mer distance"] = rounded(metrics.kmer_distance(group, reference, k))
        nearest = metrics.nearest_edit(group, list(reference))
        rows[name]["nearest training edit"] = rounded(float(nearest.mean()))
        size = min(len(group), len(reference))
        if size >= _FOLD:
            score = metrics.discriminator_auroc(group[:size], reference[:size])
            rows[name]["discriminator AUROC"] = rounded(score)
    if len(reference) >= 4:  # what two halves of the training set differ by, for scale
        halves = reference[::2], reference[1::2]
        for k in (3, 6):
            distance = metrics.kmer_distance(*halves, k)
            rows["training set"][f"{k}-mer distance"] = rounded(distance)
    figures["kmer_distance"] = {k: rows["designs"].get(f"{k}-mer distance") for k in ("3", "6")}
    if strings:
        try:
            best = metrics.enrichment(strings, sets["dinucleotide shuffle"])[:_MOTIF_ROWS]
            figures["motifs"] = [
                {k: rounded(v) if isinstance(v, float) else v for k, v in asdict(row).items()}
                for row in best
            ]
        except FileNotFoundError:
            figures["motifs"] = None  # JASPAR's file is not at hand
    return figures


def _share(part: int, whole: int) -> float | None:
    return rounded(part / whole) if whole else None
