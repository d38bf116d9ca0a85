"""Three-dimensional starting conformers of a ligand, and the ones that fit a crystal pose best.

Shapes: K conformers, N heavy atoms, M rotatable bonds. Coordinates in Å, angles in radians.

A diffusion over rigid moves and torsions leaves bond lengths, bond angles and rings alone, so in
training it must start from a conformer that has the local structure it will meet at inference (one
made by RDKit) and the torsions of the crystal pose. `matched_conformer` makes it.

Source: conformer matching, Jing et al., "Torsional Diffusion", NeurIPS 2022, section 4.2. There the
torsions are found by differential evolution; here the crystal's torsions are copied and then
improved by Levenberg-Marquardt on the aligned RMSD, whose Jacobian is closed-form.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from torch import Tensor

from bio_diffusion.dock.featurize import torsion_tree
from bio_diffusion.dock.pose import TorsionTree, align, twist
from bio_diffusion.dock.stereo import Stereo
from bio_diffusion.files import InputError

__all__ = ["ConformerError", "conformers", "match_torsions", "matched_conformer"]

TIME_LIMIT = 30
"""Seconds after which an attempt to embed is given up, and no other one follows a success."""

_LARGE = 80  # heavy atoms from which the eigenvalue start of the embedding fails more than it helps
_RELAX_ITERATIONS = 80
_RELAX_ATOMS = 120  # atoms with hydrogens up to which all iterations are spent


class ConformerError(InputError):
    """No conformer can be made of this ligand.

    Args:
        reason: What stands in the way and what to do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("conformer", reason)


def conformers(mol: Chem.Mol, count: int, seed: int) -> np.ndarray:
    """Makes `count` relaxed ETKDGv3 conformers; the same ones for the same molecule and seed.

    Hydrogens are added for the embedding and for the relaxation (MMFF94s, or UFF where an atom has
    no MMFF type) and then left out. Specified stereocentres and double bonds are kept. Where fewer
    than `count` can be embedded, the ones there are repeat.

    Args:
        mol: Sanitised heavy-atom molecule of N atoms.
        count: K >= 1.
        seed: Any integer.

    Returns:
        (K, N, 3) float32.

    Raises:
        ConformerError: No conformer with the molecule's stereochemistry can be embedded in time.
    """
    if count < 1:
        raise ValueError(f"count = {count}: ask for at least one conformer")
    if mol.GetNumAtoms() == 0:
        raise ConformerError("the ligand has no heavy atoms")
    bare = Chem.Mol(mol)
    bare.RemoveAllConformers()
    heavy = np.array([a.GetIdx() for a in bare.GetAtoms() if a.GetAtomicNum() > 1])
    if len(heavy) != bare.GetNumAtoms():
        raise ConformerError("the ligand has explicit hydrogen atoms; remove them first")
    stereo = Stereo.of(bare)
    try:
        full = Chem.AddHs(bare)
    except (RuntimeError, ValueError) as error:
        raise ConformerError(f"hydrogens cannot be added: {error}") from None
    found: list[np.ndarray] = []
    deadline = time.monotonic() + TIME_LIMIT
    for attempt in _attempts(len(heavy), seed):
        # RDKit reports each failed force-field typing and embedding on stderr; failure is told here
        with rdBase.BlockLogs():
            batch = _embed(full, count - len(found), attempt)
        batch = batch[:, heavy]
        found.extend(batch[stereo.kept(batch)])
        if len(found) >= count or (found and time.monotonic() > deadline):
            break
    if not found:
        raise ConformerError(
            f"no three-dimensional conformer of this ligand ({len(heavy)} heavy atoms) can be "
            f"embedded with its stereochemistry; give it with 3D coordinates or check its stereo"
        )
    return np.stack([found[i % len(found)] for i in range(count)]).astype(np.float32)


