"""The validity check against PoseBusters: kept verdicts, live ones, and RDKit's shape overlap."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, rdShapeHelpers

from bio_diffusion.dock.overlap import volume_overlap
from bio_diffusion.dock.receptor import Receptor, read_receptor
from bio_diffusion.dock.stereo import StereoLayers
from bio_diffusion.dock.strain import Strain
from bio_diffusion.dock.validity import Validator, all_pass

DATA = Path(__file__).parents[1] / "data" / "validity"
GOLDEN = json.loads((DATA / "golden.json").read_text())
# PoseBusters' loading of the reference file and its RMSD are not tests of a pose's validity
OTHERS = {"mol_true_loaded", "rmsd_≤_2å"}


@cache
def case(name: str) -> tuple[Validator, list[str], np.ndarray]:
    """Validator, pose names and poses (B, N, 3) of a kept complex; the first is the crystal's."""
    mols = list(Chem.SDMolSupplier(str(DATA / f"{name}.sdf")))
    poses = np.stack([mol.GetConformer().GetPositions() for mol in mols])
    validator = Validator(mols[0], read_receptor(DATA / f"{name}.pdb"), reference=poses[0])
    return validator, [mol.GetProp("_Name") for mol in mols], poses


def receptor_of(coords: np.ndarray, elements: list[str], hetero: bool = False) -> Receptor:
    count = len(elements)
    return Receptor(
        name="made",
        coords=np.asarray(coords, dtype=np.float32).reshape(count, 3),
        elements=tuple(elements),
        atom_names=tuple(elements),
        residue_index=np.zeros(count, dtype=int),
        residue_names=("LIG",),
        residue_ids=("A:1",),
        hetero=np.full(count, hetero),
        notes={},
        pdb="",
    )


def relaxed(smiles: str, seed: int = 1) -> tuple[Chem.Mol, np.ndarray]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=seed) == 0
    AllChem.UFFOptimizeMolecule(mol, maxIters=1000)
    mol = Chem.RemoveHs(mol)
    return mol, mol.GetConformer().GetPositions()


def geometry(mol: Chem.Mol, coords: np.ndarray) -> dict[str, bool]:
    """Verdicts on one pose with a lone carbon 4 Å away for a protein."""
    beside = coords[:1] + [[0.0, 0.0, 4.0]]
    results = Validator(mol, receptor_of(beside, ["C"])).check(coords[None])
    return {name: bool(passed[0]) for name, passed in results.items()}


@pytest.mark.parametrize("name", GOLDEN["not_passed"])
def test_same_verdicts_as_posebusters(name):
    validator, names, poses = case(name)
    results = validator.check(poses)
    assert set(results) == set(GOLDEN["tests"]) - OTHERS
    assert list(results) == [test for test in GOLDEN["tests"] if test not in OTHERS]
    for pose, pose_name in enumerate(names):
        not_passed = GOLDEN["not_passed"][name][pose_name]
        ours = {test for test, passed in results.items() if not passed[pose]}
        assert ours == set(not_passed) - OTHERS, pose_name
        assert None not in not_passed.values()
    assert validator.notes == {}
    assert all_pass(results)[0]


