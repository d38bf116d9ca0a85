"""Languages of DNA against enumeration of all short sequences."""

import itertools
import math
import re
from random import Random

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from bio_diffusion.design.language import ConflictError, Language
from bio_diffusion.design.lattice import Automaton
from bio_diffusion.design.rules import (
    GC,
    IUPAC,
    LETTERS,
    Avoid,
    Contain,
    MaxRun,
    Sites,
    reverse_complement,
)


def matches(motif: str, sequence: str) -> bool:
    """Biopython's reverse complement and the standard library's expressions."""
    for strand in (motif, str(Seq(motif).reverse_complement())):
        if re.search("".join(f"[{IUPAC[code]}]" for code in strand), sequence):
            return True
    return False


def legal(sequence: str, constraints) -> bool:
    for c in constraints:
        if isinstance(c, Sites):
            codes = c.template.ljust(len(sequence), "N")
            good = all(s in IUPAC[code] for s, code in zip(sequence, codes, strict=True))
        elif isinstance(c, Avoid):
            good = not matches(c.motif, sequence)
        elif isinstance(c, Contain):
            good = matches(c.motif, sequence)
        elif isinstance(c, GC):
            share = sum(s in "GC" for s in sequence) / len(sequence)
            good = c.low - 1e-9 <= share <= c.high + 1e-9
        else:
            good = max(len(list(g)) for _, g in itertools.groupby(sequence)) <= c.length
        if not good:
            return False
    return True


motif = st.text("ACGTRYSWN", min_size=1, max_size=4)
constraint = st.one_of(
    motif.map(Avoid),
    motif.map(Contain),
    st.integers(1, 3).map(MaxRun),
    st.sampled_from([GC(0.0, 0.5), GC(0.4, 0.6), GC(0.8, 1.0)]),
    st.text("ACGTRYNNNN", min_size=1, max_size=4).map(Sites),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(constraint, max_size=4), st.integers(4, 5))
def test_a_language_is_what_enumeration_finds(constraints, length):
    everything = ["".join(s) for s in itertools.product(LETTERS, repeat=length)]
    truth = {s for s in everything if legal(s, constraints)}
    if not truth:
        with pytest.raises(ConflictError) as caught:
            Language.of(constraints, length)
        named = list(caught.value.constraints)
        assert not any(legal(s, named) for s in everything)
        for dropped in range(len(named)):  # each of them is needed for the conflict
            others = named[:dropped] + named[dropped + 1 :]
            assert any(legal(s, others) for s in everything)
        return
    language = Language.of(constraints, length)
    assert language.size == len(truth)
    assert all((s in language) == (s in truth) for s in everything)
    for site in range(length):
        used = {s[site] for s in truth}
        assert {LETTERS[i] for i in np.flatnonzero(language.allowed[site])} == used


def test_counts_are_exact_beyond_floats():
    assert Language.of([], 250).size == 4**250
    # without AA over A, C, G (T is left out, so the other strand cannot differ): by the last letter
    before, now = 1, 3
    for _ in range(199):
        before, now = now, 2 * (before + now)
    assert Language.of([Avoid("AA"), Sites("V" * 200)], 200).size == now
    half = Language.of([GC(0.5, 0.5)], 200).size
    assert half == math.comb(200, 100) * 2**200


def test_the_automaton_is_the_smallest():
    # "does not contain ACAC nor its other strand GTGT": 3 letters begun of each, and the start
    assert len(Automaton.of([Avoid("ACAC")]).step) == 7
    # two motifs with one meaning need no more states than one of them
    twice = Automaton.of([Avoid("GAATTC"), Avoid("GAATTC", "EcoRI")])
    assert len(twice.step) == len(Automaton.of([Avoid("GAATTC")]).step) == 6
    # AA and AC and AG and AT forbidden: an A may only be the last letter
    assert len(Automaton.of([Avoid("AN")]).step) <= 4


@pytest.mark.parametrize("length", [150, 250])
def test_real_sizes_compile_and_keep_their_promise(length):
    asked = [
        Avoid("GGTCTC", "BsaI"), Avoid("CGTCTC", "BsmBI"), Avoid("GAATTC", "EcoRI"),
        Avoid("GCCNNNNNGGC", "BglI"), Contain("TATAWAW"), MaxRun(5), GC(0.4, 0.6),
    ]  # fmt: skip
    language = Language.of(asked, length)
    assert 0 < language.size < 4**length
    random = Random(0)
    text = "".join(random.choice(LETTERS) for _ in range(length))
    assert (text in language) == legal(text, asked)


def test_conflicts_name_the_smallest_set():
    asked = [Avoid("GAATTC", "EcoRI"), MaxRun(4), Sites("NNNGAATTC"), GC(0.3, 0.7)]
    said = r"avoid EcoRI \(GAATTC\); template NNNGAATTC"
    with pytest.raises(ConflictError, match=said) as caught:
        Language.of(asked, 30)
    assert caught.value.constraints == (asked[0], asked[2])
    with pytest.raises(ConflictError, match=r"\[motif AAAAAAAA\].*relax it"):
        Language.of([Contain("A" * 8), MaxRun(9)], 6)
    with pytest.raises(ConflictError, match="GC 0:0.2; GC 0.8:1"):
        Language.of([GC(0, 0.2), GC(0.8, 1)], 20)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Sites("ACGE"), "'E' is no DNA letter"),
        (lambda: Avoid(""), "empty"),
        (lambda: Contain("TAT A"), "' ' is no DNA letter"),
        (lambda: GC(0.7, 0.3), "low <= high"),
        (lambda: GC(float("nan"), 0.3), "low <= high"),
        (lambda: MaxRun(0), "one letter"),
        (lambda: Language.of([Sites("ACGTACGT")], 4), "template has 8 letters"),
    ],
)
def test_bad_constraints_are_refused_in_words(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_lower_case_and_rna_are_read():
    assert Avoid("gaauuc").motif == "GAATTC"
    assert reverse_complement("GANTCY") == str(Seq("GANTCY").reverse_complement())
