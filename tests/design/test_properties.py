"""Properties against the shipped tables and Biopython, and objectives as users write them."""

import csv
import gzip
import itertools

import numpy as np
import pytest
from Bio.SeqUtils import gc_fraction

from bio_diffusion.design.dataset import find_data
from bio_diffusion.design.properties import (
    Objective,
    canonical,
    check_together,
    has_radicals,
    known_names,
    measure,
    molecule,
    query,
)

SMILES = known_names("smiles", ["gsk3b"])
DNA = known_names("dna", ["activity"])


def rows(name, count):
    with gzip.open(find_data(name), "rt", newline="") as file:
        return list(itertools.islice(csv.DictReader(file), count))


@pytest.mark.parametrize(
    "texts, hold",
    [
        (["qed>=0.5", "qed<=0.5"], True),
        (["qed>0.5", "qed<=0.5"], False),
        (["qed>1"], False),
        (["rings>2", "rings<4"], True),
        (["rings>2", "rings<3"], False),
        (["rings=2.5"], False),
        (["logp>=3", "qed<=0.2", "logp<=2"], False),
        (["motif:TATA>=1", "motif:GATA<=0"], True),
    ],
)
def test_objectives_that_cannot_hold_together_are_named(texts, hold):
    objectives = [Objective.parse(text, [*SMILES, *DNA]) for text in texts]
    if hold:
        check_together(objectives)
    else:
        with pytest.raises(ValueError, match="drop or relax one") as stop:
            check_together(objectives)
        name = objectives[0].name
        assert all((str(o) in str(stop.value)) == (o.name == name) for o in objectives)


@pytest.mark.parametrize("name", ["qm9.csv.gz", "zinc250k.csv.gz"])
def test_values_are_those_of_the_tables(name):
    """The tables come from another build of RDKit by way of the data's own script."""
    table = [row for row in rows(name, 900) if row.get("qed")][:150]
    smiles = [row["smiles"] for row in table]
    columns = {"qed": "qed", "logp": "logp", "sa": "sa", "rings": "rings"}
    columns = {k: c for k, c in columns.items() if c in table[0]}
    assert "qed" in columns
    found = measure(columns, smiles)
    for key, column in columns.items():
        expected = np.array([float(row[column]) for row in table])
        np.testing.assert_allclose(found[key], expected, atol=2e-3)


def test_aspirin():
    # PubChem CID 2244: 180.16 g/mol, 63.6 Å²
    found = measure(["mw", "tpsa", "rings"], ["CC(=O)Oc1ccccc1C(=O)O"])
    assert found["mw"][0] == pytest.approx(180.16, abs=0.01)
    assert found["tpsa"][0] == pytest.approx(63.6, abs=0.01)
    assert found["rings"][0] == 1


def test_no_molecule_has_no_value_and_no_noise(capfd):
    assert molecule("") is None and canonical("C1CC") is None and molecule("CO(C)(C)C") is None
    found = measure(SMILES[:6], ["", "c1ccccc", "CCO"])
    assert all(np.isnan(v[:2]).all() and np.isfinite(v[2]) for v in found.values())
    assert not Objective("qed", ">=", 0.0).holds(found["qed"])[0]
    assert capfd.readouterr().err == ""


def test_radicals_are_seen():
    assert has_radicals("c1ccccc1N[C@]1CCO1") and has_radicals("[CH2]C")  # a bracket without its H
    assert not any(map(has_radicals, ["C[N+](=O)[O-]", "c1cc[nH]c1", "C[NH3+]", "C1CC", ""]))


def test_dna_properties():
    texts = [row["sequence"] for row in rows("ecoli_promoters.csv.gz", 20)]
    found = measure(["gc", "motif:TATAAT", "motif:MA0108.3"], [*texts, "TATAATATTATA", ""])
    np.testing.assert_allclose(found["gc"][:20], [gc_fraction(t) for t in texts])
    assert found["motif:TATAAT"][20] == pytest.approx(200 / 12)
    assert np.isnan([v[21] for v in found.values()]).all()


def test_oracles_join_by_name():
    found = measure(["activity"], ["AC", "GG"], {"activity": lambda s: [len(x) for x in s]})
    assert list(found["activity"]) == [2.0, 2.0]


@pytest.mark.parametrize(
    "text, known, expected",
    [
        ("qed>=0.6", SMILES, Objective("qed", ">=", 0.6)),
        (" QED <= 1e-1", SMILES, Objective("qed", "<=", 0.1)),
        ("rings==4", SMILES, Objective("rings", "=", 4.0)),
        ("gsk3b>0.5", SMILES, Objective("gsk3b", ">", 0.5)),
        ("motif:TATAAT>=0.5", DNA, Objective("motif:TATAAT", ">=", 0.5)),
        ("gc<.4", DNA, Objective("gc", "<", 0.4)),
    ],
)
def test_objectives_are_read(text, known, expected):
    assert Objective.parse(text, known) == expected
    assert Objective.parse(str(expected), known) == expected


@pytest.mark.parametrize(
    "text, known, said",
    [
        ("qed", SMILES, "no objective"),
        ("qed>=high", SMILES, "no objective"),
        ("qed>=nan", SMILES, "no objective"),
        (">=3", SMILES, "no objective"),
        ("qad>=0.6", SMILES, "did you mean qed"),
        ("ring>=3", SMILES, "did you mean rings"),
        ("qed>=0.6", DNA, "no property is called 'qed'"),
        ("motif:MA0108.77>=1", DNA, "MA0108.3"),
        ("motif:>=1", DNA, "no objective"),
    ],
)
def test_bad_objectives_are_refused_in_words(text, known, said):
    with pytest.raises(ValueError, match=said):
        Objective.parse(text, known)


def test_relations():
    values = np.array([0.5, 0.6, 0.7, np.nan])
    for relation, expected in {
        ">=": [0, 1, 1, 0], "<=": [1, 1, 0, 0], ">": [0, 0, 1, 0], "<": [1, 0, 0, 0],
        "=": [0, 1, 0, 0],
    }.items():  # fmt: skip
        assert list(Objective("x", relation, 0.6).holds(values)) == expected


@pytest.mark.parametrize("smarts", ["", "c1ccccc", "[#6", "not smarts", "C(C"])
def test_unreadable_smarts_are_refused(smarts, capfd):
    with pytest.raises(ValueError, match="cannot be read"):
        query(smarts)
    assert capfd.readouterr().err == ""
