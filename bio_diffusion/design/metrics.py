"""What a set of designs is worth beside the training set; pure functions of strings.

Molecules are told apart by canonical SMILES with stereochemistry. Counting distinct strings, as
published evaluations do, takes another spelling of a known molecule for a new one; `Counts` has
both. Distances of DNA are those of pooled k-mers (scipy's Jensen-Shannon distance: square root,
nats).

Shapes: N strings, M training strings, K = 4^k words of length k.

Source: Schiff et al. 2025 (evaluations of QM9 and Species10); Polykovskiy et al. 2020 (MOSES, the
names of the metrics); Altschul & Erickson 1985 (shuffles that keep dinucleotides).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from rdkit.DataStructs.cDataStructs import ExplicitBitVect
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control, hypergeom

from bio_diffusion.design import motifs
from bio_diffusion.design.oracle import auroc
from bio_diffusion.design.properties import canonical, molecule
from bio_diffusion.design.rules import LETTERS

__all__ = [
    "Counts",
    "Enrichment",
    "bemis_murcko",
    "counts",
    "dinucleotide_shuffle",
    "discriminator_auroc",
    "enrichment",
    "fingerprints",
    "internal_diversity",
    "kmer_distance",
    "kmer_distance_by_class",
    "kmer_shares",
    "mean_with_error",
    "nearest_edit",
    "nearest_similarity",
]


def mean_with_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error over the finite values; NaN where there are too few."""
    finite = np.array([v for v in values if np.isfinite(v)], dtype=np.float64)
    mean = float(finite.mean()) if len(finite) else float("nan")
    error = float(finite.std(ddof=1) / np.sqrt(len(finite))) if len(finite) > 1 else float("nan")
    return mean, error


