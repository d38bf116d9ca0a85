"""The report of a run: one HTML file that needs no network, drawn without scripts.

Designs beside the training set in numbers and histograms; molecules drawn by RDKit, DNA as a
sequence logo and coloured letters. Every text that comes from a user is escaped, and the page's
content security policy allows nothing from outside.

The table has at most `TABLE_ROWS` rows and `DRAWN` designs are drawn; what is left out is said on
the page and stands in the other result files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from rdkit.Chem.Draw import rdMolDraw2D

from bio_diffusion.design.properties import molecule
from bio_diffusion.design.rules import LETTERS
from bio_diffusion.design.summary import NEAREST, Table
from bio_diffusion.pages import page, settings_table

__all__ = ["Report", "histogram", "logo"]

TABLE_ROWS = 1_000
"""Most rows of the table."""

DRAWN = 48
"""Most designs that are drawn."""

_COLOURS = {"designs": "#2f6fb5", "training set": "#9aa3af", "dinucleotide shuffle": "#d9a441"}
_LETTERS = {"A": "#1b7f5a", "C": "#2f6fb5", "G": "#d08a00", "T": "#b23b3b"}
_SCALE = {
    "smiles": "<p>A random sample of all classes stands for the training set. The nearest training "
    f"molecule is looked for among all of them, for {NEAREST} designs at most and, for scale, for "
    "as many molecules of the training set itself.</p>",
    "dna": "<p>A random sample of all classes stands for the training set; the k-mer distances and "
    "the AUROC compare with it. Both depend on how many sequences are compared: in the column of "
    "the training set they are those of further training sequences, as many as there are designs. "
    "The nearest training sequence is looked for among all of them, for at most "
    f"{NEAREST} of each column.</p>",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2530; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid #e4e8ee; }
td.num { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow: auto; max-height: 480px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.card { border: 1px solid #e4e8ee; border-radius: 6px; padding: 6px; width: 200px; font-size: 12px;
  overflow-wrap: anywhere; }
.notes { color: #8a4b00; } .seq { font: 12px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 16px; } svg text { font-size: 11px; fill: #4a5563; }
footer { color: #6b7684; font-size: 12px; margin: 2rem 0; }
"""


