"""The fitted energy: its terms against Vina's own sums, its invariances, the strain of torsions."""

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdMolTransforms

from bio_diffusion.dock import terms
from bio_diffusion.dock.atom_types import ligand_types
from bio_diffusion.dock.physics import ATOM_KINDS, CUTOFF, PairField
from bio_diffusion.dock.pose import rotation_matrix
from bio_diffusion.dock.terms import PAIRWISE, fitted_energy, pair_sums, torsion_strain

VINA = torch.tensor([-0.035579, -0.005156, 0.840245, -0.035069, -0.587439])  # published weights
DRUGS = ("CC(=O)Nc1ccc(O)cc1", "OC(=O)c1cc(Cl)ccc1NS(=O)(=O)C", "CCN(CC)C(=O)CF", "CCc1ccccc1Br")


def of(smiles):
    """Four poses of a molecule, it, its kinds, and a receptor of atoms of all kinds at random."""
    mol = Chem.MolFromSmiles(smiles)
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    place = torch.tensor(mol.GetConformer().GetPositions()).float()
    generator = torch.Generator().manual_seed(0)
    coords = place - place.mean(0) + torch.randn(4, 1, 3, generator=generator)
    receptor = 40 * torch.rand(3000, 3, generator=generator) - 20
    receptor = receptor[torch.cdist(receptor, coords.flatten(0, 1)).amin(1) > 2]
    kinds = torch.randint(len(ATOM_KINDS), (len(receptor),), generator=generator)
    return coords, mol, torch.tensor(ligand_types(mol)), receptor, kinds


@pytest.mark.parametrize("smiles", DRUGS)
def test_first_five_sums_are_vina_s(smiles):
    coords, _, types, receptor, kinds = of(smiles)
    sums = pair_sums(coords, types, receptor, kinds)
    expected = PairField(receptor, kinds, types)(coords)[0].sum(1)
    assert sums.shape == (4, len(PAIRWISE))
    torch.testing.assert_close(sums[:, :5] @ VINA, expected, rtol=1e-4, atol=1e-3)


def test_sums_of_a_pose_do_not_depend_on_others_or_on_far_atoms():
    coords, _, types, receptor, kinds = of(DRUGS[0])
    sums = pair_sums(coords, types, receptor, kinds)
    alone = torch.cat([pair_sums(pose[None], types, receptor, kinds) for pose in coords])
    torch.testing.assert_close(alone, sums)
    near = torch.cdist(coords.flatten(0, 1), receptor).amin(0) < CUTOFF
    torch.testing.assert_close(pair_sums(coords, types, receptor[near], kinds[near]), sums)


def test_fitted_energy_is_the_weighted_sum_and_turns_with_the_complex(monkeypatch):
    coords, mol, types, receptor, kinds = of(DRUGS[0])
    inter, intra = torch.arange(4.0), torch.arange(4.0) ** 2
    rest = types, receptor, kinds, inter, intra
    energy = fitted_energy(coords, mol, *rest)
    turn = rotation_matrix(torch.tensor([0.3, -1.0, 0.5]))
    turned = fitted_energy(coords @ turn.T, mol, types, receptor @ turn.T, kinds, inter, intra)
    torch.testing.assert_close(turned, energy, rtol=1e-3, atol=1e-2)
    for name in PAIRWISE:
        monkeypatch.setitem(PAIRWISE, name, 0.0)
    monkeypatch.setattr(terms, "STRAIN", 0.5)
    monkeypatch.setattr(terms, "WORST", 2.0)
    strain = torsion_strain(mol, coords)
    nats = terms.INTER * inter + terms.INTRA * intra + 0.5 * strain[:, 0] + 2 * strain[:, 1]
    torch.testing.assert_close(fitted_energy(coords, mol, *rest), terms.SCALE * nats)


def conformers_of(smiles, atoms, angles):
    """Heavy-atom coordinates of one conformer with a torsion set to each angle, in degrees."""
    mol = Chem.MolFromSmiles(smiles)
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    found = []
    for angle in angles:
        rdMolTransforms.SetDihedralDeg(mol.GetConformer(), *atoms, angle)
        found.append(torch.tensor(mol.GetConformer().GetPositions()).float())
    return mol, torch.stack(found)


def test_strain_is_lowest_where_the_torsion_is_preferred():
    # the amide of acetanilide: flat, trans and cis, against a right angle
    mol, coords = conformers_of("CC(=O)Nc1ccccc1", (0, 1, 3, 4), [180.0, 90.0, 0.0])
    total, worst = torsion_strain(mol, coords).unbind(1)
    assert total[0] < total[1] - 5
    assert bool((total >= worst - 1e-4).all())
    assert bool((worst >= 0).all())


def test_rings_and_molecules_without_torsions_have_no_strain():
    ring = Chem.MolFromSmiles("C1CCCCC1C")
    assert torsion_strain(ring, torch.randn(3, 7, 3)).tolist() == [[0.0, 0.0]] * 3
    assert torsion_strain(Chem.MolFromSmiles("C"), torch.zeros(1, 1, 3)).tolist() == [[0.0, 0.0]]
