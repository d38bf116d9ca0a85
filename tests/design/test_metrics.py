"""Metrics against sets counted by hand, scipy and plain enumeration."""

import csv
import gzip
import itertools
from collections import Counter

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem
from scipy.spatial.distance import jensenshannon
from scipy.stats import chisquare, fisher_exact

from bio_diffusion.design import metrics
from bio_diffusion.design.dataset import find_data
from bio_diffusion.design.motifs import find


def column(name, key, count):
    with gzip.open(find_data(name), "rt", newline="") as file:
        return [row[key] for row in itertools.islice(csv.DictReader(file), count)]


PROMOTERS = column("ecoli_promoters.csv.gz", "sequence", 120)
MOLECULES = column("zinc250k.csv.gz", "smiles", 60)


def test_counts_by_hand():
    drawn = ["CCO", "OCC", "CCO", "c1ccccc1", "C1=CC=CC=C1", "C1CC", "", "CCN"]
    found = metrics.counts(drawn, {"CCO", "CN"})
    # ethanol twice in one spelling and once in another, benzene in two, ethylamine; two broken
    assert found == metrics.Counts(8, 6, 3, 2, 5, 4)


def test_similarities_are_rdkits():
    prints = [
        AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(s), 2, 2048) for s in MOLECULES
    ]
    some, rest = prints[:20], prints[20:]
    pairs = [DataStructs.TanimotoSimilarity(a, b) for a, b in itertools.combinations(some, 2)]
    assert metrics.internal_diversity(MOLECULES[:20]) == pytest.approx(1 - np.mean(pairs), abs=1e-6)
    nearest = [max(DataStructs.BulkTanimotoSimilarity(a, rest)) for a in some]
    found = metrics.nearest_similarity(MOLECULES[:20], metrics.fingerprints(MOLECULES[20:]))
    np.testing.assert_allclose(found, nearest, atol=1e-6)
    assert np.isnan(metrics.nearest_similarity(["CCO"], [])).all()
    assert np.isnan(metrics.internal_diversity(["CCO", "broken"]))
    assert metrics.internal_diversity(["CCO", "OCC"]) == pytest.approx(0)


def test_scaffolds():
    drawn = ["Cc1ccccc1", "CCc1ccccc1O", "CCO", "C1CC1CCc1ccccc1", "broken"]
    assert metrics.bemis_murcko(drawn) == {"c1ccccc1", "c1ccc(CCC2CC2)cc1"}


def test_means():
    values = [1.0, 2.0, 4.0, float("nan")]
    mean, error = metrics.mean_with_error(values)
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(np.sqrt(((np.array(values[:3]) - mean) ** 2).sum() / 2 / 3))
    assert all(map(np.isnan, metrics.mean_with_error([])))


def test_kmers_are_counted_and_compared():
    words = ["".join(w) for w in itertools.product("ACGT", repeat=3)]
    some, rest = PROMOTERS[:50], [*PROMOTERS[50:], "ACNNACGN"]

    def shares(sequences):
        seen = Counter(s[i : i + 3] for s in sequences for i in range(len(s) - 2))
        known = np.array([seen[word] for word in words], dtype=float)
        return known / known.sum()

    np.testing.assert_allclose(metrics.kmer_shares(rest, 3), shares(rest))
    expected = jensenshannon(shares(some), shares(rest))
    assert metrics.kmer_distance(some, rest, 3) == pytest.approx(expected)
    assert metrics.kmer_distance(["AAAA"], ["CCCC"], 2) == pytest.approx(np.sqrt(np.log(2)))
    by_class = metrics.kmer_distance_by_class(
        {"a": some, "b": some}, {"a": rest[:10], "b": rest[10:40]}, 3
    )
    one, other = (metrics.kmer_distance(some, part, 3) for part in (rest[:10], rest[10:40]))
    assert by_class == pytest.approx(one / 4 + 3 * other / 4)


def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_nearest_edits_are_those_of_the_plain_recursion():
    some, training = [s[:40] for s in PROMOTERS[:4]], [s[:40] for s in PROMOTERS[4:20]]
    some.append(training[3][:10] + "A" + training[3][10:])
    expected = [min(distance(s, t) for t in training) for s in some]
    found = metrics.nearest_edit(some, training)
    assert list(found) == expected and found[-1] == 1


def test_shuffles_keep_dinucleotides_and_are_even():
    source = np.random.default_rng(0)
    for text in PROMOTERS[:20]:
        shuffled = metrics.dinucleotide_shuffle(text, source)
        assert Counter(itertools.pairwise(shuffled)) == Counter(itertools.pairwise(text))
        assert shuffled != text and shuffled[0] == text[0] and shuffled[-1] == text[-1]
    text = "ACAGATACC"
    pairs = Counter(itertools.pairwise(text))
    others = {text[0] + "".join(m) + text[-1] for m in itertools.permutations(text[1:-1])}
    every = sorted(t for t in others if Counter(itertools.pairwise(t)) == pairs)
    assert len(every) > 5
    drawn = Counter(metrics.dinucleotide_shuffle(text, source) for _ in range(4000))
    assert set(drawn) == set(every)
    assert chisquare([drawn[t] for t in every]).pvalue > 1e-4
    assert [metrics.dinucleotide_shuffle(t, source) for t in ("", "A", "AC")] == ["", "A", "AC"]


def test_planted_motifs_are_found():
    source = np.random.default_rng(1)
    plain = ["".join(source.choice(list("ACGT"), 60)) for _ in range(60)]
    planted = [s[:20] + "CCACGTGG" + s[28:] for s in plain]
    background = [metrics.dinucleotide_shuffle(s, source) for s in planted]
    rows = metrics.enrichment(planted, background, [find(i) for i in ("MA0004.1", "MA0108.3")])
    best = rows[0]
    assert best.id == "MA0004.1" and best.share == 1.0 and best.log2_ratio > 2
    here, there = round(best.share * 60), round(best.background * 60)
    test = fisher_exact([[here, 60 - here], [there, 60 - there]], "greater")
    assert best.p == pytest.approx(test.pvalue) and best.q == pytest.approx(min(1, 2 * best.p))


def test_the_discriminator_tells_what_differs_and_nothing_else():
    assert metrics.discriminator_auroc(PROMOTERS[:60], PROMOTERS[60:]) == pytest.approx(
        0.5,
        abs=0.2,  # the standard error of an AUROC of 60 against 60 is about 0.05
    )
    source = np.random.default_rng(0)
    rich = ["".join(source.choice(list("ACGT"), 150, p=[0.2, 0.3, 0.3, 0.2])) for _ in range(60)]
    poor = ["".join(source.choice(list("ACGT"), 150, p=[0.3, 0.2, 0.2, 0.3])) for _ in range(60)]
    assert metrics.discriminator_auroc(rich, poor) > 0.95
