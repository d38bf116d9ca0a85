"""The report of a run: one HTML file that needs no network, with the poses in a 3D viewer.

The page holds everything: 3Dmol.js, the protein trimmed around the poses, the poses, a table and a
plot. Its content security policy allows nothing from outside and only the two scripts that this
module wrote, by hash. Every text that comes from a user is escaped; data for the script are JSON in
which `<`, `>` and `&` are written as escapes.

Poses are embedded by rank, the best ligands first, up to `POSE_BYTES`; the table has at most
`TABLE_ROWS` rows. What is left out is said on the page and stands in the other result files.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from bio_diffusion.pages import page, settings_table

from .receptor import Receptor

__all__ = ["Report"]

POSE_BYTES = 2_500_000
"""Most bytes of embedded poses."""

TABLE_ROWS = 2_000
"""Most rows of the table."""

TRIM = 12.0
"""Å around the embedded poses within which residues of the protein are shown."""

_SHOWN_LIGANDS = 400  # ligands held in memory to choose poses from
_HEADS = (
    "Ligand", "Rank", "Score", "Energy", "Confidence", "RMSD", "Valid", "Failed checks", "Site"
)  # fmt: skip


@dataclass
class Report:
    """Collects the results of a run and renders them.

    Args:
        title: Heading, such as the protein's name.
        proteins: By the names that the rows of the results give; poses in others are only listed.
        settings: What to list under settings, plain values.
        warnings: Lines that the reader must see.

    Attributes:
        ligands: Number of results taken so far.
        poses: Number of their poses.
    """

    title: str
    proteins: Mapping[str, Receptor]
    settings: Mapping[str, Any]
    warnings: Sequence[str] = ()
    _kept: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    ligands: int = 0
    poses: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Takes one stored result; only the best ligands are kept."""
        self.ligands += 1
        self.poses += len(record["rows"])
        if record["rows"]:
            # a heap with the worst on top; the order of arrival breaks ties
            entry = (-float(record["rows"][0]["energy"]), -self.ligands, record)
            push = heapq.heappush if len(self._kept) < _SHOWN_LIGANDS else heapq.heappushpop
            push(self._kept, entry)

    def html(self, failures: Sequence[tuple[str, str, str]] = ()) -> str:
        """The whole page.

        Args:
            failures: Id, code and reason of ligands without poses.
        """
        records = [record for *_, record in sorted(self._kept, reverse=True)]
        ligands, poses = _choose(records, self.proteins)
        table = self._table(records, {(p["ligand"], p["rank"]): i for i, p in enumerate(poses)})
        data = {
            "proteins": self._trimmed(ligands, poses),
            "ligands": ligands,
            "poses": poses,
        }
        scripts = [_asset("3Dmol-min.js"), _asset("report.js")]
        allow = f"img-src data: blob:; script-src {' '.join(map(_source_hash, scripts))}"
        first = {p["ligand"]: i for i, p in reversed(list(enumerate(poses)))}
        options = "".join(
            f'<option value="{first[i]}">{escape(ligand["id"])}</option>'
            for i, ligand in enumerate(ligands)
            if i in first
        )
        lead = f"{self.poses} poses of {self.ligands} ligands"
        if failures:
            lead += f", {len(failures)} ligands without a result"
        body = f"""\
<p class="lead">{lead}.</p>
{_notes("Warnings", self.warnings)}
<div class="stage"><div>
<div id="viewer"></div>
<div class="controls"><label>Ligand <select id="ligand">{options}</select></label>
<label><input type="checkbox" id="all"> all its poses</label>
<label><input type="checkbox" id="crystal" checked> crystal pose (grey)</label>
<label><input type="checkbox" id="pocket" checked> side chains within 5 Å</label></div>
<div id="shown"></div>
</div><div>
{_plot(records)}
</div></div>
<h2>Poses</h2>
{table}
{_failures(failures)}
{settings_table(self.settings)}
<footer>Confidence: calibrated probability of an RMSD below 2 Å, where there is a model for it; it
ranks the poses of one ligand; not an affinity. Score: ranks them where there is no confidence, the
energy with the trained networks' opinion of the pose. Energy: AutoDock Vina's
scoring function in kcal/mol, lower is better; an estimate, not a measured affinity. Valid: no
failed check of geometry or clash. Viewer: 3Dmol.js 2.5.5 (BSD-3-Clause), in this file; nothing is
loaded from a network.</footer>
<script type="application/json" id="data">{_json(data)}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>"""
        return page(self.title, _asset("report.css"), body, allow)

    def _trimmed(
        self, ligands: Sequence[Mapping[str, Any]], poses: Sequence[Mapping[str, Any]]
    ) -> dict[str, str]:
        """PDB text of each protein that a pose refers to, cut to residues near its poses."""
        points: dict[str, list[np.ndarray]] = {}
        for pose in poses:
            name = ligands[pose["ligand"]]["protein"]
            points.setdefault(name, []).append(_coordinates(pose["block"]))
        texts = {}
        for name, coords in points.items():
            receptor = self.proteins[name]
            near, _ = cKDTree(np.concatenate(coords)).query(
                receptor.coords, distance_upper_bound=TRIM
            )
            texts[name] = receptor.select(receptor.residue_index[np.isfinite(near)].tolist()).pdb
        return texts

    def _table(
        self, records: Sequence[Mapping[str, Any]], shown: Mapping[tuple[int, int], int]
    ) -> str:
        rows: list[str] = []
        for i, record in enumerate(records):
            for row in record["rows"]:
                if len(rows) == TABLE_ROWS:
                    break
                index = shown.get((i, row["rank"]))
                link = "" if index is None else f' data-pose="{index}"'
                rows.append(f"<tr{link}>{_cells(row)}</tr>")
        head = "".join(f"<th>{name}</th>" for name in _HEADS)
        left = self.poses - len(rows)
        more = f"<p>{left} further poses stand in results.csv.</p>" if left else ""
        dark = len(rows) - len(shown)
        if dark > 0:
            more += f"<p>{dark} poses of this table are not in the viewer; see poses.sdf.</p>"
        return (
            f'<div class="scroll"><table id="poses"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>{more}"
        )


