"""Scaffolds: how they are written, held and looked for."""

import pytest
import torch
from rdkit import Chem

from bio_diffusion.design.scaffold import LAYOUTS, Scaffold
from bio_diffusion.design.tokenizer import SmilesTokenizer
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.schedule import uniform

LETTERS = "C 1 O 2 ( ) N = c # 3 n o [nH] 4 F 5 -".split()
INDOLE = "c1ccc2[nH]ccc2c1"


def flat(letters):
    """A denoiser without opinions."""
    return lambda x_t, t, cond: torch.zeros(*x_t.shape, letters).log_softmax(-1)


def test_spellings_are_the_molecule():
    scaffold = Scaffold(INDOLE)
    assert len(scaffold.spellings) > 4
    assert {Chem.CanonSmiles(s) for s in scaffold.spellings} == {Chem.CanonSmiles(INDOLE)}
    assert scaffold.matches("CCc1c[nH]c2ccccc12") and not scaffold.matches("c1ccccc1")
    assert not scaffold.matches("") and not scaffold.matches("c1ccccc")


def test_attachment_points_are_asked_for_and_not_written():
    scaffold = Scaffold("c1ccccc1*")
    assert {Chem.CanonSmiles(s) for s in scaffold.spellings} == {"c1ccccc1"}
    assert scaffold.matches("Cc1ccccc1") and not scaffold.matches("c1ccccc1")


@pytest.mark.parametrize("smarts", ["[#6]1~[#6]~[#6]1", "[C,N]=O", "[CX4;R]", "C.O"])
def test_patterns_that_are_no_structure_are_only_looked_for(smarts):
    scaffold = Scaffold(smarts)
    assert scaffold.spellings == []
    assert scaffold.guide(SmilesTokenizer(24, LETTERS), Uniform(20)) is None


@pytest.mark.parametrize("make", [Uniform, Absorbing, Autoregressive])
def test_every_sample_holds_a_spelling(make):
    tokenizer = SmilesTokenizer(24, LETTERS)
    letters = len(tokenizer.letters)
    process, scaffold = make(letters), Scaffold(INDOLE)
    guide = scaffold.guide(tokenizer, process)
    x = process.prior(torch.zeros(2 * LAYOUTS, 24, dtype=torch.long), torch.Generator())
    times = uniform(24 if make is Autoregressive else 4)
    drawn = sample(process, flat(letters), x, times, None, (guide,), torch.Generator())
    texts = ["".join(tokenizer.letters[i] for i in ids) for ids in drawn.tolist()]
    places = set()
    for text in texts:
        written = [s for s in scaffold.spellings if s in text.partition("<eos>")[0]]
        assert written
        places.add(text.index(written[0]))
    assert (places == {0}) if make is Autoregressive else len(places) > 4


def test_what_the_model_cannot_write_is_said():
    tokenizer = SmilesTokenizer(12, LETTERS)
    with pytest.raises(ValueError, match="does not know Br"):
        Scaffold("c1ccccc1Br").guide(tokenizer, Uniform(20))
    with pytest.raises(ValueError, match="longer than the model's 11 tokens"):
        Scaffold(INDOLE).guide(tokenizer, Uniform(20))
