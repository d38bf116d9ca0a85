"""The table of a run: designs beside the training set at equal numbers, and the true nearest."""

import numpy as np
import pytest

from bio_diffusion.design.summary import SAMPLE, compare


def sequences(count, share_gc, seed, length=60):
    source = np.random.default_rng(seed)
    p = [(1 - share_gc) / 2, share_gc / 2, share_gc / 2, (1 - share_gc) / 2]
    return ["".join(row) for row in source.choice(list("ACGT"), (count, length), p=p)]


def table(designs, training):
    rows = [{"sequence": s, "novel": True} for s in designs]
    return compare("dna", rows, designs, training, ["gc"], {}, 0).rows


def test_designs_like_the_training_set_score_as_it_does():
    """The training file stands class by class: its beginning is not like the whole."""
    training = sequences(900, 0.3, 0) + sequences(900, 0.6, 1)
    rows = table(sequences(60, 0.3, 2) + sequences(60, 0.6, 3), training)
    ours, real = rows["designs"], rows["training set"]
    assert real["count"] == SAMPLE and ours["count"] == 120
    # words of a finite sample lie apart even when the laws are equal: the real ones say how far
    for name in ("3-mer distance", "6-mer distance"):
        assert ours[name] == pytest.approx(real[name], rel=0.2) and real[name] > 0.02
    assert ours["discriminator AUROC"] == pytest.approx(0.5, abs=0.12)  # error about 0.04
    assert real["discriminator AUROC"] == pytest.approx(0.5, abs=0.12)
    assert ours["nearest training edit"] == pytest.approx(real["nearest training edit"], rel=0.1)


def test_the_nearest_is_looked_for_in_the_whole_training_set():
    training = sequences(2 * SAMPLE, 0.5, 0)
    designs = [s[:30] + "T" + s[30:] for s in training[::400]]
    rows = table(designs, training)
    assert rows["designs"]["nearest training edit"] == 1
    assert rows["training set"]["nearest training edit"] > 15


def test_the_nearest_molecule_is_its_own_copy_or_spelling():
    training = ["CCO", "CCN", "c1ccccc1", "CC(C)=O", "CCCCO", "OCCO"]
    rows = [{"smiles": s, "novel": False} for s in ("OCC", "C1=CC=CC=C1")]
    found = compare("smiles", rows, ["OCC", "C1=CC=CC=C1"], training, ["mw"], {}, 0)
    assert found.rows["designs"]["nearest training similarity"] == 1
    assert found.rows["training set"]["nearest training similarity"] < 1
    assert found.summary["novelty"] == 0 and found.summary["raw_novelty"] == 1


@pytest.mark.parametrize("domain, text", [("dna", "ACGTTGCA" * 4), ("smiles", "CCO")])
def test_without_the_training_set_nothing_is_compared_with_it(domain, text):
    rows = [{"sequence": text, "smiles": text, "novel": None}]
    names = ["gc"] if domain == "dna" else ["qed"]
    found = compare(domain, rows, [text], None, names, {}, 0)
    assert "training set" not in found.rows and found.summary["novelty"] is None
    assert not any("nearest" in name for row in found.rows.values() for name in row)
    assert found.rows["designs"]["count"] == 1 and found.summary["validity"] == 1