def _attempts(num_heavy: int, seed: int) -> Iterator[rdDistGeom.EmbedParameters]:
    """Ever more forgiving embedding parameters: as published, random start, no torsion terms."""
    for attempt in range(3):
        parameters: Any = rdDistGeom.ETKDGv3()  # its stubs give every field the wrong type
        # RDKit multiplies the seed by the conformer's number: 0 would make them all the same, and
        # small seeds would share conformers
        state = np.random.SeedSequence((abs(seed), int(seed < 0), attempt)).generate_state(1)
        parameters.randomSeed = int(state[0] >> 1) | 1
        parameters.numThreads = 1
        parameters.timeout = TIME_LIMIT
        parameters.maxIterations = 20 if num_heavy < _LARGE else 5
        parameters.useRandomCoords = attempt > 0 or num_heavy >= _LARGE
        if attempt == 2:
            parameters.useExpTorsionAnglePrefs = False
            parameters.useMacrocycleTorsions = False
            parameters.useSmallRingTorsions = False
            parameters.forceTransAmides = False
            parameters.ignoreSmoothingFailures = True
        yield parameters


def _embed(full: Chem.Mol, count: int, parameters: rdDistGeom.EmbedParameters) -> np.ndarray:
    """Embeds and relaxes (K', N + hydrogens, 3), K' <= count, perhaps 0."""
    mol = Chem.Mol(full)
    try:
        # not the numbers it returns, which may name conformers that were given up for lack of time
        rdDistGeom.EmbedMultipleConfs(mol, count, parameters)
    except (RuntimeError, ValueError):
        mol.RemoveAllConformers()
    if mol.GetNumConformers() == 0:
        return np.zeros((0, mol.GetNumAtoms(), 3))
    embedded = np.stack([conformer.GetPositions() for conformer in mol.GetConformers()])
    _relax(mol)
    relaxed = np.stack([conformer.GetPositions() for conformer in mol.GetConformers()])
    # a relaxation that ran away keeps its start
    sane = np.isfinite(relaxed).all((1, 2)) & (np.abs(relaxed - embedded).max((1, 2)) < 20.0)
    return np.where(sane[:, None, None], relaxed, embedded)


def _relax(mol: Chem.Mol) -> None:
    """Minimises every conformer in place; what no force field covers stays as it is."""
    # a step costs the square of the size: large ligands get fewer, so that the time stays bounded
    share = min(1.0, (_RELAX_ATOMS / mol.GetNumAtoms()) ** 2)
    steps = max(20, round(_RELAX_ITERATIONS * share))
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, 1, steps, "MMFF94s")
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, 1, steps)


def matched_conformer(
    mol: Chem.Mol, crystal_coords: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, float]:
    """The conformer with RDKit's local structure and the crystal's torsions, laid on the crystal.

    Args:
        mol: Sanitised heavy-atom molecule of N atoms.
        crystal_coords: (N, 3) Å, in the molecule's atom order.
        count: Conformers K to start from; they differ in rings and in amide isomers.
        seed: Any integer.

    Returns:
        (N, 3) float32 coordinates in the crystal's frame, and their RMSD to the crystal in Å (by
        atom order, aligned).

    Raises:
        ConformerError: As `conformers`.
    """
    crystal = np.asarray(crystal_coords, dtype=np.float32)
    if crystal.shape != (mol.GetNumAtoms(), 3):
        raise ValueError(f"crystal_coords {crystal.shape}: needs ({mol.GetNumAtoms()}, 3)")
    start = torch.as_tensor(conformers(mol, count, seed))
    tree = torsion_tree(mol)
    target = torch.as_tensor(crystal)
    matched, rmsd = match_torsions(start, target, tree, _quartets(mol, tree))
    best = int(rmsd.argmin())
    return matched[best].numpy(), float(rmsd[best])


