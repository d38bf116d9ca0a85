"""From motifs to an automaton, from an automaton to all sequences of one length as paths.

Motifs become one deterministic automaton over A, C, G, T, whose state says which motifs are begun
(the bits of Baeza-Yates and Gonnet's shift-and) and which required ones are done. Automaton,
letters allowed at each site and a counter of G and C are then unrolled into a `Lattice`: layer l
holds the (state, count) pairs that some legal sequence passes after l letters, and nothing else.
Its paths are the legal sequences, so counting them, drawing them and asking what may come next are
sums over its edges.

Shapes: L sites, S states, n_l nodes in layer l; letters are 0..3 for A, C, G, T.

Source: Baeza-Yates & Gonnet 1992 (shift-and); Moore 1956 (minimisation).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from bio_diffusion.design.rules import IUPAC, LETTERS, Constraint

__all__ = ["Automaton", "Lattice"]

_MAX_STATES = 50_000  # of an automaton before it is minimised
_MAX_NODES = 20_000_000  # of a lattice; 8 bytes each for every row that is drawn
_TOO_LARGE = "these constraints together need too much memory: ask for fewer or shorter motifs"


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