@pytest.mark.skipif(not importlib.util.find_spec("posebusters"), reason="needs posebusters")
@pytest.mark.parametrize(
    ("name", "pose_name"),
    [
        ("7lzd_YHY", "touch_sam"),
        ("7zl5_IWE", "near_zinc"),
        ("4ryv_ZEA", "other_side"),
        ("2hzq_STR", "mirror"),
        ("2hzq_STR", "self_clash"),
    ],
)
def test_live_posebusters(name, pose_name, monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    judge = pytest.importorskip("make").judge
    monkeypatch.delitem(sys.modules, "make")
    _, names, _ = case(name)
    pose = Chem.SDMolSupplier(str(DATA / f"{name}.sdf"), sanitize=False)[names.index(pose_name)]
    theirs = {test: verdict for test, verdict in judge(name, pose).items() if test not in OTHERS}
    validator, _, poses = case(name)
    results = validator.check(poses[[names.index(pose_name)]])
    assert {test: bool(passed[0]) for test, passed in results.items()} == theirs


def test_poses_do_not_influence_each_other():
    validator, names, poses = case("7lzd_YHY")
    together = validator.check(poses)
    for pose in range(len(names)):
        alone = validator.check(poses[[pose]])
        assert {t: bool(p[0]) for t, p in alone.items()} == {
            t: bool(p[pose]) for t, p in together.items()
        }


@pytest.mark.parametrize("scale", [0.8, 0.5])
def test_overlap_equals_rdkit(scale):
    rng = np.random.default_rng(4)
    table = Chem.GetPeriodicTable()

    def cloud(count: int, spread: float, elements: list[str]) -> tuple[Chem.Mol, np.ndarray]:
        mol = Chem.RWMol()
        for element in rng.choice(elements, count):
            mol.AddAtom(Chem.Atom(str(element)))
        mol = mol.GetMol()
        conformer = Chem.Conformer(count)
        conformer.SetPositions(rng.normal(0, spread, (count, 3)))
        mol.AddConformer(conformer)
        return mol, np.array([table.GetRvdw(a.GetAtomicNum()) for a in mol.GetAtoms()])

    values = []
    for spread in (3.0, 6.0, 10.0, 15.0):
        (ligand, own), (receptor, other) = (
            cloud(20, 2.0, ["C", "N", "O", "Cl"]),
            cloud(80, spread, ["C", "O", "S", "Zn"]),
        )
        x, y = ligand.GetConformer().GetPositions(), receptor.GetConformer().GetPositions()
        nearest = np.linalg.norm(x[:, None] - y, axis=-1).min(0)
        ours = volume_overlap(x, own, y, other, nearest, scale)
        theirs = rdShapeHelpers.ShapeTverskyIndex(ligand, receptor, 1.0, 0.0, vdwScale=scale)
        assert ours == pytest.approx(theirs, abs=1e-12)
        values.append(ours)
    assert max(values) > 0.2  # the clouds do meet


def test_rings_and_double_bonds_must_be_flat_or_not():
    mol, chair = relaxed("C1CCCCC1")
    assert geometry(mol, chair)["non-aromatic_ring_non-flatness"]
    flat = chair.copy()
    flat -= flat.mean(0)
    normal = np.linalg.svd(flat)[2][-1]
    flat -= np.outer(flat @ normal, normal) * 0.95  # 0.01 Å of pucker left; 0.05 Å are needed
    assert not geometry(mol, flat)["non-aromatic_ring_non-flatness"]

    mol, ring = relaxed("Cc1ccccc1")
    assert geometry(mol, ring)["aromatic_ring_flatness"]
    atoms = list(mol.GetRingInfo().AtomRings()[0])
    normal = np.linalg.svd(ring[atoms] - ring[atoms].mean(0))[2][-1]
    for sign in (1.0, -1.0):
        boat = ring.copy()  # two opposite atoms on one side: 0.3 Å from the mean plane
        boat[atoms[0]] += sign * 0.45 * normal
        boat[atoms[3]] += sign * 0.45 * normal
        boat[[atoms[i] for i in (1, 2, 4, 5)]] -= sign * 0.45 * normal
        assert not geometry(mol, boat)["aromatic_ring_flatness"]

    mol, plane = relaxed("CC(C)=C(C)C")
    assert geometry(mol, plane)["double_bond_flatness"]
    bond = mol.GetBondBetweenAtoms(1, 3)
    assert bond.GetBondType() == Chem.BondType.DOUBLE
    axis = plane[3] - plane[1]
    axis /= np.linalg.norm(axis)
    arms = plane[[4, 5]] - plane[3]
    twisted = plane.copy()  # by a right angle: the methyls stand 1 Å out of the plane
    twisted[[4, 5]] = plane[3] + np.outer(arms @ axis, axis) + np.cross(axis, arms)
    assert not geometry(mol, twisted)["double_bond_flatness"]


def test_bond_and_clash_limits_are_where_the_bounds_say():
    """Ethane's bond: bounds 1.52 ± 0.01 Å in RDKit's distance geometry, widened by a quarter."""
    mol = Chem.MolFromSmiles("CC")
    for length, passes in ((1.10, False), (1.20, True), (1.85, True), (1.95, False)):
        assert geometry(mol, np.array([[0, 0, 0], [length, 0, 0.0]]))["bond_lengths"] == passes


def test_contact_limits_with_protein_cofactor_and_ion():
    """C-C: 0.75 x (1.7 + 1.7) = 2.55 Å. C-Zn with covalent radii: 0.75 x (0.76 + 1.22) = 1.485."""
    mol, pose = Chem.MolFromSmiles("C"), np.zeros((1, 1, 3))
    for element, hetero, test, limit in (
        ("C", False, "minimum_distance_to_protein", 2.55),
        ("C", True, "minimum_distance_to_organic_cofactors", 2.55),
        ("Zn", True, "minimum_distance_to_inorganic_cofactors", 1.485),
    ):
        for distance in (limit - 0.01, limit + 0.01):
            receptor = receptor_of(np.array([distance, 0, 0]), [element], hetero)
            results = Validator(mol, receptor).check(pose)
            assert results[test][0] == (distance > limit)
            # nothing else counts as protein
            assert results["protein-ligand_maximum_distance"][0] == (not hetero)
    for distance in (4.99, 5.01):
        receptor = receptor_of(np.array([0, distance, 0]), ["C"])
        near = Validator(mol, receptor).check(pose)["protein-ligand_maximum_distance"]
        assert near[0] == (distance < 5)


def test_stereo_follows_the_inchi():
    mol, pose = relaxed("C[C@@H](O)[C@H](N)C(=O)O")
    mirror = pose * [1.0, 1.0, -1.0]
    kept = StereoLayers(mol, pose).kept(np.stack([pose, mirror]))
    assert kept["tetrahedral_chirality"].tolist() == [True, False]
    assert kept["double_bond_stereochemistry"].all()
    # every sign of a meso compound turns in the mirror, and it is the same compound
    meso, pose = relaxed("C[C@H](O)[C@H](O)C")
    mirror = pose * [1.0, 1.0, -1.0]
    kept = StereoLayers(meso, pose).kept(np.stack([pose, mirror]))
    assert kept["tetrahedral_chirality"].tolist() == [True, True]
    # charges do not matter, and a Z acid differs from an E acid
    acid, trans = relaxed("[O-]C(=O)/C=C/C")
    cis = relaxed("[O-]C(=O)/C=C\\C")[1]
    kept = StereoLayers(acid, trans).kept(np.stack([trans, cis]))
    assert kept["double_bond_stereochemistry"].tolist() == [True, False]


def test_energy_of_a_crushed_pose():
    mol, pose = relaxed("CC(C)CC(=O)Nc1ccccc1")
    crushed = pose.mean(0) + (pose - pose.mean(0)) * 0.6
    strain = Strain(mol)
    assert strain.passes(np.stack([pose, crushed, pose])).tolist() == [True, False, True]
    assert strain.passes(pose[None][:0]).shape == (0,)


@pytest.mark.parametrize(("length", "most"), [(10, 16), (30, 16), (60, 4), (150, 4)])
def test_the_ensemble_of_a_large_ligand_is_small(length, most, monkeypatch):
    """All conformers are made only where the pose's energy is a hundred times theirs."""
    mol = Chem.MolFromSmiles("C" * length)
    for ratio, seen in (
        (1.0, 1),
        (20.0, 2),
        (30.0, 3),
        (99.0, most),
        (101.0, most),
        (400.0, 3),
        (900.0, 1),
    ):
        asked = []
        strain = Strain(mol)
        monkeypatch.setattr(strain, "_conformer", lambda number, a=asked: a.append(number) or 1.0)
        monkeypatch.setattr("bio_diffusion.dock.strain._relax_hydrogens", lambda *_, r=ratio: r)
        field = type("Field", (), {"CalcEnergy": lambda *_, r=ratio: r})()
        monkeypatch.setattr(
            "bio_diffusion.dock.strain.rdForceFieldHelpers.UFFGetMoleculeForceField",
            lambda *_, field=field, **__: field,
        )
        spread = np.arange(3 * length, dtype=float).reshape(1, length, 3)
        assert strain.passes(spread).tolist() == [ratio <= 100]
        assert len(asked) == seen, ratio
        assert strain.passes(np.repeat(spread, 2, 0)).tolist() == [ratio <= 100] * 2
        assert len(asked) == seen  # kept


def test_conformers_that_do_not_come_are_passed_over(monkeypatch):
    mol, pose = relaxed("CC(C)CC(=O)Nc1ccccc1")
    strain = Strain(mol)
    plain = strain._conformer
    monkeypatch.setattr(strain, "_conformer", lambda n: plain(n) if n == 2 else None)
    assert strain.passes(pose[None]).tolist() == [True]
    barren = Strain(mol)
    monkeypatch.setattr(barren, "_conformer", lambda n: None)
    with pytest.raises(ValueError, match="no relaxed conformer"):
        barren.passes(pose[None])


def test_what_cannot_be_tested_passes_with_a_note():
    mol = Chem.MolFromSmiles("[Fe]")
    validator = Validator(mol, receptor_of(np.array([3.0, 0, 0]), ["C"]))
    assert all_pass(validator.check(np.zeros((2, 1, 3)))).tolist() == [True, True]
    assert set(validator.notes) <= {"internal_energy"}


def test_graph_faults_are_told():
    beside = receptor_of(np.array([4.0, 0, 0]), ["C"])
    salt = Validator(Chem.MolFromSmiles("CC.O"), beside).check(np.zeros((1, 3, 3)))
    assert not salt["all_atoms_connected"][0]
    radical = Validator(Chem.MolFromSmiles("C[CH2]"), beside).check(np.zeros((1, 2, 3)))
    assert not radical["no_radicals"][0]


def test_broken_input():
    validator, _, poses = case("4ryv_ZEA")
    broken = poses[[0, 0, 0]].copy()
    broken[1, 2, 0] = np.nan
    broken[2, 0, 1] = np.inf
    results = validator.check(broken)
    assert all_pass(results).tolist() == [True, False, False]
    assert results["sanitization"].all() and not results["bond_lengths"][1:].any()
    empty = validator.check(poses[:0])
    assert list(empty) == list(results) and all(passed.shape == (0,) for passed in empty.values())
    with pytest.raises(ValueError, match="need"):
        validator.check(poses[0])
    with pytest.raises(ValueError, match="need"):
        validator.check(poses[:, 1:])
