"""Would other weights of the energy, or a learned table of contacts, rank poses better?

Physics alone docks training and validation complexes. A linear score of a pose's terms is then
fitted to choose the right poses (below 1.5 Å) over the wrong ones (above 2.5 Å) of each complex:

    loss = - mean_c log sum_{right p} softmax_p(w . f_p) + decay |w|^2

with f standardised. The rows differ in f: Vina's five terms and the inner energy; Vinardo's four;
both and six more; and beside those the number of contacts by kind of ligand atom, kind of receptor
atom and distance between surfaces (12 x 12 x 9). Training complexes are scored by a fit to the four
fifths of their protein clusters that lack theirs, validation complexes by the fit to all.

    python benchmarks/dock_refit.py pools --data DATA/train --manifest manifest.csv --split train \
        --out POOLS/train
    python benchmarks/dock_refit.py fit --pools POOLS --manifest manifest.csv

Source: Trott and Olson 2010 (Vina); Quiroga and Villarreal 2016 (Vinardo).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vina_baseline import chosen, sample_flags, search_box

from bio_diffusion.dock.complex import Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.maps import mapped
from bio_diffusion.dock.metrics import mcnemar, rate, symmetric_rmsd
from bio_diffusion.dock.physics import ATOM_KINDS, CUTOFF
from bio_diffusion.dock.pipeline import Docker, ligand_seed
from bio_diffusion.dock.search import anneal, distinct, minimize
from bio_diffusion.dock.sources import PreparedLigand

RIGHT, WRONG = 1.5, 2.5  # Å
POSES = 30
EDGES = torch.tensor([-0.6, -0.3, 0.0, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0])  # Å between surfaces
KINDS = torch.tensor([[float(v) for v in kind] for kind in ATOM_KINDS.values()])
METAL = torch.tensor([name == "metal" for name in ATOM_KINDS])
# Vinardo's radii, where they differ from those it shares with Vina.
_VINARDO = {"C_H": 2.0, "C_P": 2.0, "N_P": 1.7, "N_D": 1.7, "N_A": 1.7, "N_DA": 1.7, "O_A": 1.6,
            "O_DA": 1.6, "Br": 2.0, "metal": 1.2}  # fmt: skip
RADII = torch.tensor([_VINARDO.get(name, kind[0]) for name, kind in ATOM_KINDS.items()])
_GROUP = {"C_H": 0, "C_P": 1, "N_P": 2, "N_D": 3, "N_A": 4, "N_DA": 3, "O_A": 5, "O_DA": 6, "S": 7,
          "P": 8, "F": 9, "Cl": 10, "Br": 10, "I": 10}  # fmt: skip
GROUP = torch.tensor([_GROUP.get(name, 11) for name in ATOM_KINDS])


@dataclass(frozen=True)
class Pool:
    """Poses of one complex, (P, ...): RMSD in Å, features by row of the table."""

    id: str
    rmsd: Tensor
    features: dict[str, Tensor]

    @property
    def right(self) -> Tensor:
        return self.rmsd < RIGHT

    @property
    def wrong(self) -> Tensor:
        return self.rmsd > WRONG


def pools(args: argparse.Namespace) -> int:
    """Docks by physics alone and keeps the poses with their terms, one file a complex."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    docker = Docker.load("none", "cpu", starts=48, rounds=15, conformers=4)
    for key, _, _ in chosen(args):
        path = args.out / f"{key}.npz"
        if not path.exists():
            try:
                np.savez_compressed(path, **search(docker, args.data / key))
            except ValueError as error:
                print(f"{key}: {error}", file=sys.stderr)
    return 0


