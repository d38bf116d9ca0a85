"""The protein of a run and where to dock in it, from what the user said.

Shapes: N ligand atoms. Coordinates in Å.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from bio_diffusion.files import one_line

from .bound import LAST, may_be_ligand
from .complex import (
    Failure,
    InputError,
    Ligand,
    Receptor,
    Site,
    bound_ligand,
    read_ligands,
    read_receptor,
    site_from_center,
    site_from_ligand,
    site_from_residues,
)
from .ligand_files import reference_coords

__all__ = ["PROBES", "Place", "Target", "facts", "open_target", "probes", "split_bound"]

PROBES = {
    "probe_benzene": "c1ccccc1",
    "probe_phenol": "Oc1ccccc1",
    "probe_indole": "c1ccc2[nH]ccc2c1",
    "probe_benzamidine": "NC(=N)c1ccccc1",
    "probe_acetamide": "CC(N)=O",
    "probe_isobutanol": "CC(C)CO",
    "probe_imidazole": "c1c[nH]cn1",
    "probe_cyclohexylamine": "NC1CCCCC1",
}
"""Fragment-like molecules that mark likely sites of a protein without a ligand: aromatic, greasy,
charged, and able to give and take hydrogen bonds."""


@dataclass(frozen=True)
class Place:
    """Where the user wants to dock; with nothing said, anywhere on the surface.

    Attributes:
        autobox: File of a ligand in its place.
        center: Three coordinates, Å.
        size: Edge of the box around `center`, Å.
        residues: Such as `A:45,A:102`.
        blind: Anywhere, even where a bound ligand shows the site.
    """

    autobox: str | None = None
    center: Sequence[float] | None = None
    size: float | None = None
    residues: str | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.center is None:
            raise InputError("site", "--size says how large the box around --center is; give both")


@dataclass(frozen=True)
class Target:
    """A protein made ready.

    Attributes:
        receptor: Without the ligand that marks the site.
        sha256: Of the receptor's text, names it in keys of results.
        site: The box, or None for a search over the surface.
        crystal: The molecule that stood in the site, where one is known.
        warnings: What the user should know, a line each.
    """

    receptor: Receptor
    sha256: str
    site: Site | None
    crystal: Ligand | None
    warnings: tuple[str, ...]


def open_target(protein: str | Path, place: Place, prepare: str = "check") -> Target:
    """Reads a protein and finds the box.

    Args:
        protein: PDB or mmCIF file.
        place: What the user said of the site.
        prepare: `none`; `check` warns of missing atoms; `fix` rebuilds them with PDBFixer.

    Raises:
        InputError: The protein cannot be read, the site is unknown or away from it, or PDBFixer is
            wanted and not installed.
    """
    return _target(read_receptor(protein), place, prepare)


def split_bound(protein: str | Path, place: Place, prepare: str = "check") -> Target:
    """A protein alone: the ligand that its file holds, if any, is taken out and marks the site.

    The place that the user names, or `blind`, goes before the ligand's own.

    Raises:
        InputError: As `open_target`, or the bonds of that ligand cannot be told.
    """
    found = bound_ligand(protein)
    if found is None:
        return open_target(protein, place, prepare)
    ligand, receptor = found
    return _target(receptor, place, prepare, ligand)


def _target(
    receptor: Receptor, place: Place, prepare: str, taken_out: Ligand | None = None
) -> Target:
    if prepare not in ("none", "check", "fix"):
        raise InputError("setting", f"prepare is {prepare!r}; say none, check or fix")
    if prepare == "fix":
        receptor = fixed(receptor)
    warnings = missing(receptor) if prepare == "check" else ()
    crystal, site = taken_out, None
    if place.autobox is not None:
        coords = reference_coords(Path(place.autobox))
        site = replace(site_from_ligand(coords), how=f"ligand {one_line(Path(place.autobox).name)}")
        receptor = receptor.without(coords)
        first = next(read_ligands([place.autobox]))
        if isinstance(first, Failure):
            warnings += (f"{first.reason}; it marks the site, and no RMSD is measured to it",)
        elif first.crystal is not None:
            crystal = crystal or first
    elif place.center is not None:
        size = {} if place.size is None else {"size": place.size}
        site = site_from_center(place.center, **size)
    elif place.residues is not None:
        site = site_from_residues(receptor, place.residues)
    elif taken_out is not None and taken_out.crystal is not None and not place.blind:
        box = site_from_ligand(taken_out.crystal)
        site = replace(box, how=f"bound ligand {taken_out.id}")
    if site is not None:
        site.require_near(receptor)
    warnings += left_in(receptor, site)
    digest = hashlib.sha256(receptor.pdb.encode()).hexdigest()
    return Target(receptor, digest, site, crystal, warnings)


def left_in(receptor: Receptor, site: Site | None) -> tuple[str, ...]:
    """Says which groups in the box, or anywhere without one, may be a ligand that is in the way.

    Cofactors, lipids and sugars are meant to be there.
    """
    kept = receptor.notes["groups_kept"]
    names = np.array(receptor.residue_names)[receptor.residue_index]
    chains = ~receptor.hetero | ~np.isin(names, [*kept])
    elements = np.array(receptor.elements)
    tree, symbols = cKDTree(receptor.coords[chains]), elements[chains].tolist()
    found = []
    for residue, name in enumerate(receptor.residue_names):
        if name not in kept or name in LAST:
            continue
        own = (receptor.residue_index == residue) & receptor.hetero
        coords = receptor.coords[own]
        inside = site is None or np.mean(site.distance(coords) == 0) >= 0.5
        if inside and may_be_ligand(elements[own].tolist(), coords, tree, symbols):
            found.append(f"{name} {receptor.residue_ids[residue]}")
    if not found:
        return ()
    more = ", ..." if len(found) > 3 else ""
    where = "" if site is None else " in the box"
    return (
        f"{receptor.name}: {', '.join(found[:3])}{more}{where} stays as part of the protein; "
        "a ligand that is in the way: take it out of the file, or give it as --autobox_ligand",
    )


def missing(receptor: Receptor) -> tuple[str, ...]:
    """What the protein lacks, at most one line."""
    notes = receptor.notes
    backbone, side = notes["missing_backbone"], notes["missing_side_chain"]
    lacking = sorted({*backbone["first"], *side["first"]})
    count = max(backbone["count"], side["count"])
    parts = []
    if count:
        more = ", ..." if count > len(lacking) else ""
        parts.append(f"{count} residues lack atoms ({', '.join(lacking)}{more})")
    if notes["chain_breaks"]:
        parts.append(f"{notes['chain_breaks']} chain breaks")
    if not parts:
        return ()
    remedy = "; --prepare fix rebuilds missing atoms" if count else ""
    return (f"{receptor.name}: {' and '.join(parts)}{remedy}",)


def fixed(receptor: Receptor) -> Receptor:
    """The receptor with the missing atoms of its residues rebuilt by PDBFixer.

    Missing residues stay out: a loop built without evidence would be worse than a gap.

    Raises:
        InputError: PDBFixer is not installed, or cannot repair this protein.
    """
    try:
        from openmm.app import PDBFile
        from pdbfixer import PDBFixer
    except ImportError:
        raise InputError(
            "extra", "--prepare fix needs PDBFixer, which is not installed: pip install pdbfixer"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{receptor.name}.pdb"
        path.write_text(receptor.pdb)
        try:
            fixer = PDBFixer(filename=str(path))
            fixer.findMissingResidues()
            fixer.missingResidues = {}
            fixer.findMissingAtoms()
            fixer.missingTerminals = {}  # the end of what was seen is not the end of the chain
            fixer.addMissingAtoms(seed=0)
            with path.open("w") as stream:
                PDBFile.writeFile(fixer.topology, fixer.positions, stream, keepIds=True)
        except Exception as error:  # PDBFixer raises bare KeyErrors and kinds of its own alike
            reason = one_line(f"{type(error).__name__}: {error}", 80)
            raise InputError(
                "fix", f"{receptor.name}: PDBFixer failed ({reason}); use --prepare check"
            ) from None
        return read_receptor(path)


def probes() -> Iterator[Ligand]:
    """The built-in probe molecules under their names."""
    for name, smiles in PROBES.items():
        item = next(read_ligands([smiles]))
        assert isinstance(item, Ligand)  # they all parse
        yield replace(item, id=name)


def facts(receptor: Receptor) -> dict[str, Any]:
    """What the summary tells of a protein."""
    return {
        "name": receptor.name,
        "atoms": len(receptor),
        "residues": len(receptor.residue_ids),
        "notes": receptor.notes,
    }