def match_torsions(
    coords: Tensor, target: Tensor, tree: TorsionTree, quartets: Tensor, iterations: int = 12
) -> tuple[Tensor, Tensor]:
    """Turns bonds so that each conformer superposes on `target` as well as it can.

    Levenberg-Marquardt over rigid motion and torsions, all conformers at once, from the target's
    own torsions. A trial that does not lower the RMSD is dropped and the damping raised.

    Args:
        coords: (K, N, 3) Å.
        target: (N, 3) Å.
        tree: M rotatable bonds.
        quartets: (M, 4) long, for each of them a torsion a-u-v-b.

    Returns:
        (K, N, 3) superposed on the target, and (K,) RMSD in Å.
    """
    reference = target.expand_as(coords)
    if len(tree) == 0:
        moved = align(coords, reference)
        return moved, _rmsd(moved, reference)
    wanted = _dihedrals(target[None], quartets)
    copied = align(twist(coords, tree, wanted - _dihedrals(coords, quartets)), reference)
    plain = align(coords, reference)
    closer = _rmsd(copied, reference) < _rmsd(plain, reference)
    moved = torch.where(closer[:, None, None], copied, plain)
    rmsd = _rmsd(moved, reference)
    damping = torch.full_like(rmsd, 1e-2)
    for _ in range(iterations):
        step = _newton(moved, reference, tree, damping)
        trial = align(twist(moved, tree, step), reference)
        trial_rmsd = _rmsd(trial, reference)
        better = trial_rmsd < rmsd
        moved = torch.where(better[:, None, None], trial, moved)
        gain = torch.where(better, rmsd - trial_rmsd, torch.zeros_like(rmsd))
        rmsd = torch.where(better, trial_rmsd, rmsd)
        damping = torch.where(better, damping * 0.2, damping * 10.0).clamp(1e-6, 1e4)
        if bool(((gain < 1e-4) & better).all()):
            break
    return moved, rmsd


def _newton(coords: Tensor, target: Tensor, tree: TorsionTree, damping: Tensor) -> Tensor:
    """Torsion part (K, M) rad of the damped Gauss-Newton step of the aligned distance.

    The Jacobian of torsion (u, v) is axis x (x - x_v) on the moving atoms. Projecting out what a
    rigid motion does to it gives the derivative of the *aligned* coordinates.
    """
    coords, target = coords.double(), target.double()
    arms = coords - coords.mean(1, keepdim=True)
    eye = torch.eye(3, dtype=coords.dtype)
    shift = eye.expand(*coords.shape[:2], 3, 3)
    turn = torch.linalg.cross(eye[None, None], arms[:, :, None]).transpose(-1, -2)
    u, v = tree.bonds.unbind(1)
    axis = torch.nn.functional.normalize(coords[:, v] - coords[:, u], dim=-1)
    lever = coords[:, :, None] - coords[:, None, v]
    torsion = torch.linalg.cross(axis[:, None].expand_as(lever), lever)
    torsion = (torsion * tree.moving.T[None, :, :, None]).transpose(-1, -2)
    jacobian = torch.cat([shift, turn, torsion], -1).flatten(1, 2)
    normal = jacobian.transpose(-1, -2) @ jacobian
    gradient = jacobian.transpose(-1, -2) @ (target - coords).flatten(1)[..., None]
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    # 1e-9: a straight or single-atom ligand leaves a rotation that moves nothing
    lift = damping.double()[:, None] * diagonal + 1e-9 * diagonal.amax(-1, keepdim=True)
    step = torch.linalg.solve(normal + torch.diag_embed(lift), gradient)[..., 0]
    return step[:, 6:].clamp(-0.6, 0.6).to(torch.float32)


def _dihedrals(coords: Tensor, quartets: Tensor) -> Tensor:
    """(K, N, 3) and (M, 4) -> (K, M) rad."""
    a, u, v, b = (coords[:, column] for column in quartets.unbind(1))
    axis = torch.nn.functional.normalize(v - u, dim=-1)
    first, second = torch.linalg.cross(axis, a - u), torch.linalg.cross(axis, b - v)
    sine = (torch.linalg.cross(first, second) * axis).sum(-1)
    return torch.atan2(sine, (first * second).sum(-1))


def _quartets(mol: Chem.Mol, tree: TorsionTree) -> Tensor:
    """(M, 4) long: for each rotatable bond the torsion a-u-v-b through the first neighbours."""
    rows = []
    for u, v in tree.bonds.tolist():
        a = min(n.GetIdx() for n in mol.GetAtomWithIdx(u).GetNeighbors() if n.GetIdx() != v)
        b = min(n.GetIdx() for n in mol.GetAtomWithIdx(v).GetNeighbors() if n.GetIdx() != u)
        rows.append((a, u, v, b))
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)


def _rmsd(coords: Tensor, target: Tensor) -> Tensor:
    """(K, N, 3), (K, N, 3) -> (K,) Å, atom by atom, without superposition."""
    return (coords - target).square().sum(-1).mean(-1).sqrt()
