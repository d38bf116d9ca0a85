"""Reading proteins: PDB, mmCIF (also gzipped) to a `Receptor`, with a stated policy per class.

| met in the file | what happens |
|---|---|
| several models | the first is used |
| alternate locations | per residue the conformer of highest total occupancy (a tie: first label) |
| hydrogen, deuterium | dropped |
| water | dropped |
| selenomethionine | written as methionine |
| names of protonation and disulphide states (HIE, CYX, ASH, ...) | written as the amino acid |
| modified residues and caps (ACE, NME, ...) in a chain | kept, flagged hetero |
| metal ions of biology (`METALS`) | kept within 4 Å of a chain or cofactor, else dropped |
| other metals (phasing), halides | dropped |
| crystallisation additives | dropped |
| cofactors, glycans, other groups | kept, flagged hetero, each its own residue |
| nucleic acids | kept |
| unknown elements, unusable coordinates | dropped |
| missing atoms, chain breaks | counted and listed, never rebuilt |

Everything dropped, kept or missing is counted in `Receptor.notes`.

Shapes: A receptor atoms, R residues. Coordinates in Å.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from bio_diffusion.files import InputError, one_line

from .amino_acids import BACKBONE, SIDE_CHAINS
from .residues import CAPS, METAL_REACH, METALS, Group, read_groups, read_structure

_LISTED = 5  # residues named in a note, the rest only counted


@dataclass(frozen=True)
class Receptor:
    """Heavy atoms of a protein and what is bound to it.

    Attributes:
        name: Stem of the file.
        coords: (A, 3) float32, Å.
        elements: (A,) symbols, such as `C`, `Zn`.
        atom_names: (A,) PDB atom names.
        residue_index: (A,) residue of each atom, rising from 0 to R - 1.
        residue_names: (R,) component names.
        residue_ids: (R,) chain, number and insertion code, such as `A:45` or `A:45B`.
        hetero: (A,) bool: metals, cofactors and modified residues.
        notes: What the reading policy dropped, kept and found missing; plain JSON values.
        pdb: The same atoms, in the same order, as PDB text.
    """

    name: str
    coords: np.ndarray
    elements: tuple[str, ...]
    atom_names: tuple[str, ...]
    residue_index: np.ndarray
    residue_names: tuple[str, ...]
    residue_ids: tuple[str, ...]
    hetero: np.ndarray
    notes: dict[str, Any]
    pdb: str

    def __len__(self) -> int:
        return len(self.elements)

    def select(self, residues: Iterable[int]) -> Receptor:
        """The receptor reduced to whole residues, in the order of the file.

        Args:
            residues: Indices into `residue_ids`.

        Returns:
            A receptor whose residues are numbered anew from 0; the notes are kept.
        """
        chosen = np.unique(np.fromiter(residues, dtype=np.int64))
        keep = np.isin(self.residue_index, chosen)
        atoms = np.flatnonzero(keep)
        lines = self.pdb.splitlines()
        return Receptor(
            name=self.name,
            coords=self.coords[keep],
            elements=tuple(self.elements[i] for i in atoms),
            atom_names=tuple(self.atom_names[i] for i in atoms),
            residue_index=np.searchsorted(chosen, self.residue_index[keep]),
            residue_names=tuple(self.residue_names[i] for i in chosen),
            residue_ids=tuple(self.residue_ids[i] for i in chosen),
            hetero=self.hetero[keep],
            notes=self.notes,
            pdb="\n".join([*(lines[i] for i in atoms), "END", ""]),
        )

    def crop(self, center: np.ndarray, radius: float) -> Receptor:
        """Whole residues with at least one atom within `radius` Å of `center` (3,)."""
        near = np.linalg.norm(self.coords - np.asarray(center), axis=1) <= radius
        return self.select(np.unique(self.residue_index[near]))

    def without(self, coords: np.ndarray, reach: float = 1.2) -> Receptor:
        """Takes out the hetero groups that lie where a ligand lies.

        A deposited structure often holds the very ligand whose site is given by another file;
        left in place it would block the site. Metals are kept. The notes tell what went.

        Args:
            coords: (N, 3) heavy atoms of the ligand, Å.
            reach: Å below which two atoms cannot be different ones.
        """
        distance, _ = cKDTree(coords).query(self.coords, distance_upper_bound=reach)
        metal = np.array([gemmi.Element(symbol).is_metal for symbol in self.elements])
        blocked = set(self.residue_index[self.hetero & ~metal & np.isfinite(distance)].tolist())
        rest = self.select(i for i in range(len(self.residue_ids)) if i not in blocked)
        notes = {**self.notes}
        notes["groups_taken_out"] = notes.get("groups_taken_out", 0) + len(blocked)
        gone = Counter(self.residue_names[i] for i in blocked)
        for key in _KEPT.values():
            notes[key] = {n: c - gone[n] for n, c in notes.get(key, {}).items() if c > gone[n]}
        return replace(rest, notes=notes)


def read_receptor(path: str | Path) -> Receptor:
    """Reads a protein (PDB or mmCIF, also gzipped) under the policy of this module.

    Args:
        path: File to read.

    Returns:
        The receptor with at least one atom of a protein or nucleic acid.

    Raises:
        InputError: The file cannot be read or parsed, or holds no protein or nucleic acid.
    """
    return assemble(read_structure(path), path)


def assemble(
    structure: gemmi.Structure, path: str | Path, leave_out: Iterable[str] = ()
) -> Receptor:
    """Applies the reading policy to a parsed structure.

    Args:
        structure: What `read_structure` gave.
        path: Where it came from, for the name and for messages.
        leave_out: Labels of groups to take out, such as the bound ligand.

    Raises:
        InputError: No protein or nucleic acid is left, or only its alpha carbons.
    """
    name = one_line(path)
    if name.lower().endswith((".pdbqt", ".pdbqt.gz")):
        raise InputError(
            "parse", f"{name}: PDBQT is not read as a protein; give it as PDB or mmCIF"
        )
    counts: Counter[str] = Counter()
    tables: dict[str, Counter[str]] = {
        key: Counter()
        for key in (
            "modified_kept",
            "groups_kept",
            "metals_kept",
            "ions_dropped",
            "additives_dropped",
        )
    }
    omit = set(leave_out)
    groups: list[Group] = []
    for group in read_groups(structure, counts):
        if group.label in omit:
            counts["groups_taken_out"] += 1
        elif group.kind == "water":
            counts["waters_dropped"] += 1
        elif not group.atoms:
            counts["groups_without_usable_atoms"] += 1
        elif group.kind == "additive":
            tables["additives_dropped"][group.name] += 1
        else:
            groups.append(group)
    groups = _near_ions(groups, tables)
    for group in groups:
        if group.kind in _KEPT:
            tables[_KEPT[group.kind]][group.name] += 1
    polymer = [g for g in groups if g.kind in ("protein", "nucleic", "modified")]
    if not polymer:
        found = ", ".join(f"{v} {k}" for k, v in _found(counts, tables)) or "nothing usable"
        raise InputError(
            "no_protein",
            f"{name}: holds no protein or nucleic acid ({found}); give the protein's own file",
        )
    traces = [g for g in polymer if g.kind == "protein"]
    if traces and sum(len(g.atoms) == 1 for g in traces) > len(traces) / 2:
        raise InputError(
            "trace_only",
            f"{name}: most residues hold one atom only; docking needs all heavy atoms",
        )
    notes: dict[str, Any] = {
        "format": str(structure.input_format).rsplit(".", 1)[-1].lower(),
        "models": len(structure),
        "chains": list(dict.fromkeys(g.chain for g in groups)),
        "protein_residues": sum(
            g.kind in ("protein", "modified") and g.name not in CAPS for g in groups
        ),
        "nucleic_residues": sum(g.kind == "nucleic" for g in groups),
        **{key: counts[key] for key in _COUNTED},
        **{key: dict(sorted(table.items())) for key, table in tables.items()},
        **_missing(groups),
    }
    return _receptor(Path(path).name.split(".")[0] or "receptor", groups, notes)


_KEPT = {"modified": "modified_kept", "group": "groups_kept"}
_COUNTED = (
    "altloc_residues",
    "hydrogens_dropped",
    "waters_dropped",
    "mse_to_met",
    "states_renamed",
    "unknown_atoms_dropped",
    "groups_without_usable_atoms",
    "groups_taken_out",
)


def _found(counts: Counter[str], tables: dict[str, Counter[str]]) -> Iterator[tuple[str, int]]:
    """What a file without a protein held instead, for its message."""
    if counts["waters_dropped"]:
        yield "waters", counts["waters_dropped"]
    for key in ("groups_kept", "additives_dropped", "metals_kept", "ions_dropped"):
        yield from tables[key].items()


def _near_ions(groups: list[Group], tables: dict[str, Counter[str]]) -> list[Group]:
    """Keeps the metals of biology that lie beside something else that is kept."""
    anchors = [g.coords for g in groups if g.kind != "ion"]
    tree = cKDTree(np.concatenate(anchors or [np.full((1, 3), 1e9)]))  # no anchor: far away
    kept = []
    for group in groups:
        if group.kind == "ion":
            known = group.atoms[0].element.name in METALS
            near = known and tree.query(group.coords[0])[0] <= METAL_REACH
            tables["metals_kept" if near else "ions_dropped"][group.name] += 1
            if not near:
                continue
        kept.append(group)
    return kept


def _missing(groups: list[Group]) -> dict[str, Any]:
    """Counts and the first few of the residues with missing atoms, and of chain breaks."""
    backbone, side_chain, breaks = [], [], 0
    last: Group | None = None
    for group in groups:
        if group.kind not in ("protein", "modified"):
            continue
        if group.name in CAPS:
            last = group
            continue
        names = {a.name for a in group.atoms}
        if not names.issuperset(BACKBONE):
            backbone.append(group.label)
        if not names.issuperset(SIDE_CHAINS.get(group.name, ())):
            side_chain.append(group.label)
        if last is not None and last.chain == group.chain:
            end, start = last.position("C"), group.position("N")
            if end is not None and start is not None:
                breaks += bool(np.linalg.norm(end - start) > _GAP)
        last = group
    return {
        "missing_backbone": {"count": len(backbone), "first": backbone[:_LISTED]},
        "missing_side_chain": {"count": len(side_chain), "first": side_chain[:_LISTED]},
        "chain_breaks": breaks,
    }


_GAP = 2.5  # Å between C and N of neighbours in the file above which residues are missing


def _receptor(name: str, groups: list[Group], notes: dict[str, Any]) -> Receptor:
    """Lays the groups out as arrays and as PDB text with one line an atom."""
    letters = _chain_letters(list(notes["chains"]))
    lines: list[str] = []
    coords, hetero, index = [], [], []
    for r, group in enumerate(groups):
        number = group.number if group.number[-1].isalpha() else group.number + " "
        apart = group.kind in ("modified", "group", "ion")
        for atom in group.atoms:
            position = atom.pos.tolist()
            record = "HETATM" if apart else "ATOM  "
            lines.append(
                f"{record}{(len(lines) + 1) % 100000:5d} {atom.padded_name():<4.4s} "
                f"{group.name[:3]:>3s} {letters[group.chain]}{number[-5:]:>5s}   "
                f"{position[0]:8.3f}{position[1]:8.3f}{position[2]:8.3f}"
                f"{min(max(atom.occ, 0.0), 1.0):6.2f}{min(max(atom.b_iso, -99.0), 999.0):6.2f}"
                f"          {atom.element.name.upper():>2s}"
            )
            coords.append(position)
            hetero.append(apart)
            index.append(r)
    flat = [a for g in groups for a in g.atoms]
    return Receptor(
        name=name,
        coords=np.array(coords, dtype=np.float32),
        elements=tuple(a.element.name for a in flat),
        atom_names=tuple(a.name for a in flat),
        residue_index=np.array(index, dtype=np.int64),
        residue_names=tuple(g.name for g in groups),
        residue_ids=tuple(f"{g.chain}:{g.number}" for g in groups),
        hetero=np.array(hetero, dtype=bool),
        notes=notes,
        pdb="\n".join([*lines, "END", ""]),
    )


def _chain_letters(chains: list[str]) -> dict[str, str]:
    """One PDB character a chain: its own where it has one, else the next free one."""
    taken = {c for c in chains if len(c) == 1}
    free = (c for c in _LETTERS if c not in taken)
    return {c: c if len(c) == 1 else next(free, "z") for c in chains}


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"
