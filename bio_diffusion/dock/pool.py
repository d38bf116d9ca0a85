"""The poses found for one ligand, and what speaks for and against each: the evidence.

A pose is likelier right when its energy is low, when the network finds it likely, and when it is no
accident: when many start poses of the network lie near it and the search came down into its basin
again and again. `crowding` counts those, `evidence` puts everything together, per pose and beside
the other poses of the pool.

Shapes: B poses, N ligand atoms, S start poses, V minima visited, A receptor atoms. Distances are
RMSD in atom order, without superposition or symmetry, in Å; energies in kcal/mol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bio_diffusion.dock.search import Minimized

__all__ = ["EVIDENCE", "Pool", "crowding", "evidence"]

TORSION_WEIGHT = 0.05846
"""Vina's weight of one active torsion."""

_TEMPERATURE = 1.2  # kcal/mol, as in the search
_JUDGEMENT = 10.0  # kcal/mol of a unit of loss; fixed, whatever the ranking by score says
_CONTACT = 4.0  # Å from a receptor atom: such a ligand atom is buried
_FLOOR = 1e-3  # of shares, before their logarithm

_CROWDING = ("starts_2", "starts_4", "starts_quartile", "starts_spread", "basin_1", "basin_2",
             "basin_3")  # fmt: skip

EVIDENCE: tuple[str, ...] = (
    "energy", "energy_gap", "inter_atom", "intra_atom", "loss", "loss_gap", "loss_tr_gap",
    "loss_rot_gap", "loss_tor_gap", "score_gap", *_CROWDING, "basin_gap", "rivals", "atoms",
    "torsions", "buried", "failed",
)  # fmt: skip
"""Names of the columns of `evidence`.

`*_gap`: above the best of the pool. `*_atom`: a heavy atom. `loss`: the network's denoising loss,
mean and by factor. `score`: what ranks without a confidence model. `starts_2`, `starts_4`: share of
the network's start poses within so many Å; `starts_quartile`: RMSD within which a quarter of them
lie; `starts_spread`: mean distance of their centroids from the middle. `basin_*`: log of the
Boltzmann-weighted share of minima within so many Å. `rivals`: log of the number of poses with
energies within 1 kcal/mol of the lowest. `buried`: share of atoms within 4 Å of the receptor.
`failed`: 1 where a validity check fails.
"""


@dataclass(frozen=True)
class Pool:
    """Poses with the parts of their energy and what is known of their surroundings.

    Attributes:
        coords: (B, N, 3) Å.
        inter: (B,) between ligand and receptor.
        intra: (B,) within the ligand.
        site: (B,) long, number of the site.
        crowd: (B, C) from `crowding`.
    """

    coords: Tensor
    inter: Tensor
    intra: Tensor
    site: Tensor
    crowd: Tensor

    @classmethod
    def join(cls, pools: Sequence[Pool]) -> Pool:
        return cls(*(torch.cat([getattr(p, f.name) for p in pools]) for f in fields(cls)))

    def distinct(self, count: int, apart: float) -> Pool:
        """The lowest `count` poses of which no two are closer than `apart` Å, lowest first."""
        kept: list[int] = []
        for i in (self.inter + self.intra).argsort(stable=True).tolist():
            if len(kept) == count:
                break
            gaps = (self.coords[kept] - self.coords[i]).square().sum(-1).mean(-1).sqrt()
            if bool((gaps >= apart).all()):
                kept.append(i)
        return Pool(*(getattr(self, f.name)[kept] for f in fields(self)))

    def affinity(self, torsions: float) -> Tensor:
        """Vina's estimate of each pose, (inter + intra - intra of the first) by its torsion term.

        As in Vina, the unbound ligand is taken to have the inner energy of the best pose.
        """
        return (self.inter + self.intra - self.intra[:1]) / (1.0 + TORSION_WEIGHT * torsions)


def crowding(coords: Tensor, starts: Tensor, visited: Minimized) -> Tensor:
    """How many start poses and minima lie near each pose, (B, C).

    Args:
        coords: (B, N, 3) poses at one site.
        starts: (S, N, 3), as the source proposed them there.
        visited: V minima of the search there, lowest first.
    """
    weight = ((visited.energy[:1] - visited.energy) / _TEMPERATURE).softmax(0)
    middles = starts.mean(1)
    spread = (middles - middles.mean(0)).norm(dim=-1).mean()
    rows = []
    for pose in coords:  # one by one: all pairs at once would fill the memory
        begun, found = _rmsd(pose, starts), _rmsd(pose, visited.pose.coords)
        shares = [(begun < 2).float().mean(), (begun < 4).float().mean()]
        basins = [(weight[found < near].sum() + _FLOOR).log() for near in (1, 2, 3)]
        rows.append(torch.stack([*shares, begun.quantile(0.25), spread, *basins]))
    return torch.stack(rows)


def evidence(
    pool: Pool,
    energy: Tensor,
    loss: Tensor,
    torsions: float,
    receptor: Tensor,
    failed: Tensor,
) -> Tensor:
    """What a confidence model sees of each pose, (B, len(EVIDENCE)).

    Args:
        pool: B poses.
        energy: (B,) their `affinity`.
        loss: (B, 3) denoising loss by factor; (B, 1) zeros where nobody has judged.
        torsions: Vina's count of active torsions.
        receptor: (A, 3) Å.
        failed: (B,) bool, whether a validity check fails.
    """
    count, atoms = pool.coords.shape[:2]
    total, mean = pool.inter + pool.intra, loss.mean(1)
    score = energy + _JUDGEMENT * mean
    flat = pool.coords.reshape(-1, 3)
    low, high = flat.amin(0) - _CONTACT, flat.amax(0) + _CONTACT
    near = receptor[((receptor >= low) & (receptor <= high)).all(1)]
    gap = torch.cdist(flat, near).amin(1) if len(near) else torch.full((len(flat),), torch.inf)
    basin = pool.crowd[:, _CROWDING.index("basin_2")]
    by_factor = (loss - loss.amin(0)).expand(count, 3).unbind(1)
    rivals = (total <= total.min() + 1.0).sum().float().log()

    def of_all(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(count)

    return torch.stack(
        [
            energy,
            energy - energy.min(),
            pool.inter / atoms,
            pool.intra / atoms,
            mean,
            mean - mean.min(),
            *by_factor,
            score - score.min(),
            *pool.crowd.unbind(1),
            basin - basin.max(),
            of_all(rivals),
            of_all(float(atoms)),
            of_all(torsions),
            (gap.view(count, atoms) < _CONTACT).float().mean(1),
            failed.float(),
        ],
        1,
    )


def _rmsd(pose: Tensor, others: Tensor) -> Tensor:
    """(N, 3), (K, N, 3) -> (K,)."""
    return (others - pose).square().sum(-1).mean(-1).sqrt()
