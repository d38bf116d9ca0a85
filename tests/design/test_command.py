"""The command: inputs good and bad, exit statuses, files, resuming, determinism."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Restriction import EcoRI

from bio_diffusion.config import read
from bio_diffusion.design import command
from bio_diffusion.design.__main__ import main
from bio_diffusion.design.properties import molecule
from bio_diffusion.design.results import JOURNAL

from .fakes import FakeDesigner

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(command, "Designer", FakeDesigner)
    monkeypatch.setattr(FakeDesigner, "calls", [])
    return FakeDesigner


def design(out, *words):
    return main([*map(str, words), "--out", str(out), "--quiet"])


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_help_loads_no_torch():
    for words in (["--help"], ["dna", "--help"], ["smiles", "--help"]):
        code = (
            "import sys, contextlib\n"
            "from bio_diffusion.design.__main__ import main\n"
            f"with contextlib.suppress(SystemExit): main({words})\n"
            "assert not {'torch', 'rdkit', 'hydra', 'numpy'} & set(sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "--max-draws" in done.stdout or words == ["--help"]


@pytest.fixture(scope="module")
def dna(tmp_path_factory):
    out = tmp_path_factory.mktemp("dna") / "out"
    words = "dna --n 20 --avoid EcoRI GGTCTC --gc 0.4:0.6 --max-homopolymer 4 --motif TATAAT"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Designer", FakeDesigner)
        assert design(out, *words.split(), "--objective", "activity>=0.6") == 0
    return out


def test_dna_is_what_was_asked_for(dna):
    rows = table(dna / "designs.csv")
    assert len(rows) == 20 and rows[0]["id"] == "design_1"
    for row in rows:
        text = row["sequence"]
        assert len(text) == 30 and 12 <= sum(c in "GC" for c in text) <= 18
        assert "GGTCTC" not in text and "GAGACC" not in text and "GAATTC" not in text
        assert not re.search(r"(.)\1{4}", text) and re.search("TATAAT|ATTATA", text)
        assert float(row["activity"]) == text.count("A") / 10 >= 0.6
        assert row["novel"] == "true" and row["valid"] == "true" and row["seed"] == "0"
    records = list(SeqIO.parse(dna / "designs.fasta", "fasta"))
    assert [str(r.seq) for r in records] == [row["sequence"] for row in rows]
    assert not any(EcoRI.search(r.seq) for r in records)
    assert "gc=" in records[0].description and "seed=0" in records[0].description


def test_the_dna_summary_says_what_was_measured(dna):
    found = summary(dna)
    assert found["status"] == "complete" and found["counts"]["given"] == 20
    assert found["counts"]["accepted_share"] == pytest.approx(20 / found["counts"]["drawn"], 1e-5)
    assert found["validity"] == 1 and set(found["kmer_distance"]) == {"3", "6"}
    assert int(found["sequences_that_satisfy_them"][0]) > 10**9
    assert "avoid EcoRI (GAATTC)" in found["constraints"]
    assert set(found["table"]) == {"designs", "training set", "dinucleotide shuffle"}
    assert found["table"]["designs"]["discriminator AUROC"] > 0
    assert found["motifs"][0]["q"] <= 1 and found["properties"]["gc"]["error"] > 0
    assert found["targets"] == {}  # "activity" is an oracle's, and no class of the model


def test_molecules_are_what_was_asked_for(tmp_path, fake):
    out = tmp_path / "out"
    words = ["smiles", "--n", 12, "--objective", "qed>=0.45", "rings<=2", "--unique"]
    assert design(out, *words) == 0
    rows = table(out / "designs.csv")
    assert len({row["smiles"] for row in rows}) == len(rows) == 12
    assert all(float(r["qed"]) >= 0.45 and float(r["rings"]) <= 2 for r in rows)
    assert {r["novel"] for r in rows} <= {"true", "false"}
    drawn = (out / JOURNAL).read_text()
    assert "[CH2]" in drawn and not any("[CH2]" in r["smiles"] for r in rows)
    found = summary(out)
    assert found["molecules"]["drawn"] == found["counts"]["drawn"] > found["molecules"]["valid"]
    assert 0 < found["validity"] < 1 and 0 < found["diversity"] < 1
    assert fake.calls[0]["targets"] == {"qed": 2, "rings": 0}
    assert not list(out.glob(".*.part")) and not (out / "designs.fasta").exists()


@pytest.mark.parametrize(
    "objectives, place",
    [
        (["qed>=0.45"], 2),  # the nearest class of 0.4 < qed <= 0.5 that lies beyond it whole
        (["qed<=0.45"], 0),
        (["qed>=0.42", "qed<=0.48"], 1),
        (["qed<=0.48", "qed>=0.42"], 1),
        (["qed>=0.6", "qed<=1"], 2),
        (["qed=0.5"], 1),
    ],
)
def test_the_class_to_aim_at_lies_where_the_objectives_hold(objectives, place, tmp_path, fake):
    design(tmp_path / "out", "smiles", "--n", 1, "--max-draws", 1, "--objective", *objectives)
    assert fake.calls[0]["targets"] == {"qed": place}


def test_a_time_grid_is_chosen(tmp_path, fake, capsys):
    grid, out = tmp_path / "grid.json", tmp_path / "file"
    grid.write_text('{"knots": [1, 0.4, 0.1, 0]}')
    assert design(tmp_path / "named", "smiles", "--n", 3, "--schedule", "sine") == 0
    assert fake.calls[0]["schedule"] == "sine"
    assert summary(tmp_path / "named")["settings"]["schedule"] == "sine"
    words = ["smiles", "--n", 3, "--steps", 3, "--schedule", grid]
    assert design(out, *words) == 0
    grid.write_text('{"knots": [1, 0.5, 0.1, 0]}')
    assert design(out, *words, "--resume") == 2 and "another times" in capsys.readouterr().err
    grid.write_text('{"knots": [1, 0.5, 0.6, 0]}')
    assert design(tmp_path / "bad", *words) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "grid.json" in told[0] and "must fall strictly" in told[0]
    grid.write_bytes(b"\xff\x00")
    assert design(tmp_path / "bad", *words) == 2
    assert "is no grid" in capsys.readouterr().err and not (tmp_path / "bad").exists()


def test_a_scaffold_is_kept(tmp_path, fake):
    out = tmp_path / "out"
    assert design(out, "smiles", "--n", 5, "--scaffold", "C#N", "--max-draws", 100) == 0
    pattern = molecule("C#N")
    assert all(molecule(r["smiles"]).HasSubstructMatch(pattern) for r in table(out / "designs.csv"))
    assert len(fake.calls[0]["constraints"]) == 1


def test_starts_are_completed_one_by_one(tmp_path, capsys):
    fasta, out = tmp_path / "start.fa", tmp_path / "out"
    fasta.write_text(">one first\nACGTNNNN\n>two\nttttnnnnacgt\n")
    assert design(out, "dna", "--n", 3, "--start", fasta, "--template", "NNNNR") == 0
    rows = table(out / "designs.csv")
    assert [r["id"] for r in rows] == [f"{s}_{i}" for s in ("one", "two") for i in (1, 2, 3)]
    assert all(re.fullmatch("ACGT[AG].{25}", r["sequence"]) for r in rows[:3])
    assert all(re.fullmatch("TTTT[AG]...ACGT.{18}", r["sequence"]) for r in rows[3:])
    assert not {r["sequence"][12:] for r in rows[:3]} & {r["sequence"][12:] for r in rows[3:]}
    assert summary(out)["constraints"] == ["template NNNNR"]
    whole = (out / "designs.csv").read_bytes()
    fasta.write_text(">two\nttttnnnnacgt\n")
    words = ["dna", "--n", 3, "--start", fasta, "--template", "NNNNR"]
    assert design(out, *words, "--resume") == 2
    assert "another start_sequences" in capsys.readouterr().err
    assert (out / "designs.csv").read_bytes() == whole
    assert design(tmp_path / "two", *words) == 0
    alone = [r["sequence"] for r in table(tmp_path / "two/designs.csv")]
    assert alone == [r["sequence"] for r in rows[3:]]  # whatever stands beside it


def test_a_shortfall_is_stated(tmp_path, capsys):
    out = tmp_path / "out"
    assert design(out, "smiles", "--n", 5, "--objective", "qed>=0.99", "--max-draws", 4) == 3
    assert "0 of 5 designs after 20 draws" in capsys.readouterr().err
    found = summary(out)
    assert found["status"] == "short" and "0 of 5" in found["shortfall"]
    assert table(out / "designs.csv") == [] and (out / "report.html").exists()
    out = tmp_path / "few"
    template = "ACGTACGTACGTACGTACGTACGTACGTRR"
    assert design(out, "dna", "--n", 6, "--unique", "--template", template) == 3
    told = capsys.readouterr().err
    assert "4 of 6 designs" in told
    assert summary(out)["warnings"] == [
        "only 4 sequences satisfy all constraints, and 6 designs are asked for"
    ]


def test_the_same_seed_gives_the_same_bytes(tmp_path, monkeypatch):
    words = ["dna", "--n", 21, "--gc", "0.3:0.5", "--objective", "activity>=0.8", "--seed", 3]
    assert design(tmp_path / "a", *words) == 0
    monkeypatch.setattr(FakeDesigner, "chunk", 5)
    assert design(tmp_path / "b", *words) == 0
    for name in ("designs.csv", "designs.fasta", "config.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert design(tmp_path / "c", *words[:-1], 4) == 0
    assert (tmp_path / "a/designs.csv").read_bytes() != (tmp_path / "c/designs.csv").read_bytes()


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    words = ["smiles", "--n", 40, "--objective", "rings>=1"]
    assert design(tmp_path / "whole", *words) == 0
    draw = FakeDesigner.design

    def interrupted(self, n, **settings):
        for number, batch in enumerate(draw(self, n, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(FakeDesigner, "design", interrupted)
        assert design(out, *words) == 130
    assert "--resume" in capsys.readouterr().err
    assert summary(out)["status"] == "interrupted" and 0 < len(table(out / "designs.csv")) < 40
    assert summary(out)["shortfall"] is None and not (out / "report.html").exists()
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'{"start": 0, "drawn": ["C')  # as a kill leaves it
    assert design(out, *words) == 2 and "--resume" in capsys.readouterr().err
    assert design(out, *words, "--seed", 1, "--resume") == 2
    assert "another seed" in capsys.readouterr().err
    FakeDesigner.calls.clear()
    assert design(out, *words, "--resume") == 0
    assert FakeDesigner.calls[0]["first"] == 32
    assert (out / "designs.csv").read_bytes() == (tmp_path / "whole/designs.csv").read_bytes()
    assert design(out, *words, "--resume") == 0 and len(FakeDesigner.calls) == 1
    assert design(out, *words, "--overwrite") == 0


def test_a_run_is_repeated_by_its_settings(dna, tmp_path):
    assert read(dna / "config.yaml")["avoid"] == ["EcoRI", "GGTCTC"]
    assert design(tmp_path / "out", "--job", dna / "config.yaml") == 0
    for name in ("designs.csv", "config.yaml"):
        assert (tmp_path / "out" / name).read_bytes() == (dna / name).read_bytes()


def test_a_job_file_holds_several_runs(tmp_path, capsys):
    job, out = tmp_path / "job.yaml", tmp_path / "out"
    job.write_text(
        "jobs:\n- {name: easy, domain: smiles, n: 3}\n"
        "- {domain: dna, n: 4, avoid: [EcoRI], gc: '0.4:0.6'}\n"
    )
    assert design(out, "--job", job) == 0
    assert len(table(out / "easy/designs.csv")) == 3 and len(table(out / "2/designs.csv")) == 4
    for text, said in {
        "jobs: []": "list of runs",
        "jobs:\n- {domain: rna}": "domain: dna",
        "jobs:\n- {domain: dna, avoids: [EcoRI]}": "avoid",
        "jobs:\n- {name: a, domain: dna}\n- {name: a, domain: dna}": "two runs are called 'a'",
        "jobs:\n- {domain: dna}\nseed: 3": "beside jobs",
        "domain: dna\nn: many": "n must be a whole number",
        "domain: dna\nn: 0": "job.yaml: n is 0",
        "jobs:\n- {domain: dna}\n- {domain: dna, gc: '1:0'}": "job.yaml: run 2: GC window",
        "jobs:\n- {domain: dna, model: yeats}": "job.yaml: run 1: no model is called",
        "a: [": "is no configuration",
    }.items():
        job.write_text(text)
        assert design(tmp_path / "other", "--job", job) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and said in told[0], told
    assert not (tmp_path / "other").exists()


BAD = [
    (["dna", "--template", "ACGX"], "'X' is no DNA letter"),
    (["dna", "--template", "N" * 31], "31 letters and the model makes 30"),
    (["dna", "--template", "GAATTC", "--avoid", "EcoRI"], "0 of 4^30"),
    (["dna", "--avoid", "EcoR1"], "EcoRI"),
    (["dna", "--motif", "MA0108.33"], "MA0108.3"),
    (["dna", "--gc", "0.6:0.4"], "low <= high"),
    (["dna", "--gc", "40%"], "LO:HI"),
    (["dna", "--max-homopolymer", "0"], "at least"),
    (["dna", "--objective", "qed>=0.5"], "no property is called 'qed'"),
    (["dna", "--target", "humen"], "did you mean human"),
    (["dna", "--target", "expression=3"], "there are expression=0 to expression=2"),
    (["dna", "--target", "human", "worm"], "two targets"),
    (["dna", "--objective", "gc>=0.6", "--gc", "0.3:0.5"], "no gc satisfies [gc>=0.6; gc>=0.3;"),
    (["smiles", "--objective", "qed>=0.5", "qed<=0.4"], "no qed satisfies [qed>=0.5; qed<=0.4]"),
    (["smiles", "--objective", "qed>1"], "from 0 to 1 satisfies [qed>1]"),
    (["dna", "--guidance", "cfg"], "needs an aim"),
    (["dna", "--model", "zinc"], "makes SMILES, not DNA"),
    (["smiles", "--model", "zink"], "no model is called 'zink'"),
    (["smiles", "--objective", "qad>=0.5"], "did you mean qed"),
    (["smiles", "--objective", "qed"], "no objective"),
    (["smiles", "--scaffold", "c1ccccc"], "cannot be read"),
    (["smiles", "--scaffold", "c1ccccc1Br"], "does not know Br"),
    (["smiles", "--n", "0"], "n is 0"),
    (["smiles", "--seed", "-1"], "seed is -1"),
    (["smiles", "--gamma", "nan"], "gamma is nan"),
    (["smiles", "--steps", "0"], "steps is 0"),
    (["smiles", "--schedule", "sin"], "did you mean sine"),
    (["smiles", "--schedule", "nowhere/grid.json"], "there are uniform, sine, cosine, adaptive"),
    (["dna", "--schedule", "adaptive"], "no fitted time grid"),
    (["dna", "--schedule", "cosine", "--steps", "100000"], "100000 steps are too many"),
    (["smiles", "--log-file", "/nowhere/log"], "cannot be written"),
]


@pytest.mark.parametrize("words, said", BAD)
def test_bad_input_ends_the_run_before_any_work(words, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert design(out, *words) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0], told
    assert not out.exists() and not FakeDesigner.calls


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "empty"),
        (">a\nACNN\n>a\nNNNN\n", "a: this id occurs twice"),
        (">a\nACGZ\n", "a: 'Z' is no DNA letter"),
        (">a\n", "a: the record has no sequence"),
        ("ACGT\n", "no FASTA"),
        (">\nACGN\n", "without an id"),
        (">a\nACGT\n", "nothing is left to design"),
        (">a\n" + "N" * 40, "a: the template has 40 letters"),
    ],
)
def test_bad_fasta_ends_the_run_before_any_work(text, said, tmp_path, capsys):
    fasta, out = tmp_path / "s.fa", tmp_path / "out"
    fasta.write_text(text)
    assert design(out, "dna", "--start", fasta) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0] and "s.fa" in told[0], told
    assert design(out, "dna", "--start", tmp_path / "none.fa") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "say dna or smiles"),
        (["--job", "x.yaml", "dna"], "say dna or smiles"),
        (["rna"], "invalid choice: 'rna'"),
        (["dna", "--n", "few"], "invalid int value"),
        (["dna", "--template", ""], "--template: is blank"),
        (["smiles", "--scaffold", " "], "--scaffold: is blank"),
        (["dna", "--scaffold", "CCO"], "--scaffold belongs to another command"),
        (["smiles", "--obj", "qed>=1"], "did you mean --objective?"),
    ],
)
def test_bad_usage_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]


def test_a_flag_that_changes_nothing_is_said(tmp_path, capsys):
    assert design(tmp_path / "out", "dna", "--n", 1, "--gamma", 5) == 0
    assert summary(tmp_path / "out")["warnings"] == [
        "gamma changes nothing without --guidance cfg or cbg"
    ]


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FakeDesigner, "design", lambda *_, **__: 1 / 0)
    assert design(tmp_path / "out", "dna", "--n", 2) == 1
    told = capsys.readouterr().err
    assert "internal fault: ZeroDivisionError" in told and "fault.log" in told
    assert "Traceback" in (tmp_path / "out/fault.log").read_text()


class Page(HTMLParser):
    """What a page would load, and the text of its tables."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]


@pytest.mark.parametrize("domain", ["dna", "smiles"])
def test_the_report_stands_alone(domain, dna, tmp_path):
    out = dna
    if domain == "smiles":
        out = tmp_path / "out"
        assert design(out, "smiles", "--n", 5) == 0
    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.loads == [] and "script" not in page.tags and "svg" in page.tags
    assert "default-src 'none'" in text
    shown = table(out / "designs.csv")[0]
    assert shown["id"] in text
    found = summary(out)
    for key in ("uniqueness", "novelty") + (("validity", "raw_novelty") if domain != "dna" else ()):
        assert f"{100 * found[key]:.3g} %" in text, key
    assert "It was told nothing" in text and "as many" in text


def test_text_from_users_is_escaped(tmp_path):
    fasta, out = tmp_path / "s.fa", tmp_path / "out"
    fasta.write_text("><script>alert(1)</script>\nACGTNNNN\n")
    assert design(out, "dna", "--n", 2, "--start", fasta) == 0
    text = (out / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