def search(docker: Docker, folder: Path) -> dict[str, np.ndarray]:
    """Low poses of the complex in `folder`, energies, terms and RMSD."""
    receptor = docker.prepare(read_receptor(folder / "protein.pdb"))
    ligand = next(iter(read_ligands([str(folder / "ligand.sdf")])))
    if not isinstance(ligand, Ligand):
        raise ValueError(ligand.reason)
    assert ligand.crystal is not None
    wanted, site = docker.settings, Site(*search_box(ligand.crystal), "crystal")
    generator = torch.Generator().manual_seed(ligand_seed(ligand, 0))
    prepared = PreparedLigand.of(ligand, wanted.conformers, 0)
    start = docker.source.poses(receptor, prepared, site, wanted.starts, generator)
    exact = prepared.energy(receptor, site)
    fast = mapped(exact, receptor.maps(site))
    visited = anneal(start, fast, generator, wanted.rounds, wanted.evaluations)
    coords = minimize(distinct(visited, POSES, 1.0).pose, exact, 60).pose.coords.clone()
    terms, contacts = zip(
        *(_terms(xyz, prepared.types, receptor.coords, receptor.types) for xyz in coords),
        strict=True,
    )
    return {
        "rmsd": symmetric_rmsd(coords.numpy(), ligand.crystal, ligand.mol),
        "energy": torch.stack([exact.inter(coords), exact.intra(coords)], 1).numpy(),
        "terms": torch.stack(terms).numpy(),
        "contacts": torch.stack(contacts).to(torch.int16).numpy(),
    }


