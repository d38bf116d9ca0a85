"""Whether poses are physically and chemically possible: PoseBusters' tests, thousands at a time.

Test names, definitions and thresholds are those of PoseBusters 0.6.5 (configuration `dock`, and
with a reference pose the identity tests of `redock`), so that a table of ours reads like one of
theirs. What depends on the ligand alone is worked out once; the rest runs on all poses together.

Shapes: B poses, N heavy ligand atoms, A receptor atoms, P atom pairs, G groups of atoms.
Coordinates and distances in Å.

| test | passes when |
|---|---|
| `mol_pred_loaded`, `mol_cond_loaded` | always: both are given as objects |
| `sanitization`, `inchi_convertible`, `all_atoms_connected`, `no_radicals` | of the graph |
| `molecular_formula`, `molecular_bonds` | always: poses share the reference's molecule |
| `double_bond_stereochemistry`, `tetrahedral_chirality` | InChI layers equal the reference's |
| `bond_lengths` | no bond 25 % below or above its distance-geometry bounds |
| `bond_angles` | no 1-3 distance 25 % outside its bounds |
| `internal_steric_clash` | no other pair 30 % below its lower bound |
| `aromatic_ring_flatness`, `double_bond_flatness` | all atoms within 0.25 Å of the common plane |
| `non-aromatic_ring_non-flatness` | an atom of each six-ring 0.05 Å out of its plane |
| `internal_energy` | at most 100 times the mean of relaxed conformers |
| `protein-ligand_maximum_distance` | an atom within 5 Å of the protein |
| `minimum_distance_to_*` | no pair closer than 0.75 of the sum of radii |
| `volume_overlap_with_*` | at most 7.5 % of the ligand's volume inside |

Source: Buttenschoen, Morris and Deane, "PoseBusters", Chem. Sci. 2024.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from rdkit.Chem.inchi import MolFromInchi, MolToInchi

from bio_diffusion.dock.overlap import volume_overlap
from bio_diffusion.dock.receptor import Receptor
from bio_diffusion.dock.stereo import StereoLayers
from bio_diffusion.dock.strain import Strain

__all__ = ["Validator", "all_pass"]

_BOND_TOLERANCE = _ANGLE_TOLERANCE = 0.25
_CLASH_TOLERANCE = 0.3
_FLAT, _NOT_FLAT = 0.25, 0.05  # Å
_FAR = 5.0  # Å
_CLOSE = 0.75  # of the sum of radii
_OVERLAP = 0.075
_NEIGHBOURHOOD = 6.0  # Å; times the scale for volumes. No atom further off matters to any test

_AROMATIC_RINGS = (
    "[ar5^2]1[ar5^2][ar5^2][ar5^2][ar5^2]1",
    "[ar6^2]1[ar6^2][ar6^2][ar6^2][ar6^2][ar6^2]1",
)
_PUCKERED_RINGS = (
    "[C,O,S,N;R1]~1[C,O,S,N;R1][C,O,S,N;R1][C,O,S,N;R1][C,O,S,N;R1][C,O,S,N;R1]1",
    "[C;R1]~1[C;R1][C,O,S,N;R1]~[C,O,S,N;R1][C;R1][C;R1]1",
    "[C;R1]~1[C;R1][C;R1]~[C;R1][C,O,S,N;R1][C;R1]1",
    "[C;R1]~1[C;R1][C;R1][C,O,S,N;R1]~[C,O,S,N;R1][C;R1]1",
    "[C;R1]~1[C;R1][C,O,S,N;R1][C;R1]~[C;R1][C;R1]1",
)
_DOUBLE_BONDS = ("[C;X3;^2](*)(*)=[C;X3;^2](*)(*)",)
# Both ends of a carboxylate-like group may carry the double bond, so they share their bounds.
_CONJUGATED_ENDS = "[O,N;D1;$([O,N;D1]-[*]=[O,N;D1]),$([O,N;D1]=[*]-[O,N;D1])]~[*]"

_INORGANIC_ELEMENTS = frozenset("Li Be Na Mg Cl K Ca Mn Fe Co Ni Cu Zn Br Rb Mo Cd".split())
_INORGANIC_NAMES = frozenset("FES MOS PO3 PO4 PPK SO3 SO4 VO4".split())
_WATER_NAMES = frozenset({"HOH"})


@dataclass(frozen=True)
class _Partner:
    """A class of receptor atoms and how it is tested.

    Attributes:
        name: As in the test names.
        atoms: (A,) bool.
        covalent: Whether the distance test takes covalent radii; van der Waals ones else.
        scale: Factor on the van der Waals radii in the volume test.
    """

    name: str
    atoms: np.ndarray
    covalent: bool
    scale: float


class Validator:
    """Checks poses of one ligand in one receptor.

    Args:
        mol: Sanitised heavy-atom molecule of N atoms.
        receptor: As read.
        reference: (N, 3) crystal pose; with it the stereochemistry of poses is compared to its.

    Attributes:
        notes: By test, why it could not be run on this ligand; such a test passes.
    """

    def __init__(
        self, mol: Chem.Mol, receptor: Receptor, reference: np.ndarray | None = None
    ) -> None:
        self.mol = Chem.Mol(mol)
        self.mol.RemoveAllConformers()
        self.notes: dict[str, str] = {}
        self._graph_tests = _graph_tests(self.mol)
        self._geometry = _geometry_tests(self.mol, self.notes)
        self._strain = Strain(self.mol)
        if not self._strain.covered:
            self.notes["internal_energy"] = "the force field has no parameters for this ligand"
        self._stereo = None if reference is None else StereoLayers(self.mol, reference)
        self._receptor = np.asarray(receptor.coords, dtype=np.float64)
        self._partners = _partners(receptor)
        symbols = [atom.GetSymbol() for atom in self.mol.GetAtoms()]
        self._radii = {
            covalent: (_radii(symbols, covalent), _radii(receptor.elements, covalent))
            for covalent in (False, True)
        }

    def check(self, coords: np.ndarray) -> dict[str, np.ndarray]:
        """Runs every test.

        Args:
            coords: (B, N, 3).

        Returns:
            (B,) bool by test name, in PoseBusters' order. A pose with a coordinate that is not a
            finite number fails every test that looks at coordinates.
        """
        poses = np.asarray(coords, dtype=np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (self.mol.GetNumAtoms(), 3):
            raise ValueError(f"coords {poses.shape}: need (B, {self.mol.GetNumAtoms()}, 3)")
        finite = np.isfinite(poses).all((1, 2))
        results = {name: np.full(len(poses), ok) for name, ok in self._graph_tests.items()}
        for name, passed in self._pose_tests(poses[finite]).items():
            results[name] = np.zeros(len(poses), dtype=bool)
            results[name][finite] = passed
        return results

    def _pose_tests(self, poses: np.ndarray) -> dict[str, np.ndarray]:
        results: dict[str, np.ndarray] = {}
        if self._stereo is not None:
            both = np.ones(len(poses), dtype=bool)
            results |= {"molecular_formula": both, "molecular_bonds": both}
            results |= self._stereo.kept(poses)
        results |= {name: test(poses) for name, test in self._geometry.items()}
        try:
            results["internal_energy"] = self._strain.passes(poses)
        except ValueError as error:
            self.notes["internal_energy"] = str(error)
            results["internal_energy"] = np.ones(len(poses), dtype=bool)
        around = [self._neighbours(pose) for pose in poses]
        for partner in self._partners:
            if partner.name == "protein":
                near = [bool((a.nearest[partner.atoms[a.index]] <= _FAR).any()) for a in around]
                results["protein-ligand_maximum_distance"] = np.array(near, dtype=bool)
            clear = [self._clear(a, partner) for a in around]
            results[f"minimum_distance_to_{partner.name}"] = np.array(clear, dtype=bool)
        for partner in self._partners:
            shares = [
                self._overlap(pose, a, partner) for pose, a in zip(poses, around, strict=True)
            ]
            results[f"volume_overlap_with_{partner.name}"] = np.array(shares) <= _OVERLAP
        return results

    def _neighbours(self, pose: np.ndarray) -> _Neighbours:
        low, high = pose.min(0) - _NEIGHBOURHOOD, pose.max(0) + _NEIGHBOURHOOD
        index = np.flatnonzero(((self._receptor >= low) & (self._receptor <= high)).all(1))
        distance = np.linalg.norm(pose[:, None] - self._receptor[index], axis=-1)
        return _Neighbours(index, distance, distance.min(0))

    def _clear(self, around: _Neighbours, partner: _Partner) -> bool:
        """Whether no pair of atoms is closer than their radii allow."""
        chosen = partner.atoms[around.index]
        ligand, receptor = self._radii[partner.covalent]
        limit = _CLOSE * (ligand[:, None] + receptor[around.index[chosen]])
        return not (around.distance[:, chosen] < limit).any()

    def _overlap(self, pose: np.ndarray, around: _Neighbours, partner: _Partner) -> float:
        """The share of the ligand's volume inside a class of receptor atoms."""
        reach = _NEIGHBOURHOOD * partner.scale
        chosen = partner.atoms[around.index] & (around.nearest <= reach)
        ligand, receptor = self._radii[False]
        index = around.index[chosen]
        return volume_overlap(
            pose,
            ligand,
            self._receptor[index],
            receptor[index],
            around.nearest[chosen],
            partner.scale,
        )


