"""Reading: what comes out of good files, and one line of reason for every kind of bad one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from rdkit import Chem

from bio_diffusion.dock.bonds import perceive
from bio_diffusion.dock.complex import (
    Failure,
    InputError,
    Ligand,
    bound_ligand,
    read_ligands,
    read_receptor,
    site_from_center,
    site_from_ligand,
    site_from_residues,
    slug,
)
from bio_diffusion.dock.ligand import Refused, prepare

ROOT = Path(__file__).parents[2]
PROTEIN = ROOT / "data" / "demo" / "protein.pdb"
LIGAND = ROOT / "data" / "demo" / "ligand.sdf"
CRYSTAL = ROOT / "tests" / "data" / "crystal_ligands.sdf.gz"


@pytest.fixture(scope="module")
def receptor():
    return read_receptor(PROTEIN)


@pytest.fixture(scope="module")
def crystal() -> list[tuple[Ligand, str]]:
    """Ligands in their crystal poses beside the SMILES that the component dictionary gives."""
    text = gzip.decompress(CRYSTAL.read_bytes()).decode()
    smiles = [b.split("<smiles>\n")[1].split("\n")[0] for b in text.split("$$$$\n") if b.strip()]
    return list(zip(read_ligands([CRYSTAL]), smiles, strict=True))


def atom_line(
    name: str,
    residue: str,
    number: int,
    xyz: tuple[float, float, float],
    element: str,
    record: str = "HETATM",
    chain: str = "A",
    altloc: str = " ",
    occupancy: float = 1.0,
) -> str:
    padded = f" {name:<3}" if len(element) == 1 and len(name) < 4 else f"{name:<4}"
    x, y, z = xyz
    return (
        f"{record:<6}    1 {padded}{altloc}{residue:>3} {chain}{number:>4}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}  0.00          {element.upper():>2}"
    )


def with_lines(tmp_path: Path, lines: list[str], name: str = "protein.pdb") -> Path:
    """The demo protein with further lines before its end."""
    atoms = [x for x in PROTEIN.read_text().splitlines() if x.startswith(("ATOM", "HETATM"))]
    path = tmp_path / name
    path.write_text("\n".join([*atoms, *lines, "END", ""]))
    return path


def ligand_lines(ligand: Ligand, residue: str, shift: float = 0.0, number: int = 901) -> list[str]:
    return [
        atom_line(
            f"{a.GetSymbol()}{a.GetIdx()}"[:4],
            residue,
            number,
            tuple(ligand.crystal[a.GetIdx()] + shift),
            a.GetSymbol(),
            chain="L",
        )
        for a in ligand.mol.GetAtoms()
    ]


def one(*sources: str | Path, table: Path | None = None) -> Ligand | Failure:
    (record,) = read_ligands(sources, table)
    return record


# --- proteins -----------------------------------------------------------------------------------


def test_receptor_holds_every_atom_once_and_its_pdb_text_says_the_same(receptor):
    plain = gemmi.read_pdb(str(PROTEIN))
    positions = np.array([c.atom.pos.tolist() for c in plain[0].all()])
    assert receptor.coords.shape == positions.shape
    # coordinates have three decimals: float32 holds them to better than half of the last one
    np.testing.assert_allclose(np.sort(receptor.coords, 0), np.sort(positions, 0), atol=5e-4)
    again = gemmi.read_pdb_string(receptor.pdb)
    np.testing.assert_allclose(
        [c.atom.pos.tolist() for c in again[0].all()], receptor.coords, atol=5e-4
    )
    assert [c.atom.name for c in again[0].all()] == list(receptor.atom_names)
    assert (np.diff(receptor.residue_index) >= 0).all()
    assert receptor.residue_index[-1] == len(receptor.residue_ids) - 1
    json.dumps(receptor.notes)


@pytest.mark.parametrize("form", ["cif", "cif.gz", "pdb.gz"])
def test_formats_agree(tmp_path, receptor, form):
    structure = gemmi.read_pdb(str(PROTEIN))
    structure.setup_entities()
    text = (
        structure.make_mmcif_document().as_string() if "cif" in form else PROTEIN.read_text()
    ).encode()
    path = tmp_path / f"x.{form}"
    path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    other = read_receptor(path)
    np.testing.assert_array_equal(other.coords, receptor.coords)
    assert other.residue_ids == receptor.residue_ids
    assert other.elements == receptor.elements


def test_policy_per_class(tmp_path, receptor):
    near = receptor.coords[100].astype(float)
    away = near + 300.0
    extra = [
        atom_line("ZN", "ZN", 801, tuple(near + 2.5), "Zn"),
        atom_line("ZN", "ZN", 802, tuple(away + 50.0), "Zn"),
        atom_line("CL", "CL", 803, tuple(near + 2.0), "Cl"),
        atom_line("O", "HOH", 804, tuple(near + 3.0), "O"),
        atom_line("C1", "GOL", 805, tuple(near + 4.0), "C"),
        atom_line("O1", "GOL", 805, tuple(near + 4.8), "O"),
        atom_line("C1", "XYZ", 806, tuple(near + 6.0), "C"),
        atom_line("C2", "XYZ", 806, tuple(near + 6.8), "C"),
        atom_line("H1", "XYZ", 806, tuple(near + 7.0), "H"),
        atom_line("N", "MSE", 807, tuple(away), "N"),
        atom_line("CA", "MSE", 807, tuple(away + 0.8), "C"),
        atom_line("SE", "MSE", 807, tuple(away + 2.0), "Se"),
    ]
    read = read_receptor(with_lines(tmp_path, extra))
    assert read.notes["metals_kept"] == {"ZN": 1}
    assert read.notes["ions_dropped"] == {"ZN": 1, "CL": 1}
    assert read.notes["waters_dropped"] == 1
    assert read.notes["additives_dropped"] == {"GOL": 1}
    assert read.notes["groups_kept"] == {"XYZ": 1}
    assert read.notes["hydrogens_dropped"] == 1
    assert read.notes["mse_to_met"] == 1
    assert len(read) == len(receptor) + 1 + 2 + 3
    met = read.residue_names.index("MET", len(receptor.residue_names) - 1)
    of_met = [n for n, r in zip(read.atom_names, read.residue_index, strict=True) if r == met]
    assert "SD" in of_met
    assert not read.hetero[read.residue_index == met].any()
    zinc = read.elements.index("Zn")
    assert read.hetero[zinc]
    assert (read.residue_index == read.residue_index[zinc]).sum() == 1


def test_altloc_is_the_conformer_of_highest_occupancy(tmp_path):
    names = ["N", "CA", "C", "O", "CB", "OG"]
    lines = []
    for i, name in enumerate(names):
        for altloc, occupancy, shift in (("A", 0.4, 0.0), ("B", 0.6, 10.0)):
            at = (i * 1.4 + shift, 0.0, 0.0)
            lines.append(atom_line(name, "SER", 1, at, name[0], "ATOM", "A", altloc, occupancy))
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(lines))
    read = read_receptor(path)
    assert len(read) == len(names)
    assert read.coords[:, 0].min() == 10.0
    assert read.notes["altloc_residues"] == 1


def test_first_model_only(tmp_path, receptor):
    atoms = [x for x in PROTEIN.read_text().splitlines() if x.startswith("ATOM")]
    body = "\n".join(atoms)
    path = tmp_path / "x.pdb"
    path.write_text(f"MODEL        1\n{body}\nENDMDL\nMODEL        2\n{body}\nENDMDL\nEND\n")
    read = read_receptor(path)
    assert len(read) == len(receptor)
    assert read.notes["models"] == 2


def test_missing_atoms_are_counted(tmp_path, receptor):
    lines = PROTEIN.read_text().splitlines()
    first = next(i for i, x in enumerate(lines) if x[12:16] == " CB " and x[17:20] != "ALA")
    dropped = lines.pop(first)
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(lines))
    before, after = receptor.notes["missing_side_chain"], read_receptor(path).notes
    assert after["missing_side_chain"]["count"] == before["count"] + 1
    label = f"{dropped[21]}:{dropped[22:26].strip()} {dropped[17:20]}"
    assert label in after["missing_side_chain"]["first"] or before["count"] >= 5


def test_nucleic_acid_is_a_receptor(tmp_path):
    atoms = "P OP1 OP2 O5' C5' C4' O4' C3' O3' C2' C1' N9 C8 N7 C5 C6 N6 N1 C2 N3 C4".split()
    lines = [
        atom_line(n, "DA", r, (1.5 * i, 8.0 * r, 0.0), n[0], "ATOM")
        for r in (1, 2)
        for i, n in enumerate(atoms)
    ]
    path = tmp_path / "dna.pdb"
    path.write_text("\n".join(lines))
    read = read_receptor(path)
    assert read.notes["nucleic_residues"] == 2
    assert not read.hetero.any()


def test_crop_keeps_whole_residues(receptor):
    center = receptor.coords[500]
    part = receptor.crop(center, 8.0)
    near = np.linalg.norm(receptor.coords - center, axis=1) <= 8.0
    expected = np.isin(receptor.residue_index, receptor.residue_index[near])
    np.testing.assert_array_equal(part.coords, receptor.coords[expected])
    assert len(part.residue_ids) == len(part.residue_names) == part.residue_index.max() + 1
    lines = [x for x in part.pdb.splitlines() if x.startswith(("ATOM", "HETATM"))]
    assert [x[12:16].strip() for x in lines] == list(part.atom_names)


def test_without_takes_out_what_lies_where_the_ligand_lies(tmp_path, receptor):
    ligand = one(LIGAND)
    full = read_receptor(with_lines(tmp_path, ligand_lines(ligand, "LG1")))
    assert len(full) == len(receptor) + len(ligand.crystal)
    rest = full.without(ligand.crystal)
    assert len(rest) == len(receptor)
    assert full.notes["groups_kept"] == {"LG1": 1} and rest.notes["groups_kept"] == {}
    assert rest.notes["groups_taken_out"] == full.notes["groups_taken_out"] + 1


def test_names_of_protonation_states_are_amino_acids(tmp_path, receptor):
    states = {"HIS": "HIE", "CYS": "CYX", "ASP": "ASH", "GLU": "GLH", "LYS": "LYN"}
    text = PROTEIN.read_text()
    for plain, state in states.items():
        text = text.replace(f" {plain} ", f" {state} ")
    path = tmp_path / "prepared.pdb"
    path.write_text(text)
    read = read_receptor(path)
    assert read.notes["states_renamed"] == sum(n in states for n in receptor.residue_names)
    assert read.residue_names == receptor.residue_names
    assert read.pdb == receptor.pdb and not read.hetero.any()
    end = [atom_line(n, "HSE", 800, (60.0 + i, 0, 0), n[0]) for i, n in enumerate(("N", "OT1"))]
    assert "HSE" not in read_receptor(with_lines(tmp_path, end)).residue_names
    # O-phosphohistidine is called HIP, too
    lines = [atom_line(n, "HIP", 900, (50.0 + i, 0, 0), n[0]) for i, n in enumerate(("N", "P"))]
    assert "HIP" in read_receptor(with_lines(tmp_path, lines)).residue_names


def test_caps_belong_to_the_chain(tmp_path, receptor):
    at = receptor.coords[receptor.atom_names.index("N")]
    lines = [
        atom_line("C", "ACE", 0, tuple(at + [1.3, 0, 0]), "C", "ATOM"),
        atom_line("CH3", "ACE", 0, tuple(at + [2.0, 1.3, 0]), "C", "ATOM"),
        atom_line("O", "ACE", 0, tuple(at + [2.0, -1.1, 0]), "O", "ATOM"),
    ]
    read = read_receptor(with_lines(tmp_path, lines))
    assert read.notes["modified_kept"] == {"ACE": 1} and read.notes["groups_kept"] == {}
    for key in ("protein_residues", "missing_backbone", "chain_breaks"):
        assert read.notes[key] == receptor.notes[key]


BAD_PROTEINS = {
    "missing": (None, "missing"),
    "empty": (b"", "empty"),
    "blank": (b"  \n \n", "empty"),
    "prose": (b"hello world\n", "no_atoms"),
    "waters": ((atom_line("O", "HOH", 1, (0, 0, 0), "O") + "\n").encode(), "no_protein"),
    "binary": (bytes(range(256)) * 4, "binary"),
    "gz corrupt": (gzip.compress(PROTEIN.read_bytes())[:2000], "gzip"),
    "gz damaged": (b"\x1f\x8b" + b"\x08" * 500, "gzip"),
    "cif truncated": (
        b"data_x\nloop_\n_atom_site.group_PDB\n_atom_site.id\n_atom_site.type_symbol\nATOM 1",
        "parse",
    ),
    "cif without atoms": (b"data_x\n_entry.id x\n", "no_atoms"),
    "alpha carbons": (
        "\n".join(
            atom_line("CA", "ALA", i, (3.8 * i, 0, 0), "C", "ATOM") for i in range(1, 9)
        ).encode(),
        "trace_only",
    ),
}


@pytest.mark.parametrize("case", BAD_PROTEINS)
def test_bad_proteins_are_refused_in_one_line(tmp_path, case, capfd):
    content, code = BAD_PROTEINS[case]
    path = tmp_path / "bad.pdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_receptor(path)
    assert caught.value.code == code
    assert "bad.pdb" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        read_receptor(tmp_path)
    assert caught.value.code == "directory"


def test_a_gzip_bomb_is_refused(tmp_path):
    from bio_diffusion.files import read_text

    path = tmp_path / "bomb.pdb.gz"
    path.write_bytes(gzip.compress(b"A" * 2_000_000))
    with pytest.raises(InputError) as caught:
        read_text(path, limit=1_000_000)
    assert caught.value.code == "too_large"


# --- bound ligands ------------------------------------------------------------------------------


def test_bound_ligand_is_taken_out_with_all_its_copies(tmp_path, receptor):
    ligand = one(LIGAND)
    lines = [*ligand_lines(ligand, "LG1"), *ligand_lines(ligand, "LG1", 1.6, 902)]
    lines += [atom_line("O", "HOH", 903, tuple(receptor.coords[0] + 3.0), "O")]
    found = bound_ligand(with_lines(tmp_path, lines[: len(ligand.crystal)]))
    assert found is not None
    taken, rest = found
    np.testing.assert_allclose(taken.crystal, ligand.crystal, atol=1e-3)
    assert Chem.MolToInchiKey(taken.mol)[:14] == Chem.MolToInchiKey(ligand.mol)[:14]
    np.testing.assert_array_equal(rest.coords, receptor.coords)
    assert any("geometry" in note for note in taken.notes)


def test_bound_ligand_takes_the_orders_of_a_smiles(tmp_path):
    ligand = one(LIGAND)
    path = with_lines(tmp_path, ligand_lines(ligand, "LG1"))
    taken, _ = bound_ligand(path, Chem.MolToSmiles(ligand.mol, isomericSmiles=False))
    assert Chem.MolToSmiles(taken.mol) == Chem.MolToSmiles(ligand.mol)
    assert not taken.notes or "geometry" not in taken.notes[0]
    with pytest.raises(InputError, match="SMILES"):
        bound_ligand(path, "CCO")


def test_no_bound_ligand(tmp_path):
    assert bound_ligand(PROTEIN) is None
    glycerol = [atom_line(f"C{i}", "GOL", 900, (i * 1.5, 0, 0), "C") for i in range(6)]
    assert bound_ligand(with_lines(tmp_path, glycerol)) is None


def test_component_table_of_an_mmcif_gives_bond_orders(tmp_path):
    ligand = one(LIGAND)
    structure = gemmi.read_pdb(str(with_lines(tmp_path, ligand_lines(ligand, "LG1"))))
    structure.setup_entities()
    document = structure.make_mmcif_document()
    loop = document[0].init_loop(
        "_chem_comp_bond.", ["comp_id", "atom_id_1", "atom_id_2", "value_order"]
    )
    names = [f"{a.GetSymbol()}{a.GetIdx()}"[:4] for a in ligand.mol.GetAtoms()]
    mol = Chem.Mol(ligand.mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    orders = {1.0: "SING", 2.0: "doub", 3.0: "TRIP"}
    for bond in mol.GetBonds():
        first, second = names[bond.GetBeginAtomIdx()], names[bond.GetEndAtomIdx()]
        loop.add_row(["LG1", first, second, orders[bond.GetBondTypeAsDouble()]])
    path = tmp_path / "x.cif"
    path.write_text(document.as_string())
    taken, _ = bound_ligand(path)
    assert Chem.MolToSmiles(taken.mol) == Chem.MolToSmiles(ligand.mol)


def test_bond_orders_read_off_crystal_geometry(crystal):
    """Measured on these 49: every skeleton, 34 the same compound by InChI (old structures and a
    third of them cofactors), 47 trusted. The floors leave room for three more misses."""
    skeletons, same, trusted, right = 0, 0, 0, 0
    for ligand, _ in crystal[::2]:
        symbols = [a.GetSymbol() for a in ligand.mol.GetAtoms()]
        mol = perceive(symbols, ligand.crystal)
        skeletons += mol.GetNumBonds() == ligand.mol.GetNumBonds()
        key = Chem.MolToInchiKey(ligand.mol)[:14]
        raw = Chem.Mol(mol)
        Chem.SanitizeMol(raw)
        same += Chem.MolToInchiKey(raw)[:14] == key
        try:
            read = prepare(mol, "x", "x")
        except Refused:
            continue
        trusted += 1
        right += Chem.MolToInchiKey(read.mol)[:14] == key
    assert skeletons == len(crystal[::2]) == 49
    assert same >= 31
    assert trusted >= 44
    assert right >= 31


# --- sites --------------------------------------------------------------------------------------


def test_sites(receptor):
    ligand = one(LIGAND)
    box = site_from_ligand(LIGAND, padding=4.0)
    np.testing.assert_allclose(box.size, np.ptp(ligand.crystal, axis=0) + 8.0)
    assert box.distance(ligand.crystal).max() == 0.0
    assert box.require_near(receptor) is box
    np.testing.assert_allclose(site_from_ligand(ligand.crystal).center, box.center)
    assert site_from_center([1, 2, 3], 10).size.tolist() == [10.0] * 3
    ids = [receptor.residue_ids[5], receptor.residue_ids[40]]
    chosen = site_from_residues(receptor, ",".join(ids))
    atoms = np.isin(receptor.residue_index, [5, 40])
    assert chosen.distance(receptor.coords[atoms]).max() == 0.0
    assert (chosen.size >= 22.5).all()


def test_bad_sites_are_refused(receptor, tmp_path):
    away = site_from_center(receptor.coords.max(axis=0) + 100.0, 20.0)
    gap = float(away.distance(receptor.coords).min())
    with pytest.raises(InputError, match=f"{gap:.1f} Å away from the protein"):
        away.require_near(receptor)
    number = receptor.residue_ids[5].split(":")[1]
    with pytest.raises(InputError, match=f"did you mean {receptor.residue_ids[5]}"):
        site_from_residues(receptor, f"Q:{number}")
    with pytest.raises(InputError):
        site_from_residues(receptor, " , ")
    for center, size in (([0, 0], 20), ([0, 0, float("nan")], 20), ([0, 0, 0], -1)):
        with pytest.raises(InputError):
            site_from_center(center, size)
    flat = tmp_path / "flat.sdf"
    flat.write_text(Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")) + "$$$$\n")
    with pytest.raises(InputError, match="flat.sdf"):
        site_from_ligand(flat)


# --- ligands ------------------------------------------------------------------------------------


def test_crystal_ligands_keep_their_chemistry_and_pose(crystal):
    for ligand, smiles in crystal:
        assert isinstance(ligand, Ligand)
        assert Chem.MolToSmiles(ligand.mol) == Chem.CanonSmiles(smiles)
        assert ligand.crystal.shape == (ligand.mol.GetNumAtoms(), 3)
        assert ligand.mol.GetNumConformers() == 0
        assert all(atom.GetAtomicNum() > 1 for atom in ligand.mol.GetAtoms())
    assert len({ligand.id for ligand, _ in crystal}) == len(crystal)


def test_a_broken_record_costs_no_other(tmp_path, capfd):
    good = LIGAND.read_text().rstrip().removesuffix("$$$$")
    path = tmp_path / "many.sdf"
    path.write_text(f"{good}$$$$\nbroken\n\n\n  9 99 nonsense\n$$$$\n{good}$$$$\n")
    first, second, third = read_ligands([path])
    assert isinstance(first, Ligand) and isinstance(third, Ligand)
    assert isinstance(second, Failure)
    assert (second.ligand_id, second.code) == ("broken", "parse")
    assert "many.sdf record 2" in second.reason
    assert first.id != third.id
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("smiles", "code"),
    [
        ("C1CC(", "parse"),
        ("c1ccccc", "parse"),
        ("C(C)(C)(C)(C)C", "parse"),
        ("CCCCc1ccccc1.CCCCc1ccncc1C", "fragments"),
        ("N[Pt](N)(Cl)Cl", "metal"),
        ("[Zn+2]", "metal"),
        ("C" * 300, "too_large"),
        ("C" * 9000, "too_large"),
        ("", "empty"),
        ("[H][H]", "empty"),
        ("*c1ccccc1", "query"),
        ("C[Te]C", "element"),
    ],
)
def test_bad_smiles_are_failures_in_one_line(smiles, code, capfd):
    record = one(smiles)
    assert isinstance(record, Failure)
    assert record.code == code
    assert record.reason and "\n" not in record.reason and len(record.reason) <= 160
    assert capfd.readouterr() == ("", "")


def test_salts_are_taken_off_and_noted():
    for smiles in (
        "CCN(CC)CCOC(=O)c1ccc(N)cc1.Cl",
        "CCN(CC)CCOC(=O)c1ccc(N)cc1.OC(=O)/C=C/C(=O)O.O",
        "CCN(CC)CCOC(=O)c1ccc(N)cc1.[Na+].[Cl-]",
        "CCN(CC)CCOC(=O)c1ccc(N)cc1.OC(=O)c1cc2ccccc2c(c1O)Cc1c(O)c(cc2ccccc12)C(=O)O",
    ):
        record = one(smiles)
        assert isinstance(record, Ligand)
        assert Chem.MolToSmiles(record.mol) == Chem.CanonSmiles("CCN(CC)CCOC(=O)c1ccc(N)cc1")
        assert any(note.startswith("took off") for note in record.notes)
    acetate = one("CC(=O)[O-].[Na+]")
    assert isinstance(acetate, Ligand) and acetate.mol.GetNumAtoms() == 4


def test_undefined_stereo_is_noted():
    assert any("1 undefined stereocentre" in n for n in one("CC(F)Cl").notes)
    assert any("double-bond" in n for n in one("CC=CC(=O)O").notes)
    assert one("C[C@H](F)Cl").notes == ()
    # the two oxygens of a phosphate trade their proton: no centre there
    assert one("COP(=O)(O)OCC").notes == ()


def test_hydrogens_go_and_stereo_stays():
    record = one("[2H]C([2H])([2H])[C@]([H])(O)c1ccccc1")
    assert Chem.MolToSmiles(record.mol) == Chem.CanonSmiles("C[C@@H](O)c1ccccc1") or (
        Chem.MolToSmiles(record.mol) == Chem.CanonSmiles("C[C@H](O)c1ccccc1")
    )
    assert all(atom.GetAtomicNum() > 1 for atom in record.mol.GetAtoms())


def test_missing_charge_of_nitrogen_is_set_and_noted(tmp_path):
    mol = Chem.MolFromSmiles("C[N+](C)(C)CCO")
    block = Chem.MolToMolBlock(mol).replace("M  CHG  1   2   1\n", "")
    path = tmp_path / "choline.mol"
    path.write_text(block)
    record = one(path)
    assert isinstance(record, Ligand)
    assert Chem.MolToSmiles(record.mol) == Chem.MolToSmiles(mol)
    assert any("charge" in note for note in record.notes)


def test_a_drawing_has_no_pose(tmp_path):
    path = tmp_path / "flat.sdf"
    mol = Chem.MolFromSmiles("C[C@H](O)c1ccccc1")
    path.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    record = one(path)
    assert record.crystal is None
    assert Chem.MolToSmiles(record.mol) == Chem.MolToSmiles(mol)


def test_formats_of_one_ligand_agree(tmp_path):
    ligand = one(LIGAND)
    reference = Chem.MolToInchiKey(ligand.mol)[:14]
    mol = Chem.Mol(ligand.mol)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(ligand.crystal)
    mol.AddConformer(conformer)
    packed = tmp_path / "a.sdf.gz"
    packed.write_bytes(gzip.compress(LIGAND.read_bytes()))
    (tmp_path / "b.mol").write_text(Chem.MolToMolBlock(mol))
    (tmp_path / "c.pdb").write_text(Chem.MolToPDBBlock(mol, flavor=2))
    (tmp_path / "d.smi").write_text(f"# list\n{Chem.MolToSmiles(mol)} my name\n\n")
    for name in ("a.sdf.gz", "b.mol", "c.pdb", "d.smi"):
        record = one(tmp_path / name)
        assert isinstance(record, Ligand), record
        assert Chem.MolToInchiKey(record.mol)[:14] == reference
        if name != "d.smi":
            np.testing.assert_allclose(record.crystal, ligand.crystal, atol=1e-3)
    assert one(tmp_path / "d.smi").id == "my_name"


MOL2 = """@<TRIPOS>MOLECULE
ethanol
 3 2 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
  1 C1 0.000 0.000 0.000 C.3 1 LIG 0.0
  2 C2 1.500 0.000 0.100 C.3 1 LIG 0.0
  3 O1 2.000 1.300 0.400 O.3 1 LIG 0.0