@dataclass(frozen=True)
class Report:
    """Renders a run.

    Args:
        domain: "dna" or "smiles".
        rows: Of the result table.
        summary: Plain data of `summary.json`.
        table: What the designs stand beside.
    """

    domain: str
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    table: Table

    def html(self) -> str:
        """The whole page."""
        what = "DNA" if self.domain == "dna" else "molecules"
        counts, settings = self.summary["counts"], self.summary["settings"]
        asked = "; ".join([*map(str, settings["objective"]), *self.summary["constraints"]])
        title = f"Designed {what}" + (f": {asked}" if asked else "")
        notes = [*self.summary["warnings"]]
        if self.summary["shortfall"]:
            notes.append(self.summary["shortfall"])
        plots = "".join(histogram(name, sets) for name, sets in self.table.values.items())
        drawings = self._sequences() if self.domain == "dna" else self._molecules()
        body = f"""\
<p>{counts["given"]} designs of {counts["asked"]} asked for, from {counts["drawn"]} draws of the
model {escape(str(self.summary["model"]["name"]))}. {escape(self._told())}</p>
<p>{self._shares()}</p>
{"".join(f'<p class="notes">{escape(line)}</p>' for line in notes)}
<h2>Beside the training set</h2>
{_comparison(self.table.rows)}
{_SCALE[self.domain] if "training set" in self.table.rows else ""}
<h2>Properties</h2>
<div class="plots">{plots}</div>
{drawings}
{self._motifs()}
<h2>Designs</h2>
{self._designs()}
{settings_table(settings)}
<footer>Nothing here is loaded from a network. Properties are computed, not measured; means stand
with their standard errors. bio_diffusion {escape(str(self.summary["version"]))}.</footer>"""
        return page(title, _STYLE, body)

    def _told(self) -> str:
        told = "; ".join(
            words if name in words else f"{name} {words}"
            for name, words in self.summary["targets"].items()
        )
        return f"It was told {told}." if told else "It was told nothing."

    def _shares(self) -> str:
        """Validity, uniqueness and novelty in one sentence, each with what it is a share of."""
        valid, unique, novel, raw = (
            "–" if (share := self.summary.get(key)) is None else f"{100 * share:.3g} %"
            for key in ("validity", "uniqueness", "novelty", "raw_novelty")
        )
        if self.domain == "dna":
            return f"Of all that was drawn {unique} are different, and {novel} of these are novel."
        return (
            f"Of all that was drawn {valid} are molecules, {unique} of these are different, and "
            f"{novel} of these are novel ({raw} when other spellings count as other molecules)."
        )

    def _molecules(self) -> str:
        cards = []
        for row in self.rows[:DRAWN]:
            told = " ".join(f"{k} {v:.3g}" for k, v in self._measured(row))
            cards.append(
                f'<div class="card">{_drawing(row["smiles"])}<b>{escape(str(row["id"]))}</b><br>'
                f"{escape(row['smiles'])}<br>{escape(told)}</div>"
            )
        left = len(self.rows) - len(cards)
        more = f"<p>{left} further molecules stand in designs.csv.</p>" if left > 0 else ""
        return f'<h2>Molecules</h2><div class="cards">{"".join(cards)}</div>{more}'

    def _sequences(self) -> str:
        texts = [row["sequence"] for row in self.rows]
        lines = "".join(
            f'<p class="seq"><b>{escape(str(row["id"]))}</b> {_coloured(row["sequence"])}</p>'
            for row in self.rows[:DRAWN]
        )
        left = len(self.rows) - DRAWN
        more = f"<p>{left} further sequences stand in designs.fasta.</p>" if left > 0 else ""
        return f"<h2>Sequences</h2>{logo(texts)}{lines}{more}"

    def _motifs(self) -> str:
        found = self.summary.get("motifs")
        if not found:
            return ""
        heads = ("id", "name", "share", "background", "log2_ratio", "p", "q")
        rows = "".join(
            f"<tr>{''.join(_datum(row[head]) for head in heads)}</tr>" for row in found[:20]
        )
        return (
            "<h2>Motifs enriched over dinucleotide shuffles</h2><p>JASPAR 2024 (CC BY 4.0), both "
            "strands; share: of the sequences with a hit.</p>"
            f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _designs(self) -> str:
        if not self.rows:
            return "<p>None.</p>"
        heads = [h for h in self.rows[0] if h not in ("valid", "seed") and self.rows[0][h] != ""]
        head = "".join(f"<th>{escape(h)}</th>" for h in heads)
        rows = "".join(
            f"<tr>{''.join(_datum(row[h]) for h in heads)}</tr>" for row in self.rows[:TABLE_ROWS]
        )
        left = len(self.rows) - TABLE_ROWS
        more = f"<p>{left} further designs stand in designs.csv.</p>" if left > 0 else ""
        return (
            f'<div class="scroll"><table id="designs"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>{more}"
        )

    def _measured(self, row: Mapping[str, Any]) -> list[tuple[str, float]]:
        return [(name, row[name]) for name in self.table.values if row.get(name) is not None]


def histogram(name: str, sets: Mapping[str, np.ndarray], bins: int = 30) -> str:
    """One property of several sets, as shares of each; SVG, empty without values."""
    finite = {key: v[np.isfinite(v)] for key, v in sets.items()}
    finite = {key: v for key, v in finite.items() if len(v)}
    if not finite:
        return ""
    low, high = (f(np.concatenate(list(finite.values()))) for f in (np.min, np.max))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = {key: np.histogram(v, edges)[0] / len(v) for key, v in finite.items()}
    top = max(float(s.max()) for s in shares.values())
    width, height, left, base = 320, 190, 8, 150
    step = (width - 2 * left) / bins
    parts = []
    for key, share in shares.items():
        points = [f"{left},{base}"]
        for i, s in enumerate(share):
            y = base - 120 * float(s) / top
            points += [f"{left + i * step:.1f},{y:.1f}", f"{left + (i + 1) * step:.1f},{y:.1f}"]
        points.append(f"{width - left},{base}")
        colour = _COLOURS.get(key, "#555555")
        parts.append(
            f'<polygon points="{" ".join(points)}" fill="{colour}" fill-opacity="0.35" '
            f'stroke="{colour}"/>'
        )
    for i, key in enumerate(shares):
        x, colour = left + i * 105, _COLOURS.get(key, "#555555")
        parts.append(f'<rect x="{x}" y="178" width="9" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{x + 13}" y="186">{escape(key)}</text>')
    parts.append(f'<line x1="{left}" x2="{width - left}" y1="{base}" y2="{base}" stroke="#888"/>')
    parts.append(f'<text x="{left}" y="165">{low:.3g}</text>')
    parts.append(f'<text x="{width - left}" y="165" text-anchor="end">{high:.3g}</text>')
    parts.append(f'<text x="{width / 2}" y="18" text-anchor="middle">{escape(name)}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="histogram of {escape(name)}">{"".join(parts)}</svg>'
    )


def logo(sequences: Sequence[str], per_line: int = 80) -> str:
    """Letters at each site, as high as the bits that the site tells (2 at most); SVG.

    Source: Schneider & Stephens 1990, without their correction for small samples.
    """
    if not sequences:
        return ""
    length = max(map(len, sequences))
    table = np.zeros((length, 4))
    for sequence in sequences:
        for site, letter in enumerate(sequence):
            if letter in LETTERS:
                table[site, LETTERS.index(letter)] += 1
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    bits = 2 + np.sum(share * np.log2(np.maximum(share, 1e-12)), axis=1)
    cell, tall, gap = 12, 50, 18
    lines = -(-length // per_line)
    parts = []
    for site in range(length):
        x, y = cell * (site % per_line), (site // per_line + 1) * (tall + gap) - gap
        if site % 10 == 9:
            parts.append(f'<text x="{x + 6}" y="{y + 13}" text-anchor="middle">{site + 1}</text>')
        for i in np.argsort(share[site]):
            high = tall * share[site, i] * bits[site] / 2
            if high >= 0.5:
                # a letter is 8.6 wide and 8.6 high at a size of 12: stretched to its box
                parts.append(
                    f'<g transform="translate({x} {y:.1f}) scale(1.2 {high / 8.6:.3f})">'
                    f'<text style="font:bold 12px monospace;fill:{_LETTERS[LETTERS[i]]}">'
                    f"{LETTERS[i]}</text></g>"
                )
                y -= high
    width, height = cell * min(length, per_line), lines * (tall + gap)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="sequence logo">{"".join(parts)}</svg>'
    )


def _drawing(smiles: str) -> str:
    mol = molecule(smiles)
    if mol is None:
        return ""
    canvas = rdMolDraw2D.MolDraw2DSVG(190, 140)
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, mol)
    canvas.FinishDrawing()
    text = canvas.GetDrawingText()
    return text[text.index("<svg") :]


def _coloured(sequence: str) -> str:
    return "".join(
        f'<span style="color:{_LETTERS.get(letter, "#000000")}">{escape(letter)}</span>'
        for letter in sequence
    )


def _comparison(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """Metrics down, sets across; an error stands beside its mean."""
    names = list(dict.fromkeys(m for row in rows.values() for m in row if not m.endswith(" error")))
    body = []
    for metric in names:
        cells = []
        for row in rows.values():
            value, error = row.get(metric), row.get(f"{metric} error")
            text = "" if value is None else f"{value:.4g}"
            text += "" if error is None else f" ± {error:.2g}"
            cells.append(f'<td class="num">{text}</td>')
        body.append(f"<tr><td>{escape(metric)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in rows)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _datum(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{ {True: 'yes', False: 'no', None: ''}[value] }</td>"
    if isinstance(value, int | float):
        return f'<td class="num">{value:.4g}</td>'
    return f"<td>{escape(str(value))}</td>"
