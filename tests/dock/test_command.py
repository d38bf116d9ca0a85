"""The command: inputs good and bad, exit statuses, files, resuming, determinism."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rdkit import Chem

from bio_diffusion.dock import command, parallel, plan
from bio_diffusion.dock.__main__ import main, parser
from bio_diffusion.dock.results import COLUMNS, JOURNAL
from bio_diffusion.folders import open_journal

ROOT = Path(__file__).parents[2]
PROTEIN = ROOT / "data/demo/protein.pdb"
LIGAND = ROOT / "data/demo/ligand.sdf"
# budgets so small that a ligand takes a fraction of a second: poses are bad, files are not
TINY = "starts=2 rounds=1 evaluations=4 refine=4 conformers=1 num_poses=2 sites=1".split()
BOX = ["--autobox_ligand", str(LIGAND)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def dock(out, *arguments, site=BOX, protein=PROTEIN, workers=1):
    words = ["--protein", str(protein), "--out", str(out), "--quiet", *site, *map(str, arguments)]
    return main([*words, "--workers", str(workers), *TINY])


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def records(path):
    """SDF records by ligand, as text."""
    found = {}
    for block in path.read_text().split("$$$$\n")[:-1]:
        found.setdefault(block.split("\n", 1)[0], []).append(block)
    return found


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "library.smi"
    path.write_text("c1ccccc1O phenol\nCC(=O)NC amide\nOCC(O)CO glycerol\nc1cc[nH]c1 pyrrole\n")
    return path


def test_help_loads_no_torch():
    code = (
        "import sys, contextlib\n"
        "from bio_diffusion.dock.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "assert not {'torch', 'rdkit', 'hydra', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--pocket-residues" in done.stdout


@pytest.fixture(scope="module")
def redocked(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    assert dock(out, "--ligand", LIGAND) == 0
    return out


def test_a_run_leaves_every_file(redocked):
    rows = table(redocked / "results.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert all(float(row["rmsd"]) > 0 for row in rows)
    summary = json.loads((redocked / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["counts"]["poses"] == 2 and summary["counts"]["failed"] == 0
    assert (redocked / "failures.csv").read_text() == "ligand_id,code,reason\n"
    assert (redocked / "report.html").stat().st_size > 600_000
    assert not list(redocked.glob(".*.part"))


def test_poses_carry_their_fields_and_keep_the_molecule(redocked):
    poses = list(Chem.SDMolSupplier(str(redocked / "poses.sdf")))
    given = next(iter(Chem.SDMolSupplier(str(LIGAND))))
    for row, pose in zip(table(redocked / "results.csv"), poses, strict=True):
        fields = pose.GetPropsAsDict()
        assert fields["ligand_id"] == "3lan_KBT" and fields["version"]
        assert 0 <= fields["confidence"] <= 1
        assert f"{fields['energy']:g}" == f"{float(row['energy']):g}"
        assert Chem.MolToSmiles(pose) == Chem.MolToSmiles(given)


def test_settings_written_are_settings_read(redocked, tmp_path):
    words = ["--protein", str(PROTEIN), "--ligand", str(LIGAND), *BOX, "--quiet"]
    again = tmp_path / "again"
    assert main([*words, "--config", str(redocked / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "poses.sdf").read_bytes() == (redocked / "poses.sdf").read_bytes()


def test_flags_go_before_words_and_words_before_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nspread: 0.7\nsite_size: 20.0\n")
    out = tmp_path / "out"
    flags = ["--ligand", "CCO", "--config", file, "--seed", "3", "seed=2", "spread=0.8"]
    assert dock(out, *flags) == 0
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert (settings["seed"], settings["spread"], settings["site_size"]) == (3, 0.8, 20.0)


BAD_PROTEINS = {
    "missing": None,
    "empty": "",
    "waters": "HETATM    1  O   HOH A   1      10.000  10.000  10.000  1.00  0.00           O\n",
    "cut mmCIF": "data_X\nloop_\n_atom_site.group_PDB\n_atom_site.id\n_atom_site.Cartn_x\nATOM 1",
    "prose": "this is not a protein\n",
}


@pytest.mark.parametrize("kind", [*BAD_PROTEINS, "folder"])
def test_a_bad_protein_ends_the_run_before_any_work(kind, tmp_path, capsys):
    path = tmp_path / "p.pdb"
    if kind == "folder":
        path.mkdir()
    elif BAD_PROTEINS[kind] is not None:
        path.write_text(BAD_PROTEINS[kind])
    out = tmp_path / "out"
    assert dock(out, "--ligand", "CCO", site=(), protein=path) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "p.pdb" in told[0]
    assert not out.exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--center", "900", "0", "0"], "away from the protein"),
        (["--center", "nan", "0", "0"], "finite"),
        (["--pocket-residues", "A:9999"], "A:9999"),
        (["--size", "20"], "--center"),
        (["--autobox_ligand", "nowhere.sdf"], "nowhere.sdf"),
        (["--ligand", "nowhere.sdf"], "nowhere.sdf"),
        (["--ligands", "nowhere.csv"], "nowhere.csv"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--checkpoint", "dok"], "did you mean 'dock'?"),
        (["--num-poses", "0"], "num_poses"),
        (["--workers", "0"], "--workers"),
        (["strats=3"], "starts"),
        (["starts=many"], "starts"),
        (["_target_=os.system"], "_target_"),
        (["starts=null"], "starts"),
        (["minimize=null"], "minimize"),
        (["timeout=null"], "timeout"),
        (["timeout=-5"], "timeout"),
        (["--center", "0", "0", "0", "--size", "0"], "between 1 and 500"),
        (["--log-file", "/nowhere/at/all.log"], "all.log"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words, said, tmp_path, capsys):
    base = ["--protein", str(PROTEIN), "--ligand", "CCO", "--out", str(tmp_path / "out"), *words]
    assert main([*base, "--quiet"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--steps", "x"], "--steps"),
        (["--center", "1", "2"], "--center"),
        ([*BOX, "--blind"], "--blind"),
        (["--resume", "--overwrite"], "--overwrite"),
        (["--device", "abacus"], "abacus"),
        (["--numposes", "3"], "did you mean --num-poses?"),
    ],
)
def test_flags_that_do_not_parse_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--protein", str(PROTEIN), *words])
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(told) == 1
    assert said in told[0] and "--help" in told[0]


def test_a_reference_without_coordinates_is_told_from_a_protein(library, tmp_path, capsys):
    site = ["--autobox_ligand", str(library)]
    assert dock(tmp_path / "out", "--ligand", "CCO", site=site) == 2
    told = capsys.readouterr().err
    assert "library.smi: holds no coordinates" in told and "ligand" in told


def test_a_table_whose_header_cannot_be_read_ends_the_run(tmp_path, capsys):
    file = tmp_path / "wide.csv"
    file.write_text("id,smiles," + "x" * 200_000 + "\na,CCO\n")
    assert dock(tmp_path / "out", "--ligands", file) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "wide.csv" in told[0] and "header" in told[0]


def test_a_table_without_rows_is_no_success(tmp_path):
    file = tmp_path / "bare.csv"
    file.write_text("id,smiles\n\n")
    assert dock(tmp_path / "out", "--ligands", file) == 3
    (failed,) = table(tmp_path / "out/failures.csv")
    assert failed["code"] == "empty" and "bare.csv" in failed["reason"]


def test_a_file_that_a_row_names_is_told_with_its_row(tmp_path):
    file = tmp_path / "l.csv"
    deep = "/".join(["a_folder_of_a_long_name"] * 6) + "/nowhere.sdf"
    file.write_text(f"id,path\na,{deep}\n")
    assert dock(tmp_path / "out", "--ligands", file) == 3
    (failed,) = table(tmp_path / "out/failures.csv")
    assert failed["code"] == "missing"
    assert failed["reason"] == f"l.csv row 2: {deep}: no such file; check the path"


def test_missing_extras_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parallel.importlib.util, "find_spec", lambda name: None)
    assert dock(tmp_path / "out", "--ligand", "CCO", "--scheduler", "tcp://127.0.0.1:1") == 2
    monkeypatch.setitem(sys.modules, "pdbfixer", None)
    assert dock(tmp_path / "out", "--ligand", "CCO", "--prepare", "fix") == 2
    told = capsys.readouterr().err.splitlines()
    assert "bio_diffusion[cluster]" in told[0] and "pip install pdbfixer" in told[1]


GOOD = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))


def test_bad_ligands_cost_only_themselves(tmp_path, capsys):
    names = ["good", "<script>alert(1)</script>", "=1+1", "../../escape", "good", "mol/\u00e9"]
    broken = GOOD.replace("  1  2  1  0", "  1 99  1  0")
    blocks = [name + GOOD for name in names] + [
        "broken" + broken,
        "none\n\n\n  0  0  0  0\nM  END\n",
    ]
    sdf = tmp_path / "many.sdf"
    sdf.write_text("".join(block + "$$$$\n" for block in blocks))
    smiles = {
        "unparsed": "C1CC",
        "pair": "CCCCCCc1ccccc1.c1ccccc1CCN",
        "metal": "C[Pt](C)(Cl)Cl",
        "huge": "C" * 300,
    }
    words = [word for text in smiles.values() for word in ("--ligand", text)]
    out = tmp_path / "out"
    assert dock(out, "--ligand", sdf, *words) == 3
    docked = {row["ligand_id"] for row in table(out / "results.csv")}
    assert len(docked) == len(names)
    assert all(
        name and not set(name) & set("/<>=\\ ") and name[0] not in ".=+-@" for name in docked
    )
    failed = table(out / "failures.csv")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(failed) == 6
    assert {"parse", "fragments", "metal", "too_large", "empty"} <= {row["code"] for row in failed}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.sdf", "out"]
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page


def test_all_bad_is_status_3_without_an_empty_report(tmp_path):
    out = tmp_path / "out"
    assert dock(out, "--ligand", "C1CC", "--ligand", "[Na+].[Cl-]") == 3
    assert len(table(out / "failures.csv")) == 2 and table(out / "results.csv") == []
    assert not (out / "report.html").exists()


def test_reasons_in_tables_run_in_no_spreadsheet(tmp_path):
    file = tmp_path / "l.csv"
    file.write_text('id,smiles\n"=HYPERLINK(1)",C1CC\n@x,=CC\n')
    assert dock(tmp_path / "out", "--ligands", file) == 3
    cells = [c for row in table(tmp_path / "out/failures.csv") for c in row.values()]
    assert len(cells) == 6 and not any(c.startswith(("=", "+", "-", "@")) for c in cells)


def test_a_folder_in_use_is_refused_and_strangers_survive(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert dock(out, "--ligand", "CCO") == 2
    assert dock(out, "--ligand", "CCO", "--resume") == 2
    told = capsys.readouterr().err.splitlines()
    assert "--overwrite" in told[0] and "no run" in told[1]
    assert dock(out, "--ligand", "CCO", "--overwrite") == 0
    assert (out / "thesis.txt").read_text() == "mine"
    assert dock(out, "--ligand", "CCO") == 2
    file = tmp_path / "file"
    file.write_text("")
    assert dock(file, "--ligand", "CCO") == 2 == dock(file / "in", "--ligand", "CCO")


def test_a_run_never_replaces_what_it_reads(tmp_path, capsys):
    out = tmp_path / "out"
    assert dock(out, "--ligand", "CCO") == 0
    poses = out / "poses.sdf"
    before = poses.read_bytes()
    for again in ("--overwrite", "--resume"):
        assert dock(out, "--ligands", poses, again) == 2
        assert dock(out, "--ligand", "CCO", again, site=["--autobox_ligand", str(poses)]) == 2
        table = tmp_path / "table.csv"
        table.write_text("id,path\nx,out/poses.sdf\n")
        assert dock(out, "--ligands", table, again) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 3 and all("would replace it" in line for line in told)
    assert poses.read_bytes() == before


def test_a_reference_that_reads_as_no_molecule_still_leaves_the_site(tmp_path, capsys):
    lines = [x for x in PROTEIN.read_text().splitlines() if x.startswith(("ATOM", "HETATM"))]
    block = Chem.MolFromMolFile(str(LIGAND))
    group = [
        f"HETATM{9000 + i:5d}  {a.GetSymbol():<3s} LG{n} A {900 + n}    "
        f"{p.x:8.3f}{p.y:8.3f}{p.z + 9 * n - 9:8.3f}"
        f"  1.00  0.00          {a.GetSymbol().upper():>2s}"
        for n in (1, 2)
        for i, a in enumerate(block.GetAtoms())
        for p in [block.GetConformer().GetAtomPosition(i)]
    ]
    protein, marker = tmp_path / "p.pdb", tmp_path / "marker.pdb"
    protein.write_text("\n".join([*lines, *group, "END", ""]))
    marker.write_text("\n".join([*group, "END", ""]))
    words = ["--protein", protein, "--ligand", "CCO", *TINY, "--workers", 1]
    out = tmp_path / "a"
    assert main([str(w) for w in [*words, "--autobox_ligand", marker, "--out", out]]) == 0
    notes = json.loads((out / "summary.json").read_text())["protein"]["notes"]
    assert notes["groups_taken_out"] == 2 and notes["groups_kept"] == {}
    assert "no RMSD is measured to it" in capsys.readouterr().err
    center = [f"{x:.1f}" for x in block.GetConformer().GetPositions().mean(0)]
    assert main([str(w) for w in [*words, "--center", *center, "--out", tmp_path / "b"]]) == 0
    assert "LG1 A:901 in the box stays" in capsys.readouterr().err  # LG2 clashes with the chain


def test_negative_numbers_in_any_spelling_are_coordinates():
    options = parser().parse_args(["--protein", "p", "--center", "-5.", "-1e1", "-.5"])
    assert options.center == [-5.0, -10.0, -0.5]


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    out = tmp_path / "out"
    assert dock(out, "--ligand", "CCO") == 0
    held = open_journal(out, JOURNAL, (), overwrite=False)
    assert dock(out, "--ligand", "CCO", "--resume") == 2
    assert "another run" in capsys.readouterr().err
    held.close()


def test_order_company_and_workers_change_no_byte(library, tmp_path):
    lines = library.read_text().splitlines()
    assert dock(tmp_path / "a", "--ligands", library) == 0
    library.write_text("\n".join(reversed(lines)))
    assert dock(tmp_path / "b", "--ligands", library, workers=2) == 0
    for name in ("poses.sdf", "failures.csv", "report.html", "config.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    library.write_text("\n".join([lines[3], "CCCC butane", lines[1]]))
    assert dock(tmp_path / "c", "--ligands", library) == 0
    whole, part = records(tmp_path / "a/poses.sdf"), records(tmp_path / "c/poses.sdf")
    assert part["pyrrole"] == whole["pyrrole"] and part["amide"] == whole["amide"]
    assert dock(tmp_path / "d", "--ligands", library, "--seed", "1") == 0
    assert records(tmp_path / "d/poses.sdf")["amide"] != part["amide"]


def test_resuming_a_cut_journal_gives_the_unbroken_run(library, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert dock(whole, "--ligands", library) == 0
    journal = (whole / JOURNAL).read_bytes()
    docked = []
    plain = plan.Session.__call__
    monkeypatch.setattr(
        plan.Session, "__call__", lambda self, job: docked.append(job.ligand.id) or plain(self, job)
    )
    for share in (0.0, 0.3, 0.55, 0.99, 1.0):
        out = tmp_path / f"cut{share}"
        out.mkdir()
        cut = journal[: int(share * len(journal))]
        (out / JOURNAL).write_bytes(cut)
        (out / ".poses.sdf.99.part").write_text("half")
        docked.clear()
        assert dock(out, "--ligands", library, "--resume") == 0
        assert len(docked) == 4 - cut.count(b"\n")
        for name in ("poses.sdf", "failures.csv", "report.html", "config.yaml"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (share, name)
        drop = [
            {k: v for k, v in row.items() if k != "seconds"} for row in table(out / "results.csv")
        ]
        kept = [
            {k: v for k, v in row.items() if k != "seconds"} for row in table(whole / "results.csv")
        ]
        assert drop == kept
        assert not list(out.glob(".*.part"))


def test_a_changed_input_or_setting_is_never_served_from_before(
    library, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert dock(out, "--ligands", library) == 0
    docked = []
    plain = plan.Session.__call__
    monkeypatch.setattr(
        plan.Session, "__call__", lambda self, job: docked.append(job.ligand.id) or plain(self, job)
    )
    assert dock(out, "--ligands", library, "--resume") == 0 and docked == []
    assert capsys.readouterr().err == ""
    words = ["--protein", PROTEIN, *BOX, "--ligands", library, "--out", out, "--resume", *TINY]
    assert main([str(w) for w in [*words, "--seed", 5, "--workers", 1]]) == 0 and len(docked) == 4
    assert "docked anew: 4" in capsys.readouterr().err
    docked.clear()
    library.write_text(library.read_text().replace("CC(=O)NC amide", "CC(=O)NCC amide"))
    assert dock(out, "--ligands", library, "--resume", "--seed", 5) == 0 and docked == ["amide"]
    docked.clear()
    moved = tmp_path / "protein.pdb"
    moved.write_text(PROTEIN.read_text().replace("  31.527   5.199", "  31.528   5.199"))
    assert dock(out, "--ligands", library, "--resume", protein=moved) == 0 and len(docked) == 4


def test_a_killed_run_goes_on(library, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["--protein", PROTEIN, "--ligands", library, *BOX, "--out", out, "--workers", 1, *TINY]
    command_line = [sys.executable, "-m", "bio_diffusion.dock", *map(str, words)]
    run = subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.DEVNULL)
    journal = out / JOURNAL
    while run.poll() is None and not (journal.exists() and b"\n" in journal.read_bytes()):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for row in table(out / "results.csv") if (out / "results.csv").exists() else ():
        assert row["energy"]
    assert dock(out, "--ligands", library, "--resume") == 0
    assert dock(whole, "--ligands", library) == 0
    assert (out / "poses.sdf").read_bytes() == (whole / "poses.sdf").read_bytes()


def stop_at(number, error, monkeypatch):
    """Makes the docking of the `number`-th ligand raise."""
    plain, calls = plan.Session.__call__, []

    def call(self, job):
        calls.append(job)
        if len(calls) == number:
            raise error
        return plain(self, job)

    monkeypatch.setattr(plan.Session, "__call__", call)


def test_an_interrupt_leaves_valid_files_and_status_130(library, tmp_path, monkeypatch, capsys):
    stop_at(3, KeyboardInterrupt(), monkeypatch)
    out, handler = tmp_path / "out", signal.getsignal(signal.SIGINT)
    assert dock(out, "--ligands", library) == 130
    assert "--resume" in capsys.readouterr().err
    assert len({row["ligand_id"] for row in table(out / "results.csv")}) == 2
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_fault_in_one_ligand_is_kept_with_its_traceback(library, tmp_path, monkeypatch, capsys):
    stop_at(2, RuntimeError("odd\nlines"), monkeypatch)
    out = tmp_path / "out"
    assert dock(out, "--ligands", library) == 3
    (failed,) = table(out / "failures.csv")
    assert failed["code"] == "fault" and "odd lines" in failed["reason"]
    assert "Traceback" in (out / "fault.log").read_text()
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.undo()
    assert dock(out, "--ligands", library, "--resume") == 0  # such a failure is tried anew


def test_a_fault_of_the_program_is_status_1(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(command, "Report", broken)
    log = tmp_path / "log.txt"
    assert dock(tmp_path / "out", "--ligand", "CCO", "--log-file", log) == 1
    assert "Traceback" in log.read_text()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_disk_is_one_line_and_keeps_what_is_done(library, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    plain, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr("bio_diffusion.files.os.fsync", full)
    assert dock(out, "--ligands", library) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "No space left" in told[0] and "--resume" in told[0]
    assert not list(out.glob(".*.part"))
    monkeypatch.undo()
    assert dock(out, "--ligands", library, "--resume") == 0
    assert len({row["ligand_id"] for row in table(out / "results.csv")}) == 4


def test_a_folder_that_cannot_be_made_is_status_2(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bio_diffusion.folders.Path.mkdir", refuse)
    assert dock(tmp_path / "out", "--ligand", "CCO") == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_table_may_name_proteins(tmp_path):
    other = tmp_path / "sub" / "protein.pdb"
    other.parent.mkdir()
    other.write_bytes(PROTEIN.read_bytes())
    file = tmp_path / "l.csv"
    file.write_text("id,smiles,protein\na,CCO,\nb,CCO,sub/protein.pdb\nc,CCO,sub/none.pdb\n")
    out = tmp_path / "out"
    assert dock(out, "--ligands", file) == 3
    rows = {row["ligand_id"]: row["protein"] for row in table(out / "results.csv")}
    assert rows == {"a": "protein", "b": "sub_protein"}
    (failed,) = table(out / "failures.csv")
    assert failed["ligand_id"] == "c" and failed["code"] == "missing"
    assert "l.csv row 4" in failed["reason"] and "sub/none.pdb" in failed["reason"]


def hetatm(path):
    """Lines of a PDB file for the heavy atoms of a ligand."""
    mol = next(iter(Chem.SDMolSupplier(str(path))))
    lines = []
    for i, (atom, xyz) in enumerate(
        zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True)
    ):
        name = f"{atom.GetSymbol()}{i + 1}"
        x, y, z = xyz
        lines.append(
            f"HETATM{9000 + i:5d} {name:<4} KBT A 999    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
            f"          {atom.GetSymbol():>2}\n"
        )
    return lines


def test_a_protein_alone_gives_its_ligand_back(tmp_path):
    held = tmp_path / "held.pdb"
    protein = [line for line in PROTEIN.open() if not line.startswith("END")]
    held.write_text("".join([*protein, *hetatm(LIGAND), "END\n"]))
    out = tmp_path / "out"
    assert dock(out, site=(), protein=held) == 0
    rows = table(out / "results.csv")
    assert rows[0]["ligand_id"] == "held_KBT" and all(row["rmsd"] for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sites"][0]["how"] == "bound ligand held_KBT"
    assert summary["protein"]["atoms"] == len(protein)


def test_a_protein_without_a_ligand_gets_probes(tmp_path):
    out = tmp_path / "out"
    assert dock(out, site=()) == 0
    rows = table(out / "results.csv")
    assert len({row["ligand_id"] for row in rows}) == 8
    assert all(row["ligand_id"].startswith("probe_") and not row["rmsd"] for row in rows)
