"""Ligands of PDB and mmCIF files: where their bond orders come from, and what is no ligand."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from bio_diffusion.dock.complex import InputError, read_ligands, site_from_ligand
from bio_diffusion.dock.components import _known
from bio_diffusion.dock.ligand import Failure, Ligand
from tests.dock.test_complex import LIGAND, PROTEIN, ligand_lines, one

# stereocentres, a double bond, charges, an aromatic cation, phosphates, rings of rings, sulphur
SMILES = (
    "C[C@H](N)C(=O)N[C@@H](Cc1ccccc1)C(=O)[O-]",
    "C[N+](C)(C)C[C@H](O)CC(=O)[O-]",
    "OC(=O)/C=C/c1ccc(O)cc1",
    "NC(=O)c1ccc[n+](c1)[C@@H]1O[C@H](COP(=O)([O-])O)[C@@H](O)[C@H]1O",
    "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O",
    "FC(F)(F)c1cc(C#N)cc(Cl)c1",
)
IDEAL, MODEL = "pdbx_model_Cartn_{}_ideal", "model_Cartn_{}"


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    Chem.Kekulize(mol, clearAromaticFlags=True)
    return mol


def entry(name: str, smiles: str, column: str = IDEAL, lost: int | None = None) -> str:
    """A component as the wwPDB writes it; of atom `lost` the place is not known."""
    mol = embedded(smiles)
    names = [f"{a.GetSymbol().upper()}{a.GetIdx()}" for a in mol.GetAtoms()]
    other = MODEL if column == IDEAL else IDEAL
    rows = []
    for atom, xyz in zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True):
        place = "? ? ?" if atom.GetIdx() == lost else " ".join(f"{v:.3f}" for v in xyz)
        label, charge = names[atom.GetIdx()], atom.GetFormalCharge()
        rows.append(f"{name} {label} {atom.GetSymbol().upper()} {charge} {place} ? ? ?")
    orders = {1: "SING", 2: "DOUB", 3: "TRIP"}
    bonds = [
        f"{name} {names[b.GetBeginAtomIdx()]} {names[b.GetEndAtomIdx()]} "
        f"{orders[int(b.GetBondTypeAsDouble())]} N"
        for b in mol.GetBonds()
    ]
    atom_columns = ["comp_id", "atom_id", "type_symbol", "charge"]
    atom_columns += [c.format(axis) for c in (column, other) for axis in "xyz"]
    bond_columns = ["comp_id", "atom_id_1", "atom_id_2", "value_order", "pdbx_aromatic_flag"]
    lines = [f"data_{name}", f"_chem_comp.id {name}", "loop_"]
    lines += [f"_chem_comp_atom.{c}" for c in atom_columns] + rows + ["loop_"]
    lines += [f"_chem_comp_bond.{c}" for c in bond_columns] + bonds
    return "\n".join([*lines, "#", ""])


def canonical(smiles: str) -> str:
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


def test_a_dictionary_gives_orders_charges_and_stereo_but_no_pose(tmp_path):
    path = tmp_path / "many.cif"
    lost = Chem.MolFromSmiles(SMILES[1]).GetNumAtoms()  # its first hydrogen
    path.write_text(
        "".join(
            entry(f"L{i:02}", s, MODEL if i % 2 else IDEAL, lost if i == 1 else None)
            for i, s in enumerate(SMILES)
        )
    )
    found = list(read_ligands([], path))
    assert [Chem.MolToSmiles(r.mol) for r in found] == [canonical(s) for s in SMILES]
    assert [r.id for r in found] == [f"L{i:02}" for i in range(len(SMILES))]
    assert all(r.crystal is None and r.notes == () for r in found)
    assert found[2].source == "many.cif component L02"


def test_bad_entries_cost_only_themselves(tmp_path):
    path = tmp_path / "x.mmcif"
    good = entry("AAA", SMILES[5])
    path.write_text(
        good
        + entry("BBB", "CCO").replace(" SING N\n", " DELO N\n", 1)
        + entry("CCC", "CCO").replace("CCC C0 C1 SING", "CCC C0 C9 SING")
        + entry("DDD", "CN").replace("DDD N1 N 0", "DDD N1 ZN 0")
        + "data_EEE\n_chem_comp.id EEE\n"
    )
    found = list(read_ligands([path]))
    assert [getattr(r, "code", "") for r in found] == ["", "bonds", "bonds", "metal"]
    assert "SMILES" in found[1].reason and "component BBB" in found[1].reason


def test_monomer_libraries_name_their_columns_otherwise(tmp_path):
    text = entry("AAA", SMILES[0])
    for axis in "xyz":
        text = text.replace(IDEAL.format(axis), axis)
    text = text.replace("value_order", "type").replace("SING", "single").replace("DOUB", "double")
    path = tmp_path / "AAA.cif"
    path.write_text(text.replace("data_AAA", "data_comp_list\n_x.y 1\ndata_comp_AAA"))
    assert Chem.MolToSmiles(one(path).mol) == canonical(SMILES[0])


def test_a_structure_gives_its_pose(tmp_path):
    ligand = one(LIGAND)
    lines = ligand_lines(ligand, "LG1")
    water = lines[0].replace("LG1", "HOH").replace("901", "902")
    structure = gemmi.read_pdb_string("\n".join([*lines, water, "END"]))
    structure.setup_entities()
    path = tmp_path / "pose.cif"
    path.write_text(structure.make_mmcif_document().as_string())
    found = one(path)
    assert isinstance(found, Ligand) and found.id == "pose"
    assert Chem.MolToInchiKey(found.mol)[:14] == Chem.MolToInchiKey(ligand.mol)[:14]
    np.testing.assert_allclose(found.crystal, ligand.crystal, atol=1e-3)
    np.testing.assert_allclose(site_from_ligand(path).center, site_from_ligand(LIGAND).center)


@pytest.mark.parametrize("name", ["PLP", "SAM", "FAD"])
def test_a_known_component_needs_no_guess(tmp_path, name):
    mol = Chem.AddHs(Chem.MolFromSmiles(_known()[name]))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    mol = Chem.RemoveHs(mol)
    made = Ligand(name, mol, mol.GetConformer().GetPositions(), name)
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(ligand_lines(made, name)))
    found = one(path)
    assert Chem.MolToSmiles(found.mol, isomericSmiles=False) == canonical(_known()[name])
    assert not any("geometry" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "text", "code", "remedy"),
    [
        ("small.cif", "data_x\n_cell.length_a 9.1\n", "no_atoms", "SDF"),
        ("cut.cif", entry("AAA", "CCO")[:-60].rstrip() + " 'x", "parse", "fetch it again"),
        ("words.cif", "these are words\n", "empty", ""),
        ("protein.pdb", PROTEIN.read_text(), "protein", "own file"),
    ],
)
def test_what_is_no_ligand_is_one_line(tmp_path, name, text, code, remedy):
    path = tmp_path / name
    path.write_text(text)
    found = one(path)
    assert isinstance(found, Failure) and found.code == code, found
    assert remedy in found.reason and name in found.reason


def test_a_component_is_no_place(tmp_path):
    path = Path(tmp_path / "AAA.cif")
    path.write_text(entry("AAA", "CCO"))
    with pytest.raises(InputError, match="coordinates of the protein"):
        site_from_ligand(path)
