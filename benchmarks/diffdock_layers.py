"""What the layers of DiffDock-S cost a call, beside a call of our score network.

DiffDock's convolution, written anew with random weights at the sizes of its small model: 24 scalars
and 6 vectors of each parity, 5 layers, harmonics to l = 1. Each edge gets the weights of a fully
connected tensor product, 1,872 numbers from the third layer on, from a two-layer perceptron (72 to
72 to 1,872) on edge features and the scalars of both ends; one perceptron for each of four kinds of
edge: ligand to ligand (bonds, and pairs within 5 Å), receptor to ligand and back (all pairs within
3 sigma_tr + 20 Å, sigma_tr = 0.1^(1 - t) 19^t), receptor to receptor (24 nearest alpha carbons
within 15 Å). The receptor is copied for every pose and run through all layers in each call, as
there, since its nodes hear the ligand.

Counted: embeddings of edges, the perceptrons, products, means over edges, batch norm (evaluation)
and residual of all five layers. Not counted, in DiffDock's favour: the search for neighbours, the
embeddings of nodes with ESM2's, the heads and the confidence model. Our call counts everything but
the receptor's encoding, which is made once for all calls and ligands and has a column of its own.

Shapes: B poses, N ligand atoms, R residues, E edges, n = B (N + R) nodes. Coordinates in Å.

Source: Corso et al., ICLR 2023 (the layers); Xu et al., ICML 2024, and the settings and code
published with it, gcorso/disco-diffdock 720bcb9, workdir/diffdockS_score_model (the small sizes,
the product for l <= 1, the radii).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vina_baseline import search_box

from bio_diffusion.dock.complex import Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.network import NetworkPoses
from bio_diffusion.dock.pose import Pose
from bio_diffusion.dock.sources import PreparedLigand, PreparedReceptor

__all__ = ["Edges", "Layers", "Product", "edges_of", "render", "timed"]

SCALARS, VECTORS, DEPTH = 24, 6, 5
DISTANCES, TIMES, BONDS = 32, 32, 4  # features of an edge
POSES = 10


class Widths(NamedTuple):
    """Channels of a node: 0e, 1o, 1e and 0o in e3nn's terms."""

    even: int
    vectors: int
    axial: int
    odd: int

    @property
    def split(self) -> tuple[int, int, int, int]:
        return self.even, 3 * self.vectors, 3 * self.axial, self.odd


WIDTHS = (
    Widths(SCALARS, 0, 0, 0),
    Widths(SCALARS, VECTORS, 0, 0),
    Widths(SCALARS, VECTORS, VECTORS, 0),
    Widths(SCALARS, VECTORS, VECTORS, SCALARS),
)
"""Of the nodes before each layer; the last stays."""


class Product:
    """Fully connected tensor product with the harmonics (1, r) of an edge, weights for each edge.

    Every path that parity allows: 0e from 0e and 1o.r; 1o from 0e r, 1o and 1e x r; 1e from
    1o x r, 1e and 0o r; 0o from 1e.r and 0o.
    """

    def __init__(self, given: Widths, made: Widths) -> None:
        self.given = given
        even, vectors, axial, odd = given
        self.shapes = (
            (even + vectors, made.even),
            (even + vectors + axial, made.vectors),
            (vectors + axial + odd, made.axial),
            (axial + odd, made.odd),
        )
        self.weights = sum(a * b for a, b in self.shapes)

    def __call__(self, features: Tensor, unit: Tensor, weights: Tensor) -> Tensor:
        """(E, C), (E, 3) and (E, self.weights) -> (E, C')."""
        even, vectors, axial, odd = features.split(self.given.split, -1)
        edges = len(features)
        r = (math.sqrt(3) * unit)[:, None]
        vectors, axial = vectors.reshape(edges, -1, 3), axial.reshape(edges, -1, 3)
        turned = torch.linalg.cross(vectors, r, dim=-1) / math.sqrt(2)
        untwisted = torch.linalg.cross(axial, r, dim=-1) / math.sqrt(2)
        heard = (
            torch.cat([even, (vectors * r).sum(-1) / math.sqrt(3)], 1)[..., None],
            torch.cat([even[..., None] * r, vectors, untwisted], 1),
            torch.cat([turned, axial, odd[..., None] * r], 1),
            torch.cat([(axial * r).sum(-1) / math.sqrt(3), odd], 1)[..., None],
        )
        sizes = [a * b for a, b in self.shapes]
        made = []
        for inputs, weight, (fan_in, fan_out) in zip(
            heard, weights.split(sizes, -1), self.shapes, strict=True
        ):
            if fan_in and fan_out:
                mixed = weight.view(edges, fan_in, fan_out).transpose(1, 2) @ inputs
                made.append((mixed / math.sqrt(fan_in)).flatten(1))
        return torch.cat(made, 1)


