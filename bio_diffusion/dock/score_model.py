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

Heads read forces off the ligand atoms and pull them back to the pose's degrees of freedom, J^T f,
as the gradient of an energy would be; torsions also hear their two hinge atoms.

Legend: B poses, N ligand atoms, M torsions, A receptor atoms, R residues, m latents, K neighbours,
n nodes of any kind; lengths in Å, angles in radians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.dock.graph import (
    ATOM_TYPES,
    BOND_TYPES,
    LIGAND_FEATURES,
    RESIDUE_TYPES,
    LigandGraph,
    ReceptorGraph,
)
from bio_diffusion.dock.layers import (
    Cached,
    Features,
    Message,
    Neighbours,
    Size,
    Update,
    bounded,
    edges_between,
    nearest,
    start,
)
from bio_diffusion.dock.pose import Pose, project

if TYPE_CHECKING:
    from bio_diffusion.diffusion.latents import Latents
    from bio_diffusion.diffusion.product import ProductDiffusion

__all__ = ["Complex", "PoseTrunk", "ReceptorEncoder", "ReceptorFeatures", "ScoreModel", "Senders"]


Senders = tuple[tuple[Cached, Cached], ...]
"""For each interaction layer, the receptor's atoms and residues as its messages read them."""


@dataclass(frozen=True)
class ReceptorFeatures:
    """An encoded receptor, shared by poses, steps and ligands."""

    graph: ReceptorGraph
    atoms: Features
    residues: Features


@dataclass(frozen=True)
class Complex:
    """What the denoiser is conditioned on: everything that no pose changes.

    Args:
        receptor: encoded receptor.
        ligand: the ligand's graph.
        ligand_scalars: (N, C), the ligand's atoms after message passing over bonds.
        pair_type: (N, N) long, covalent relation of each atom pair.
        senders: the receptor as the score network's layers read it.
        latents: z (B, m, R + N) and null (B,), residues first; None for a model without.
    """

    receptor: ReceptorFeatures
    ligand: LigandGraph
    ligand_scalars: Tensor
    pair_type: Tensor
    senders: Senders
    latents: Latents | None = None

    def with_latents(self, latents: Latents | None) -> Complex:
        return replace(self, latents=latents)

    def without_latents(self) -> Complex:
        """The same with its latents hidden, as in a part of the training."""
        return self.with_latents(None if self.latents is None else self.latents.hidden())


_PAIR_TYPES = len(BOND_TYPES) + 3  # a bond's type; two or three bonds apart; farther


class ReceptorEncoder(nn.Module):
    """Atoms hear atoms, residues gather their atoms and hear residues, atoms hear their residue."""

    ATOM_CUTOFF, RESIDUE_CUTOFF = 6.0, 20.0

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.atom = nn.Embedding(len(ATOM_TYPES), size.scalars)
        self.residue = nn.Embedding(len(RESIDUE_TYPES), size.scalars)
        self.atom_messages = nn.ModuleList(Message(size) for _ in range(size.receptor_layers))
        self.atom_updates = nn.ModuleList(Update(size, 1) for _ in range(size.receptor_layers))
        self.residue_messages = nn.ModuleList(Message(size) for _ in range(size.receptor_layers))
        self.residue_updates = nn.ModuleList(Update(size, 1) for _ in range(size.receptor_layers))
        self.gather = nn.Linear(size.scalars, size.scalars)
        self.gather_vectors = nn.Linear(size.vectors, size.vectors, bias=False)
        self.arms = nn.Linear(size.scalars, size.vectors)
        self.spread = nn.Linear(size.scalars, size.scalars)

    def forward(self, graph: ReceptorGraph) -> ReceptorFeatures:
        atoms = start(self.atom(graph.atom_type), self.size)
        edges = self._edges(graph.coords, self.ATOM_CUTOFF)
        for message, update in zip(self.atom_messages, self.atom_updates, strict=True):
            atoms = update(atoms, [message(atoms.scalars, atoms, edges)])
        residues = self._pool(graph, atoms)
        if len(graph.residue_type) > 1:
            edges = self._edges(graph.residue_coords, self.RESIDUE_CUTOFF)
            for message, update in zip(self.residue_messages, self.residue_updates, strict=True):
                heard = message(residues.scalars, residues, edges)
                residues = update(residues, [heard])
        spread = self.spread(residues.scalars)[graph.residue]
        return ReceptorFeatures(graph, Features(atoms.scalars + spread, atoms.vectors), residues)

    def _edges(self, coords: Tensor, cutoff: float) -> Neighbours:
        index = nearest(coords, coords, self.size.receptor_neighbours, skip_self=True)
        return edges_between(coords, coords, index, cutoff)

    def _pool(self, graph: ReceptorGraph, atoms: Features) -> Features:
        """Mean over a residue's atoms, with each atom's arm from the residue's position."""
        arms = graph.coords - graph.residue_coords[graph.residue]
        vectors = self.gather_vectors(atoms.vectors)
        vectors = vectors + arms[..., None] * self.arms(atoms.scalars)[:, None]
        count = len(graph.residue_type)
        sizes = torch.bincount(graph.residue, minlength=count).clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            total = values.new_zeros(count, *values.shape[1:])
            weight = sizes.view(-1, *[1] * (values.dim() - 1))
            return total.index_add(0, graph.residue, values) / weight

        scalars = self.residue(graph.residue_type) + mean(self.gather(atoms.scalars))
        return Features(scalars, bounded(mean(vectors)))


