import csv
import gzip

import pytest

from bio_diffusion.config import compose
from bio_diffusion.design.dataset import find_data
from bio_diffusion.design.tokenizer import DnaTokenizer, SmilesTokenizer, tokenizer_for


def strings(name: str, column: str, count: int) -> list[str]:
    with gzip.open(find_data(name), "rt", newline="") as file:
        rows = csv.DictReader(file)
        return [row[column] for _, row in zip(range(count), rows, strict=False)]


@pytest.mark.parametrize("experiment", ["design/qm9", "design/zinc"])
def test_molecules_come_back(experiment):
    settings = compose("train", [f"experiment={experiment}"])["experiment"]
    tokenizer = tokenizer_for(settings["letters"], settings["length"])
    refused = 0
    for smiles in strings(settings["data"], "smiles", 3000):
        try:
            ids = tokenizer.encode(smiles)
        except ValueError:
            refused += 1
            continue
        assert len(ids) == tokenizer.length
        assert tokenizer.decode(ids) == smiles
    assert refused <= 10  # only the longest


def test_no_id_is_dead():
    settings = compose("train", ["experiment=design/qm9"])["experiment"]
    tokenizer = tokenizer_for(settings["letters"], settings["length"])
    seen = set()
    for smiles in strings("qm9.csv.gz", "smiles", 150_000):
        seen.update(tokenizer.split(smiles))
    assert seen == set(tokenizer.letters) - {"<eos>", "<pad>"}


def test_two_letter_and_bracket_atoms_are_single_tokens():
    tokenizer = SmilesTokenizer(20, ["C", "Cl", "[nH]", "c", "1", "%12"])
    assert tokenizer.split("CCl[nH]c1%12") == ["C", "Cl", "[nH]", "c", "1", "%12"]


def test_sequences_without_an_end_are_nothing():
    tokenizer = SmilesTokenizer(4, ["C"])
    end, pad = 1, 2
    assert tokenizer.decode([0, end, pad, pad]) == "C"
    assert tokenizer.decode([0, end, 0, 0]) == "C"  # what follows the end is not read
    assert tokenizer.decode([0, 0, 0, 0]) == ""
    assert tokenizer.decode([0, pad, end, pad]) == ""


@pytest.mark.parametrize(
    ("tokenizer", "text", "reason"),
    [
        (SmilesTokenizer(4, ["C"]), "CCCC", "has 4 tokens, the model takes 3"),
        (SmilesTokenizer(9, ["C"]), "CCBr", "'Br', which the model does not know"),
        (SmilesTokenizer(9, ["C"]), "C C", "no SMILES token"),
        (DnaTokenizer(4), "ACG", "has 3 nt, the model takes 4"),
        (DnaTokenizer(4), "ACGN", "the letter 'N'"),
    ],
)
def test_what_cannot_be_read_is_said(tokenizer, text, reason):
    with pytest.raises(ValueError, match=reason):
        tokenizer.encode(text)
