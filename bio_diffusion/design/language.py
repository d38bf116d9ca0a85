"""Languages of DNA: the sequences of one length that satisfy every rule asked for.

The rules are compiled into a `Lattice`, whose paths are the legal sequences; rules that cannot all
hold are named, as few of them as explain it.

Shapes: L sites; letters are 0..3 for A, C, G, T.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bio_diffusion.design.lattice import Automaton, Lattice
from bio_diffusion.design.rules import GC, IUPAC, LETTERS, Constraint, Sites

__all__ = ["ConflictError", "Language"]


class ConflictError(ValueError):
    """No sequence satisfies all constraints.

    Args:
        constraints: A smallest set that cannot hold: leave out any one, and the others can.
        length: L.
    """

    def __init__(self, constraints: Sequence[Constraint], length: int) -> None:
        listed = "; ".join(map(str, constraints))
        remedy = "drop or relax one of them" if len(constraints) > 1 else "drop or relax it"
        super().__init__(
            f"no sequence of {length} letters (0 of 4^{length}) satisfies [{listed}]: {remedy}"
        )
        self.constraints = tuple(constraints)


@dataclass(frozen=True)
class Language:
    """The sequences of L letters that satisfy all constraints. Made with `Language.of`.

    Attributes:
        constraints: What was asked for.
        lattice: The legal sequences as paths.
        allowed: (L, 4) bool, the letters that some legal sequence has at a site.
    """

    constraints: tuple[Constraint, ...]
    lattice: Lattice
    allowed: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, constraints: Iterable[Constraint], length: int) -> Language:
        """Compiles constraints for sequences of `length` letters.

        Raises:
            ConflictError: They cannot all hold; names a smallest set of them that cannot.
            ValueError: A template is longer than `length`, or the whole is too large.
        """
        constraints = tuple(constraints)
        for constraint in constraints:
            if isinstance(constraint, Sites) and len(constraint.template) > length:
                raise ValueError(
                    f"the template has {len(constraint.template)} letters and the model makes "
                    f"{length}: shorten it or use another model"
                )
        lattice = _unroll(constraints, length)
        if lattice is None:
            raise ConflictError(_smallest_conflict(constraints, length), length)
        sizes = (*map(len, lattice.edges[1:]), lattice.ends)
        used = [(edge < n).any(0) for edge, n in zip(lattice.edges, sizes, strict=True)]
        return cls(constraints, lattice, np.array(used))

    @property
    def length(self) -> int:
        return len(self.allowed)

    @cached_property
    def size(self) -> int:
        """How many sequences it holds, exactly."""
        return self.lattice.count()

    def __contains__(self, sequence: str) -> bool:
        letters = [LETTERS.find(letter) for letter in sequence]
        return len(letters) == self.length and self.lattice.accepts(letters)


def _unroll(constraints: Sequence[Constraint], length: int) -> Lattice | None:
    allowed = np.ones((length, 4), dtype=bool)
    low, high = 0, length
    for constraint in constraints:
        if isinstance(constraint, Sites):
            for site, code in enumerate(constraint.template):
                allowed[site] &= [letter in IUPAC[code] for letter in LETTERS]
        elif isinstance(constraint, GC):
            at_least, at_most = constraint.counts(length)
            low, high = max(low, at_least), min(high, at_most)
    if low > high:
        return None
    gc = None if (low, high) == (0, length) else (low, high)
    return Lattice.of(Automaton.of(constraints), allowed, gc)


def _smallest_conflict(constraints: Sequence[Constraint], length: int) -> list[Constraint]:
    """Leaves out one after the other whatever is not needed for the conflict."""
    kept = list(constraints)
    for place in reversed(range(len(constraints))):
        without = kept[:place] + kept[place + 1 :]
        if _unroll(without, length) is None:
            kept = without
    return kept
