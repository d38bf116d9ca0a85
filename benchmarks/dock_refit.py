"""Would other weights of the energy, more terms or a learned table of contacts rank poses better?

Physics alone searches training and validation complexes (`dock.decoys`; its poses from near the
crystal's are left out). A linear score of a pose's terms is then fitted to choose the right poses
(below 1.5 Å) over the wrong ones (above 2.5 Å) of each complex:

    loss = - mean_c log sum_{right p} softmax_p(w . f_p) + decay |w|^2

with f standardised. The rows differ in f: Vina's five terms and the inner energy; Vinardo's four;
both and six more; these with the strain of torsions, which is what ships, or with the number of
contacts by kind of ligand atom, kind of receptor atom and distance between surfaces (12 x 12 x 9);
and beside Vina's energy the strain, or the directions of hydrogen bonds with polar atoms that lack
one. Training complexes are scored
by a fit to the four fifths of their protein clusters that lack theirs, validation complexes by the
fit to all. `log share` is the mean log of what the softmax gives to the right poses. The weights
that ship are printed too.

    python -m bio_diffusion.dock.decoys --data DATA/train --manifest manifest.csv --split train \
        --out train.safetensors
    python benchmarks/dock_refit.py terms train.safetensors --data DATA/train --out TERMS/train
    python benchmarks/dock_refit.py fit --terms TERMS --manifest manifest.csv

Source: Trott and Olson 2010 (Vina); Quiroga and Villarreal 2016 (Vinardo); Riniker and Landrum 2015
    (preferences of torsions, ETKDG).
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from bio_diffusion.command import one_thread
from bio_diffusion.dock.dataset import CompactSet, Example
from bio_diffusion.dock.decoys import NEAR
from bio_diffusion.dock.metrics import mcnemar, rate
from bio_diffusion.dock.physics import ATOM_KINDS, CUTOFF
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.pools import known_site
from bio_diffusion.dock.prepare import protein_file, read_ligand
from bio_diffusion.dock.receptor import read_receptor
from bio_diffusion.dock.sources import PreparedLigand
from bio_diffusion.dock.terms import KINDS, METAL, PAIRWISE, pair_terms, ramp, torsion_strain
from bio_diffusion.files import InputError

RIGHT, WRONG = 1.5, 2.5  # Å
BONDED = 1.95  # Å, between atoms of the receptor
EDGES = torch.tensor([-0.6, -0.3, 0.0, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0])  # Å between surfaces
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


def terms(args: argparse.Namespace) -> int:
    """Terms of the poses in a file of `dock.decoys`, one file a complex."""
    args.out.mkdir(parents=True, exist_ok=True)
    docker, failed = Docker.load("none", "cpu", conformers=1), 0
    for example in CompactSet(args.decoys):
        path = args.out / f"{example.id}.npz"
        if not path.exists():
            try:
                with one_thread():
                    np.savez_compressed(path, **described(docker, args.data / example.id, example))
            except InputError as error:
                print(f"{example.id}: {error}", file=sys.stderr)
                failed = 3
    return failed


def described(docker: Docker, folder: Path, example: Example) -> dict[str, np.ndarray]:
    """Energies, terms and RMSD of the poses that the search found."""
    protein = protein_file(folder)
    if protein is None:
        raise InputError("missing", "no protein.pdb and no protein.cif")
    ligand = read_ligand(folder)
    receptor = docker.prepare(read_receptor(protein).without(ligand.crystal))
    prepared = PreparedLigand.of(ligand, 1, 0)
    exact = prepared.energy(receptor, known_site(ligand.crystal))
    coords = example.conformers[:-NEAR]
    bonds = torch.tensor([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in ligand.mol.GetBonds()])
    bonds = bonds.view(-1, 2)
    facing = away(receptor.coords, near_pairs(receptor.coords))
    found = [
        _terms(xyz, prepared.types, away(xyz, bonds), receptor.coords, receptor.types, facing)
        for xyz in coords
    ]
    sums, contacts = zip(*found, strict=True)
    return {
        "rmsd": np.asarray(example.notes["rmsd"][:-NEAR]),
        "energy": torch.stack([exact.inter(coords), exact.intra(coords)], 1).numpy(),
        "strain": torsion_strain(ligand.mol, coords).numpy(),
        "terms": torch.stack(sums).numpy(),
        "contacts": torch.stack(contacts).to(torch.int16).numpy(),
    }


def near_pairs(coords: Tensor) -> Tensor:
    """Pairs of bonded atoms by distance, (E, 2)."""
    return torch.as_tensor(cKDTree(coords.numpy()).query_pairs(BONDED, output_type="ndarray"))


def away(coords: Tensor, bonds: Tensor) -> Tensor:
    """Unit vectors (N, 3) that point away from the middle of an atom's bonded neighbours."""
    i, j = torch.cat([bonds, bonds.flip(1)]).T
    middle = torch.zeros_like(coords).index_add(0, i, coords[j])
    count = coords.new_zeros(len(coords)).index_add(0, i, torch.ones(len(i)))
    return torch.nn.functional.normalize(coords - middle / count.clamp(min=1)[:, None], dim=1)


