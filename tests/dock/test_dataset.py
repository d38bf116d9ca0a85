"""Compact sets: what is written comes back, and batches are a function of their number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bio_diffusion.dock.dataset import CompactSet, Example, PoseBatches, write_compact
from bio_diffusion.dock.prepare import rotatable_bonds
from tests.dock import networks


def example(seed: int, atoms: int = 9, shift: float = 0.0) -> Example:
    graph = networks.ligand(atoms, seed)
    crystal = networks.poses(graph, 1, seed).coords[0] + shift
    receptor = networks.receptor(12, seed)
    return Example(
        id=f"c{seed}",
        receptor=receptor,
        ligand=graph,
        rotatable=rotatable_bonds(graph),
        crystal=crystal,
        conformers=torch.stack([crystal, crystal + 0.1]),
        notes={"split": "val" if seed % 2 else "train"},
    )


@pytest.fixture
def examples() -> list[Example]:
    return [example(0), example(1, atoms=1), example(2, atoms=14)]


@pytest.fixture
def path(tmp_path: Path, examples: list[Example]) -> Path:
    write_compact(tmp_path / "set.safetensors", examples)
    return tmp_path / "set.safetensors"


def test_round_trip(path: Path, examples: list[Example]) -> None:
    for read, written in zip(CompactSet(path), examples, strict=True):
        assert read.id == written.id and read.notes == written.notes
        # half a step of 0.01 Å, and float32
        for name in ("crystal", "conformers"):
            torch.testing.assert_close(
                getattr(read, name), getattr(written, name), rtol=0, atol=0.0051
            )
        torch.testing.assert_close(
            read.receptor.coords, written.receptor.coords, rtol=0, atol=0.0051
        )
        for name in ("atom_type", "residue", "residue_type"):
            assert torch.equal(getattr(read.receptor, name), getattr(written.receptor, name))
        for name in ("features", "bonds", "bond_type"):
            assert torch.equal(getattr(read.ligand, name), getattr(written.ligand, name))
        assert torch.equal(read.ligand.tree.moving, written.ligand.tree.moving)


def test_selection_by_index_row(path: Path) -> None:
    chosen = CompactSet(path, {"split": "train"})
    assert [e.id for e in chosen] == ["c0", "c2"]


def test_too_far_for_sixteen_bits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="c0.*crop"):
        write_compact(tmp_path / "far", [example(0, shift=400.0)])


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="not a safetensors file"):
        CompactSet(tmp_path / "x")


def test_batches_resume_and_split(examples: list[Example]) -> None:
    def take(start: int, count: int, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
        stream = PoseBatches(examples, poses=2, seed=3).batches(start, rank, world)
        return [next(stream)[0].coords for _ in range(count)]

    whole = take(0, 8)
    for resumed, expected in zip(take(5, 3), whole[5:], strict=True):
        assert torch.equal(resumed, expected)
    shares = [take(0, 4, rank, 2) for rank in range(2)]
    for i, coords in enumerate(whole):
        assert torch.equal(shares[i % 2][i // 2], coords)


def test_every_epoch_visits_each_complex_once(examples: list[Example]) -> None:
    stream = PoseBatches(examples, poses=1).batches()
    for _ in range(4):
        sizes = sorted(next(stream)[0].coords.shape[1] for _ in examples)
        assert sizes == sorted(len(e.crystal) for e in examples)


def test_crop_keeps_whole_residues(examples: list[Example]) -> None:
    graph = examples[0].receptor
    center = graph.coords[0]
    cropped, kept = graph.crop(center, 6.0)
    sizes = torch.bincount(graph.residue)
    assert torch.equal(torch.bincount(cropped.residue), sizes[kept])
    near = (graph.coords - center).norm(dim=-1) <= 6.0
    assert set(kept.tolist()) == set(graph.residue[near].tolist())
    assert np.isclose(
        cropped.coords.numpy(), graph.coords[torch.isin(graph.residue, kept)].numpy()
    ).all()
