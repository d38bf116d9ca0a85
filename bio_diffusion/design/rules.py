"""What can be asked of a DNA sequence: templates, motifs, runs and the share of G and C.

A rule says itself to the user (`str`) and holds what `lattice` compiles: motifs that must or must
not occur, letters allowed at a site, letters to be counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "GC",
    "IUPAC",
    "LETTERS",
    "Avoid",
    "Constraint",
    "Contain",
    "MaxRun",
    "Sites",
    "reverse_complement",
]

LETTERS = "ACGT"

IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT",
    "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""What each code of the International Union of Pure and Applied Chemistry stands for."""

_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


def reverse_complement(motif: str) -> str:
    """The other strand, 5' to 3'; IUPAC codes too."""
    return motif.translate(_COMPLEMENT)[::-1]


def _codes(text: str, what: str) -> str:
    """`text` in upper case (U as T), every letter of it an IUPAC code."""
    codes = text.strip().upper().replace("U", "T")
    wrong = sorted(set(codes) - IUPAC.keys())
    if wrong or not codes:
        said = f"{wrong[0]!r} is no DNA letter" if wrong else "it is empty"
        raise ValueError(f"{what} {text[:60]!r}: {said}; use the IUPAC codes {''.join(IUPAC)}")
    return codes


class Constraint:
    """One thing asked of a sequence; `str` says it to the user."""

    forbidden: tuple[str, ...] = ()
    """Motifs that must not occur, on this strand."""

    required: tuple[str, ...] = ()
    """Motifs of which one at least must occur, on this strand."""


@dataclass(frozen=True)
class Sites(Constraint):
    """One IUPAC code a site; sites beyond its end are free."""

    template: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", _codes(self.template, "template"))

    def __str__(self) -> str:
        return f"template {_short(self.template)}"


@dataclass(frozen=True)
class Avoid(Constraint):
    """A motif that occurs on neither strand.

    Args:
        motif: IUPAC codes.
        name: What the user calls it, such as an enzyme.
    """

    motif: str
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "motif", _codes(self.motif, "motif"))

    @property
    def forbidden(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.motif, reverse_complement(self.motif))

    def __str__(self) -> str:
        return f"avoid {f'{self.name} ({self.motif})' if self.name else self.motif}"


@dataclass(frozen=True)
class Contain(Constraint):
    """A motif that occurs at least once, on either strand."""

    motif: str
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "motif", _codes(self.motif, "motif"))

    @property
    def required(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.motif, reverse_complement(self.motif))

    def __str__(self) -> str:
        return f"motif {f'{self.name} ({self.motif})' if self.name else self.motif}"


@dataclass(frozen=True)
class MaxRun(Constraint):
    """No letter stands more than `length` times in a row."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a run holds one letter at least, got {self.length}")

    @property
    def forbidden(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(letter * (self.length + 1) for letter in LETTERS)

    def __str__(self) -> str:
        return f"runs of at most {self.length}"


@dataclass(frozen=True)
class GC(Constraint):
    """The share of G and C lies in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"GC window {self.low:g}:{self.high:g}: want 0 <= low <= high <= 1, such as 0.4:0.6"
            )

    def counts(self, length: int) -> tuple[int, int]:
        """Fewest and most letters G or C; the slack absorbs 0.6 * 150 = 90.00000000000001."""
        return math.ceil(self.low * length - 1e-9), math.floor(self.high * length + 1e-9)

    def __str__(self) -> str:
        return f"GC {self.low:g}:{self.high:g}"


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