@<TRIPOS>BOND
  1 1 2 1
  2 2 3 1
"""


def test_mol2_of_many_molecules(tmp_path):
    path = tmp_path / "x.mol2"
    path.write_text(MOL2 + "@<TRIPOS>MOLECULE\nbad\n 5 5\n" + MOL2)
    first, bad, third = read_ligands([path])
    assert Chem.MolToSmiles(first.mol) == "CCO" and first.id == "ethanol"
    assert isinstance(bad, Failure) and "record 2" in bad.reason
    assert third.id == "ethanol_2"


def test_mol2_without_hydrogens_and_open_valences_are_filled(tmp_path):
    path = tmp_path / "acid.mol2"
    path.write_text(
        MOL2.replace(" 3 2 0", " 4 3 0").replace(
            "@<TRIPOS>BOND", "  4 O2 2.000 -1.200 0.400 O.2 1 LIG 0.0\n@<TRIPOS>BOND\n  3 2 4 2"
        )
    )
    assert Chem.MolToSmiles(one(path).mol) == "CC(=O)O"
    radical = one("C[CH]C")
    assert Chem.MolToSmiles(radical.mol) == "CCC"
    assert radical.notes == ("filled 1 open valence",)


def test_tables(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "l.sdf").write_text(LIGAND.read_text())
    table = tmp_path / "list.csv"
    table.write_text(
        "id,smiles,path,protein\n"
        "a,CCO,,\n"
        '"b, with comma",c1ccccc1,,other.pdb\n'
        "c,,sub/l.sdf,\n"
        "d,,gone.sdf,\n"
        "e,,,\n"
        "a,CCN,,\n"
    )
    a, b, c, d, e, again = read_ligands([], table)
    assert (a.id, b.id, c.id, again.id) == ("a", "b_with_comma", "c", "a_2")
    assert b.protein == "other.pdb" and a.protein is None
    assert c.crystal is not None
    assert isinstance(d, Failure) and d.code == "missing" and "gone.sdf" in d.reason
    assert isinstance(e, Failure) and e.code == "empty"


def test_a_table_row_joins_smiles_and_coordinates(tmp_path):
    ligand = one(LIGAND)
    pdb = tmp_path / "x.pdb"
    pdb.write_text("\n".join(ligand_lines(ligand, "LG1")))
    table = tmp_path / "t.csv"
    table.write_text(f"id,smiles,path\nx,{Chem.MolToSmiles(ligand.mol)},x.pdb\ny,CCO,x.pdb\n")
    joined, wrong = read_ligands([], table)
    assert Chem.MolToSmiles(joined.mol) == Chem.MolToSmiles(ligand.mol)
    np.testing.assert_allclose(joined.crystal, ligand.crystal, atol=1e-3)
    assert isinstance(wrong, Failure) and wrong.code == "template"


def test_named_files_that_are_not_there_are_refused_at_once(tmp_path):
    for source in (tmp_path / "gone.sdf", str(tmp_path / "gone.sdf"), tmp_path):
        with pytest.raises(InputError):
            read_ligands([source])
    with pytest.raises(InputError):
        read_ligands([], tmp_path / "gone.csv")
    table = tmp_path / "t.csv"
    table.write_text("name,weight\na,3\n")
    with pytest.raises(InputError, match="smiles or path"):
        read_ligands([], table)


def test_a_broken_file_among_good_ones_is_one_failure(tmp_path):
    bad = tmp_path / "bad.sdf.gz"
    bad.write_bytes(gzip.compress(LIGAND.read_bytes())[:300])
    empty = tmp_path / "empty.sdf"
    empty.write_text("")
    first, second, third = read_ligands([bad, empty, "CCO"])
    assert isinstance(first, Failure) and first.code == "gzip"
    assert isinstance(second, Failure) and second.code == "empty"
    assert isinstance(third, Ligand)


def test_ids_are_unique_and_safe():
    names = ["../../etc/passwd", "=1+1", "@cmd", "a/b", "a b", "ä", "", "x" * 300, "A B", "-rf"]
    for name in names:
        safe = slug(name)
        assert len(safe) <= 80
        assert safe == "" or (safe[0].isalnum() and not set("/\\ =@\n") & set(safe))
        assert ".." not in safe


def test_ten_thousand_duplicates_stay_apart(tmp_path):
    path = tmp_path / "x.smi"
    path.write_text("C same\n" * 3000 + "C SAME\nC same_2\n")
    ids = [record.id for record in read_ligands([path])]
    assert len({i.lower() for i in ids}) == len(ids) == 3002
    assert ids[:3] == ["same", "same_2", "same_3"]


def test_a_smiles_with_slashes_is_no_path():
    record = one("C/C=C/C(=O)O")
    assert isinstance(record, Ligand)
    assert "/" in Chem.MolToSmiles(record.mol)