class LigandEncoder(nn.Module):
    """Atom features after a few rounds of message passing over bonds; knows no coordinates."""

    def __init__(self, size: Size, rounds: int = 3) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Embedding(classes, size.scalars) for classes in LIGAND_FEATURES.values()
        )
        self.bond = nn.Embedding(len(BOND_TYPES), size.scalars)
        self.rounds = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(2 * size.scalars),
                nn.Linear(2 * size.scalars, size.scalars),
                nn.SiLU(),
                nn.Linear(size.scalars, size.scalars),
            )
            for _ in range(rounds)
        )

    def forward(self, graph: LigandGraph) -> Tensor:
        columns = zip(self.features, graph.features.unbind(1), strict=True)
        scalars = torch.stack([table(column) for table, column in columns]).sum(0)
        sender, receiver = graph.bonds.unbind(1)
        bond = self.bond(graph.bond_type)
        for update in self.rounds:
            heard = torch.zeros_like(scalars)
            heard = heard.index_add(0, receiver, F.silu(scalars[sender] + bond))
            scalars = scalars + update(torch.cat([scalars, heard], -1))
        return scalars


def pair_types(graph: LigandGraph) -> Tensor:
    """(N, N) long: 0 unrelated, 1 + bond type, then two bonds apart, three bonds apart."""
    n = graph.features.shape[0]
    bonded = torch.zeros(n, n, dtype=torch.bool, device=graph.features.device)
    i, j = graph.bonds.unbind(1)
    bonded[i, j] = True
    adjacent = bonded.float()
    two = (adjacent @ adjacent) > 0
    three = (adjacent @ two.float()) > 0
    kinds = torch.zeros(n, n, dtype=torch.long, device=bonded.device)
    kinds[three] = len(BOND_TYPES) + 2
    kinds[two] = len(BOND_TYPES) + 1
    kinds[i, j] = 1 + graph.bond_type
    return kinds


class Interaction(nn.Module):
    """One layer: ligand atoms hear ligand atoms, receptor atoms, residues and latents."""

    LIGAND_CUTOFF, ATOM_CUTOFF, RESIDUE_CUTOFF, LATENT_CUTOFF = 12.0, 10.0, 24.0, 30.0

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.from_ligand = Message(size, _PAIR_TYPES)
        self.from_atoms = Message(size)
        self.from_residues = Message(size)
        self.from_latents = Message(size) if size.latents else None
        self.update = Update(size, 3 + bool(size.latents))

    def cache(self, receptor: ReceptorFeatures) -> tuple[Cached, Cached]:
        """The receptor as this layer reads it."""
        return self.from_atoms.cache(receptor.atoms), self.from_residues.cache(receptor.residues)

    def forward(
        self,
        ligand: Features,
        receptor: tuple[Cached, Cached],
        near: Surroundings,
        pointers: Pointers | None,
    ) -> Features:
        own = ligand.scalars
        heard = [
            self.from_ligand(own, ligand, near.ligand, near.pair_type),
            self.from_atoms(own, receptor[0], near.atoms),
            self.from_residues(own, receptor[1], near.residues),
        ]
        if self.from_latents is not None and pointers is not None:
            told = self.from_latents(own, pointers.features, pointers.edges)
            # A null latent has no place, so it says nothing that has a direction.
            heard.append(Features(told.scalars, told.vectors * pointers.present))
        return self.update(ligand, heard)


class Surroundings(NamedTuple):
    """Whom the ligand atoms of B poses hear, and how they are bonded to their own kind (n, K)."""

    ligand: Neighbours
    pair_type: Tensor
    atoms: Neighbours
    residues: Neighbours


class Pointers(NamedTuple):
    """Latents as senders; present (n, 1, 1) is 0 where they are hidden."""

    features: Features
    edges: Neighbours
    present: Tensor