def _choose(
    records: Sequence[Mapping[str, Any]], proteins: Mapping[str, Receptor]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ligands and poses to embed: every ligand's first pose, then the second ones, and so on."""
    ligands = [
        {"id": r["ligand_id"], "protein": r["rows"][0]["protein"], "crystal": r.get("crystal")}
        for r in records
    ]
    blocks = [
        [part.split("M  END")[0] + "M  END\n" for part in r["sdf"].split("$$$$\n")[:-1]]
        for r in records
    ]
    poses: list[dict[str, Any]] = []
    spent = 0
    for depth in range(max(map(len, blocks), default=0)):
        for i, record in enumerate(records):
            if ligands[i]["protein"] not in proteins or depth >= len(blocks[i]):
                continue
            if spent + len(blocks[i][depth]) <= POSE_BYTES:
                row, block = record["rows"][depth], blocks[i][depth]
                poses.append(
                    {"ligand": i, "rank": row["rank"], "energy": row["energy"], "block": block}
                )
                spent += len(block)
    return ligands, poses


def _coordinates(block: str) -> np.ndarray:
    """(N, 3) of a V2000 MOL block."""
    lines = block.split("\n")
    count = int(lines[3][:3])
    return np.array(
        [[float(line[i : i + 10]) for i in (0, 10, 20)] for line in lines[4 : 4 + count]]
    )


def _cells(row: Mapping[str, Any]) -> str:
    valid = '<span class="good">yes</span>' if row["valid"] else '<span class="bad">no</span>'
    confidence = "" if row["confidence"] is None else f"{row['confidence']:.2f}"
    rmsd = "" if row["rmsd"] is None else f"{row['rmsd']:.2f}"
    numbers = (row["rank"], f"{row['score']:.2f}", f"{row['energy']:.2f}", confidence, rmsd)
    return (
        f"<td>{escape(str(row['ligand_id']))}</td>"
        + "".join(f'<td class="num">{value}</td>' for value in numbers)
        + f'<td>{valid}</td><td class="wide">{escape(str(row["failed_checks"] or ""))}</td>'
        + f"<td>{escape(str(row['site']))}</td>"
    )


def _plot(records: Sequence[Mapping[str, Any]]) -> str:
    """Energy against RMSD where crystal poses are known, else against rank."""
    rows = [row for record in records for row in record["rows"]][:TABLE_ROWS]
    known = [row for row in rows if row["rmsd"] is not None]
    if known:
        points = [(row["rmsd"], row["energy"], row["valid"]) for row in known]
        label = "RMSD to the crystal pose (Å)"
    else:
        points = [(row["rank"], row["energy"], row["valid"]) for row in rows]
        label = "rank"
    if not points:
        return "<p>No poses to plot.</p>"
    width, height, left, low = 460, 340, 52, 44
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_ticks, y_ticks = _ticks(min(0.0, *xs), max(xs)), _ticks(min(ys), max(ys))
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_span[0]) / (x_span[1] - x_span[0])
        up = (y - y_span[0]) / (y_span[1] - y_span[0])
        return left + across * (width - left - 16), height - low - up * (height - low - 16)

    parts = []
    for tick in x_ticks:
        x, y = place(tick, y_span[0])
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{y:.1f}" stroke="#eef1f5"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        x, y = place(x_span[0], tick)
        parts.append(
            f'<line x1="{x:.1f}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eef1f5"/>'
        )
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if known and x_span[1] > 2:
        x, y = place(2.0, y_span[0])
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{y:.1f}" stroke="#1b7f5a" '
            'stroke-dasharray="4 4"/>'
        )
    for value, energy, valid in points:
        x, y = place(value, energy)
        style = 'fill="#2f6fb5"' if valid else 'fill="none" stroke="#b23b3b"'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style} fill-opacity="0.75"/>')
    middle = (left + width - 16) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text transform="translate(14 {(height - low) / 2}) rotate(-90)" text-anchor="middle">'
        "energy (kcal/mol)</text>"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="energy against {label}">'
        f"{''.join(parts)}</svg><p>Filled: valid. Red rings: a check failed.</p>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers that enclose both ends."""
    span = max(high - low, 1e-6)
    step = 10.0 ** np.floor(np.log10(span))
    step *= next((f for f in (0.1, 0.2, 0.5, 1.0) if span / (f * step) <= 8), 1.0)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step))
    return [round(float(i * step), 10) for i in range(first, max(last, first + 1) + 1)]


def _notes(heading: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>{heading}</h2><ul class="notes">{items}</ul>' if items else ""


def _failures(failures: Sequence[tuple[str, str, str]]) -> str:
    if not failures:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(code)}</td>"
        f'<td class="wide">{escape(reason)}</td></tr>'
        for name, code, reason in failures[:TABLE_ROWS]
    )
    return (
        '<h2>Not docked</h2><div class="scroll"><table id="failures"><thead><tr><th>Ligand</th>'
        f"<th>Code</th><th>Reason</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _json(data: Any) -> str:
    """JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _source_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
