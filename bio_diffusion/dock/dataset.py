"""Training and evaluation complexes: a compact file, or a folder of a user's own.

Compact file: one safetensors file whose arrays hold all complexes end to end, coordinates as
16-bit integers of 0.01 Å about each complex's own origin (rounding error 0.005 Å), with a JSON
index in the header. It needs no chemistry package, so training runs where there is none.

Folder: ``<root>/<id>/protein.pdb`` (or .cif, also .gz) and ``<root>/<id>/ligand.sdf``, and
optionally a manifest, a CSV file with columns ``id`` and ``split``. `prepare` reads it once and
writes a compact file.

A receptor atoms, R residues, N ligand atoms, C matched conformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from bio_diffusion.dock.graph import LigandGraph, ReceptorGraph, residue_positions
from bio_diffusion.dock.pose import Pose, TorsionTree
from bio_diffusion.files import InputError

__all__ = [
    "CompactSet",
    "Example",
    "PoseBatches",
    "check_shake",
    "crop_radius",
    "write_compact",
]

FORMAT = 1
_STEP = 0.01  # Å


@dataclass(frozen=True)
class Example:
    """A complex with its crystal pose.

    Args:
        id: unique in its set.
        receptor: the whole receptor or what the set's crop left of it.
        ligand: the ligand's graph.
        rotatable: (E / 2,) bool, which of the ligand's bonds, each once, are candidates to turn.
        crystal: (N, 3) Å.
        conformers: (C, N, 3) Å, RDKit conformers with the crystal's torsions, laid on the crystal.
        notes: plain data from the manifest, such as `split` and `het_stripped`.
    """

    id: str
    receptor: ReceptorGraph
    ligand: LigandGraph
    rotatable: Tensor
    crystal: Tensor
    conformers: Tensor
    notes: dict[str, Any] = field(default_factory=dict)


def write_compact(path: str | Path, examples: Sequence[Example]) -> None:
    """Write `examples` to one compact file.

    Raises:
        ValueError: when a complex spans more than the 16-bit range of 655 Å.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    index: list[dict[str, Any]] = []

    def put(name: str, values: Tensor | np.ndarray, dtype: type) -> None:
        arrays.setdefault(name, []).append(np.asarray(values).astype(dtype))

    for example in examples:
        receptor, ligand = example.receptor, example.ligand
        origin = example.crystal.mean(0)

        def put_coords(
            name: str, coords: Tensor, origin: Tensor = origin, id: str = example.id
        ) -> None:
            steps = ((coords - origin) / _STEP).round()
            if steps.numel() and steps.abs().max() > 32767:
                raise ValueError(f"{id}: farther than 327 Å from the ligand; crop the receptor")
            put(name, steps.reshape(-1, 3), np.int16)

        sizes = torch.bincount(receptor.residue, minlength=len(receptor.residue_type))
        put("origin", origin[None], np.float32)
        put_coords("atom_coords", receptor.coords)
        put("atom_type", receptor.atom_type, np.uint8)
        put("residue_size", sizes, np.uint16)
        put("residue_type", receptor.residue_type, np.uint8)
        put("ligand_features", ligand.features, np.uint8)
        put("bonds", ligand.bonds[::2], np.uint8)
        put("bond_type", ligand.bond_type[::2], np.uint8)
        put("rotatable", example.rotatable, np.uint8)
        put_coords("crystal", example.crystal)
        put_coords("conformers", example.conformers)
        index.append(
            {
                "id": example.id,
                "atoms": len(receptor.coords),
                "residues": len(receptor.residue_type),
                "ligand": len(ligand.features),
                "bonds": len(ligand.bonds) // 2,
                "conformers": len(example.conformers),
                **example.notes,
            }
        )
    header = {"format": str(FORMAT), "index": json.dumps(index, separators=(",", ":"))}
    save_file({k: np.concatenate(v) for k, v in arrays.items()}, str(path), metadata=header)


