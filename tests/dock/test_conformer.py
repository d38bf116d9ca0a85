"""Conformers: stereochemistry, determinism, bounded failure, and matching to a crystal pose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, rdDistGeom, rdMolAlign

from bio_diffusion.dock import conformer
from bio_diffusion.dock.conformer import ConformerError, conformers, matched_conformer
from bio_diffusion.dock.featurize import torsion_tree
from bio_diffusion.dock.pose import align, twist
from bio_diffusion.dock.stereo import Stereo

# threonine-like centre pair, E and Z double bonds, a sulfoxide, a phosphate, a fused ring system
STEREO = [
    "C[C@@H](O)[C@H](N)C(=O)O",
    "C/C=C/[C@H](F)C(=O)N",
    "C/C=C\\CC(=O)O",
    "C[S@](=O)c1ccccc1",
    "C[C@]12CC[C@H]3[C@@H](CC=C4CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O",
    "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
]
FLEXIBLE = "CC(C)CNC(=O)[C@@H](NC[C@H](Cc1ccccc1)NC(=O)c1ccccc1)[C@@H](C)O"


def with_positions(mol: Chem.Mol, coords: np.ndarray) -> Chem.Mol:
    placed = Chem.Mol(mol)
    placed.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.asarray(coords, dtype=float))
    placed.AddConformer(conformer)
    return placed


@pytest.mark.parametrize("smiles", STEREO)
def test_stereo_is_kept_and_seen_as_rdkit_sees_it(smiles):
    mol = Chem.MolFromSmiles(smiles)
    coords = conformers(mol, 3, seed=1)
    assert coords.shape == (3, mol.GetNumAtoms(), 3)
    for pose in coords:
        placed = with_positions(mol, pose)
        Chem.AssignStereochemistryFrom3D(placed)
        assert Chem.MolToSmiles(placed) == Chem.MolToSmiles(mol)
    stereo = Stereo.of(mol)
    assert stereo.kept(coords).all()
    if len(stereo.centers):  # the mirror image has every centre wrong
        assert not stereo.kept(coords * np.array([1.0, 1.0, -1.0])).any()


def test_a_flipped_double_bond_is_noticed():
    mol = Chem.MolFromSmiles("C/C=C/CC(=O)O")
    other = Chem.MolFromSmiles("C/C=C\\CC(=O)O")
    coords = conformers(mol, 2, seed=0)
    assert Stereo.of(mol).kept(coords).all()
    assert not Stereo.of(other).kept(coords).any()


def test_same_seed_same_conformers_and_seeds_differ():
    mol = Chem.MolFromSmiles(FLEXIBLE)
    first, again, other = (conformers(mol, 3, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    aligned = align(torch.as_tensor(other), torch.as_tensor(first))
    assert (aligned - torch.as_tensor(first)).norm(dim=-1).mean() > 0.3
    # within one call as well
    spread = align(torch.as_tensor(first[1:]), torch.as_tensor(first[:1]).expand(2, -1, -1))
    assert (spread - torch.as_tensor(first[:1])).norm(dim=-1).mean(-1).min() > 0.3


def test_bond_lengths_are_those_of_a_molecule():
    mol = Chem.MolFromSmiles(FLEXIBLE)
    coords = conformers(mol, 2, seed=3)
    i, j = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]).T
    lengths = np.linalg.norm(coords[:, i] - coords[:, j], axis=-1)
    assert lengths.min() > 1.15 and lengths.max() < 1.65  # C=O to C-C


@pytest.mark.parametrize("smiles", ["C", "O", "CC", "[Na+]", "C#N", "c1ccccc1"])
def test_tiny_and_rigid_ligands(smiles):
    mol = Chem.MolFromSmiles(smiles)
    coords = conformers(mol, 2, seed=0)
    assert np.isfinite(coords).all()
    matched, rmsd = matched_conformer(mol, coords[0] + 5.0, count=2, seed=0)
    assert matched.shape == (mol.GetNumAtoms(), 3)
    assert rmsd < 0.05


def test_impossible_stereo_is_one_clear_line():
    """Of the four taggings of the two bridgeheads of norbornane two cannot be built."""
    mol = Chem.MolFromSmiles("FC12CCC(Cl)(C1)CC2")
    left, right = mol.GetSubstructMatch(Chem.MolFromSmarts("[$(C(F))]CC[$(CCl)]"))[::3]
    messages = []
    for second in (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW):
        mol.GetAtomWithIdx(left).SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CW)
        mol.GetAtomWithIdx(right).SetChiralTag(second)
        try:
            assert Stereo.of(mol).kept(conformers(mol, 1, seed=0)).all()
        except ConformerError as error:
            messages.append(error)
    assert len(messages) == 1
    assert "\n" not in str(messages[0]) and "stereochemistry" in str(messages[0])
    assert messages[0].code == "conformer"


def test_fewer_conformers_than_asked_are_repeated(monkeypatch):
    """RDKit, out of time, returns numbers of conformers that it does not hold."""
    embed = rdDistGeom.EmbedMultipleConfs

    def hurried(mol, count, parameters):
        return [*embed(mol, 2, parameters), *range(2, count)]

    monkeypatch.setattr(rdDistGeom, "EmbedMultipleConfs", hurried)
    monkeypatch.setattr(conformer, "TIME_LIMIT", 0)
    coords = conformers(Chem.MolFromSmiles("CCCCO"), 5, seed=0)
    assert coords.shape == (5, 5, 3)
    assert np.array_equal(coords[:2], coords[2:4]) and not np.array_equal(coords[0], coords[1])


def test_wrong_inputs_are_refused():
    with pytest.raises(ConformerError):
        conformers(Chem.Mol(), 1, 0)
    with pytest.raises(ConformerError):
        conformers(Chem.AddHs(Chem.MolFromSmiles("CC")), 1, 0)
    with pytest.raises(ValueError):
        conformers(Chem.MolFromSmiles("CC"), 0, 0)
    with pytest.raises(ValueError):
        matched_conformer(Chem.MolFromSmiles("CC"), np.zeros((3, 3)), 1, 0)


def test_matching_recovers_torsions_turned_at_random():
    """The target is one of our own conformers with other torsions: the RMSD can reach zero."""
    mol = Chem.MolFromSmiles(FLEXIBLE)
    tree = torsion_tree(mol)
    start = torch.as_tensor(conformers(mol, 1, seed=5))
    angles = torch.as_tensor(np.random.default_rng(0).uniform(-3, 3, (1, len(tree))))
    target = twist(start, tree, angles.float())[0].numpy()
    matched, rmsd = matched_conformer(mol, target, count=1, seed=5)
    assert rmsd < 0.02
    assert np.sqrt(((matched - target) ** 2).sum(-1).mean()) == pytest.approx(rmsd, abs=1e-4)


def test_matching_a_relaxed_pose_keeps_local_structure_and_beats_no_matching():
    """A crystal stand-in with other bond lengths: UFF geometry after a different embedding."""
    mol = Chem.MolFromSmiles(FLEXIBLE)
    full = Chem.AddHs(mol)
    AllChem.EmbedMolecule(full, randomSeed=77)
    AllChem.UFFOptimizeMolecule(full)
    crystal = Chem.RemoveHs(full).GetConformer().GetPositions()
    matched, rmsd = matched_conformer(mol, crystal, count=4, seed=0)
    plain = conformers(mol, 4, seed=0)
    unmatched = min(
        rdMolAlign.AlignMol(
            with_positions(mol, p),
            with_positions(mol, crystal),
            atomMap=list(zip(range(mol.GetNumAtoms()), range(mol.GetNumAtoms()), strict=True)),
        )
        for p in plain
    )
    assert rmsd < 0.5 < unmatched
    i, j = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]).T
    lengths = [np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1) for x in (matched, plain)]
    assert np.abs(lengths[0] - lengths[1]).min(0).max() < 1e-3
    assert Stereo.of(mol).kept(matched[None]).all()
