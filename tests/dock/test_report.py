"""The report: whole, safe whatever the input, small, and alive in a browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from bio_diffusion.dock.receptor import read_receptor
from bio_diffusion.dock.report import POSE_BYTES, Report, _ticks
from bio_diffusion.dock.results import sd_record

PROTEIN = Path(__file__).parents[2] / "data/demo/protein.pdb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'\""


@pytest.fixture(scope="module")
def receptor():
    return read_receptor(PROTEIN)


@pytest.fixture(scope="module")
def molecule(receptor):
    """A drug-sized molecule in the middle of the protein."""
    mol = Chem.AddHs(Chem.MolFromSmiles("CC(C)c1c(C(=O)c2cc(C)cc(C#N)c2)n(CCCC)c(=O)[nH]c1=O"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    mol = Chem.RemoveHs(mol)
    conformer = mol.GetConformer()
    xyz = conformer.GetPositions()
    conformer.SetPositions(xyz - xyz.mean(0) + receptor.coords.mean(0).astype(float))
    return mol


def record(mol, name, protein="protein", poses=2, rmsd=1.5, **changes):
    row = {
        "ligand_id": name, "confidence": None, "energy": -7.5, "score": -7.5, "valid": True,
        "rmsd": rmsd,
        "seed": 0, "checkpoint": "none", "version": "0", "failed_checks": "", "protein": protein,
        "site": 1, "seconds": 1.0,
    } | changes  # fmt: skip
    rows = [{**row, "rank": rank} for rank in range(1, poses + 1)]
    block = Chem.MolToMolBlock(mol)
    sdf = "".join(sd_record(block, row) for row in rows)
    return {"ligand_id": name, "rows": rows, "sdf": sdf, "crystal": block, "notes": []}


def page(receptor, records, title="Docking into protein", warnings=(), failures=(), settings=None):
    report = Report(title, {"protein": receptor}, settings or {"seed": 0}, warnings)
    for each in records:
        report.add(each)
    return report.html(failures)


class Tags(HTMLParser):
    """Counts elements and collects attributes that could run or fetch something."""

    def __init__(self):
        super().__init__()
        self.count, self.risky = {}, []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.risky += [a for a in attributes if a[0].startswith("on") or a[0] in ("src", "href")]


def test_user_text_never_becomes_markup(receptor, molecule):
    html = page(
        receptor,
        [record(molecule, EVIL, failed_checks=EVIL, site=EVIL)],
        title=EVIL,
        warnings=[EVIL],
        failures=[(EVIL, EVIL, EVIL)],
        settings={EVIL: EVIL, "list": [EVIL]},
    )
    tags = Tags()
    tags.feed(html)
    assert tags.count["script"] == 3 and "img" not in tags.count and tags.risky == []
    data = re.search(r'id="data">(.*?)</script>', html, re.S).group(1)
    assert not set("<>&") & set(data)
    assert json.loads(data)["ligands"][0]["id"] == EVIL


def test_the_policy_allows_just_the_two_scripts_by_hash(receptor, molecule):
    html = page(receptor, [record(molecule, "x")])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]*)", policy).group(1).split()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    wanted = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed == [f"'sha256-{digest}'" for digest in wanted]


def test_two_hundred_ligands_stay_below_five_megabytes(receptor, molecule):
    html = page(receptor, [record(molecule, f"l{i}", poses=10) for i in range(200)])
    assert len(html) < 5_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))
    assert sum(len(pose["block"]) for pose in data["poses"]) <= POSE_BYTES
    assert {pose["ligand"] for pose in data["poses"]} == set(range(200))  # each has its first pose
    assert html.count("<tr data-pose=") == len(data["poses"])
    assert "not in the viewer" in html


def test_the_best_ligands_come_first_and_the_protein_is_trimmed(receptor, molecule):
    energies = {"a": -5.0, "b": -9.0, "c": -7.0}
    html = page(receptor, [record(molecule, k, energy=e) for k, e in energies.items()])
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))
    assert [ligand["id"] for ligand in data["ligands"]] == ["b", "c", "a"]
    lines = [
        x for x in data["proteins"]["protein"].splitlines() if x.startswith(("ATOM", "HETATM"))
    ]
    assert 0 < len(lines) < len(receptor)
    xyz = np.array([[float(x[30:38]), float(x[38:46]), float(x[46:54])] for x in lines])
    ligand = molecule.GetConformer().GetPositions()
    gap = np.linalg.norm(xyz[:, None] - ligand, axis=-1).min(1)
    nearest = {}
    for line, distance in zip(lines, gap, strict=True):
        nearest[line[21:27]] = min(distance, nearest.get(line[21:27], 99.0))
    assert max(nearest.values()) < 12.01  # coordinates are rounded to 0.001 Å


def test_a_run_without_poses_or_crystal_still_renders(receptor, molecule):
    assert "No poses to plot" in page(receptor, [], failures=[("x", "parse", "no")])
    html = page(receptor, [record(molecule, "x", rmsd=None) | {"crystal": None}])
    assert "rank</text>" in html and "RMSD to the crystal" not in html


@pytest.mark.parametrize("low, high", [(0, 6.2), (-10.48, -8.3), (0, 0), (-1e-3, 1e-3), (0, 5e4)])
def test_axes_enclose_their_data_with_few_ticks(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 11


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_viewer_draws_in_a_browser_without_a_network(receptor, molecule, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(receptor, [record(molecule, EVIL)], title=EVIL), encoding="utf-8")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'user'}",
            f"--log-net-log={log}", "--virtual-time-budget=10000", "--dump-dom", f"file://{file}",
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    body = re.search(r"<body[^>]*>", done.stdout).group(0)
    assert re.search(rf"shown 0 atoms [1-9][0-9]+\+{molecule.GetNumAtoms()}\"", body), body
    assert "<canvas" in done.stdout and "<img" not in done.stdout
    # what the page itself asked for, beside the browser's own calls home
    by_page = r'"initiator":"(?!not an origin)[^\n]*"url":"((?:http|ws)[^"]*)'
    assert re.findall(by_page, log.read_text()) == []
