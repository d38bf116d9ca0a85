"""Reading ligands: SDF and SMILES to `Ligand`, one record at a time.

Shapes: N heavy atoms. Coordinates in Å.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from .files import one_line, read_text, slug


@dataclass(frozen=True)
class Ligand:
    """A molecule to dock.

    Attributes:
        id: Unique in its run, safe as a file name.
        mol: Heavy atoms only, sanitised, stereo assigned.
        crystal: (N, 3) float64 heavy-atom coordinates in Å, in the atom order of `mol`, or None.
        source: Where it came from.
    """

    id: str
    mol: Chem.Mol
    crystal: np.ndarray | None
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A ligand that cannot be docked: its id, a code for tables and one line of reason."""

    ligand_id: str
    code: str
    reason: str


def read_ligands(sources: list[str], table: str | Path | None = None) -> Iterator[Ligand | Failure]:
    """Reads ligands from SDF files and SMILES strings."""
    for source in sources:
        if Path(source).suffix.lower() in (".sdf", ".mol", ".gz"):
            blocks = read_text(source).split("$$$$\n")
            for block in blocks:
                if not block.strip():
                    continue
                with BlockLogs():
                    mol = Chem.MolFromMolBlock(block, removeHs=True)
                name = slug(block.split("\n", 1)[0]) or Path(source).parent.name
                if mol is None:
                    yield Failure(name, "parse", f"{one_line(source)}: record does not parse")
                    continue
                solid = mol.GetNumConformers() and mol.GetConformer().Is3D()
                crystal = mol.GetConformer().GetPositions() if solid else None
                yield Ligand(name, mol, crystal, source)
        else:
            with BlockLogs():
                mol = Chem.MolFromSmiles(source)
            if mol is None:
                yield Failure("ligand", "parse", f"{one_line(source)}: not a SMILES")
            else:
                yield Ligand("ligand", mol, None, source)
