r"""The score network of docking: SE(3)-equivariant, and cheap where a pose changes.

Features are pairs (s, V): `scalars` scalars and `vectors` vectors a node, in e3nn's terms
``scalars x 0e + vectors x 1e``. Parity is not kept, since proteins and drugs are chiral and so a
reflection is no symmetry of docking; rotations and translations are, exactly.

What each choice costs and gives, against DiffDock (Corso et al., ICLR 2023), whose layers make a
full weight vector per edge (1,944 numbers in its small form) for a fully connected product:

* *Depthwise products.* An edge weighs each channel of its sender once for every path, s -> s,
  V.r -> s, s r -> V, V -> V: `scalars + 3 vectors` numbers. Channels mix on nodes, where also the
  second-order terms V.V -> s and V x V -> V are formed. A node has tens of edges.
* *The receptor is encoded once.* Its atoms and residues send messages to the ligand and receive
  none, so their features depend on no pose, step or ligand. Given up: a receptor that responds.
* *Nearest neighbours in dense tensors* (n, K) instead of ragged edge lists: sums over neighbours
  are reductions, not scatters. A ligand atom hears `Size.neighbours` atoms of each kind.
* *Atoms and residues.* Close by, heavy atoms carry the detail; farther off, alpha carbons do.
* *Pointer latents are nodes.* A latent is a soft one-hot over residues and ligand atoms; it enters
  as one more sender, placed and featured at the mean it points to (DisCo-Diff adds binary channels
  to the nodes instead, which residues shared between poses cannot hold).

The parts are `layers` (messages and updates), `encoders` (receptor and ligand graph), `trunk`
(poses among them) and, here, the heads. They read forces off the ligand atoms and pull them back
to the pose's degrees of freedom, J^T f, as the gradient of an energy would be; torsions also hear
their two hinge atoms.

Legend: B poses, N ligand atoms, M torsions, A receptor atoms, R residues, m latents, K neighbours,
n nodes of any kind; lengths in Å, angles in radians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.dock.encoders import (
    LigandEncoder,
    ReceptorEncoder,
    ReceptorFeatures,
    pair_types,
)
from bio_diffusion.dock.graph import LigandGraph, ReceptorGraph
from bio_diffusion.dock.layers import Features, Size
from bio_diffusion.dock.pose import Pose, project
from bio_diffusion.dock.trunk import Complex, PoseTrunk, Senders

if TYPE_CHECKING:
    from bio_diffusion.diffusion.product import ProductDiffusion

__all__ = ["ScoreModel"]


class ScoreModel(nn.Module):
    """Scores of a pose's translation, rotation and torsions, given receptor, ligand and latents.

    Outputs are divided by the noise's own score magnitude inside and multiplied back on return,
    so that what the layers produce stays near unit size at every noise level.

    Args:
        process: the product diffusion, for its noise levels and score magnitudes.
        size: widths and depths.
    """

    def __init__(self, process: ProductDiffusion, size: Size | None = None) -> None:
        super().__init__()
        self.size = size = size or Size()
        self.process = process
        self.receptor = ReceptorEncoder(size)
        self.ligand = LigandEncoder(size)
        self.trunk = PoseTrunk(size, size.layers)
        self.time = nn.Sequential(
            nn.Linear(16, size.scalars), nn.SiLU(), nn.Linear(size.scalars, size.scalars)
        )
        self.gates = _head(size.scalars, size.scalars, 5 * size.vectors)
        self.hinge = _head(size.scalars + size.vectors, size.scalars, 1)

    def encode(self, receptor: ReceptorGraph, ligand: LigandGraph) -> Complex:
        """Encode what no pose changes; the receptor part can be shared through `pair`."""
        return self.pair(self.encode_receptor(receptor), ligand)

    def encode_receptor(self, graph: ReceptorGraph) -> tuple[ReceptorFeatures, Senders]:
        """What depends on the receptor alone."""
        features = self.receptor(graph)
        return features, self.trunk.senders(features)

    def pair(self, receptor: tuple[ReceptorFeatures, Senders], ligand: LigandGraph) -> Complex:
        """Join an encoded receptor with a ligand."""
        features, senders = receptor
        return Complex(features, ligand, self.ligand(ligand), pair_types(ligand), senders)

    def forward(self, x_t: Pose, t: Tensor, cond: Complex) -> dict[str, Tensor]:
        """Scores at time t (B,) in [0, 1]: ``tr`` (B, 3), ``rot`` (B, 3), ``tor`` (B, M)."""
        unit = self._tangent(x_t, self.features(x_t.coords, t, cond))
        magnitude = self.process.rms_score(t)
        return {name: unit[name] * magnitude[name].to(unit[name])[:, None] for name in unit}

    def features(self, coords: Tensor, t: Tensor, cond: Complex) -> Features:
        """What the layers make of the ligand atoms of poses (B, N, 3) Å noised to t (B,): B * N."""
        scalars = cond.ligand_scalars[None] + self.time(_fourier(t))[:, None]
        return self.trunk(scalars.flatten(0, 1), coords, cond, cond.senders)

    def _tangent(self, x_t: Pose, ligand: Features) -> Mapping[str, Tensor]:
        batch, atoms, _ = x_t.coords.shape
        gates = self.gates(ligand.scalars)[:, None].chunk(5, -1)
        push, spin, turn, twirl, lever = (
            (ligand.vectors * gate).sum(-1).view(batch, atoms, 3) for gate in gates
        )
        arms = x_t.coords - x_t.coords.mean(1, keepdim=True)
        inertia = arms.square().sum((1, 2)).clamp(min=1.0)[:, None]
        torque = project(turn, x_t)["rot"] / inertia.sqrt() / math.sqrt(atoms)
        return {
            "tr": push.mean(1),
            "rot": torque + spin.mean(1),
            "tor": self._torsions(x_t, ligand, twirl, lever),
        }

    def _torsions(self, x_t: Pose, ligand: Features, twirl: Tensor, lever: Tensor) -> Tensor:
        """(B, M): torque of the moving piece about its bond, and what the hinge atoms say."""
        tree = x_t.tree
        batch, atoms, _ = x_t.coords.shape
        if len(tree) == 0:
            return x_t.coords.new_zeros(batch, 0)
        u, v = tree.bonds.unbind(1)
        axis = F.normalize(x_t.coords[:, v] - x_t.coords[:, u], dim=-1)
        # The far side of a bond turns against the near one: forces on both count.
        share = tree.moving.to(twirl.dtype)
        share = share / share.sum(1, keepdim=True)
        rest = (~tree.moving).to(twirl.dtype)
        rest = rest / rest.sum(1, keepdim=True).clamp(min=1)
        arms = x_t.coords - x_t.coords.mean(1, keepdim=True)
        torque = torch.linalg.cross(arms, twirl)
        hinge = arms[:, v]
        moved = share @ torque - torch.linalg.cross(hinge, share @ twirl)
        held = rest @ torque - torch.linalg.cross(hinge, rest @ twirl)
        swing = (axis * (moved - held + (share @ lever) - (rest @ lever))).sum(-1)
        scalars = ligand.scalars.view(batch, atoms, -1)
        vectors = ligand.vectors.view(batch, atoms, 3, -1)
        handed = (torch.linalg.cross(vectors[:, u], vectors[:, v], dim=2) * axis[..., None]).sum(2)
        return swing + self.hinge(torch.cat([scalars[:, u] + scalars[:, v], handed], -1))[..., 0]


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two layers that start as zero: the zero score, whose loss is 1 a factor."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)


def _fourier(t: Tensor) -> Tensor:
    """(B,) in [0, 1] -> (B, 16)."""
    frequency = torch.pi * 2.0 ** torch.arange(8, device=t.device) / 2
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
