"""Pose metrics against spyrmsd, published intervals and hand counts."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from scipy.stats import binomtest
from spyrmsd.rmsd import symmrmsd

from bio_diffusion.dock import metrics
from bio_diffusion.dock.ligand import atom_orders
from bio_diffusion.dock.metrics import (
    centroid_distance,
    mcnemar,
    rate,
    success_rate,
    successes,
    symmetric_rmsd,
    symmetry,
    wilson,
)
from bio_diffusion.dock.search import gaps

LIGANDS = {
    "CCO": 1,
    "c1ccccc1": 12,  # the dihedral group of a hexagon
    "CC(C)(C)c1cc(C(F)(F)F)cc(C(F)(F)F)c1": 6 * 6 * 6 * 2,
    "OP(=O)(O)OP(=O)(O)O": 6 * 6 * 2,  # bond orders and charges do not count
    "C12C3C4C1C5C2C3C45": 48,  # cubane: the full octahedral group
    "C1C2CC3CC1CC(C2)C3": 24,  # adamantane: the full tetrahedral group
    "c12c3c4c5c1c1c6c7c2c2c8c3c3c9c4c4c%10c5c5c1c1c6c6c%11c7c2c2c7c8c3c3c8c9c4c4c9c%10c5c5c1c1c6"
    "c6c%11c2c2c7c3c3c8c4c4c9c5c1c1c6c2c3c41": 120,  # C60: the icosahedral group
    "[Na+].[Cl-]": 1,
}


@pytest.mark.parametrize(("smiles", "order"), LIGANDS.items())
def test_number_of_automorphisms_and_rmsd_equal_spyrmsd(smiles, order):
    mol = Chem.MolFromSmiles(smiles)
    known = symmetry(mol)
    assert known.note == ""
    assert len(np.unique(known.permutations, axis=0)) == len(known.permutations) == order
    rng = np.random.default_rng(0)
    crystal = rng.normal(0, 3, (mol.GetNumAtoms(), 3))
    poses = crystal + rng.normal(0, 1, (4, *crystal.shape))
    poses[1] = crystal[known.permutations[-1]]  # a renaming is no displacement
    ours = symmetric_rmsd(poses, crystal, mol)
    numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    bonds = Chem.GetAdjacencyMatrix(mol)
    if "." not in smiles:
        theirs = symmrmsd(crystal, list(poses), numbers, numbers, bonds, bonds)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert ours[1] == pytest.approx(0, abs=1e-9)


def test_a_ligand_with_too_many_symmetries_ends_in_time_with_a_note(monkeypatch):
    """Inositol hexaphosphate: 12 ring automorphisms times 3! for each phosphate is 559,872."""
    mol = Chem.MolFromSmiles(
        "OP(=O)(O)OC1C(OP(=O)(O)O)C(OP(=O)(O)O)C(OP(=O)(O)O)C(OP(=O)(O)O)C1OP(=O)(O)O"
    )
    clock = count()  # a second a look
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    metrics._automorphisms.cache_clear()
    known = symmetry(mol, time_limit=1000)
    looks = next(clock)
    assert 1000 < looks < 1010
    assert "symmetry" in known.note and "1000 s" in known.note
    crystal = np.random.default_rng(1).normal(size=(mol.GetNumAtoms(), 3))
    assert symmetric_rmsd(crystal[None] + [3.0, 0, 4.0], crystal, known) == pytest.approx(5.0)
    symmetry(mol, time_limit=1000)
    assert next(clock) == looks + 1, "the verdict is kept"


def test_blocks_do_not_change_the_result(monkeypatch):
    mol = Chem.MolFromSmiles("CC(C)(C)c1cc(C(F)(F)F)cc(C(F)(F)F)c1")
    rng = np.random.default_rng(2)
    crystal = rng.normal(size=(mol.GetNumAtoms(), 3))
    poses = rng.normal(size=(7, *crystal.shape))
    whole = symmetric_rmsd(poses, crystal, mol)
    monkeypatch.setattr(metrics, "_BLOCK", 700)
    np.testing.assert_allclose(symmetric_rmsd(poses, crystal, mol), whole)


def test_hydrogens_are_left_out():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    crystal = np.random.default_rng(3).normal(size=(mol.GetNumAtoms(), 3))
    pose = crystal.copy()
    pose[3:] += 7.0
    assert symmetric_rmsd(pose[None], crystal, mol) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="no heavy atoms"):
        symmetry(Chem.MolFromSmiles("[H][H]"))
    with pytest.raises(ValueError, match="need"):
        symmetric_rmsd(crystal, crystal, mol)


def test_centroid_distance():
    crystal = np.zeros((5, 3))
    poses = np.ones((2, 5, 3)) * np.array([1.0, 2.0])[:, None, None]
    np.testing.assert_allclose(centroid_distance(poses, crystal), np.sqrt([3.0, 12.0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_equals_scipy(won, lost):
    low, high = wilson(won, won + lost)
    if won + lost:
        ours = binomtest(won, won + lost).proportion_ci(method="wilson")
        np.testing.assert_allclose((low, high), (ours.low, ours.high), atol=1e-12)
    else:
        assert (low, high) == (0.0, 1.0)


def test_rate_prints_itself():
    shown = rate([True] * 3 + [False] * 7)
    assert (shown.successes, shown.total, shown.share) == (3, 10, 0.3)
    assert str(shown) == "30.0 % [10.8, 60.3] (3/10)"  # Newcombe 1998's formula by hand
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_mcnemar_counts_only_the_discordant_pairs():
    first = [True] * 8 + [False] * 2 + [True] * 50 + [False] * 40
    second = [False] * 8 + [True] * 2 + [True] * 50 + [False] * 40
    # 8 against 2: twice the binomial tail, 2 * (1 + 10 + 45) / 2^10
    assert mcnemar(first, second) == pytest.approx(112 / 1024)
    assert mcnemar(second, first) == pytest.approx(112 / 1024)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(ValueError, match="same complexes"):
        mcnemar([True], [True, False])


def test_success_counts_ranks_failures_and_validity():
    rmsds = [np.array([1.0, 5.0]), np.array([3.0, 1.9]), np.array([]), np.array([np.nan, 2.0])]
    valid = [np.array([False, True]), np.array([True, True]), np.array([]), np.array([True, True])]
    assert successes(rmsds).tolist() == [True, False, False, False]
    assert successes(rmsds, top=2).tolist() == [True, True, False, False]
    assert successes(rmsds, top=2, valid=valid).tolist() == [False, True, False, False]
    assert success_rate(rmsds, top=2).share == 0.5


@pytest.mark.parametrize(("smiles", "orders"), LIGANDS.items(), ids=range(len(LIGANDS)))
def test_orders_of_atoms_that_are_alike_are_the_symmetries_up_to_some(
    smiles: str, orders: int
) -> None:
    mol = Chem.MolFromSmiles(smiles)
    found = atom_orders(mol)
    assert len(found) == min(orders, 32)
    assert found[0].tolist() == list(range(mol.GetNumAtoms()))
    known = set(map(tuple, symmetry(mol).permutations.tolist()))
    assert set(map(tuple, found.tolist())) <= known


def test_gaps_between_poses_are_the_symmetric_rmsd() -> None:
    mol = Chem.MolFromSmiles("CC(C)c1ccc(C(=O)[O-])cc1")
    poses = torch.randn(9, mol.GetNumAtoms(), 3, generator=torch.Generator().manual_seed(0)) + 40
    same = torch.as_tensor(atom_orders(mol))
    expected = symmetric_rmsd(poses.numpy(), poses[0].numpy(), mol)
    np.testing.assert_allclose(gaps(poses[0], poses, same), expected, atol=1e-5)
    plain = (poses - poses[0]).square().sum(-1).mean(-1).sqrt()
    torch.testing.assert_close(gaps(poses[0], poses), plain)