# --- molecules -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How many of the strings drawn are what.

    Attributes:
        drawn: Strings.
        valid: Of these, molecules.
        unique: Different molecules among them.
        novel: Different molecules that are not in the training set.
        raw_unique: Different strings among the valid ones.
        raw_novel: Different valid strings that are not strings of the training set.
    """

    drawn: int
    valid: int
    unique: int
    novel: int
    raw_unique: int
    raw_novel: int


def counts(smiles: Sequence[str], training: AbstractSet[str]) -> Counts:
    """Counts molecules.

    Args:
        smiles: What was drawn, invalid strings too.
        training: Canonical SMILES.
    """
    known = [(s, c) for s in smiles if (c := canonical(s)) is not None]
    raw, molecules = {s for s, _ in known}, {c for _, c in known}
    return Counts(
        len(smiles), len(known), len(molecules), len(molecules - training), len(raw),
        len(raw - training),
    )  # fmt: skip


_MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


def _fingerprints(smiles: Sequence[str]) -> torch.Tensor:
    """(N, 2048) float32 zeros and ones: Morgan environments of radius 2; invalid ones left out."""
    rows = [_MORGAN.GetFingerprintAsNumPy(m) for s in smiles if (m := molecule(s)) is not None]
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), 2048))


def fingerprints(canonical_smiles: Iterable[str]) -> list[ExplicitBitVect]:
    """Morgan fingerprints of very many known molecules: radius 2, 2048 bits.

    Read without RDKit's checks, which is three times as fast: what a canonical SMILES says of rings
    and aromatic atoms is taken as it stands, and the bits are the same. Of another spelling they
    may differ. What cannot be read is left out.
    """
    found = []
    for smiles in canonical_smiles:
        mol = Chem.MolFromSmiles(smiles, sanitize=False)
        if mol is None:
            continue
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        found.append(_MORGAN.GetFingerprint(mol))
    return found


def _tanimoto(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def internal_diversity(smiles: Sequence[str]) -> float:
    """1 - mean Tanimoto similarity of all pairs of different rows; NaN for fewer than two."""
    prints = _fingerprints(smiles)
    n = len(prints)
    if n < 2:
        return float("nan")
    total = sum(float(_tanimoto(part, prints).double().sum()) for part in prints.split(1024))
    return 1 - (total - n) / (n * (n - 1))


def nearest_similarity(smiles: Sequence[str], known: Sequence[ExplicitBitVect]) -> np.ndarray:
    """Tanimoto similarity of each molecule to its nearest known one, (valid,); NaN without any."""
    prints = [_MORGAN.GetFingerprint(m) for s in smiles if (m := molecule(s)) is not None]
    found = [max(DataStructs.BulkTanimotoSimilarity(p, known), default=np.nan) for p in prints]
    return np.array(found, dtype=np.float64)


def bemis_murcko(smiles: Iterable[str]) -> set[str]:
    """The different ring systems with their linkers; molecules without rings have none."""
    mols = (molecule(s) for s in smiles)
    found = {MurckoScaffold.MurckoScaffoldSmiles(mol=m) for m in mols if m is not None}
    return found - {""}


# --- DNA -----------------------------------------------------------------------------------------


def _ids(sequence: str) -> np.ndarray:
    """0..3, and 4 for any other letter."""
    table = np.full(256, 4, dtype=np.int64)
    table[[ord(letter) for letter in LETTERS]] = range(4)
    return table[np.frombuffer(sequence.upper().encode("latin-1", "replace"), dtype=np.uint8)]


def _kmer_counts(sequence: str, k: int) -> np.ndarray:
    """(K,) how often each word occurs; words with other letters are passed over."""
    ids = _ids(sequence)
    if len(ids) < k:
        return np.zeros(4**k, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, k)
    windows = windows[(windows < 4).all(1)]
    return np.bincount(windows @ (4 ** np.arange(k)[::-1]), minlength=4**k)


def kmer_shares(sequences: Iterable[str], k: int) -> np.ndarray:
    """(K,) shares of the words in all sequences together, in alphabetical order."""
    total = sum((_kmer_counts(s, k) for s in sequences), np.zeros(4**k, dtype=np.int64))
    return total / max(1, total.sum())


def kmer_distance(sequences: Iterable[str], others: Iterable[str], k: int) -> float:
    """Jensen-Shannon distance of the k-mers of two sets: 0 equal to sqrt(log 2) disjoint."""
    return float(jensenshannon(kmer_shares(sequences, k), kmer_shares(others, k)))


def kmer_distance_by_class(
    sequences: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[str]], k: int
) -> float:
    """`kmer_distance` class by class, averaged with the classes' shares of `others`."""
    weights = np.array([len(group) for group in others.values()], dtype=np.float64)
    each = [kmer_distance(sequences[name], group, k) for name, group in others.items()]
    return float(np.average(each, weights=weights))


def nearest_edit(sequences: Sequence[str], training: Sequence[str]) -> np.ndarray:
    """Fewest insertions, deletions and substitutions to a training sequence, (N,)."""
    if not training:
        return np.full(len(sequences), np.nan)
    found = [
        process.cdist([s], training, scorer=Levenshtein.distance, dtype=np.int32).min()
        for s in sequences
    ]
    return np.array(found, dtype=np.float64)


def dinucleotide_shuffle(sequence: str, source: np.random.Generator) -> str:
    """A random sequence with the same dinucleotides, all such equally likely.

    A sequence is a walk over its letters, and its dinucleotides are the edges. A walk over all
    edges from the first letter to the last is fixed by the order in which each letter's edges are
    used, and exists when the last edges of all letters form a tree that leads to the last letter.
    """
    if len(sequence) < 3:
        return sequence
    last = sequence[-1]
    leaves: dict[str, list[str]] = {}
    for here, there in zip(sequence, sequence[1:], strict=False):
        leaves.setdefault(here, []).append(there)
    while True:
        final = {v: int(source.integers(len(out))) for v, out in leaves.items() if v != last}
        if all(_arrives(v, last, leaves, final) for v in final):
            break
    order = {}
    for v, out in leaves.items():
        rest = [w for i, w in enumerate(out) if i != final.get(v)]
        source.shuffle(rest)
        order[v] = iter(rest + ([out[final[v]]] if v in final else []))
    walk = [sequence[0]]
    for _ in sequence[1:]:
        walk.append(next(order[walk[-1]]))
    return "".join(walk)


