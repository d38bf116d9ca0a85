"""Folders of a user's own become compact sets, and one broken complex costs only itself."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from bio_diffusion.dock import prepare
from bio_diffusion.dock.complex import read_receptor
from bio_diffusion.dock.dataset import CompactSet
from bio_diffusion.files import InputError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "data" / "demo"
OTHER = ROOT / "tests" / "data" / "validity" / "4ryv_ZEA"  # residues around zeatin; crystal first


def make_complexes(root: Path) -> Path:
    """Two real complexes in the plain folder format."""
    for name, protein, ligand in (
        ("3lan", DEMO / "protein.pdb", (DEMO / "ligand.sdf").read_text()),
        ("4ryv", OTHER.with_suffix(".pdb"), OTHER.with_suffix(".sdf").read_text()),
    ):
        (root / name).mkdir(parents=True)
        shutil.copy(protein, root / name / "protein.pdb")
        (root / name / "ligand.sdf").write_text(ligand.split("$$$$")[0] + "$$$$\n")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_complexes(tmp_path / "data")


def run(data: Path, *more: str) -> tuple[int, Path]:
    out = data.parent / "set.safetensors"
    return prepare.main([f"--data={data}", f"--out={out}", *more]), out


def crystal(ligand: Path) -> np.ndarray:
    return next(iter(Chem.SDMolSupplier(str(ligand)))).GetConformer().GetPositions()


def test_a_folder_without_manifest(data: Path) -> None:
    (data / "index").mkdir()  # folders without protein and ligand are none of ours
    (data / "index" / "README").write_text("read me")
    status, out = run(data, "--crop=10")
    read = CompactSet(out)
    assert status == 0 and [e.id for e in read] == ["3lan", "4ryv"]
    for example in read:
        wanted = crystal(data / example.id / "ligand.sdf")
        # 16-bit steps of 0.01 Å
        np.testing.assert_allclose(example.crystal.numpy(), wanted, rtol=0, atol=0.0051)
        gap = np.linalg.norm(example.receptor.coords.numpy()[:, None] - wanted, axis=-1).min(1)
        per_residue = np.full(len(example.receptor.residue_type), np.inf)
        np.minimum.at(per_residue, example.receptor.residue.numpy(), gap)
        assert per_residue.max() <= 10.02  # whole residues, each with an atom within the crop
        assert 0 < example.notes["match_rmsd"] < 1  # Å, of the conformer laid on the crystal


def test_broken_ones_are_named_and_left_out(
    data: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    good = (data / "4ryv" / "ligand.sdf").read_text()
    protein = (data / "4ryv" / "protein.pdb").read_text()
    for name, texts in {
        "cut": (protein, good[:300]),
        "empty": ("", good),
        "flat": (protein, Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))),
        "lone": (protein, None),
        "noprotein": (None, good),
        "water": ("HETATM    1  O   HOH A   1       1.000   2.000   3.000\nEND\n", good),
    }.items():
        (data / name).mkdir()
        for file, text in zip(("protein.pdb", "ligand.sdf"), texts, strict=True):
            if text is not None:
                (data / name / file).write_text(text)
    (data / "apart").mkdir()  # a ligand in the frame of another structure
    shutil.copy(data / "4ryv" / "protein.pdb", data / "apart")
    shutil.copy(data / "3lan" / "ligand.sdf", data / "apart")
    with caplog.at_level("WARNING"):
        status, out = run(data, "--crop=10")
    assert status == 3 and [e.id for e in CompactSet(out)] == ["3lan", "4ryv"]
    lines = {line.split()[2].rstrip(":"): line for line in caplog.messages}
    assert sorted(lines) == ["apart", "cut", "empty", "flat", "lone", "noprotein", "water"]
    for name, word in {
        "apart": "both files must share",
        "cut": "ligand.sdf",
        "empty": "protein.pdb: the file is empty",
        "flat": "no coordinates in space",
        "lone": "no ligand.sdf",
        "noprotein": "no protein.pdb",
        "water": "no protein",
    }.items():
        assert word in lines[name] and "\n" not in lines[name]
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_is_written_when_none_can_be_used(data: Path) -> None:
    for folder in data.iterdir():
        (folder / "ligand.sdf").write_text("nothing")
    status, out = run(data)
    assert status == 3 and [p.name for p in data.parent.iterdir()] == ["data"]


def test_the_names_of_pdbbind_and_a_second_ligand_file(data: Path) -> None:
    folder = data / "4ryv"
    (folder / "protein.pdb").rename(folder / "4ryv_protein.pdb")
    shutil.copy(folder / "4ryv_protein.pdb", folder / "4ryv_pocket.pdb")
    mol = next(iter(Chem.SDMolSupplier(str(folder / "ligand.sdf"))))
    (folder / "4ryv_ligand.mol2").write_text(mol2(mol))
    (folder / "ligand.sdf").rename(folder / "4ryv_ligand.sdf")
    (folder / "4ryv_ligand.sdf").write_text("broken\n")  # as some of PDBbind's are for RDKit
    example = prepare.example_from_files(folder, crop=8.0)
    want = mol.GetConformer().GetPositions()
    np.testing.assert_allclose(example.crystal.numpy(), want, rtol=0, atol=1e-3)
    assert len(example.ligand.bond_type) == 2 * mol.GetNumBonds()


def mol2(mol: Chem.Mol) -> str:
    """A small writer, for carbons, nitrogens and oxygens without hydrogens."""
    kekule = Chem.Mol(mol)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    double = {i for b in kekule.GetBonds() if b.GetBondTypeAsDouble() == 2 for i in (
        b.GetBeginAtomIdx(), b.GetEndAtomIdx())}  # fmt: skip
    lines = ["@<TRIPOS>MOLECULE", "zeatin", f"{mol.GetNumAtoms()} {mol.GetNumBonds()}"]
    lines += ["SMALL", "NO_CHARGES", "", "@<TRIPOS>ATOM"]
    for atom, xyz in zip(kekule.GetAtoms(), mol.GetConformer().GetPositions(), strict=True):
        i, kind = atom.GetIdx(), atom.GetSymbol()
        place = " ".join(f"{x:.4f}" for x in xyz)
        lines.append(f"{i + 1} {kind}{i + 1} {place} {kind}.{2 if i in double else 3} 1 LIG 0.0")
    lines.append("@<TRIPOS>BOND")
    for bond in kekule.GetBonds():
        ends = f"{bond.GetBeginAtomIdx() + 1} {bond.GetEndAtomIdx() + 1}"
        lines.append(f"{bond.GetIdx() + 1} {ends} {int(bond.GetBondTypeAsDouble())}")
    return "\n".join(lines) + "\n"


def test_gzip_and_a_ligand_that_the_protein_file_holds_too(data: Path) -> None:
    folder = data / "4ryv"
    plain = prepare.example_from_files(folder)
    mol = next(iter(Chem.SDMolSupplier(str(folder / "ligand.sdf"))))
    text = (folder / "protein.pdb").read_text().replace("END", "").rstrip()
    hetero = [
        f"HETATM{9000 + i:5d} {atom.GetSymbol() + str(i):<4s} ZEA A 900    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {atom.GetSymbol():>2s}"
        for i, (atom, (x, y, z)) in enumerate(
            zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True)
        )
    ]
    whole = "\n".join([text, *hetero, "END", ""])
    (folder / "protein.pdb").unlink()
    (folder / "protein.pdb.gz").write_bytes(gzip.compress(whole.encode()))
    held = read_receptor(folder / "protein.pdb.gz")
    assert len(held) == len(plain.receptor.coords) + len(hetero)
    assert len(prepare.example_from_files(folder).receptor.coords) == len(plain.receptor.coords)


def test_manifest_in_the_folder_and_its_splits(data: Path) -> None:
    (data / "manifest.csv").write_text(
        "id,split,source,cluster,notes\n3lan,val,PDB,7,x\n4ryv,train,PDBbind v0,8,y\n"
    )
    status, out = run(data, "--crop=8", "--split=val")
    assert status == 0
    (row,) = CompactSet(out).rows
    assert (row["id"], row["split"], row["cluster"]) == ("3lan", "val", "7")
    assert "source" not in row and "notes" not in row
    assert run(data, "--crop=8", "--exclude-source=PDBbind")[0] == 0
    assert [e.id for e in CompactSet(out)] == ["3lan"]


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ("name,split\n3lan,val\n", "no column id"),
        ("id\n3lan\n3lan\n", "twice"),
        ("id\n../3lan\n", "no name of a folder"),
        ("id\n..\n", "no name of a folder"),
        ("id,split\n3lan,val\n", "no complexes"),
        ("", "empty"),
        (None, "no such file"),
    ],
)
def test_bad_manifests_end_the_run(
    data: Path, table: str | None, word: str, capsys: pytest.CaptureFixture
) -> None:
    manifest = data.parent / "list.csv"
    if table is not None:
        manifest.write_text(table)
    status, out = run(data, f"--manifest={manifest}", "--split=other" if "val" in (table or "") else
                      "--workers=1")  # fmt: skip
    error = capsys.readouterr().err
    assert status == 2 and word in error and error.count("\n") == 1 and not out.exists()


def test_bad_folders_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    for name, word in (("nowhere", "name a folder"), ("empty", "no complexes")):
        assert run(tmp_path / name)[0] == 2
        assert word in capsys.readouterr().err
    make_complexes(tmp_path / "data")
    assert prepare.main([f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'no' / 'x'}"]) == 2
    assert run(tmp_path / "data", "--split=val")[0] == 2
    assert "has no manifest" in capsys.readouterr().err


def test_a_complex_too_wide_for_the_format_says_the_remedy(data: Path) -> None:
    path = data / "4ryv" / "protein.pdb"
    far = "ATOM   9999  CA  GLY Z   1     500.000 500.000 500.000  1.00  0.00           C"
    path.write_text(path.read_text().replace("END", "").rstrip() + f"\n{far}\nEND\n")
    with pytest.raises(InputError, match="--crop"):
        prepare.example_from_files(path.parent)
    assert prepare.example_from_files(path.parent, crop=8.0).id == "4ryv"
