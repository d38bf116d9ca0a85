"""An energy of more terms, fitted to tell right poses from wrong ones among the minima of Vina's.

    fitted(x) = c sum_k w_k T_k(x)

Vina's energy is made to be searched; which of its minima is right, more terms say better. The
pairwise ones are sums over pairs of a ligand and a receptor atom closer than 8 Å, of their distance
r, of d = r - R_i - R_j between their surfaces by Vina's radii and of v, the same by Vinardo's. The
others are Vina's energies themselves and the strain of torsions: how far they lie above their best
in ETKDG's preferences, all together and the worst one.

The weights were fitted to the minima of physics alone in training complexes
(`benchmarks/dock_refit.py`) as those of a softmax over each complex's poses, with a ridge on
standardised terms; c, which turns nats into kcal/mol, to held-out complexes.

Shapes: B poses, N ligand atoms, A receptor atoms, E pairs. Å, kcal/mol.

Source: Trott and Olson 2010 (Vina); Quiroga and Villarreal 2016 (Vinardo); Riniker and Landrum 2015
    (preferences of torsions, ETKDG).
"""

from __future__ import annotations

import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch import Tensor

from bio_diffusion.dock.physics import ATOM_KINDS, CUTOFF

__all__ = [
    "KINDS",
    "METAL",
    "PAIRWISE",
    "fitted_energy",
    "pair_sums",
    "pair_terms",
    "ramp",
    "torsion_strain",
]

PAIRWISE = {
    "exp(-(d / 0.5)^2)": 0.0427,
    "exp(-((d - 3) / 2)^2)": 0.000581,
    "min(d, 0)^2": -0.449,
    "both hydrophobic, d 1.5 to 0.5": -0.0255,
    "donor and acceptor, d 0 to -0.7": 0.178,
    "exp(-(v / 0.8)^2)": 0.0548,
    "min(v, 0)^2": -0.339,
    "both hydrophobic, v 2.5 to 0": 0.0418,
    "donor and acceptor, v 0 to -0.6": 0.601,
    "acceptor and metal, d 0.3 to -0.7": 1.79,
    "donor and acceptor, no metal, d 0.6 to -0.7": -0.161,
    "donor and acceptor, no metal, min(d, 0)^2": 0.684,
    "both hydrophobic, min(d, 0)^2": -0.463,
    "both polar, no bridge, d 0.5 to -0.3": -0.248,
    "polar and hydrophobic, d 1 to 0": -0.0418,
}
"""Weights of sums over pairs, nats a unit. "1.5 to 0.5" is a ramp from 0 there to 1 there."""

INTER, INTRA = -0.727, -0.705  # of Vina's energies
STRAIN, WORST = -0.0103, -0.00588  # of `torsion_strain`
SCALE = -0.56  # kcal/mol a nat

KINDS = torch.tensor([[float(x) for x in kind] for kind in ATOM_KINDS.values()])
METAL = torch.tensor([name == "metal" for name in ATOM_KINDS]).float()
# Vinardo's radii, where they differ from those it shares with Vina.
_VINARDO = {"C_H": 2.0, "C_P": 2.0, "N_P": 1.7, "N_D": 1.7, "N_A": 1.7, "N_DA": 1.7, "O_A": 1.6,
            "O_DA": 1.6, "Br": 2.0, "metal": 1.2}  # fmt: skip
_RADII = torch.tensor([_VINARDO.get(name, kind[0]) for name, kind in ATOM_KINDS.items()])
_HIGHEST = 200.0  # of one torsion's strain


def fitted_energy(
    coords: Tensor,
    mol: Chem.Mol,
    types: Tensor,
    receptor_coords: Tensor,
    receptor_types: Tensor,
    inter: Tensor,
    intra: Tensor,
) -> Tensor:
    """(B,) kcal/mol; only differences between poses of one complex mean anything.

    Args:
        coords: (B, N, 3) poses.
        mol: the ligand, of N heavy atoms.
        types: (N,) long, indices into `physics.ATOM_KINDS`.
        receptor_coords: (A, 3).
        receptor_types: (A,) long.
        inter, intra: (B,) Vina's energies of the poses.
    """
    sums = pair_sums(coords, types, receptor_coords, receptor_types)
    strain = torsion_strain(mol, coords)
    nats = sums @ torch.tensor(list(PAIRWISE.values())) + INTER * inter + INTRA * intra
    return SCALE * (nats + strain @ torch.tensor([STRAIN, WORST]))


