"""A scaffold that every molecule keeps: a SMARTS, written into the SMILES where it can be.

A pattern that is also a plain structure (no alternatives, no conditions) is written as a run of
tokens and held fixed in every step; the model writes what stands before and after. Rows take ways
to write it in turn: several spellings, which begin and end at different atoms, at several places.
Whatever comes out is kept only if the pattern matches; a pattern that cannot be written is kept by
that alone.
"""

from __future__ import annotations

import itertools

import torch
from rdkit import Chem, rdBase

from bio_diffusion.design.constraints import Template
from bio_diffusion.design.properties import molecule, query
from bio_diffusion.design.tokenizer import SmilesTokenizer
from bio_diffusion.diffusion.categorical import Autoregressive, Tokens

__all__ = ["Scaffold"]

LAYOUTS = 64
"""Ways to write it that rows take in turn."""

_SPELLINGS = 12
_LONGEST_START = 8  # tokens before the scaffold
_BONDS = {
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
}


class Scaffold:
    """A substructure to be kept.

    Args:
        smarts: The pattern; attachment points `*` only ask that something stands there.

    Attributes:
        spellings: The pattern as SMILES, canonical first; empty when it is no plain structure.

    Raises:
        ValueError: The SMARTS cannot be read.
    """

    def __init__(self, smarts: str) -> None:
        self.smarts, self.pattern = smarts, query(smarts)
        self.spellings = _spellings(smarts, self.pattern)

    def matches(self, smiles: str) -> bool:
        """Whether a SMILES is a molecule that has it."""
        mol = molecule(smiles)
        return mol is not None and mol.HasSubstructMatch(self.pattern)

    def guide(self, tokenizer: SmilesTokenizer, process: Tokens) -> Template | None:
        """What holds it in every step; None for a pattern that can only be looked for.

        A model that writes from left to right begins with it.

        Raises:
            ValueError: No spelling fits the model's letters and length.
        """
        if not self.spellings:
            return None
        number = {letter: i for i, letter in enumerate(tokenizer.letters)}
        runs, unknown = [], set()
        for spelling in self.spellings:
            tokens = tokenizer.split(spelling)
            unknown |= set(tokens) - number.keys()
            if not set(tokens) - number.keys() and len(tokens) < tokenizer.length:
                runs.append([number[token] for token in tokens])
        if not runs:
            why = (
                f"the model does not know {', '.join(sorted(unknown))}"
                if unknown
                else f"its SMILES is longer than the model's {tokenizer.length - 1} tokens"
            )
            raise ValueError(f"the scaffold {self.smarts[:80]!r} cannot be written: {why}")
        left_to_right = isinstance(process, Autoregressive)
        room = tokenizer.length - 1 - min(map(len, runs))
        starts = range(1 if left_to_right else min(_LONGEST_START, room) + 1)
        allowed = torch.ones(LAYOUTS, tokenizer.length, len(number), dtype=torch.bool)
        layouts = itertools.islice(itertools.cycle(itertools.product(starts, runs)), LAYOUTS)
        for rows, (start, run) in zip(allowed, layouts, strict=True):
            start = min(start, tokenizer.length - 1 - len(run))
            rows[:start, -2:] = False  # neither <eos> nor <pad> before it
            rows[start : start + len(run)] = False
            rows[range(start, start + len(run)), run] = True
        return Template(allowed, left_to_right)


def _spellings(smarts: str, pattern: Chem.Mol) -> list[str]:
    """The pattern as SMILES without its attachment points, if that is what it means."""
    with rdBase.BlockLogs():
        plain = Chem.MolFromSmiles(smarts)
        if plain is None or not plain.HasSubstructMatch(pattern):
            return []
        # read as SMILES, [#6] would be a bare carbon, and ~ a bond of no kind
        if any(atom.GetNumRadicalElectrons() for atom in plain.GetAtoms()) or any(
            bond.GetBondType() not in _BONDS for bond in plain.GetBonds()
        ):
            return []
        bare = Chem.DeleteSubstructs(plain, Chem.MolFromSmarts("[#0]"))
        if not bare.GetNumAtoms() or len(Chem.GetMolFrags(bare)) > 1:
            return []
        if Chem.SanitizeMol(bare, catchErrors=True):
            return []
        drawn = Chem.MolToRandomSmilesVect(bare, _SPELLINGS, randomSeed=1)
    return list(dict.fromkeys([Chem.MolToSmiles(bare), *drawn]))
