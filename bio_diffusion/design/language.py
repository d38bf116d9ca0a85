"""Languages of DNA: the sequences of one length that satisfy every constraint asked for.

Constraints are compiled in two steps. Motifs become one deterministic automaton over A, C, G, T,
whose state says which motifs are begun (the bits of Baeza-Yates and Gonnet's shift-and) and which
required ones are done. Automaton, letters allowed at each site and a counter of G and C are then
unrolled into a `Lattice`: layer l holds the (state, count) pairs that some legal sequence passes
after l letters, and nothing else. Its paths are the legal sequences, so counting them, drawing them
and asking what may come next are sums over its edges.

Shapes: L sites, S states, n_l nodes in layer l; letters are 0..3 for A, C, G, T.

Source: Baeza-Yates & Gonnet 1992 (shift-and); Moore 1956 (minimisation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

__all__ = [
    "GC",
    "IUPAC",
    "LETTERS",
    "Avoid",
    "ConflictError",
    "Constraint",
    "Contain",
    "Language",
    "Lattice",
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
_MAX_STATES = 50_000  # of an automaton before it is minimised
_MAX_NODES = 20_000_000  # of a lattice; 8 bytes each for every row that is drawn


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


# --- what can be asked for -----------------------------------------------------------------------


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


# --- the automaton -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Automaton:
    """Reads letters from state 0; a sequence is accepted that never dies and ends well.

    Attributes:
        step: (S, 4) the next state, S (one past the last) where it dies.
        accept: (S,) bool.
    """

    step: np.ndarray
    accept: np.ndarray

    @classmethod
    def of(cls, constraints: Iterable[Constraint]) -> Automaton:
        """The smallest automaton for the motifs of all constraints.

        Raises:
            ValueError: They need too many states.
        """
        bits = _Bits(constraints)
        number = {(0, 0): 0}
        rows: list[list[int]] = []
        for state in (pending := [(0, 0)]):  # the list grows while it is read
            row = []
            for letter in range(4):
                after = bits.read(*state, letter)
                if after is not None and after not in number:
                    number[after] = len(number)
                    pending.append(after)
                row.append(-1 if after is None else number[after])
            rows.append(row)
            if len(number) > _MAX_STATES:
                raise ValueError(
                    "these motifs together need more than "
                    f"{_MAX_STATES:,} states: leave out the longest with many N"
                )
        step = np.array(rows)
        step[step < 0] = len(rows)
        accept = np.array([found == bits.all_found for _, found in pending])
        return cls(step, accept)._minimal()

    def _minimal(self) -> Automaton:
        """Without states that cannot end well, and with those merged that nothing tells apart."""
        ends = np.append(self.accept, False)
        while not np.array_equal(grown := np.append(ends[self.step].any(1), False) | ends, ends):
            ends = grown
        if not ends[0]:
            return Automaton(np.ones((1, 4), dtype=np.int64), np.zeros(1, dtype=bool))
        step = np.where(ends[self.step] & ends[:-1, None], self.step, len(self.step))
        block = np.append(np.where(ends[:-1], self.accept.astype(np.int64) + 1, 0), 0)
        while True:  # Moore: split blocks whose members go to different blocks
            seen = np.column_stack([block[:-1], block[step]])
            _, finer = np.unique(seen, axis=0, return_inverse=True)
            finer = np.append(finer.reshape(-1) + 1, 0)
            finer[:-1][~ends[:-1]] = 0
            if len(np.unique(finer)) == len(np.unique(block)):
                break
            block = finer
        # number the blocks in order of first use, so that state 0 stays first
        live = block[:-1][ends[:-1]]
        _, first = np.unique(live, return_index=True)
        order = {int(live[i]): k for k, i in enumerate(sorted(first))}
        renumber = np.full(int(block.max()) + 1, len(order))
        for old, new in order.items():
            renumber[old] = new
        members = np.flatnonzero(ends[:-1])[sorted(first)]
        return Automaton(renumber[block[step[members]]], self.accept[members])


class _Bits:
    """Shift-and over all motifs at once: bit p of D is set when the motif that owns place p has
    matched up to there."""

    def __init__(self, constraints: Iterable[Constraint]) -> None:
        self.first = self.fatal = self.all_found = 0
        self.letters = [0, 0, 0, 0]
        self.done: list[tuple[int, int]] = []  # of each required motif: its last bits, all its bits
        place = 0
        for constraint in constraints:
            last = own = 0
            for motif in dict.fromkeys((*constraint.forbidden, *constraint.required)):
                self.first |= 1 << place
                for offset, code in enumerate(motif):
                    own |= 1 << place + offset
                    for letter in IUPAC[code]:
                        self.letters[LETTERS.index(letter)] |= 1 << place + offset
                place += len(motif)
                last |= 1 << place - 1
            if constraint.required:
                self.all_found |= 1 << len(self.done)
                self.done.append((last, own))
            else:
                self.fatal |= last

    def read(self, begun: int, found: int, letter: int) -> tuple[int, int] | None:
        """The state after one more letter; None when a forbidden motif is complete."""
        begun = (begun << 1 | self.first) & self.letters[letter]
        if begun & self.fatal:
            return None
        for i, (last, own) in enumerate(self.done):
            if begun & last:
                found |= 1 << i
            if found >> i & 1:
                begun &= ~own  # once found it may be forgotten
        return begun, found


# --- the lattice ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lattice:
    """All legal sequences as paths; see the top of this page.

    Attributes:
        edges: L arrays (n_l, 4): the node of layer l + 1 that a letter leads to, n_{l+1} (one past
            the last) where it must not stand. Node 0 of layer 0 is the start.
        ends: n_L, nodes of the last layer.
    """

    edges: tuple[np.ndarray, ...]
    ends: int

    @classmethod
    def of(
        cls, automaton: Automaton, allowed: np.ndarray, gc: tuple[int, int] | None = None
    ) -> Lattice | None:
        """Unrolls; None when there is no legal sequence.

        Args:
            automaton: Over the four letters.
            allowed: (L, 4) bool, letters allowed at each site.
            gc: Fewest and most letters G or C; None to leave them uncounted.

        Raises:
            ValueError: It would be too large.
        """
        length, (low, high) = len(allowed), gc or (0, 0)
        states, width = len(automaton.step), high + 1
        counted = (0, 1, 1, 0) if gc else (0, 0, 0, 0)  # A C G T
        reached = np.zeros((length + 1, states, width), dtype=bool)
        if reached.size > 8 * _MAX_NODES:
            raise ValueError(_TOO_LARGE)
        reached[0, 0, 0] = True
        step = automaton.step
        leads = [
            csr_array((np.ones(states), (step[:, letter], np.arange(states))), (states + 1, states))
            for letter in range(4)
        ]
        for site in range(length):
            for letter in np.flatnonzero(allowed[site]):
                shift = counted[letter]
                onto = leads[letter] @ reached[site, :, : width - shift].astype(np.float32)
                reached[site + 1, :, shift:] |= onto[:-1] > 0
        reached[length] &= automaton.accept[:, None] & (np.arange(width) >= low)
        for site in reversed(range(length)):
            onward = np.zeros((states, width), dtype=bool)
            later = np.concatenate([reached[site + 1], np.zeros((1, width), dtype=bool)])
            for letter in np.flatnonzero(allowed[site]):
                shift = counted[letter]
                onward[:, : width - shift] |= later[step[:, letter], shift:]
            reached[site] &= onward
        if not reached[0, 0, 0]:
            return None
        if int(reached.sum()) > _MAX_NODES:
            raise ValueError(_TOO_LARGE)
        edges = []
        for site in range(length):
            number = np.full((states + 1, width + 1), int(reached[site + 1].sum()))
            number[:-1, :-1][reached[site + 1]] = np.arange(int(reached[site + 1].sum()))
            state, count = np.nonzero(reached[site])
            row = [
                number[step[state, letter], count + counted[letter]]
                if allowed[site, letter]
                else np.full(len(state), number[-1, -1])
                for letter in range(4)
            ]
            edges.append(np.stack(row, axis=1))
        return cls(tuple(edges), int(reached[length].sum()))

    @property
    def nodes(self) -> int:
        """How many there are, in all layers."""
        return sum(map(len, self.edges)) + self.ends

    def count(self) -> int:
        """How many legal sequences there are, exactly."""
        ways = np.ones(self.ends, dtype=object)
        for edge in reversed(self.edges):
            ways = np.append(ways, 0)[edge].sum(1)
        return int(ways[0])

    def accepts(self, letters: Sequence[int]) -> bool:
        """Whether a sequence (L letters, 0..3) is legal."""
        node = 0
        for letter, edge in zip(letters, self.edges, strict=True):
            if node >= len(edge) or not 0 <= letter < 4:
                return False
            node = int(edge[node, letter])
        return node < self.ends


_TOO_LARGE = "these constraints together need too much memory: ask for fewer or shorter motifs"


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
