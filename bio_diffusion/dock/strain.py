"""Whether a pose's internal energy is out of all proportion to that of relaxed conformers.

Shapes: B poses, N heavy atoms. Energies in kcal/mol of the Universal Force Field.

Source: the energy ratio of PoseBusters 0.6.5 (Buttenschoen, Morris and Deane, Chem. Sci. 2024): the
energy of the pose with its hydrogens relaxed, over the mean energy of relaxed ETKDG conformers; up
to 100 passes. Deviations, for speed: the mean is over sixteen conformers instead of fifty (fewer
of large ligands, down to four: their energy is a sum of many terms and varies less), and they are
made one by one, until their mean is far enough from where it would change a verdict. Hydrogens are
relaxed only where the pose does not pass without: relaxing lowers the energy, so a pass stays a
pass. Work is limited by counts that fall with size and not by the clock, so that a busy machine
does not change a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Chem.inchi import MolFromInchi, MolToInchi

__all__ = ["Strain"]

THRESHOLD = 100.0
_ENSEMBLE = 16
_MARGIN = 8.0  # times the others' energy, at most, of a relaxed conformer caught in a bad minimum
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
        large = max(1.0, bare.GetNumAtoms() / _FULL_ENSEMBLE_ATOMS)
        self._count = max(4, round(_ENSEMBLE / large**2))
        self._attempts = max(5, round(_EMBEDDINGS / large**2))
        self._relaxed: list[float | None] = []  # energies of conformers, None where none came

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
        passed = np.zeros(len(energies), dtype=bool)
        unsure = np.ones(len(energies), dtype=bool)
        for look, (mean, trust) in enumerate(self._means()):
            ratio = energies / mean
            if look == 0:
                for pose in np.flatnonzero(~(ratio <= THRESHOLD / trust)):
                    energies[pose] = _relax_hydrogens(mol, int(pose), self._bare.GetNumAtoms())
                ratio = energies / mean
            passed |= unsure & (ratio <= THRESHOLD / trust)
            unsure &= (ratio > THRESHOLD / trust) & (ratio <= THRESHOLD * trust)
            if not unsure.any():
                break
        return passed

    def _means(self) -> Iterator[tuple[float, float]]:
        """Mean energy of ever more conformers, and the factor within which all would have it.

        One of k conformers in a bad minimum raises their mean by up to (_MARGIN + k - 1) / k. The
        last mean is taken as it is, even a negative one: a ratio to it means little, but the
        source has it.
        """
        known: list[float] = []
        for number in range(self._count):
            if number == len(self._relaxed):
                self._relaxed.append(self._conformer(number))
            energy = self._relaxed[number]
            known += [] if energy is None else [energy]
            last = number == self._count - 1
            if not known and last:
                raise ValueError("no relaxed conformer to compare the internal energy with")
            mean = float(np.mean(known)) if known else 0.0
            if last:
                yield mean or 1e-10, 1.0  # the source's way out for a lone atom
            elif mean > 0:
                yield mean, 1 + (_MARGIN - 1) / len(known)

    def _conformer(self, number: int) -> float | None:
        """Energy of a relaxed conformer, None where none can be embedded."""
        # through the InChI, as in the source: it settles tautomers and charges
        mol = MolFromInchi(MolToInchi(self._bare))
        mol = Chem.AddHs(self._bare if mol is None else mol)
        parameters: Any = rdDistGeom.ETKDGv3()  # its stubs give every field the wrong type
        parameters.randomSeed = 42 * (number + 1)
        parameters.useRandomCoords = True
        parameters.maxIterations = self._attempts
        if rdDistGeom.EmbedMolecule(mol, parameters) < 0:
            return None
        ((_, energy),) = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, numThreads=1)
        return float(energy)

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
