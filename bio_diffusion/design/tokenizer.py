"""Sequences to ids and back, over the letters that may occur and no others.

An id is a place in `letters`: there are no dead ids, so that uniform noise only ever writes what a
sequence may hold. Lengths: L sites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["DNA", "DnaTokenizer", "SmilesTokenizer", "Tokenizer", "tokenizer_for"]

DNA = "ACGT"
END, PAD = "<eos>", "<pad>"

# Schwaller et al. 2019, extended to the letters of the drug-like sets; longest match first.
_SMILES = re.compile(
    r"\[[^\]]+\]|%\d\d|Br|Cl|[BCNOSPFIbcnosp]|\d|[().=#+\-:~@?>*$/\\]",
)


class DnaTokenizer:
    """Nucleotides; every sequence has exactly the model's length."""

    letters = tuple(DNA)

    def __init__(self, length: int) -> None:
        self.length = length
        self._id = {letter: i for i, letter in enumerate(self.letters)}

    def encode(self, sequence: str) -> list[int]:
        """Ids of a sequence of A, C, G, T in either case, of length L.

        Raises:
            ValueError: for another letter or length.
        """
        if len(sequence) != self.length:
            raise ValueError(f"has {len(sequence)} nt, the model takes {self.length}")
        try:
            return [self._id[letter] for letter in sequence.upper()]
        except KeyError as error:
            raise ValueError(f"has the letter {error}, the alphabet is {DNA}") from error

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[i] for i in ids)


class SmilesTokenizer:
    """SMILES by the usual regular expression, then one <eos> and <pad> up to the length.

    Args:
        length: L, with the <eos>.
        letters: the tokens of the training set, without <eos> and <pad>.

    Source: Schwaller et al. 2019 (the expression).
    """

    def __init__(self, length: int, letters: Sequence[str]) -> None:
        self.length = length
        self.letters = (*letters, END, PAD)
        self._id = {letter: i for i, letter in enumerate(self.letters)}

    def split(self, smiles: str) -> list[str]:
        """The tokens of a SMILES.

        Raises:
            ValueError: if some character belongs to no token.
        """
        tokens = _SMILES.findall(smiles)
        if sum(map(len, tokens)) != len(smiles):
            raise ValueError(f"{smiles!r} holds characters that no SMILES token has")
        return tokens

    def encode(self, smiles: str) -> list[int]:
        """L ids.

        Raises:
            ValueError: for an unknown token, or a SMILES of L tokens or more.
        """
        tokens = self.split(smiles)
        if len(tokens) >= self.length:
            raise ValueError(
                f"{smiles!r} has {len(tokens)} tokens, the model takes {self.length - 1}"
            )
        try:
            ids = [self._id[token] for token in tokens]
        except KeyError as error:
            raise ValueError(f"{smiles!r} holds {error}, which the model does not know") from error
        end, pad = self._id[END], self._id[PAD]
        return ids + [end] + [pad] * (self.length - len(ids) - 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The SMILES before the first <eos>; "" where there is none or a <pad> stands before it."""
        tokens = [self.letters[i] for i in ids]
        if END not in tokens or PAD in (written := tokens[: tokens.index(END)]):
            return ""
        return "".join(written)


Tokenizer = DnaTokenizer | SmilesTokenizer


def tokenizer_for(letters: str, length: int) -> Tokenizer:
    """The tokenizer of a setting: "ACGT", or SMILES tokens with spaces between."""
    return DnaTokenizer(length) if letters == DNA else SmilesTokenizer(length, letters.split())