class CompactSet(Sequence[Example]):
    """The complexes of a compact file, decoded one at a time.

    Args:
        path: the file.
        select: keep only the index rows whose entries equal these, such as ``{"split": "val"}``.

    Raises:
        ValueError: when the file is not a compact set of this format.
    """

    _COUNTS = {
        "origin": None,
        "atom_coords": "atoms",
        "atom_type": "atoms",
        "residue_size": "residues",
        "residue_type": "residues",
        "ligand_features": "ligand",
        "bonds": "bonds",
        "bond_type": "bonds",
        "rotatable": "bonds",
        "crystal": "ligand",
        "conformers": ("conformers", "ligand"),
    }

    def __init__(self, path: str | Path, select: dict[str, Any] | None = None) -> None:
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise
        except Exception as error:
            raise InputError("format", f"{path}: not a safetensors file ({error})") from error
        if header.get("format") != str(FORMAT) or set(arrays) != set(self._COUNTS):
            raise InputError(
                "format",
                f"{path}: not a compact docking set of format {FORMAT}; "
                "make one with python -m bio_diffusion.dock.prepare",
            )
        rows = json.loads(header["index"])
        self._arrays = arrays
        self._starts: dict[str, np.ndarray] = {}
        for name, count in self._COUNTS.items():
            keys = (count,) if isinstance(count, str) else (count or ())
            lengths = [int(np.prod([row[key] for key in keys])) for row in rows]
            self._starts[name] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        wanted = select or {}
        self._rows = rows
        self._kept = [
            i for i, row in enumerate(rows) if all(row.get(k) == v for k, v in wanted.items())
        ]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The index rows of the selected complexes."""
        return [self._rows[i] for i in self._kept]

    def __getitem__(self, position: int) -> Example:  # type: ignore[override]
        i = self._kept[position]
        row = self._rows[i]

        def take(name: str) -> Tensor:
            start, stop = self._starts[name][i : i + 2]
            return torch.from_numpy(self._arrays[name][start:stop].astype(np.int64))

        origin = torch.from_numpy(self._arrays["origin"][i])

        def coords(name: str) -> Tensor:
            return take(name).float() * _STEP + origin

        position_, atom_type = coords("atom_coords"), take("atom_type")
        residue = torch.repeat_interleave(torch.arange(row["residues"]), take("residue_size"))
        half, kind, rotatable = take("bonds"), take("bond_type"), take("rotatable").bool()
        bonds = torch.stack([half, half.flip(1)], 1).reshape(-1, 2)
        return Example(
            id=row["id"],
            receptor=ReceptorGraph(
                coords=position_,
                atom_type=atom_type,
                residue=residue,
                residue_type=take("residue_type"),
                residue_coords=residue_positions(position_, atom_type, residue, row["residues"]),
            ),
            ligand=LigandGraph(
                features=take("ligand_features"),
                bonds=bonds,
                bond_type=kind.repeat_interleave(2),
                tree=TorsionTree.from_bonds(half, rotatable, row["ligand"]),
            ),
            rotatable=rotatable,
            crystal=coords("crystal"),
            conformers=coords("conformers").view(row["conformers"], row["ligand"], 3),
            notes={k: v for k, v in row.items() if k not in _OWN_KEYS},
        )


_OWN_KEYS = {"id", "atoms", "residues", "ligand", "bonds", "conformers"}


def crop_radius(coords: Tensor) -> float:
    """Radius in Å of the pocket that a ligand (N, 3) is docked into: its own reach and 9 Å more."""
    reach = float((coords - coords.mean(0)).norm(dim=-1).max())
    return min(max(reach + 9.0, 12.0), 20.0)


def check_shake(amplitude: float) -> None:
    """Raises `InputError` where `ReceptorGraph.shaken` cannot use it."""
    if amplitude < 0:
        raise InputError("setting", f"shake is {amplitude:g}; it must be 0 Å or more")


@dataclass(frozen=True)
class PoseBatches:
    """Endless training batches: one complex a batch, its pocket, and B copies of its pose.

    The pocket's centre is off the ligand's by a normal draw of `jitter` Å an axis, as a user's site
    would be, and its radius varies by 2 Å. Batch k is a function of (seed, k) alone, so a run that
    resumes at k sees what an unbroken one sees.

    Args:
        examples: the set.
        poses: B, poses of one complex in a batch; they get different noise.
        seed: order, pockets and conformers.
        jitter: Å.
        shake: Å, see `ReceptorGraph.shaken`; 0 leaves receptors as they are.
    """

    examples: Sequence[Example]
    poses: int = 8
    seed: int = 0
    jitter: float = 2.0
    shake: float = 0.0

    def batches(
        self, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Pose, tuple[ReceptorGraph, LigandGraph]]]:
        """Batches start, start + 1, ... of process `rank` among `world`."""
        count = len(self.examples)
        step = start
        order, epoch = np.empty(0, dtype=np.int64), -1
        while True:
            turn, place = divmod(step * world + rank, count)
            if turn != epoch:
                order, epoch = np.random.default_rng((self.seed, turn)).permutation(count), turn
            generator = np.random.default_rng((self.seed, turn, place, 1))
            yield self.pocket(self.examples[int(order[place])], generator)
            step += 1

    def pocket(
        self, example: Example, generator: np.random.Generator
    ) -> tuple[Pose, tuple[ReceptorGraph, LigandGraph]]:
        """One training batch of `example`."""
        conformer = example.conformers[int(generator.integers(len(example.conformers)))]
        offset = torch.from_numpy(generator.normal(0, self.jitter, 3)).float()
        radius = crop_radius(conformer) + float(generator.uniform(-1, 1))
        receptor = example.receptor
        if self.shake:
            receptor = receptor.shaken(self.shake, generator)
        pocket, _ = receptor.crop(conformer.mean(0) + offset, radius)
        pose = Pose(conformer[None], example.ligand.tree).repeat(self.poses)
        return pose, (pocket, example.ligand)