@dataclass(frozen=True)
class _Neighbours:
    """The receptor atoms in the box about one pose.

    Attributes:
        index: (A',) long.
        distance: (N, A') Å.
        nearest: (A',) Å to the nearest ligand atom.
    """

    index: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray


def all_pass(results: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether a pose is valid: (B,) bool, true where every test of `Validator.check` passes."""
    return np.logical_and.reduce(list(results.values()))


def _graph_tests(mol: Chem.Mol) -> dict[str, bool]:
    """The tests that do not depend on coordinates."""
    bare = Chem.Mol(mol)
    Chem.RemoveStereochemistry(bare)
    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(bare)
        inchi = MolToInchi(bare)
        readable = bool(inchi) and MolFromInchi(inchi) is not None
    return {
        "mol_pred_loaded": True,
        "mol_cond_loaded": True,
        "sanitization": len(problems) == 0,
        "inchi_convertible": readable,
        "all_atoms_connected": len(Chem.GetMolFrags(bare)) <= 1,
        "no_radicals": all(atom.GetNumRadicalElectrons() == 0 for atom in bare.GetAtoms()),
    }


_Test = Callable[[np.ndarray], np.ndarray]


def _geometry_tests(mol: Chem.Mol, notes: dict[str, str]) -> dict[str, _Test]:
    """The tests of a pose's own geometry, each (B, N, 3) -> (B,) bool."""
    # PoseBusters bounds the distances of the graph without stereo labels
    bare = Chem.Mol(mol)
    Chem.RemoveStereochemistry(bare)
    tests: dict[str, _Test] = {}
    try:
        bounds = rdDistGeom.GetMoleculeBoundsMatrix(
            bare, set15bounds=True, scaleVDW=True, doTriangleSmoothing=True
        )
    except (RuntimeError, ValueError):
        # what is left are no pairs, which pass
        reason = "distance geometry has no bounds for this ligand"
        notes |= dict.fromkeys(("bond_lengths", "bond_angles", "internal_steric_clash"), reason)
        bounds = np.zeros((0, 0))
    pairs, lower, upper, kind = _pairs(bare, bounds)
    widths = {
        "bond_lengths": (_BOND_TOLERANCE, _BOND_TOLERANCE),
        "bond_angles": (_ANGLE_TOLERANCE, _ANGLE_TOLERANCE),
        "internal_steric_clash": (_CLASH_TOLERANCE, np.inf),
    }
    for number, (name, (below, above)) in enumerate(widths.items()):
        chosen = kind == number
        low, high = lower[chosen] * (1 - below), upper[chosen] * (1 + above)
        tests[name] = partial(_within, pairs=pairs[chosen], lower=low, upper=high)
    flat = partial(_planar, mol=bare)
    tests["aromatic_ring_flatness"] = flat(patterns=_AROMATIC_RINGS, most=_FLAT)
    tests["non-aromatic_ring_non-flatness"] = flat(patterns=_PUCKERED_RINGS, least=_NOT_FLAT)
    tests["double_bond_flatness"] = flat(patterns=_DOUBLE_BONDS, most=_FLAT)
    return tests


def _pairs(
    mol: Chem.Mol, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Atom pairs (P, 2), their lower and upper bounds (P,) and kinds (P,): bond, angle, other."""
    first, second = np.triu_indices(len(bounds), k=1)
    lower, upper = bounds[second, first].copy(), bounds[first, second].copy()
    bonded = Chem.GetAdjacencyMatrix(mol).astype(bool)
    # two bonds away; pairs in three-rings are bonds before they are angles
    angle = (bonded.astype(int) @ bonded.astype(int)) > 0
    kind = np.where(bonded[first, second], 0, np.where(angle[first, second], 1, 2))
    if len(bounds):
        place = {(int(i), int(j)): p for p, (i, j) in enumerate(zip(first, second, strict=True))}
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for match in mol.GetSubstructMatches(Chem.MolFromSmarts(_CONJUGATED_ENDS)):
            symbols = sorted(mol.GetAtomWithIdx(i).GetSymbol() for i in match)
            groups[tuple(symbols)].append(place[min(match), max(match)])
        for group in groups.values():
            lower[group], upper[group] = lower[group].min(), upper[group].max()
    return np.stack([first, second], 1), lower, upper, kind[: len(first)]


def _within(
    poses: np.ndarray, pairs: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Whether every pair distance (B, P) is between its bounds (P,)."""
    distance = np.linalg.norm(poses[:, pairs[:, 0]] - poses[:, pairs[:, 1]], axis=-1)
    return ((distance >= lower) & (distance <= upper)).all(1)


def _planar(
    mol: Chem.Mol, patterns: Sequence[str], most: float = np.inf, least: float = 0.0
) -> _Test:
    """A test of how far the atoms of each matched group lie from their common plane.

    As in PoseBusters, the extreme is taken on one side of the plane, the one that the normal of the
    singular value decomposition points to.
    """
    groups: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for pattern in patterns:
        for match in mol.GetSubstructMatches(Chem.MolFromSmarts(pattern)):
            groups[len(match)].append(match)
    blocks = [np.array(matches) for matches in groups.values()]

    def test(poses: np.ndarray) -> np.ndarray:
        passed = np.ones(len(poses), dtype=bool)
        for block in blocks:
            points = poses[:, block]  # (B, G, n, 3)
            points = points - points.mean(2, keepdims=True)
            normal = np.linalg.svd(points)[2][..., -1, :]
            height = np.einsum("bgni,bgi->bgn", points, normal).max(-1)
            passed &= ((height <= most) & (height >= least)).all(1)
        return passed

    return test


def _partners(receptor: Receptor) -> list[_Partner]:
    """The classes of receptor atoms, by element, residue name and hetero flag."""
    names = np.array(receptor.residue_names)[receptor.residue_index]
    ion = np.isin(receptor.elements, list(_INORGANIC_ELEMENTS))
    cluster = np.isin(names, list(_INORGANIC_NAMES))
    water = np.isin(names, list(_WATER_NAMES))
    hetero = np.asarray(receptor.hetero, dtype=bool)
    plain = ~(ion | cluster | water)
    return [
        _Partner("protein", plain & ~hetero, covalent=False, scale=0.8),
        _Partner("organic_cofactors", plain & hetero, covalent=False, scale=0.8),
        _Partner("inorganic_cofactors", (ion | cluster) & hetero & ~water, True, scale=0.5),
        _Partner("waters", water & hetero & ~ion, covalent=False, scale=0.5),
    ]


def _radii(symbols: Iterable[str], covalent: bool) -> np.ndarray:
    """(A,) Å, covalent or van der Waals."""
    table = Chem.GetPeriodicTable()
    look_up = table.GetRcovalent if covalent else table.GetRvdw
    return np.array([look_up(symbol) for symbol in symbols], dtype=np.float64)
