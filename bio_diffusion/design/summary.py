"""Designs beside the training set and beside shuffles, as one table of numbers.

A random sample of at most `SAMPLE` stands for the training set. What depends on how many sequences
are compared (distances of words, the discriminator, the nearest training sequence) is measured for
as many other training sequences too, which are kept out of that sample: what the designs would
score if they were real ones.
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
NEAREST = 50
"""Designs, at most, whose nearest training sequence is looked for, among all of them."""

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
        training: Training strings, molecules as canonical SMILES; None where they are not at hand.
        properties: Names to measure.
        oracles: For `measure`.
        seed: Of the sample and the shuffles.
    """
    text = "sequence" if domain == "dna" else "smiles"
    strings = [row[text] for row in designs]
    source = np.random.default_rng(seed)
    sets = {"designs": strings}
    apart: list[str] = []
    others: list[str] = []
    if training:
        order = source.permutation(len(training))
        few = min(len(strings), SAMPLE, len(training) // 2)
        apart, others = ([training[i] for i in part] for part in (order[:few], order[few:]))
        sets["training set"] = others[:SAMPLE]
    if domain == "dna" and strings:
        sets["dinucleotide shuffle"] = [metrics.dinucleotide_shuffle(s, source) for s in strings]
    measured = {name: measure(properties, group, oracles) for name, group in sets.items() if group}
    values = {p: {name: found[p] for name, found in measured.items()} for p in properties}
    rows: dict[str, dict[str, float | None]] = {}
    for name, group in sets.items():
        rows[name] = {"count": float(len(group))}
        for p in properties if group else ():
            _put(rows[name], p, values[p][name])
    summary: dict[str, Any] = {}
    if domain == "dna":
        summary |= _dna(drawn, training, apart, others, sets, rows)
    else:
        summary |= _smiles(drawn, training, apart, others, sets, rows)
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
    drawn: Sequence[str],
    training: Sequence[str] | None,
    apart: Sequence[str],
    others: Sequence[str],
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
    if apart:
        prints, further = metrics.fingerprints(others), metrics.fingerprints(apart)
        for name, group, known in (
            ("designs", sets["designs"], [*prints, *further]),
            ("training set", apart, prints),
        ):
            nearest = metrics.nearest_similarity(_some(group), known)
            _put(rows[name], "nearest training similarity", nearest)
    figures["diversity"] = rows["designs"]["internal diversity"]
    return figures


def _dna(
    drawn: Sequence[str],
    training: Sequence[str] | None,
    apart: Sequence[str],
    others: Sequence[str],
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
    sample = sets.get("training set", ())
    for name, group in {**sets, "training set": apart}.items():
        if not sample or not group:
            continue
        for k in (3, 6):
            rows[name][f"{k}-mer distance"] = rounded(metrics.kmer_distance(group, sample, k))
        nearest = metrics.nearest_edit(_some(group), others if group is apart else training or ())
        _put(rows[name], "nearest training edit", nearest)
        size = min(len(group), len(sample))
        if size >= _FOLD:
            score = metrics.discriminator_auroc(group[:size], sample[:size])
            rows[name]["discriminator AUROC"] = rounded(score)
    figures["kmer_distance"] = {k: rows["designs"].get(f"{k}-mer distance") for k in ("3", "6")}
    if sets["designs"]:
        try:
            best = metrics.enrichment(sets["designs"], sets["dinucleotide shuffle"])[:_MOTIF_ROWS]
            figures["motifs"] = [
                {k: rounded(v) if isinstance(v, float) else v for k, v in asdict(row).items()}
                for row in best
            ]
        except FileNotFoundError:
            figures["motifs"] = None  # JASPAR's file is not at hand
    return figures


def _some(group: Sequence[str]) -> Sequence[str]:
    """At most `NEAREST` of a set, from all over it."""
    return group[:: -(-len(group) // NEAREST)]


def _put(row: dict[str, float | None], name: str, values: np.ndarray) -> None:
    """Mean and standard error of values (N,), as the report reads them."""
    mean, error = metrics.mean_with_error(values)
    row |= {name: rounded(mean), f"{name} error": rounded(error)}


def _share(part: int, whole: int) -> float | None:
    return rounded(part / whole) if whole else None