def _arrives(
    start: str, last: str, leaves: Mapping[str, Sequence[str]], final: Mapping[str, int]
) -> bool:
    """Whether following last edges from a letter ends at the last letter."""
    for _ in range(len(leaves) + 1):
        if start == last:
            return True
        start = leaves[start][final[start]]
    return False


@dataclass(frozen=True)
class Enrichment:
    """How much more often a motif occurs in sequences than in their background.

    Attributes:
        id: Of the matrix.
        name: Of its factor.
        share: Of the sequences with a hit, either strand.
        background: The same of the background.
        log2_ratio: Of the two, with half a sequence added to each count.
        p: Fisher's exact test, more in the sequences.
        q: `p` corrected for the number of motifs (Benjamini & Hochberg 1995).
    """

    id: str
    name: str
    share: float
    background: float
    log2_ratio: float
    p: float
    q: float


def enrichment(
    sequences: Sequence[str],
    background: Sequence[str],
    matrices: Sequence[motifs.Matrix] | None = None,
) -> list[Enrichment]:
    """Motifs by how sure it is that they are enriched.

    Args:
        sequences: N.
        background: Such as their dinucleotide shuffles.
        matrices: All of JASPAR unless given.
    """
    chosen = list(motifs.library().values()) if matrices is None else list(matrices)
    here = (motifs.hits(chosen, sequences) > 0).sum(1)
    there = (motifs.hits(chosen, background) > 0).sum(1)
    n, m = len(sequences), len(background)
    p = np.minimum(hypergeom.sf(here - 1, n + m, here + there, n), 1.0)
    q = false_discovery_control(p)
    ratio = np.log2((here + 0.5) / (n + 0.5)) - np.log2((there + 0.5) / (m + 0.5))
    rows = [
        Enrichment(
            matrix.id, matrix.name, float(here[i] / n), float(there[i] / m), float(ratio[i]),
            float(p[i]), float(q[i]),
        )
        for i, matrix in enumerate(chosen)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row.p, -row.log2_ratio, row.id))


def discriminator_auroc(
    sequences: Sequence[str], others: Sequence[str], folds: int = 5, seed: int = 0
) -> float:
    """How well a classifier tells two sets of DNA apart: 0.5 not at all, 1 always.

    Logistic regression on the shares of all words of 1 to 4 letters, trained on all folds but one
    and judged on that one; the mean over folds.

    Args:
        sequences: N; at least two a fold.
        others: As many, for an even start.
        folds: Of the cross-validation.
        seed: Of the split into folds.
    """
    texts = [*sequences, *others]
    shares = np.array([np.concatenate([kmer_shares([s], k) for k in range(1, 5)]) for s in texts])
    x = torch.from_numpy((shares - shares.mean(0)) / np.maximum(shares.std(0), 1e-9))
    y = torch.tensor([1.0] * len(sequences) + [0.0] * len(others), dtype=torch.float64)
    order = np.random.default_rng(seed).permutation
    fold = torch.empty(len(texts), dtype=torch.long)
    for part in (np.arange(len(sequences)), np.arange(len(sequences), len(texts))):
        fold[torch.from_numpy(order(part))] = torch.arange(len(part)) % folds
    found = []
    for held in range(folds):
        inside = fold != held
        weights = _logistic(x[inside], y[inside])
        score = x[~inside] @ weights
        found.append(auroc(score, y[~inside]))
    return float(np.mean(found))


def _logistic(x: torch.Tensor, y: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """(F,) weights of a logistic regression whose squares cost ridge / 2 in all; Newton's steps."""
    x = torch.nn.functional.pad(x, (0, 1), value=1.0)
    cost = torch.full((x.shape[1],), ridge, dtype=x.dtype)
    cost[-1] = 1e-9  # the intercept is free
    weights = torch.zeros_like(cost)
    for _ in range(20):
        p = (x @ weights).sigmoid()
        slope = x.T @ (p - y) + cost * weights
        curvature = x.T @ (x * (p * (1 - p))[:, None]) + cost.diag()
        step = torch.linalg.solve(curvature, slope)
        weights = weights - step
        if step.abs().max() < 1e-8:
            break
    return weights[:-1]
