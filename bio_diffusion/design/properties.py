"""What a design is worth: properties by name, and objectives such as 'qed>=0.6' on them.

| name | of | what |
|---|---|---|
| qed | SMILES | quantitative estimate of drug-likeness, 0 to 1 (Bickerton et al. 2012) |
| logp | SMILES | octanol-water partition (Wildman & Crippen 1999) |
| sa | SMILES | synthetic accessibility, 1 easy to 10 hard (Ertl & Schuffenhauer 2009) |
| mw | SMILES | mean molecular weight, g/mol |
| rings | SMILES | number of rings, by RDKit's symmetrised smallest set |
| tpsa | SMILES | topological polar surface, Å² (Ertl et al. 2000) |
| gc | DNA | share of G and C |
| motif:ID | DNA | sites of a JASPAR matrix or an IUPAC word per 100 nt, both strands |

A model brings oracles of its own under further names. A value is NaN where there is none, as for a
SMILES that is no molecule, and no objective holds there.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import QED, Descriptors, rdMolDescriptors

from bio_diffusion.design import motifs
from bio_diffusion.design.rules import IUPAC

__all__ = [
    "RANGES",
    "WHOLE",
    "Objective",
    "Oracle",
    "canonical",
    "check_together",
    "has_radicals",
    "known_names",
    "measure",
    "molecule",
    "query",
]

Oracle = Callable[[list[str]], np.ndarray]
"""Strings to values (N,), NaN where there is none."""

RANGES = {
    "qed": (0, 1), "sa": (1, 10), "mw": (0, math.inf), "rings": (0, math.inf),
    "tpsa": (0, math.inf), "gsk3b": (0, 1), "jnk3": (0, 1), "gc": (0, 1),
}  # fmt: skip
"""Between which a property lies, where that is known."""

WHOLE = {"rings"}
"""What is counted: above 3 means 4 or more."""

_RELATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": np.isclose,
}


@dataclass(frozen=True)
class Objective:
    """What a property should be: name, relation (>=, <=, >, <, =) and value."""

    name: str
    relation: str
    value: float

    @classmethod
    def parse(cls, text: str, known: Iterable[str]) -> Objective:
        """The objective that a user wrote, such as 'qed>=0.6'.

        Args:
            text: As written.
            known: Names that there are; `motif:` stands for all that begin so.

        Raises:
            ValueError: It is none, or its name is unknown; names what comes near.
        """
        match = re.fullmatch(r"\s*([^<>=\s]*[^<>=:\s])\s*(>=|<=|==|>|<|=)\s*(\S+)\s*", text)
        try:
            value = float(match[3]) if match else np.nan
        except ValueError:
            value = np.nan
        if match is None or not np.isfinite(value):
            raise ValueError(f"{text!r} is no objective: write NAME>=VALUE, such as 'qed>=0.6'")
        name, relation = match[1], match[2].replace("==", "=")
        known = list(known)
        if name.lower() in known:
            name = name.lower()
        kind, colon, word = name.partition(":")
        if name not in known and not (colon and word and f"{kind.lower()}:" in known):
            near = difflib.get_close_matches(name.lower(), known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"no property is called {name!r}; {hint}")
        if kind.lower() == "motif" and colon:
            name = f"motif:{word}"
            _motif(word)
        return cls(name, relation, value)

    def holds(self, values: np.ndarray) -> np.ndarray:
        """(N,) bool; NaN never holds."""
        return np.asarray(_RELATIONS[self.relation](np.asarray(values, float), self.value))

    def bounds(self) -> tuple[float, float]:
        """Least and greatest value that it allows."""
        low, high = RANGES.get(self.name, (-math.inf, math.inf))
        whole = self.name in WHOLE
        if self.relation in (">=", "=", ">"):
            at_least = math.ceil(self.value) if whole else self.value
            if self.relation == ">":
                at_least = (
                    math.floor(self.value) + 1 if whole else math.nextafter(at_least, math.inf)
                )
            low = max(low, at_least)
        if self.relation in ("<=", "=", "<"):
            at_most = math.floor(self.value) if whole else self.value
            if self.relation == "<":
                at_most = math.ceil(self.value) - 1 if whole else math.nextafter(at_most, -math.inf)
            high = min(high, at_most)
        return low, high

    def __str__(self) -> str:
        return f"{self.name}{self.relation}{self.value:g}"


def check_together(objectives: Sequence[Objective]) -> None:
    """Raises `ValueError` naming the objectives that no value of their property satisfies."""
    for name in dict.fromkeys(objective.name for objective in objectives):
        same = [objective for objective in objectives if objective.name == name]
        lows, highs = zip(*(objective.bounds() for objective in same), strict=True)
        if max(lows) > min(highs):
            listed, why = "; ".join(map(str, same)), ""
            if len(same) == 1 and name in RANGES:
                number = "a whole number" if name in WHOLE else "a number"
                why = f", which is {number} from {RANGES[name][0]:g} to {RANGES[name][1]:g}"
            raise ValueError(f"no {name}{why} satisfies [{listed}]: drop or relax one")


def known_names(domain: str, oracles: Iterable[str] = ()) -> list[str]:
    """The names that objectives may use, of domain "smiles" or "dna"."""
    return [*(_MOLECULAR if domain == "smiles" else ("gc", "motif:")), *oracles]


def measure(
    names: Iterable[str], strings: Sequence[str], oracles: Mapping[str, Oracle] | None = None
) -> dict[str, np.ndarray]:
    """Properties of SMILES or sequences by name, each (N,) float64.

    Args:
        names: See the top of this page; all of one kind.
        strings: N.
        oracles: Further names.
    """
    found: dict[str, np.ndarray] = {}
    for name in names:
        if oracles and name in oracles:
            found[name] = np.asarray(oracles[name](list(strings)), dtype=np.float64)
        elif name in _MOLECULAR:
            of = _MOLECULAR[name]
            mols = [molecule(s) for s in strings]
            found[name] = np.array([np.nan if m is None else of(m) for m in mols], dtype=float)
        elif name == "gc":
            found[name] = np.array(
                [(s.count("G") + s.count("C")) / len(s) if s else np.nan for s in strings]
            )
        else:
            found[name] = _density(name.removeprefix("motif:"), strings)
    return found


# --- molecules -----------------------------------------------------------------------------------


@lru_cache(maxsize=20_000)
def molecule(smiles: str) -> Chem.Mol | None:
    """The molecule of a SMILES, or None when there is none; says nothing about why."""
    if not smiles:
        return None
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles)


@lru_cache(maxsize=200_000)
def canonical(smiles: str) -> str | None:
    """The one way to write a molecule, stereochemistry kept; None when there is none."""
    mol = molecule(smiles)
    return None if mol is None else Chem.MolToSmiles(mol)


def has_radicals(smiles: str) -> bool:
    """Whether an atom of a molecule has unpaired electrons, such as a bracket without its H leaves.

    RDKit reads those, a chemist does not order them. False for no molecule.
    """
    mol = molecule(smiles)
    return mol is not None and any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


def query(smarts: str) -> Chem.Mol:
    """The pattern of a SMARTS.

    Raises:
        ValueError: It cannot be read.
    """
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or not pattern.GetNumAtoms():
        raise ValueError(
            f"the SMARTS {smarts[:80]!r} cannot be read: check its brackets, bonds and ring numbers"
        )
    return pattern


def _accessibility(mol: Chem.Mol) -> float:
    from rdkit.Contrib.SA_Score import sascorer  # reads a table of fragments when first used

    return float(sascorer.calculateScore(mol))


_MOLECULAR: dict[str, Callable[[Chem.Mol], float]] = {
    "qed": QED.qed,
    "logp": lambda mol: rdMolDescriptors.CalcCrippenDescriptors(mol)[0],
    "sa": _accessibility,
    "mw": Descriptors.MolWt,  # type: ignore[attr-defined]
    "rings": lambda mol: float(len(Chem.GetSymmSSSR(mol))),
    "tpsa": rdMolDescriptors.CalcTPSA,
}


# --- motifs --------------------------------------------------------------------------------------


def _motif(word: str) -> str | motifs.Matrix:
    """IUPAC codes as they are, anything else as a matrix. Raises: ValueError if it is neither."""
    return word.upper() if set(word.upper()) <= IUPAC.keys() else motifs.find(word)


def _density(word: str, sequences: Sequence[str]) -> np.ndarray:
    motif = _motif(word)
    if isinstance(motif, str):
        found = motifs.count_word(motif, sequences)
    else:
        found = motifs.hits([motif], sequences)[0]
    lengths = np.array([len(s) for s in sequences], dtype=float)
    return np.divide(100.0 * found, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
