"""Whether a pose's internal energy is out of all proportion to that of relaxed conformers.

Shapes: B poses, N heavy atoms. Energies in kcal/mol of the Universal Force Field.

Source: the energy ratio of PoseBusters 0.6.5 (Buttenschoen, Morris and Deane, Chem. Sci. 2024): the
energy of the pose with its hydrogens relaxed, over the mean energy of relaxed ETKDG conformers; up
to 100 passes. Deviations, for speed: the mean is over sixteen conformers instead of fifty (fewer
of large ligands, down to four: their energy is a sum of many terms and varies less), and is taken
only where one conformer does not decide by a wide margin. Hydrogens are relaxed only where the pose
does not pass without: relaxing lowers the energy, so a pass stays a pass. Work is limited by counts
and not by the clock, so that a busy machine does not change a verdict.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Chem.inchi import MolFromInchi, MolToInchi

__all__ = ["Strain"]

THRESHOLD = 100.0
_ENSEMBLE = 16
_MARGIN = 8.0  # a relaxed conformer caught in a bad minimum was five times the mean
_FULL_ENSEMBLE_ATOMS = 30  # heavy atoms; the cost of a conformer grows with the square or faster
_EMBEDDINGS = 100  # attempts at one conformer


class Strain:
    """The energy check of one ligand.

    Args:
        mol: Sanitised heavy-atom molecule of N atoms.
    """

    def __init__(self, mol: Chem.Mol) -> None:
        bare = Chem.Mol(mol)
        bare.RemoveAllConformers()
        self._bare = bare
        with rdBase.BlockLogs():
            self.covered = rdForceFieldHelpers.UFFHasAllMoleculeParams(Chem.AddHs(bare))

    def passes(self, coords: np.ndarray) -> np.ndarray:
        """(B, N, 3) Å -> (B,) bool; all true where the force field does not cover the ligand.

        Raises:
            ValueError: No relaxed conformer can be made to compare with.
        """
        if not self.covered or len(coords) == 0:
            return np.ones(len(coords), dtype=bool)
        with rdBase.BlockLogs():
            return self._passes(self._with_hydrogens(coords))

    def _passes(self, mol: Chem.Mol) -> np.ndarray:
        """(B,) bool for the conformers of the molecule with hydrogens."""
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, confId=0)
        energies = np.array(
            [field.CalcEnergy(conf.GetPositions().ravel().tolist()) for conf in mol.GetConformers()]
        )
        low, high = self._doubt
        for pose in np.flatnonzero(~(energies <= low)):
            energies[pose] = _relax_hydrogens(mol, int(pose), self._bare.GetNumAtoms())
        passed = energies <= low
        doubtful = ~passed & (energies <= high)
        if doubtful.any():
            passed[doubtful] = energies[doubtful] / self._ensemble <= THRESHOLD
        return passed

    @cached_property
    def _doubt(self) -> tuple[float, float]:
        """Energies up to which a pose surely passes, and above which it surely fails."""
        one = self._mean(1)
        if one <= 0:  # a ratio to a negative mean means little; the source takes it all the same
            return -np.inf, np.inf
        return THRESHOLD * one / _MARGIN, THRESHOLD * one * _MARGIN

    @cached_property
    def _ensemble(self) -> float:
        large = max(1.0, self._bare.GetNumAtoms() / _FULL_ENSEMBLE_ATOMS)
        count = max(4, round(_ENSEMBLE / large**2))
        return self._mean(count) or 1e-10  # the source's way out for a lone atom

    def _mean(self, count: int) -> float:
        """Mean energy of `count` relaxed conformers."""
        # through the InChI, as in the source: it settles tautomers and charges
        mol = MolFromInchi(MolToInchi(self._bare))
        mol = Chem.AddHs(self._bare if mol is None else mol)
        parameters: Any = rdDistGeom.ETKDGv3()  # its stubs give every field the wrong type
        parameters.randomSeed = 42
        parameters.useRandomCoords = True
        parameters.numThreads = 1
        parameters.maxIterations = _EMBEDDINGS
        rdDistGeom.EmbedMultipleConfs(mol, count, parameters)
        if mol.GetNumConformers() == 0:
            raise ValueError("no relaxed conformer to compare the internal energy with")
        relaxed = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, numThreads=1)
        return float(np.mean([energy for _, energy in relaxed]))

    def _with_hydrogens(self, coords: np.ndarray) -> Chem.Mol:
        """The molecule with one conformer a pose and hydrogens in idealised places."""
        mol = Chem.Mol(self._bare)
        for pose in coords:
            conformer = Chem.Conformer(mol.GetNumAtoms())
            conformer.SetPositions(np.asarray(pose, dtype=np.float64))
            mol.AddConformer(conformer, assignId=True)
        return Chem.AddHs(mol, addCoords=True)


def _relax_hydrogens(mol: Chem.Mol, pose: int, num_heavy: int) -> float:
    """Energy of one conformer after its hydrogens have moved to a minimum."""
    field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, confId=pose)
    for atom in range(num_heavy):
        field.AddFixedPoint(atom)
    try:
        field.Minimize()
    except RuntimeError:  # atoms on top of each other leave no direction to move in
        return float("inf")
    return float(field.CalcEnergy())
