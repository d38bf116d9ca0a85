"""DisCo latents of docking: pointers to residues and ligand atoms.

Each of m latents is a one-hot over the R residues and N ligand atoms of a complex, in this order.
The first may point to residues only: so it names a site, and a known pocket can restrict it. The
others choose among all nodes. `PointerEncoder` reads the clean pose and is trained with the score
network; `PointerPrior` learns afterwards to guess its pointers from receptor and ligand alone.

Source: Xu et al., "DisCo-Diff", ICML 2024, appendix E. There both latents range over all nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.dock.encoders import ReceptorEncoder
from bio_diffusion.dock.layers import Features, Message, Size, Update, edges_between, nearest
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.trunk import Complex, Interaction, PoseTrunk

__all__ = ["PointerEncoder", "PointerPrior", "pointer_mask"]


def pointer_mask(latents: int, residues: int, atoms: int, device: torch.device) -> Tensor:
    """(m, R + N) bool: where each latent may point."""
    mask = torch.ones(latents, residues + atoms, dtype=torch.bool, device=device)
    mask[0, residues:] = False
    return mask


class PointerEncoder(nn.Module):
    """Logits of the pointers from a clean pose; untrained, all pointers are equally likely.

    Args:
        size: of the score network whose receptor features it reads.
        layers: interactions of its own.
    """

    def __init__(self, size: Size, layers: int = 2) -> None:
        super().__init__()
        self.size = size
        self.trunk = PoseTrunk(size.without_latents(), layers)
        self.to_residues = Message(size)
        self.residue = _readout(size.scalars + size.scalars + size.vectors, size)
        self.atom = _readout(size.scalars, size)

    def forward(self, given: Complex, pose: Pose) -> Tensor:
        """Pointer logits (m, R + N) of the one pose in `pose`; impossible pointers get -inf."""
        graph, residues = given.receptor.graph, given.receptor.residues
        coords = pose.coords[:1]
        senders = self.trunk.senders(given.receptor)
        ligand = self.trunk(given.ligand_scalars, coords, given.with_latents(None), senders)
        index = nearest(graph.residue_coords, coords[0], self.size.neighbours)
        edges = edges_between(graph.residue_coords, coords[0], index, Interaction.RESIDUE_CUTOFF)
        heard = self.to_residues(residues.scalars, ligand, edges)
        seen = torch.cat([residues.scalars, heard.scalars], -1)
        logits = torch.cat([self.residue(seen), self.atom(ligand.scalars)]).T
        mask = pointer_mask(len(logits), len(seen), coords.shape[1], logits.device)
        return logits.masked_fill(~mask, -torch.inf)


def _readout(inputs: int, size: Size) -> nn.Sequential:
    last = nn.Linear(size.scalars, size.latents)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, size.scalars), nn.SiLU(), last)


class PointerPrior(nn.Module):
    """Autoregressive prior p(z_1, ..., z_m | receptor, ligand) over pointers.

    Reads the trained score network's receptor and ligand features, without gradients into them, and
    adds residue layers of its own. Latent i is scored by one readout per position, given the
    features and places of the nodes that the earlier ones point to.

    Args:
        size: of the score network.
        layers: residue interactions of its own.
    """

    def __init__(self, size: Size, layers: int = 2) -> None:
        super().__init__()
        self.size = size
        c = size.scalars
        self.ligand = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c))
        self.pool = nn.Sequential(
            nn.LayerNorm(2 * c), nn.Linear(2 * c, c), nn.SiLU(), nn.Linear(c, c)
        )
        self.enter = nn.Linear(c, c)
        self.messages = nn.ModuleList(Message(size) for _ in range(layers))
        self.updates = nn.ModuleList(Update(size, 1) for _ in range(layers))
        self.query = nn.ModuleList(
            nn.Sequential(nn.LayerNorm((i + 1) * c), nn.Linear((i + 1) * c, c))
            for i in range(size.latents)
        )
        self.score = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(2 * c + i), nn.Linear(2 * c + i, c), nn.SiLU(), nn.Linear(c, 1)
            )
            for i in range(size.latents)
        )

    def forward(self, z: Tensor, given: Complex) -> Tensor:
        """Logits (B, m, R + N) of every latent given the ones before it in z (B, m, R + N)."""
        nodes = self.nodes(given)
        each = [self.logits(given, nodes, z[:, :i]) for i in range(z.shape[1])]
        return torch.stack(each, 1)

    def nodes(self, given: Complex) -> tuple[Tensor, Tensor]:
        """Features (R + N, C) of all nodes and a summary (C,) of the ligand."""
        receptor = given.receptor
        atoms = given.ligand_scalars.detach()
        atoms = atoms + self.ligand(atoms)
        summary = self.pool(torch.cat([atoms.mean(0), atoms.amax(0)]))
        residues = Features(
            receptor.residues.scalars.detach() + self.enter(summary),
            receptor.residues.vectors.detach(),
        )
        place = receptor.graph.residue_coords
        index = nearest(place, place, self.size.receptor_neighbours, skip_self=True)
        edges = edges_between(place, place, index, ReceptorEncoder.RESIDUE_CUTOFF)
        for message, update in zip(self.messages, self.updates, strict=True):
            heard = message(residues.scalars, residues, edges)
            residues = update(residues, [heard])
        return torch.cat([residues.scalars, atoms]), summary

    def logits(self, given: Complex, nodes: tuple[Tensor, Tensor], prefix: Tensor) -> Tensor:
        """Logits (B, R + N) of the next latent.

        Args:
            given: the complex.
            nodes: what `nodes` returned for it.
            prefix: (B, i, R + N) one-hot latents chosen so far, i < m.
        """
        features, summary = nodes
        batch, i, _ = prefix.shape
        count = len(given.receptor.graph.residue_type)
        pointed = (prefix @ features).flatten(1)
        query = self.query[i](torch.cat([summary.expand(batch, -1), pointed], -1))
        near = self._nearness(given, prefix)
        own = features.expand(batch, -1, -1)
        joint = torch.cat([own, query[:, None] * own, near], -1)
        logits = self.score[i](joint)[..., 0]
        mask = pointer_mask(i + 1, count, features.shape[0] - count, logits.device)[i]
        return logits.masked_fill(~mask, -torch.inf)

    def _nearness(self, given: Complex, prefix: Tensor) -> Tensor:
        """(B, R + N, i): how near each residue is to the pointed residues; 0 for ligand atoms."""
        place = given.receptor.graph.residue_coords
        to_residue = prefix[..., : len(place)]
        pointed = to_residue @ place
        near = torch.exp(-torch.cdist(place.expand(len(prefix), -1, -1), pointed) / 10.0)
        near = near * to_residue.sum(-1)[:, None]
        return F.pad(near, (0, 0, 0, prefix.shape[-1] - len(place)))