def _terms(
    xyz: Tensor, types: Tensor, ahead: Tensor, receptor: Tensor, kinds: Tensor, facing: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of terms (18,) and numbers of contacts (12 * 12 * 9,) of one pose (N, 3).

    `ahead` and `facing` are the directions of `away` in ligand and receptor.
    """

    near = (receptor > xyz.amin(0) - CUTOFF).all(1) & (receptor < xyz.amax(0) + CUTOFF).all(1)
    receptor, kinds, facing = receptor[near], kinds[near], facing[near]
    apart = torch.cdist(xyz, receptor)
    i, j = (apart < CUTOFF).nonzero(as_tuple=True)
    a, b, r = types[i], kinds[j], apart[i, j]
    s = r - KINDS[a, 0] - KINDS[b, 0]
    (_, donor, acceptor), others = KINDS[a, 1:].unbind(1), KINDS[b, 1:].unbind(1)
    bridge = torch.maximum(donor * others[2], acceptor * others[1])
    bond = bridge * (1 - METAL[b])
    sight = (receptor[j] - xyz[i]) / r[:, None]
    direct = ramp((ahead[i] * sight).sum(1), -0.2, 0.5) * ramp(
        (facing[j] * -sight).sum(1), -0.2, 0.5
    )
    partner = bridge * ramp(r, 3.6, 3.2)

    def lacking(of: Tensor, kind: Tensor, radius: float, few: float, many: float) -> Tensor:
        """Polar atoms that the other side surrounds and gives no partner."""
        bonded = torch.zeros(len(kind)).index_add(0, of, partner).clamp(max=1)
        covered = torch.zeros(len(kind)).index_add(0, of, (r < radius).float())
        thirsty = (KINDS[kind, 2:].amax(1) > 0) & (METAL[kind] == 0)
        return (thirsty * ramp(covered, few, many) * (1 - bonded)).sum()

    directed = torch.stack(
        [
            (bond * ramp(s, 0.0, -0.7) * direct).sum(),
            lacking(i, types, 6.0, 14, 24),
            lacking(j, kinds, 4.2, 0, 4),
        ]
    )
    place = torch.bucketize(s, EDGES)
    code = (GROUP[a] * 12 + GROUP[b]) * len(EDGES) + place
    contacts = torch.bincount(code[place < len(EDGES)], minlength=144 * len(EDGES))
    return torch.cat([pair_terms(a, b, r).sum(1), directed]), contacts


SHIPS = "those and strain of torsions"  # as `bio_diffusion.dock.terms`
ROWS = {  # name: (features, weight decay)
    "Vina's energy": ("energy", 0.0),
    "Vina's five terms, fitted": ("vina", 1e-3),
    "Vinardo's four terms, fitted": ("vinardo", 1e-3),
    "both and six more": ("terms", 1e-2),
    SHIPS: ("ships", 1e-2),
    "both, six more and a table of contacts": ("contacts", 0.3),
    "Vina's five terms and strain of torsions": ("strain", 1e-3),
    "Vina's five terms and directions of hydrogen bonds": ("directed", 1e-3),
}


def read_pool(path: Path) -> Pool:
    held = np.load(path)
    terms, energy = torch.from_numpy(held["terms"]), torch.from_numpy(held["energy"])
    inner = energy[:, 1:]
    contacts, strain = torch.from_numpy(held["contacts"]).float(), torch.from_numpy(held["strain"])
    return Pool(
        path.stem,
        torch.from_numpy(np.asarray(held["rmsd"], dtype=np.float32)),
        {
            "energy": -energy.sum(1, keepdim=True),
            "vina": torch.cat([terms[:, :5], inner], 1),
            "vinardo": torch.cat([terms[:, 5:9], inner], 1),
            "terms": torch.cat([terms[:, :15], energy], 1),
            "ships": torch.cat([terms[:, :15], energy, strain], 1),
            "contacts": torch.cat([terms[:, :15], energy, contacts], 1),
            "strain": torch.cat([terms[:, :5], inner, strain], 1),
            "directed": torch.cat([terms[:, :5], inner, terms[:, 15:]], 1),
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


def log_shares(found: Sequence[Pool], name: str, w: Tensor) -> list[float]:
    """Of the right poses of each complex, among right and wrong ones; nan without either."""
    shares = []
    for p in found:
        log_p = (p.features[name] @ w)[used := p.right | p.wrong].log_softmax(0)
        both = p.right.any() and p.wrong.any()
        shares.append(float(log_p[p.right[used]].logsumexp(0)) if both else math.nan)
    return shares


def fit(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    with args.manifest.open(newline="") as file:
        facts = {row["id"]: row for row in csv.DictReader(file)}
    train, val = (
        [read_pool(path) for path in sorted((args.terms / split).glob("*.npz"))]
        for split in ("train", "val")
    )
    fold = np.array([int(facts[p.id]["cluster"]) % 5 for p in train])
    whole = np.array([facts[p.id]["het_stripped"] == "0" for p in train])
    print("| ranked by | training, receptors whole | training, stripped | validation |", end="")
    print(" log share, training | more than by energy |\n|---|---|---|---|---|---|")
    first: tuple[np.ndarray, np.ndarray] | None = None
    for row, (name, decay) in ROWS.items():
        seen, shares = np.zeros(len(train), bool), np.zeros(len(train))
        for number in range(5):
            w = fitted([p for p, f in zip(train, fold, strict=True) if f != number], name, decay)
            mine = [p for p, f in zip(train, fold, strict=True) if f == number]
            seen[fold == number] = hits(mine, name, w)
            shares[fold == number] = log_shares(mine, name, w)
        held = np.array(hits(val, name, fitted(train, name, decay)))
        every = np.concatenate([seen, held])
        first = first or (every, shares)
        part = np.concatenate([np.where(whole, 0, 1), np.full(len(val), 2)])
        cells = []
        for k in range(3):
            ours, energy = every[part == k].tolist(), first[0][part == k].tolist()
            p = "" if name == "energy" else f", p = {mcnemar(ours, energy):.2g}"
            cells.append(f"{rate(ours)}{p}")
        gain = (shares - first[1])[known := ~np.isnan(shares)]
        more = f"{gain.mean():.3f} ± {gain.std(ddof=1) / math.sqrt(len(gain)):.3f}"
        cells += [f"{shares[known].mean():.3f}", "" if name == "energy" else more]
        print(f"| {row} | {' | '.join(cells)} |")
    right = [bool((p.rmsd < 2).any()) for p in [*train, *val]]
    cells = [str(rate([r for r, of in zip(right, part, strict=True) if of == k])) for k in range(3)]
    print(f"| (a right one is among them) | {' | '.join(cells)} | | |")
    print("\n| term | weight, nats |\n|---|---|")
    names = [*PAIRWISE, "energy with the receptor", "within the ligand", "strain", "worst torsion"]
    for term, weight in zip(names, fitted(train, *ROWS[SHIPS]).tolist(), strict=True):
        print(f"| {term} | {weight:.3g} |")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("terms", help="compute the terms of decoys")
    p.set_defaults(call=terms)
    p.add_argument("decoys", type=Path, help="file of bio_diffusion.dock.decoys")
    p.add_argument("--data", type=Path, required=True, help="its folder of complexes")
    p.add_argument("--out", type=Path, required=True, help="folder to write to")
    p = commands.add_parser("fit", help="fit scores and print the table")
    p.set_defaults(call=fit)
    p.add_argument("--terms", type=Path, required=True, help="folder of train/ and val/")
    p.add_argument("--manifest", type=Path, required=True)
    args = parser.parse_args(argv)
    return args.call(args)


if __name__ == "__main__":
    sys.exit(main())
