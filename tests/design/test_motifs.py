"""Motifs by name and in sequences, against Biopython."""

import gzip
import random

import numpy as np
import pytest
from Bio import Restriction, motifs
from Bio.Seq import Seq

from bio_diffusion.design.dataset import find_data
from bio_diffusion.design.motifs import (
    JASPAR,
    RELATIVE,
    avoid,
    contain,
    count_word,
    find,
    hits,
    library,
)


def sequences(count, length, seed=0):
    source = random.Random(seed)
    return ["".join(source.choices("ACGT", k=length)) for _ in range(count)]


def test_the_whole_collection_is_read():
    assert len(library()) == 2346
    assert find("MA0108.3").name == "TBP" and find("ma0108").id == find("MA0108").id
    assert contain("MA0108.3").motif == "TATAAAW"
    assert all(m.consensus for m in library().values())


def test_hits_are_biopythons():
    with gzip.open(find_data(JASPAR), "rt") as file:
        theirs = {m["AC"]: m for m in motifs.parse(file, "transfac", strict=False)}
    chosen = ["MA0108.3", "MA0139.2", "MA0004.1", "MA0035.5"]
    texts = [*sequences(30, 120), "TATAAAA", "ACG", "N" * 40, "NNTATAAANAN"]
    counted = hits([find(i) for i in chosen], texts)
    for row, name in zip(counted, chosen, strict=True):
        even = {letter: 0.25 for letter in "ACGT"}
        pssm = theirs[name].counts.normalize(0.2).log_odds(even)
        limit = pssm.min + RELATIVE * (pssm.max - pssm.min)
        for text, found in zip(texts, row, strict=True):
            places = set()
            if len(text) >= pssm.length:
                for strand in (pssm, pssm.reverse_complement()):
                    scores = np.atleast_1d(strand.calculate(Seq(text)))
                    places |= set(np.flatnonzero(np.nan_to_num(scores, nan=-99) >= limit - 1e-4))
            assert found == len(places)
    assert counted[0].sum() > 0


def test_words_are_counted_as_restriction_sites_are():
    texts = sequences(40, 400, 1)
    for enzyme in (Restriction.EcoRI, Restriction.BsaI, Restriction.BglI, Restriction.HinfI):
        ours = count_word(avoid(str(enzyme)).motif, texts)
        assert list(ours) == [len(enzyme.search(Seq(t), linear=True)) for t in texts]
    assert list(count_word("AA", ["AAAA", "TTT", "CC"])) == [3, 2, 0]


def test_names_and_codes_are_told_apart():
    assert str(avoid("ecori")) == "avoid EcoRI (GAATTC)"
    assert str(avoid("gantc")) == "avoid GANTC"
    assert avoid("DrdV").name == "DrdV"  # an enzyme whose name could be read as codes
    assert str(contain("TATAWAW")) == "motif TATAWAW"
    assert str(contain("TBP")) == "motif TBP MA0108.3 (TATAAAW)"


@pytest.mark.parametrize(
    "look, word, said",
    [
        (avoid, "EcoR1", "EcoRI"),
        (avoid, "Bsmb1", "BsmBI"),
        (avoid, "hello", "no enzyme or motif is called 'hello'"),
        (avoid, "", "no enzyme or motif"),
        (avoid, "HpyUM037X", "no single site"),
        (contain, "MA0108.9", "MA0108.3"),
        (contain, "CTFC", "CTCF"),
        (find, "br", "names 4 motifs of JASPAR: say which, of MA0010"),
    ],
)
def test_unknown_names_give_near_ones(look, word, said):
    with pytest.raises(ValueError, match=said):
        look(word)