def _terms(xyz: Tensor, types: Tensor, receptor: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of terms (15,) and numbers of contacts (12 * 12 * 9,) of one pose (N, 3)."""

    def slope(d: Tensor, good: float, bad: float) -> Tensor:
        return ((bad - d) / (bad - good)).clamp(0, 1)

    near = (receptor > xyz.amin(0) - CUTOFF).all(1) & (receptor < xyz.amax(0) + CUTOFF).all(1)
    receptor, kinds = receptor[near], kinds[near]
    apart = torch.cdist(xyz, receptor)
    i, j = (apart < CUTOFF).nonzero(as_tuple=True)
    a, b, r = types[i], kinds[j], apart[i, j]
    s, v = r - KINDS[a, 0] - KINDS[b, 0], r - RADII[a] - RADII[b]
    (greasy, donor, acceptor), others = KINDS[a, 1:].unbind(1), KINDS[b, 1:].unbind(1)
    grease = greasy * others[0]
    bridge = torch.maximum(donor * others[2], acceptor * others[1])
    metal = METAL[b].float() * acceptor
    bond = bridge * (1 - METAL[b].float())
    overlap, overlap_v = s.clamp(max=0).square(), v.clamp(max=0).square()
    polar, polar_b = torch.maximum(donor, acceptor), torch.maximum(others[1], others[2])
    terms = torch.stack(
        [
            torch.exp(-((s / 0.5) ** 2)),
            torch.exp(-(((s - 3) / 2) ** 2)),
            overlap,
            grease * slope(s, 0.5, 1.5),
            bridge * slope(s, -0.7, 0.0),
            torch.exp(-((v / 0.8) ** 2)),
            overlap_v,
            grease * slope(v, 0.0, 2.5),
            bridge * slope(v, -0.6, 0.0),
            metal * slope(s, -0.7, 0.3),
            bond * slope(s, -0.7, 0.6),
            bond * overlap,
            grease * overlap,
            polar * polar_b * (1 - bridge) * slope(s, -0.3, 0.5),
            (polar * others[0] + polar_b * greasy) * slope(s, 0.0, 1.0),
        ]
    ).sum(1)
    place = torch.bucketize(s, EDGES)
    code = (GROUP[a] * 12 + GROUP[b]) * len(EDGES) + place
    contacts = torch.bincount(code[place < len(EDGES)], minlength=144 * len(EDGES))
    return terms, contacts


ROWS = {  # name: (features, weight decay)
    "Vina's five terms, fitted": ("vina", 1e-3),
    "Vinardo's four terms, fitted": ("vinardo", 1e-3),
    "both and six more": ("terms", 1e-2),
    "those and a table of contacts": ("contacts", 0.3),
}


def read_pool(path: Path) -> Pool:
    held = np.load(path)
    terms, energy = torch.from_numpy(held["terms"]), torch.from_numpy(held["energy"])
    inner = energy[:, 1:]
    contacts = torch.from_numpy(held["contacts"]).float()
    return Pool(
        path.stem,
        torch.from_numpy(np.asarray(held["rmsd"], dtype=np.float32)),
        {
            "energy": -energy.sum(1, keepdim=True),
            "vina": torch.cat([terms[:, :5], inner], 1),
            "vinardo": torch.cat([terms[:, 5:9], inner], 1),
            "terms": torch.cat([terms, energy], 1),
            "contacts": torch.cat([terms, energy, contacts], 1),
        },
    )


def fitted(found: Sequence[Pool], name: str, decay: float) -> Tensor:
    """Weights (F,) of the features."""
    kept = [p for p in found if p.right.any() and p.wrong.any()]
    used = [p.right | p.wrong for p in kept]
    rows = [p.features[name][u] for p, u in zip(kept, used, strict=True)]
    x = torch.cat([row - row.mean(0) for row in rows])
    x = x / (scale := x.std(0) + 1e-3)
    right = torch.cat([p.right[u] for p, u in zip(kept, used, strict=True)])
    sizes = torch.tensor([len(row) for row in rows])
    segment = torch.repeat_interleave(torch.arange(len(rows)), sizes)
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=150, line_search_fn="strong_wolfe")

    def total(values: Tensor) -> Tensor:
        top = values.new_full((len(rows),), -torch.inf)
        top = top.scatter_reduce(0, segment, values.detach(), "amax")
        shifted = (values - top[segment]).exp()
        return top + values.new_zeros(len(rows)).index_add(0, segment, shifted).log()

    def closure() -> Tensor:
        optimizer.zero_grad()
        score = x @ w
        loss = (total(score) - total(score.masked_fill(~right, -1e6))).mean()
        loss = loss + decay * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach() / scale


def hits(found: Sequence[Pool], name: str, w: Tensor) -> list[bool]:
    """Whether the first pose of each complex is below 2 Å."""
    return [bool(p.rmsd[(p.features[name] @ w).argmax()] < 2) for p in found]


def fit(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    with args.manifest.open(newline="") as file:
        facts = {row["id"]: row for row in csv.DictReader(file)}
    train, val = (
        [read_pool(path) for path in sorted((args.pools / split).glob("*.npz"))]
        for split in ("train", "val")
    )
    fold = [int(facts[p.id]["cluster"]) % 5 for p in train]
    whole = [facts[p.id]["het_stripped"] == "0" for p in train]
    parts = {
        "training, receptors whole": [k for k, w in enumerate(whole) if w],
        "training, stripped": [k for k, w in enumerate(whole) if not w],
    }
    one = torch.ones(1)
    table = {"Vina's energy": (hits(train, "energy", one), hits(val, "energy", one))}
    for row, (name, decay) in ROWS.items():
        held_out = [False] * len(train)
        for number in range(5):
            w = fitted([p for p, f in zip(train, fold, strict=True) if f != number], name, decay)
            mine = [k for k, f in enumerate(fold) if f == number]
            for k, hit in zip(mine, hits([train[k] for k in mine], name, w), strict=True):
                held_out[k] = hit
        table[row] = held_out, hits(val, name, fitted(train, name, decay))
    any_right = [[bool((p.rmsd < 2).any()) for p in found] for found in (train, val)]
    table["(a right one is among them)"] = any_right[0], any_right[1]
    print(f"| ranked by | {' | '.join(parts)} | validation |\n|---|{'---|' * (len(parts) + 1)}")
    base = table["Vina's energy"]
    for row, (seen, held) in table.items():
        cells = []
        for right, of, vina in [
            *((seen, where, base[0]) for where in parts.values()),
            (held, list(range(len(val))), base[1]),
        ]:
            mine, other = [right[k] for k in of], [vina[k] for k in of]
            p = (
                ""
                if row in ("Vina's energy", "(a right one is among them)")
                else (f", p = {mcnemar(mine, other):.2g}")
            )
            cells.append(f"{rate(mine)}{p}")
        print(f"| {row} | {' | '.join(cells)} |")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("pools", help="dock by physics alone and keep the poses' terms")
    p.set_defaults(call=pools)
    p.add_argument("--data", type=Path, required=True)
    sample_flags(p)
    p.add_argument("--out", type=Path, required=True)
    p = commands.add_parser("fit", help="fit scores and print the table")
    p.set_defaults(call=fit)
    p.add_argument("--pools", type=Path, required=True, help="folder of train/ and val/")
    p.add_argument("--manifest", type=Path, required=True)
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