@dataclass(frozen=True)
class Edges:
    """One kind of edge: receiver and sender (E,), features (E, F), unit vector (E, 3)."""

    receiver: Tensor
    sender: Tensor
    features: Tensor
    unit: Tensor


class Layers(nn.Module):
    """The five convolutions and the embeddings of their edges, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        embeddings = [TIMES + DISTANCES] * 4
        embeddings[0] += BONDS
        self.embed = nn.ModuleList(_perceptron(f, SCALARS, SCALARS) for f in embeddings)
        self.products = []
        self.weights = nn.ModuleList()
        for depth in range(DEPTH):
            given, made = (WIDTHS[min(i, len(WIDTHS) - 1)] for i in (depth, depth + 1))
            self.products.append(product := Product(given, made))
            hidden = 3 * SCALARS
            self.weights.append(
                nn.ModuleList(_perceptron(hidden, hidden, product.weights) for _ in embeddings)
            )

    def forward(self, nodes: Tensor, kinds: Sequence[Edges]) -> Tensor:
        """(n, 24) scalars -> (n, 84) features of all nodes; `kinds` as `edges_of` gives them."""
        embedded = [layer(k.features) for layer, k in zip(self.embed, kinds, strict=True)]
        degree = sum(torch.bincount(k.receiver, minlength=len(nodes)) for k in kinds)
        share = 1 / torch.as_tensor(degree).clamp(min=1)[:, None]
        for product, perceptrons in zip(self.products, self.weights, strict=True):
            scalars, total = nodes[:, :SCALARS], None
            for kind, told, perceptron in zip(kinds, embedded, perceptrons, strict=True):
                ends = [scalars[kind.receiver], scalars[kind.sender]]
                weights = perceptron(torch.cat([told, *ends], 1))
                message = product(nodes[kind.sender], kind.unit, weights)
                if total is None:
                    total = message.new_zeros(len(nodes), message.shape[1])
                total.index_add_(0, kind.receiver, message)
            # batch norm in evaluation scales channels: with unit statistics, a product with one
            total = total * share * total.new_ones(total.shape[1])
            nodes = total + F.pad(nodes, (0, total.shape[1] - nodes.shape[1]))
        return nodes


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def edges_of(coords: Tensor, bonds: Tensor, residues: Tensor, t: float) -> list[Edges]:
    """The four kinds of edges at time t; nodes are B x N ligand atoms, then B x R residues.

    Args:
        coords: (B, N, 3) poses.
        bonds: (b, 2) long, each bond in both directions.
        residues: (R, 3) alpha carbons.
        t: in [0, 1].
    """
    batch, atoms, _ = coords.shape
    first = batch * atoms
    nodes = torch.cat([coords.reshape(-1, 3), residues.repeat(batch, 1)])
    pose = torch.arange(batch)[:, None]

    def kind(receiver: Tensor, sender: Tensor, reach: float, extra: int = 0) -> Edges:
        offset = nodes[sender] - nodes[receiver]
        distance = offset.norm(dim=1, keepdim=True)
        centers = torch.linspace(0, reach, DISTANCES)
        smeared = torch.exp(-0.5 * ((distance - centers) / centers[1]) ** 2)
        features = torch.cat([smeared, smeared.new_full((len(offset), TIMES + extra), t)], 1)
        return Edges(receiver, sender, features, offset / distance.clamp(min=1e-6))

    near = (torch.cdist(coords, coords) < 5.0) & ~torch.eye(atoms, dtype=torch.bool)
    which, i, j = near.nonzero().unbind(1)
    bonded = (bonds[None] + atoms * pose[..., None]).reshape(-1, 2)
    within = torch.cat([bonded, torch.stack([i, j], 1) + atoms * which[:, None]])
    sigma = 0.1 ** (1 - t) * 19.0**t
    gap = torch.cdist(coords.reshape(1, -1, 3), residues[None]).view(batch, atoms, -1)
    which, i, j = (gap < 3 * sigma + 20).nonzero().unbind(1)
    ligand, residue = i + atoms * which, j + len(residues) * which + first
    apart = torch.cdist(residues, residues).fill_diagonal_(math.inf)
    found = apart.topk(min(24, len(residues) - 1), largest=False)
    u, place = (found.values < 15.0).nonzero().unbind(1)
    shift = first + len(residues) * pose
    u, v = (u + shift).flatten(), (found.indices[u, place] + shift).flatten()
    return [
        kind(within[:, 0], within[:, 1], 5.0, BONDS),
        kind(ligand, residue, 80.0),
        kind(u, v, 30.0),
        kind(residue, ligand, 80.0),
    ]


def timed(call: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of `repeats` calls."""
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one call of 10 poses on one complex."""

    id: str
    residues: int
    atoms: int
    edges: dict[float, int]
    theirs: dict[float, float]
    ours: float
    encoding: float
    pocket: int
    theirs_in_pocket: float


def measure(source: NetworkPoses, folder: Path, times: Sequence[float], repeats: int = 1) -> Cost:
    """Both networks on one complex, 10 copies of the crystal pose each moved by 1 Å a coordinate.

    Ours sees its pocket; DiffDock's layers the whole receptor, as there, and at the middle time
    also our pocket alone.
    """
    ligand = next(iter(read_ligands([str(folder / "ligand.sdf")])))
    if not isinstance(ligand, Ligand) or ligand.crystal is None:
        raise ValueError(f"{folder}: no ligand with coordinates")
    receptor = PreparedReceptor.of(read_receptor(folder / "protein.pdb"))
    site = Site(*search_box(ligand.crystal), "crystal")
    prepared = PreparedLigand.of(ligand, 2, 0)
    generator = torch.Generator().manual_seed(0)
    crystal = torch.as_tensor(ligand.crystal, dtype=torch.float32)
    coords = crystal + torch.randn(POSES, 1, 3, generator=generator)
    bonds, layers = prepared.graph.bonds, Layers().eval()

    def theirs(residues: Tensor, t: float) -> tuple[int, float]:
        kinds = edges_of(coords, bonds, residues, t)
        nodes = torch.randn(POSES * (coords.shape[1] + len(residues)), SCALARS, generator=generator)
        return sum(len(k.receiver) for k in kinds), timed(lambda: layers(nodes, kinds), repeats)

    with torch.inference_mode():
        given = source.complex(receptor, prepared, site)
        conditioned = given.with_latents(source.draw(given, POSES, generator))
        pocket = given.receptor.graph
        pose, t = Pose(coords, prepared.graph.tree), torch.full((POSES,), 0.5)
        score = source.model.score
        score(pose, t, conditioned)  # the first call is slower
        ours = timed(lambda: score(pose, t, conditioned), 10)
        encoding = timed(lambda: score.encode_receptor(pocket), 3)
        middle = times[len(times) // 2]
        inside = theirs(pocket.residue_coords, middle)[1]
        found = {t: theirs(receptor.graph.residue_coords, t) for t in times}
    return Cost(
        folder.name,
        len(receptor.graph.residue_type),
        coords.shape[1],
        {t: count for t, (count, _) in found.items()},
        {t: spent for t, (_, spent) in found.items()},
        ours,
        encoding,
        len(pocket.residue_type),
        inside,
    )


def render(costs: Sequence[Cost], times: Sequence[float]) -> str:
    """A Markdown table of both, and the ratios; geometric means over complexes."""
    middle = times[len(times) // 2]
    heads = " | ".join(f"DiffDock-S layers, s, t = {t:g} (edges)" for t in times)
    lines = [
        "| complex | ligand atoms | residues (our pocket) | our call, ms | our receptor, once, ms "
        f"| {heads} | in our pocket, s, t = {middle:g} |",
        "|---" * (6 + len(times)) + "|",
    ]
    for c in costs:
        cells = " | ".join(f"{c.theirs[t]:.2f} ({c.edges[t]:,})" for t in times)
        lines.append(
            f"| {c.id} | {c.atoms} | {c.residues} ({c.pocket}) | {1e3 * c.ours:.1f} "
            f"| {1e3 * c.encoding:.1f} | {cells} | {c.theirs_in_pocket:.2f} |"
        )
    lines.append("")
    for name, ratios in [
        *((f"whole receptor, t = {t:g}", [c.theirs[t] / c.ours for c in costs]) for t in times),
        (f"our pocket, t = {middle:g}", [c.theirs_in_pocket / c.ours for c in costs]),
    ]:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"DiffDock-S layers against our call, {name}: {mean:.0f} times the CPU time "
            f"({min(ratios):.0f} to {max(ratios):.0f} over {len(costs)} complexes)  "
        )
    return "\n".join(lines)
