"""What docking one ligand gives: its poses as arrays, rows and SDF records.

Shapes: P poses, N ligand atoms. Coordinates in Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem
from scipy.spatial import cKDTree

from .complex import Ligand, Receptor
from .ligand import skeleton
from .results import sd_record

__all__ = ["Docked", "reference_pose"]


@dataclass(frozen=True)
class Docked:
    """The poses of one ligand, best first.

    Attributes:
        ligand: As read.
        coords: (P, N, 3) float32 Å, in the atom order of `ligand.mol`.
        rows: One mapping a pose with the columns of the results, but for what belongs to the run.
        seconds: Wall time spent on this ligand.
        reference: (N, 3) crystal pose that RMSD is measured to, or None.
        notes: What a reader should know, a line each.
    """

    ligand: Ligand
    coords: np.ndarray
    rows: tuple[dict[str, Any], ...]
    seconds: float
    reference: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def sdf(self) -> str:
        """All poses as SDF records with their fields."""
        return "".join(
            sd_record(_molblock(self.ligand, xyz), row)
            for xyz, row in zip(self.coords, self.rows, strict=True)
        )

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for the journal and the report."""
        crystal = None if self.reference is None else _molblock(self.ligand, self.reference)
        rows = [{**row, "seconds": round(self.seconds, 2)} for row in self.rows]
        return {"rows": rows, "sdf": self.sdf, "crystal": crystal, "notes": list(self.notes)}


def reference_pose(
    ligand: Ligand, receptor: Receptor, crystal: Ligand | None = None
) -> np.ndarray | None:
    """The pose that a ligand's RMSD is measured to, (N, 3) in its atom order, or None.

    It is that of `crystal` where this is the same molecule, whatever its protons, tautomer and
    stereo centres (the RMSD goes by elements and bonds alone), else the ligand's own coordinates
    where they lie in the protein: half of the atoms or more within 4.5 Å of it and none within 1 Å.
    """
    if crystal is not None and crystal.crystal is not None:
        (here, content), (there, other) = map(_skeleton, (ligand.mol, crystal.mol))
        if content == other and (match := there.GetSubstructMatch(here)):
            return crystal.crystal[list(match)]
    if ligand.crystal is None:
        return None
    gap, _ = cKDTree(receptor.coords).query(ligand.crystal)
    return ligand.crystal if gap.min() > 1.0 and np.mean(gap < 4.5) >= 0.5 else None


def _skeleton(mol: Chem.Mol) -> tuple[Chem.Mol, tuple[int, int, int]]:
    """Elements and bonds of a molecule, and what protonation and tautomerism leave as it is.

    The latter are the numbers of heavy atoms, of bonds, and of hydrogens without those that charges
    account for, so that benzene is not taken for cyclohexane.
    """
    hydrogens = sum(a.GetTotalNumHs() - a.GetFormalCharge() for a in mol.GetAtoms())
    return skeleton(mol), (mol.GetNumAtoms(), mol.GetNumBonds(), hydrogens)


def _molblock(ligand: Ligand, coords: np.ndarray) -> str:
    """A MOL block titled with the ligand's id."""
    mol = Chem.Mol(ligand.mol)
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(coords, dtype=np.float64))
    mol.AddConformer(conformer, assignId=True)
    mol.SetProp("_Name", ligand.id)
    return Chem.MolToMolBlock(mol)