def pair_sums(
    coords: Tensor, types: Tensor, receptor_coords: Tensor, receptor_types: Tensor
) -> Tensor:
    """(B, len(PAIRWISE)), see `fitted_energy`."""
    found = []
    for pose in coords:  # one by one: all pairs at once could fill the memory
        low, high = pose.amin(0) - CUTOFF, pose.amax(0) + CUTOFF
        near = ((receptor_coords > low) & (receptor_coords < high)).all(1)
        others, kinds = receptor_coords[near], receptor_types[near]
        i, j = (torch.cdist(pose, others) < CUTOFF).nonzero(as_tuple=True)
        r = (pose[i] - others[j]).norm(dim=1)
        found.append(pair_terms(types[i], kinds[j], r).sum(1))
    return torch.stack(found)


def pair_terms(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """Each pairwise term of E pairs, (len(PAIRWISE), E).

    Args:
        a, b: (E,) long, kinds of the ligand's and the receptor's atom.
        r: (E,) between them.
    """
    d, v = r - KINDS[a, 0] - KINDS[b, 0], r - _RADII[a] - _RADII[b]
    (greasy, donor, acceptor), others = KINDS[a, 1:].unbind(1), KINDS[b, 1:].unbind(1)
    both_greasy, metal = greasy * others[0], METAL[b]
    bridge = torch.maximum(donor * others[2], acceptor * others[1])
    bond = bridge * (1 - metal)
    polar, polar_b = torch.maximum(donor, acceptor), torch.maximum(others[1], others[2])
    overlap, overlap_v = d.clamp(max=0).square(), v.clamp(max=0).square()
    return torch.stack(
        [
            torch.exp(-((d / 0.5) ** 2)),
            torch.exp(-(((d - 3) / 2) ** 2)),
            overlap,
            both_greasy * ramp(d, 1.5, 0.5),
            bridge * ramp(d, 0.0, -0.7),
            torch.exp(-((v / 0.8) ** 2)),
            overlap_v,
            both_greasy * ramp(v, 2.5, 0.0),
            bridge * ramp(v, 0.0, -0.6),
            metal * acceptor * ramp(d, 0.3, -0.7),
            bond * ramp(d, 0.6, -0.7),
            bond * overlap,
            both_greasy * overlap,
            polar * polar_b * (1 - bridge) * ramp(d, 0.5, -0.3),
            (polar * others[0] + polar_b * greasy) * ramp(d, 1.0, 0.0),
        ]
    )


def ramp(x: Tensor, none: float, full: float) -> Tensor:
    """0 at `none` and beyond, 1 at `full` and beyond, a line in between."""
    return ((x - none) / (full - none)).clamp(0, 1)


def torsion_strain(mol: Chem.Mol, coords: Tensor) -> Tensor:
    """How far torsions lie above their best, (B, 2): the sum and the largest; bonds in rings not.

    In units of ETKDG's preferences.

    Args:
        mol: of N heavy atoms.
        coords: (B, N, 3).
    """
    above = [coords.new_zeros(len(coords))]
    for known in rdDistGeom.GetExperimentalTorsions(Chem.AddHs(mol), rdDistGeom.ETKDGv3()):
        i, j, k, n = known["atomIndices"]
        bond = mol.GetBondBetweenAtoms(j, k) if max(i, j, k, n) < coords.shape[1] else None
        if bond is not None and not bond.IsInRing():
            height, sign = coords.new_tensor(known["V"]), coords.new_tensor(known["signs"])
            waves = torch.arange(1, len(height) + 1)
            angles = torch.cat(
                [
                    _dihedral(*coords[:, [i, j, k, n]].unbind(1)),
                    torch.linspace(-torch.pi, torch.pi, 361),
                ]
            )
            energy = (height * (1 + sign * torch.cos(waves * angles[:, None]))).sum(1)
            above.append(energy[: len(coords)] - energy[len(coords) :].min())
    each = torch.stack(above, 1).clamp(max=_HIGHEST)
    return torch.stack([each.sum(1), each.amax(1)], 1)


def _dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Angle (B,) of four atoms, each (B, 3)."""
    axis = torch.nn.functional.normalize(c - b, dim=1)
    v, w = torch.linalg.cross(axis, a - b), torch.linalg.cross(axis, d - c)
    return torch.atan2((torch.linalg.cross(v, w) * axis).sum(1), (v * w).sum(1))