class PoseTrunk(nn.Module):
    """Ligand atoms of B poses in the field of one encoded receptor, through L interactions."""

    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(Interaction(size) for _ in range(layers))
        if size.latents:
            self.null = nn.Parameter(torch.zeros(size.latents, size.scalars))
            self.slot = nn.Parameter(0.1 * torch.randn(size.latents, size.scalars))
            self.pointed = nn.Linear(size.latents, size.scalars, bias=False)

    def senders(self, receptor: ReceptorFeatures) -> Senders:
        """What the layers read of a receptor: made once, used for every pose and step."""
        return tuple(layer.cache(receptor) for layer in self.layers)  # type: ignore[operator]

    def forward(
        self, scalars: Tensor, coords: Tensor, given: Complex, senders: Senders
    ) -> Features:
        """Run the layers.

        Args:
            scalars: (B * N, C), initial scalars of the ligand atoms.
            coords: (B, N, 3) Å.
            given: the encoded complex.
            senders: its receptor, as `senders` of this trunk returned it.

        Returns:
            Features of the B * N ligand atoms.
        """
        near = self._surroundings(coords, given)
        pointers = None
        if given.latents is not None:
            pointers = self._pointers(coords, given, given.latents)
            scalars = scalars + self._flags(given.latents, coords.shape[1])
        ligand = start(scalars, self.size)
        for layer, receptor in zip(self.layers, senders, strict=True):
            ligand = layer(ligand, receptor, near, pointers)
        return ligand

    def _surroundings(self, coords: Tensor, given: Complex) -> Surroundings:
        batch, atoms, _ = coords.shape
        flat, graph, k = coords.reshape(-1, 3), given.receptor.graph, self.size.neighbours
        own = self._within_ligand(coords)
        row = torch.arange(batch * atoms, device=flat.device)[:, None] % atoms
        place = graph.residue_coords
        near_atoms, near_residues = nearest(flat, graph.coords, k), nearest(flat, place, k)
        return Surroundings(
            own,
            given.pair_type[row, own.sender % atoms],
            edges_between(flat, graph.coords, near_atoms, Interaction.ATOM_CUTOFF),
            edges_between(flat, place, near_residues, Interaction.RESIDUE_CUTOFF),
        )

    def _within_ligand(self, coords: Tensor) -> Neighbours:
        batch, atoms, _ = coords.shape
        distance = torch.cdist(coords, coords)
        distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
        k = max(1, min(self.size.neighbours, atoms - 1))
        index = distance.topk(k, dim=-1, largest=False, sorted=False).indices
        offset = atoms * torch.arange(batch, device=coords.device)[:, None, None]
        flat = coords.reshape(-1, 3)
        return edges_between(flat, flat, (index + offset).view(-1, k), Interaction.LIGAND_CUTOFF)

    def _pointers(self, coords: Tensor, given: Complex, latents: Latents) -> Pointers:
        """Latents as senders: m a pose, at the mean place and with the mean features of z."""
        receptor = given.receptor
        batch, atoms, _ = coords.shape
        m = self.size.latents
        to_residues, to_atoms = latents.z.split([len(receptor.graph.residue_type), atoms], -1)
        place = to_residues @ receptor.graph.residue_coords + to_atoms @ coords
        scalars = to_residues @ receptor.residues.scalars + to_atoms @ given.ligand_scalars
        vectors = torch.einsum("bmr,rxc->bmxc", to_residues, receptor.residues.vectors)
        present = (~latents.null).to(coords.dtype)[:, None, None]
        scalars = self.slot + present * scalars + (1 - present) * self.null
        vectors = present[..., None] * vectors
        index = torch.arange(batch * m, device=coords.device).view(batch, 1, m)
        index = index.expand(batch, atoms, m).reshape(-1, m)
        edges = edges_between(
            coords.reshape(-1, 3), place.flatten(0, 1), index, Interaction.LATENT_CUTOFF
        )
        seen = present.expand(batch, atoms, 1).reshape(-1, 1, 1)
        return Pointers(
            Features(scalars.flatten(0, 1), vectors.flatten(0, 1)),
            edges._replace(radial=edges.radial * seen),
            seen,
        )

    def _flags(self, latents: Latents, atoms: int) -> Tensor:
        """(B * N, C): tells the ligand atoms which latents point to them."""
        flags = latents.z[..., -atoms:].transpose(1, 2) * (~latents.null)[:, None, None]
        return self.pointed(flags).flatten(0, 1)


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
        scalars = cond.ligand_scalars[None] + self.time(_fourier(t))[:, None]
        ligand = self.trunk(scalars.flatten(0, 1), x_t.coords, cond, cond.senders)
        unit = self._tangent(x_t, ligand)
        magnitude = self.process.rms_score(t)
        return {name: unit[name] * magnitude[name].to(unit[name])[:, None] for name in unit}

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
