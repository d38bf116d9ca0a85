"""The poses found for one ligand, and what speaks for and against each: the evidence.

A pose is likelier right when it, and those near it, have better scores (energy, and what the
networks say) than the others, and when the best is no accident: when the search came down into its
basin again and again. `crowding` counts that, `evidence` puts everything together.

Shapes: B poses, N ligand atoms, V minima visited, P orders of the atoms that are alike
(`ligand.atom_orders`). Distances are RMSD in Å without superposition, the least over these orders,
so that a ring that is turned over counts as the same; energies in kcal/mol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bio_diffusion.dock.search import Minimized, gaps

__all__ = ["EVIDENCE", "Pool", "crowding", "evidence"]

TORSION_WEIGHT = 0.05846
"""Vina's weight of one active torsion."""

_TEMPERATURE = 1.2  # kcal/mol, as in the search
_SHARPNESS = 1.3  # mol/kcal: the score that tells right poses best, on validation complexes
_NEAR = 2.0  # Å
_BLUR = 0.5  # Å, by which "near" fades
_FLOOR = 1e-3  # of shares, before their logarithm
_NEVER = -8.0  # nats: shares below are all alike

EVIDENCE: tuple[str, ...] = ("support", "funnel", "torsions")
"""Names of the columns of `evidence`.

`support`: log of the part of the pool, exp(-1.3 score) over their sum, that lies near the pose, by
sigmoid((2 - RMSD) / 0.5) of each, -8 at least: if one of these is right, so is the pose. `funnel`:
`crowding` of the pose with the best score; it and `torsions` are the same for all poses of a pool.
"""


@dataclass(frozen=True)
class Pool:
    """Poses with the parts of their energy and what is known of their surroundings.

    Attributes:
        coords: (B, N, 3) Å.
        inter: (B,) between ligand and receptor.
        intra: (B,) within the ligand.
        site: (B,) long, number of the site.
        crowd: (B,) from `crowding`.
    """

    coords: Tensor
    inter: Tensor
    intra: Tensor
    site: Tensor
    crowd: Tensor

    @classmethod
    def join(cls, pools: Sequence[Pool]) -> Pool:
        return cls(*(torch.cat([getattr(p, f.name) for p in pools]) for f in fields(cls)))

    def distinct(self, count: int, apart: float, same: Tensor) -> Pool:
        """The lowest `count` poses of which no two are closer than `apart` Å, lowest first.

        Args:
            same: (P, N).
        """
        kept: list[int] = []
        for i in (self.inter + self.intra).argsort(stable=True).tolist():
            if len(kept) == count:
                break
            if bool((gaps(self.coords[i], self.coords[kept], same) >= apart).all()):
                kept.append(i)
        return Pool(*(getattr(self, f.name)[kept] for f in fields(self)))

    def affinity(self, torsions: float) -> Tensor:
        """Vina's estimate of each pose, (inter + intra - intra of the first) by its torsion term.

        As in Vina, the unbound ligand is taken to have the inner energy of the best pose.
        """
        return (self.inter + self.intra - self.intra[:1]) / (1.0 + TORSION_WEIGHT * torsions)


def crowding(coords: Tensor, visited: Minimized, same: Tensor) -> Tensor:
    """Log of the Boltzmann-weighted share of minima within 2 Å of each pose, (B,).

    Args:
        coords: (B, N, 3) poses at one site.
        visited: V minima of the search there, lowest first.
        same: (P, N).
    """
    weight = ((visited.energy[:1] - visited.energy) / _TEMPERATURE).softmax(0)
    # one by one: all pairs at once would fill the memory
    near = [weight[gaps(pose, visited.pose.coords, same) < _NEAR].sum() for pose in coords]
    return (torch.stack(near) + _FLOOR).log()


def evidence(pool: Pool, score: Tensor, torsions: float, same: Tensor) -> Tensor:
    """What a confidence model sees of each pose, (B, len(EVIDENCE)).

    Args:
        pool: B poses.
        score: (B,) by which they rank without a confidence model.
        torsions: Vina's count of active torsions.
        same: (P, N).
    """
    share = (-_SHARPNESS * score).softmax(0)
    apart = torch.stack([gaps(pose, pool.coords, same) for pose in pool.coords])
    support = (torch.sigmoid((_NEAR - apart) / _BLUR) @ share).log().clamp(min=_NEVER)
    columns = [
        support,
        pool.crowd[score.argmin()].expand_as(support),
        torch.full_like(support, torsions),
    ]
    return torch.stack(columns, 1)
