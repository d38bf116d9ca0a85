"""Motifs and restriction sites by name, and where they stand in sequences.

A motif is a word of IUPAC codes or a matrix of JASPAR's core collection; a restriction site goes by
the enzyme's name. Matrices are scored as log-odds in bits against even letters, on both strands; a
window is a *hit* when its score reaches `RELATIVE` of the way from the matrix's lowest to its
highest. Windows with a letter other than A, C, G, T are none.

Shapes: N sequences, L the longest of them, M motifs, W width of a motif.

Source: JASPAR 2024 (Rauluseviciute et al. 2024), read by Biopython; the share of the range of
scores as a threshold is JASPAR's own "relative profile score".
"""

from __future__ import annotations

import difflib
import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from bio_diffusion.design.dataset import find_data
from bio_diffusion.design.rules import IUPAC, LETTERS, Avoid, Contain, reverse_complement

__all__ = ["JASPAR", "Matrix", "avoid", "contain", "count_word", "find", "hits", "library"]

JASPAR = "jaspar2024_core.transfac.gz"
RELATIVE = 0.85
_PSEUDOCOUNT = 0.8  # in all, shared by the letters; Nishida, Frith & Nakai 2009


@dataclass(frozen=True)
class Matrix:
    """A motif of JASPAR.

    Attributes:
        id: Such as MA0108.3.
        name: Of the factor that binds it.
        weights: (4, W) bits against even letters.
        consensus: IUPAC codes, without N at the ends.
    """

    id: str
    name: str
    weights: np.ndarray
    consensus: str

    @property
    def threshold(self) -> float:
        """The score of a hit, bits."""
        low, high = self.weights.min(0).sum(), self.weights.max(0).sum()
        return float(low + RELATIVE * (high - low))


@lru_cache(maxsize=1)
def library() -> dict[str, Matrix]:
    """JASPAR's core collection by id.

    Raises:
        FileNotFoundError: its file is not at hand.
    """
    from Bio import motifs

    found = {}
    with gzip.open(find_data(JASPAR), "rt", encoding="utf-8") as file:
        for motif in motifs.parse(file, "transfac", strict=False):
            counts = np.array([motif.counts[letter] for letter in LETTERS], dtype=np.float64)
            share = (counts + _PSEUDOCOUNT / 4) / (counts.sum(0) + _PSEUDOCOUNT)
            consensus = str(motif.degenerate_consensus).strip("N")
            found[motif["AC"]] = Matrix(motif["AC"], motif["ID"], np.log2(4 * share), consensus)
    return found


def find(name: str) -> Matrix:
    """A matrix by its id, with or without version, or the name of its factor.

    Raises:
        ValueError: There is none, or several have that name; names what comes near.
    """
    known = library()
    if name in known:
        return known[name]
    versions = [m for m in known.values() if m.id.partition(".")[0] == name.upper()]
    named = versions or [m for m in known.values() if m.name.lower() == name.lower()]
    if len(named) == 1 or versions:
        return named[-1]
    if named:
        listed = ", ".join(m.id for m in named)
        raise ValueError(f"{name!r} names {len(named)} motifs of JASPAR: say which, of {listed}")
    by_name = {key.lower(): f"{m.name} ({m.id})" for m in known.values() for key in (m.name, m.id)}
    raise ValueError(f"no motif of JASPAR is called {name!r}{_near(name.lower(), by_name)}")


def contain(word: str) -> Contain:
    """The constraint that a motif occurs; a word of IUPAC codes means itself, anything else JASPAR.

    A matrix is asked for by its consensus.

    Raises:
        ValueError: It is neither.
    """
    if _is_codes(word):
        return Contain(word)
    matrix = find(word)
    if not matrix.consensus:
        raise ValueError(f"{matrix.id} ({matrix.name}) has no consensus: write IUPAC codes")
    return Contain(matrix.consensus, f"{matrix.name} {matrix.id}")


def avoid(word: str) -> Avoid:
    """The constraint that a motif or an enzyme's site does not occur.

    An enzyme's name as it is written comes first, then IUPAC codes, then the name in other letters'
    case.

    Raises:
        ValueError: It is neither; names enzymes that come near.
    """
    enzymes = _enzymes()
    if word not in enzymes and _is_codes(word):
        return Avoid(word)
    cased = {name.lower(): name for name in enzymes}
    name = word if word in enzymes else cased.get(word.lower())
    if name is None:
        raise ValueError(f"no enzyme or motif is called {word!r}{_near(word.lower(), cased)}")
    site = enzymes[name]
    if set(site) - IUPAC.keys():
        raise ValueError(f"{name} has no single site ({site}): write IUPAC codes")
    return Avoid(site, name)


def _is_codes(word: str) -> bool:
    return bool(word) and set(word.upper()) <= IUPAC.keys() | {"U"}


@lru_cache(maxsize=1)
def _enzymes() -> dict[str, str]:
    from Bio import Restriction

    return {str(enzyme): enzyme.site for enzyme in vars(Restriction)["AllEnzymes"]}


def _near(word: str, known: dict[str, str]) -> str:
    near = difflib.get_close_matches(word, known, 3, 0.6)
    return f"; did you mean {' or '.join(known[key] for key in near)}?" if near else ""


# --- where they stand ----------------------------------------------------------------------------


def count_word(word: str, sequences: Iterable[str]) -> np.ndarray:
    """Matches of IUPAC codes in each sequence, both strands, overlapping ones too; (N,).

    A place where both strands match counts once.
    """
    word = word.upper()
    strands = dict.fromkeys((word, reverse_complement(word)))
    either = "|".join("".join(f"[{IUPAC[c]}]" for c in strand) for strand in strands)
    return np.array([len(re.findall(f"(?=(?:{either}))", s)) for s in sequences])


def hits(matrices: Sequence[Matrix], sequences: Sequence[str]) -> np.ndarray:
    """Hits of each matrix in each sequence, (M, N).

    A place where both strands score counts once.
    """
    letters = _one_hot(sequences)
    counted = np.zeros((len(matrices), len(sequences)), dtype=np.int64)
    widths = [m.weights.shape[1] for m in matrices]
    for width in sorted(set(widths)):
        if width > letters.shape[-1]:
            continue
        rows = [i for i, w in enumerate(widths) if w == width]
        strands = [(w, w[::-1, ::-1]) for w in (matrices[i].weights for i in rows)]
        weights = torch.tensor(np.array(strands), dtype=torch.float32).flatten(0, 1)
        weights = torch.cat([weights, torch.full((len(weights), 1, width), -1e6)], 1)
        limits = torch.tensor([matrices[i].threshold for i in rows], dtype=torch.float32) - 1e-4
        for start in range(0, len(sequences), 64):
            scores = torch.nn.functional.conv1d(letters[start : start + 64], weights)
            best = scores.unflatten(1, (len(rows), 2)).amax(2)
            found = (best >= limits[:, None]).sum(-1).T
            counted[rows, start : start + 64] = found.numpy()
    return counted


def _one_hot(sequences: Sequence[str]) -> torch.Tensor:
    """(N, 5, L) float32; the last channel is any other letter and the end."""
    longest = max(map(len, sequences), default=0)
    table = np.full(256, 4, dtype=np.int64)
    for i, letter in enumerate(LETTERS):
        table[ord(letter)] = i
    raw = "".join(s.ljust(longest, "-") for s in sequences).encode("latin-1", "replace")
    ids = table[np.frombuffer(raw, dtype=np.uint8)].reshape(len(sequences), longest)
    return torch.nn.functional.one_hot(torch.from_numpy(ids), 5).transpose(1, 2).float()
