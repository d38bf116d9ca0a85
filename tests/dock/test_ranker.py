"""The ranker: what its preference depends on, how it learns, and the poses that it learns from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bio_diffusion.checkpoint import Checkpoint, CheckpointError, save
from bio_diffusion.diffusion.training import fit
from bio_diffusion.dock import decoys as decoys_command
from bio_diffusion.dock.dataset import CompactSet
from bio_diffusion.dock.layers import Size
from bio_diffusion.dock.network import load_model
from bio_diffusion.dock.pipeline import Docker
from bio_diffusion.dock.ranker import KIND, PoseRanker, load_ranker
from bio_diffusion.dock.ranker_fit import RankerFit
from bio_diffusion.dock.sources import SHIPPED
from bio_diffusion.files import InputError

DEMO = Path(__file__).parents[2] / "data/demo"


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    """Poses of the demo complex, by the command, with few of everything."""
    root = tmp_path_factory.mktemp("decoys")
    for name in ("a", "b"):
        (root / name).mkdir()
        for file in ("protein.pdb", "ligand.sdf"):
            (root / name / file).write_bytes((DEMO / file).read_bytes())
    (root / "b" / "ligand.sdf").write_text("no ligand\n")
    (root / "manifest.csv").write_text("id,split,cluster\na,train,7\nb,train,8\n")
    words = ["--data", str(root), "--split", "train", "--out", str(root / "poses.safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"STARTS": 12, "ROUNDS": 2, "CONFORMERS": 2, "REFINE": 20}.items():
            patch.setattr(decoys_command, name, value)
        assert decoys_command.main(words) == 3  # b has no ligand
    assert not list(root.glob("*.parts"))
    return root / "poses.safetensors"


def test_decoys_hold_right_and_wrong_poses_of_known_energy(poses):
    (example,) = CompactSet(poses)
    rmsd, energy = example.notes["rmsd"], example.notes["energy"]
    assert len(rmsd) == len(energy) == len(example.conformers) > decoys_command.NEAR
    assert min(rmsd) < 1.5 and max(rmsd) > 2.5
    # in atom order, so at least what symmetry allows
    plain = (example.conformers - example.crystal).square().sum(-1).mean(-1).sqrt()
    assert bool((plain > torch.tensor(rmsd) - 0.02).all())
    assert energy[0] == min(energy[: -decoys_command.NEAR])


def test_a_split_without_usable_complexes_is_refused(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("id,split\na,train\n")
    words = ["--data", str(tmp_path), "--split", "train", "--out", str(tmp_path / "x.safetensors")]
    assert decoys_command.main(words) == 2
    assert "no complex" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(poses):
    made = RankerFit(torch.device("cpu"), "dock", str(poses), str(poses), lr=0.003)
    before = made.evaluate()
    run = fit(made.process, made.denoiser, made.batches(0, 0, 1), made.optimizer)
    for _ in range(25):
        next(run)
    return made, before


def test_it_learns_to_choose_and_leaves_the_network_as_it_is(trained):
    made, before = trained
    after = made.evaluate()
    assert before["ranker_loss"] == pytest.approx(before["energy_loss"])  # begins with the energy
    assert after["energy_loss"] == pytest.approx(before["energy_loss"])
    assert after["ranker_loss"] < 0.5 * before["ranker_loss"] + 0.01
    network, _ = load_model(SHIPPED, torch.device("cpu"))
    held = made.process.score.state_dict()
    assert all(torch.equal(held[name], x) for name, x in network.score.state_dict().items())


def test_a_shaken_receptor_moves_by_residues_and_atoms(poses):
    (example,) = CompactSet(poses)
    still = example.receptor
    other = still.shaken(0.4, np.random.default_rng(0))
    moved = other.coords - still.coords
    assert float(moved.std()) == pytest.approx((0.4**2 + 0.2**2) ** 0.5, rel=0.1)
    residues = other.residue_coords - still.residue_coords
    assert float(residues.std()) == pytest.approx(0.2, rel=0.2)
    # atoms of a residue move with it: what is left is each atom's own
    own = moved - residues[still.residue]
    assert float(own.std()) == pytest.approx(0.4, rel=0.1)
    assert torch.equal(other.atom_type, still.atom_type)


def test_a_negative_shake_is_refused(poses):
    with pytest.raises(InputError, match="shake is -1"):
        RankerFit(torch.device("cpu"), "dock", str(poses), str(poses), shake=-1.0)


def test_a_second_set_joins_the_first(poses):
    once = RankerFit(torch.device("cpu"), "dock", str(poses), str(poses))
    both = RankerFit(torch.device("cpu"), "dock", str(poses), str(poses), more=str(poses))
    assert len(both._train) == 2 * len(once._train) and len(both._val) == len(once._val)


def test_preference_is_the_same_wherever_the_complex_lies(trained, poses):
    made, _ = trained
    (example,) = CompactSet(poses)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    q = q * torch.linalg.det(q)
    moved = example.receptor.__class__(
        example.receptor.coords @ q + 5,
        example.receptor.atom_type,
        example.receptor.residue,
        example.receptor.residue_type,
        example.receptor.residue_coords @ q + 5,
    )
    score, ranker = made.process.score, made.model.eval()
    with torch.no_grad():
        here = ranker(score, example.conformers, score.encode(example.receptor, example.ligand))
        there = ranker(score, example.conformers @ q + 5, score.encode(moved, example.ligand))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=2e-3)


def test_a_ranker_serves_its_own_network_only(tmp_path):
    network, size = tmp_path / "net.safetensors", Size()
    assert load_ranker(network, "0123456789abcdef", size) is None
    made = PoseRanker(size)
    made.belongs_to("0123456789abcdef")
    save(network.with_name("net_ranker.safetensors"), Checkpoint(KIND, {}, made.state_dict()))
    assert load_ranker(network, "0123456789abcdef", size) is not None
    assert load_ranker(network, "f123456789abcdef", size) is None
    with pytest.raises(CheckpointError, match="train it anew"):
        load_ranker(network, "0123456789abcdef", Size(scalars=32))


def test_the_shipped_ranker_belongs_to_the_shipped_network():
    assert Docker.load().source.ranker is not None


def test_a_set_without_poses_is_refused():
    with pytest.raises(InputError, match=r"dock\.decoys"):
        RankerFit(torch.device("cpu"), "dock", "dock_val.safetensors", "dock_val.safetensors")
