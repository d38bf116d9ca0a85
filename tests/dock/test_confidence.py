"""How likely a pose is right: evidence, fit, calibration, and what ranking makes of it."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bio_diffusion.checkpoint import Checkpoint, CheckpointError, save
from bio_diffusion.config import ConfigError
from bio_diffusion.diffusion.training import fit
from bio_diffusion.dock import pools as pools_command
from bio_diffusion.dock.companion import companion_path
from bio_diffusion.dock.complex import InputError, read_ligands, read_receptor, site_from_ligand
from bio_diffusion.dock.confidence import (
    KIND,
    Confidence,
    calibration_error,
    load_confidence,
)
from bio_diffusion.dock.confidence_fit import ConfidenceFit, folds, held_out, read_pools
from bio_diffusion.dock.pipeline import Docker, Settings
from bio_diffusion.dock.pool import EVIDENCE, Pool, crowding, evidence
from bio_diffusion.dock.pose import Pose, TorsionTree
from bio_diffusion.dock.search import Minimized
from bio_diffusion.dock.sources import SHIPPED, PreparedReceptor

DEMO = Path(__file__).parents[2] / "data/demo"
TINY = {"starts": 6, "rounds": 1, "evaluations": 6, "refine": 8, "conformers": 2, "num_poses": 4}
SUPPORT, FUNNEL = EVIDENCE.index("support"), EVIDENCE.index("funnel")


@pytest.fixture(scope="module")
def receptor():
    return PreparedReceptor.of(read_receptor(DEMO / "protein.pdb"))


@pytest.fixture(scope="module")
def site():
    return site_from_ligand(DEMO / "ligand.sdf")


def ligand(smiles, name="x"):
    return replace(next(read_ligands([smiles])), id=name)


def model(seed=0):
    """A model with random weights, of the shipped network."""
    made = Confidence()
    torch.nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(seed))
    made.belongs_to(Docker.load().checkpoint.rpartition("-")[2])
    return made


SAME = torch.arange(5)[None]  # no two atoms are alike


def a_pool(count=6, atoms=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return 3 * draw(count, atoms, 3), 3 * draw(12, atoms, 3), draw(12).sort().values, draw(count)


def crowd_of(coords, minima, low):
    tree = TorsionTree.from_bonds(torch.tensor([[0, 1]]), torch.ones(1, dtype=torch.bool), 5)
    return crowding(coords, Minimized(Pose(minima, tree), low, 1), SAME)


def evidence_of(coords, minima, low, score):
    crowd = crowd_of(coords, minima, low)
    pool = Pool(coords, score, score, torch.ones(len(coords)).long(), crowd)
    return evidence(pool, score, 2.0, SAME)


def test_evidence_is_the_same_wherever_the_complex_lies_and_however_poses_are_ordered():
    coords, minima, low, score = a_pool()
    minima[3] = coords[score.argmin()] + 0.2
    told = evidence_of(coords, minima, low, score)
    assert told.shape == (6, len(EVIDENCE)) and bool(told.isfinite().all())
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    away = torch.tensor([10.0, -5.0, 3.0])
    moved = evidence_of(coords @ q + away, minima @ q + away, low, score)
    torch.testing.assert_close(moved, told, rtol=1e-3, atol=1e-3)
    order = torch.tensor([4, 5, 3, 1, 2, 0])
    mixed = evidence_of(coords[order], minima, low, score[order])
    torch.testing.assert_close(mixed, told[order], rtol=1e-5, atol=1e-5)


def test_a_pose_is_supported_by_its_own_share_and_by_those_near_it():
    coords, minima, low, score = a_pool()
    shares = (-1.3 * score).softmax(0)
    # all lie apart: of a pose's own share sigmoid(4) counts
    alone = evidence_of(coords, minima, low, score)[:, SUPPORT].exp()
    torch.testing.assert_close(alone, shares * 0.982, rtol=0.02, atol=5e-4)
    coords[1] = coords[0] + 0.1
    near = evidence_of(coords, minima, low, score)[:2, SUPPORT].exp()
    torch.testing.assert_close(near, shares[:2].sum().expand(2), rtol=0.05, atol=0)


def test_a_pose_turned_over_by_symmetry_supports_and_is_no_other():
    coords, _, _, score = a_pool()
    same = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    coords[1] = coords[0].flip(0) + 0.1
    pool = Pool(coords, score, score, torch.ones(6).long(), torch.zeros(6))
    told = evidence(pool, score, 2.0, same)[:2, SUPPORT].exp()
    shares = (-1.3 * score).softmax(0)
    torch.testing.assert_close(told, shares[:2].sum().expand(2), rtol=0.05, atol=0)
    assert len(pool.distinct(6, 1.0, SAME).coords) == 6
    left = pool.distinct(6, 1.0, same)
    assert len(left.coords) == 5 and float(left.inter.min()) == float(score.min())


def test_a_pose_among_low_minima_is_crowded_and_the_best_one_speaks_for_the_pool():
    coords, minima, low, score = a_pool()
    minima[0] = coords[2]
    low[0] = low[0] - 10.0  # nearly all of the weight
    crowd = crowd_of(coords, minima, low)
    assert crowd[2] > -0.1 and crowd.argmax() == 2
    assert bool((evidence_of(coords, minima, low, score)[:, FUNNEL] == crowd[score.argmin()]).all())


def test_probabilities_whatever_the_evidence_and_the_company():
    made = model()
    wild = 10.0 ** torch.arange(-3, 9).float()[:, None] * torch.randn(12, len(EVIDENCE))
    chance = made(wild)
    assert bool(((chance >= 0) & (chance <= 1)).all())
    for i in range(12):
        assert torch.equal(made(wild[i : i + 1])[0], chance[i])


def test_calibration_error_of_known_cases():
    chance = torch.tensor([0.25] * 8 + [0.75] * 4)
    right = torch.tensor([True, True, *[False] * 6, True, True, True, False])
    assert calibration_error(chance, right) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(torch.ones(4), torch.zeros(4).bool()) == pytest.approx(1.0)
    # two thirds of the poses are right by 0.25 more than they were told, one third by 0.25 less
    assert calibration_error(chance, torch.tensor([True, False] * 6)) == pytest.approx(0.25)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pools in which much support and a crowded funnel mean a right pose."""
    path, rng = tmp_path_factory.mktemp("pools") / "pools.csv", np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        terms = ("energy", "fitted", "loss", "preference", "score", "failed")
        rows.writerow(["id", "split", "cluster", "network", "rmsd", *terms, *EVIDENCE])
        for number in range(120):
            split = "some" if number < 80 else "others"
            for _ in range(8):
                x = rng.normal(size=len(EVIDENCE))
                chance = 1 / (1 + np.exp(2.0 - x[FUNNEL] - x[SUPPORT]))
                rmsd = 1 if rng.random() < chance else 5
                fixed = [f"c{number}", split, number // 2, "dock-0123456789ab", rmsd, *[0] * 6]
                rows.writerow([*fixed, *x])
    return path


@pytest.fixture(scope="module")
def fitted(table):
    made = ConfidenceFit(torch.device("cpu"), str(table), lr=0.1)
    run = fit(made.process, made.denoiser, made.batches(0, 0, 1), made.optimizer)
    for step in range(400):
        for group in made.optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 400)
        next(run)
    return made


def test_the_fit_finds_what_matters_and_is_calibrated_on_other_complexes(fitted):
    weights = fitted.model.weight.detach()
    assert {FUNNEL, SUPPORT} == set(weights.abs().topk(2).indices.tolist())
    assert weights[FUNNEL] > 0.5 and weights[SUPPORT] > 0.5
    found = fitted.evaluate()
    assert found["entropy"] < 0.9 * found["entropy_of_rate"]
    assert found["calibration_error"] < 0.1
    # at the optimum of a logistic regression the residuals have no mean
    seen = fitted.process
    left = fitted.model(seen.evidence) - seen.right
    assert abs(float(left.mean())) < 5e-3


def test_held_out_probabilities_do_not_know_their_cluster(table):
    found, _ = read_pools(table)
    pools = found["some"].joined(found["others"])
    assert len(pools) == 120 and len(pools.right) == 960
    chance = held_out(pools)
    here = torch.tensor([f == 3 for f in folds(pools)]).repeat_interleave(torch.tensor(pools.sizes))
    turned = replace(pools, right=torch.where(here, ~pools.right, pools.right))
    torch.testing.assert_close(held_out(turned)[here], chance[here])
    assert not torch.allclose(held_out(turned)[~here], chance[~here], atol=1e-3)


def test_a_choice_of_complexes_keeps_their_poses(table):
    found, _ = read_pools(table)
    pools = found["some"]
    chosen = pools.of([number in (3, 7) for number in range(len(pools))])
    assert chosen.ids == ("c3", "c7") and chosen.sizes == (8, 8)
    assert torch.equal(chosen.evidence[8:], pools.evidence[56:64])


def test_a_table_of_another_kind_or_of_two_networks_is_refused(table, tmp_path):
    text = table.read_text()
    (tmp_path / "a.csv").write_text(text.replace("funnel", "tunnel"))
    with pytest.raises(ConfigError, match="lacks the column funnel"):
        read_pools(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(text.replace("0123456789ab", "ba9876543210", 1))
    with pytest.raises(ConfigError, match="several networks"):
        read_pools(tmp_path / "b.csv")
    rows = text.splitlines(keepends=True)
    (tmp_path / "c.csv").write_text("".join(rows[:17]))  # two complexes of one cluster
    with pytest.raises(ConfigError, match="one protein cluster"):
        ConfidenceFit(torch.device("cpu"), str(tmp_path / "c.csv"))


def test_a_model_serves_its_own_network_only(tmp_path):
    network = tmp_path / "net.safetensors"
    assert load_confidence(network, "net-0123456789ab") is None
    made = model()
    made.belongs_to("0123456789abcdef")
    save(companion_path(network, KIND), Checkpoint(KIND, {}, made.state_dict()))
    loaded = load_confidence(network, "net-0123456789ab")
    x = torch.randn(4, len(EVIDENCE))
    assert torch.equal(loaded(x), made(x)) and loaded.name.startswith("net_confidence-")
    assert load_confidence(network, "net-ffffffffffff") is None
    save(companion_path(network, KIND), Checkpoint(KIND, {}, {"weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="train it anew"):
        load_confidence(network, "net-0123456789ab")


def test_confidence_ranks_among_sound_poses_and_score_can_be_asked_for(receptor, site):
    docker = Docker.load(**TINY)
    docker.confidence = model()
    made = ligand("Oc1ccccc1CC(N)=O")
    (found,) = docker.dock(receptor, [made], site)
    order = [(not row["valid"], -row["confidence"]) for row in found.rows]
    assert order == sorted(order) and all(0 <= row["confidence"] <= 1 for row in found.rows)
    docker.settings = Settings(**TINY, rank_by="score")
    (other,) = docker.dock(receptor, [made], site)
    order = [(not row["valid"], row["score"]) for row in other.rows]
    assert order == sorted(order)
    both = {r["energy"]: r["confidence"] for r in found.rows}
    told = {r["energy"]: r["confidence"] for r in other.rows}
    assert all(both[energy] == told[energy] for energy in both.keys() & told.keys())
    (company,) = (
        d for d in docker.dock(receptor, [ligand("CCO", "y"), made], site) if d.ligand is made
    )
    assert [r["confidence"] for r in company.rows] == [r["confidence"] for r in other.rows]


def test_without_a_judgement_a_model_or_a_single_site_the_column_is_empty(receptor, site):
    for unasked in ("judgement", "preference"):
        docker = Docker.load(**TINY, **{unasked: 0.0})
        docker.confidence = model()
        (found,) = docker.dock(receptor, [ligand("CCO")], site)
        assert [row["confidence"] for row in found.rows] == [None] * len(found.rows)
    docker = Docker.load(**TINY)
    docker.confidence = model()
    (found,) = docker.dock(receptor, [ligand("CCO")], [site, site])
    assert [row["confidence"] for row in found.rows] == [None] * len(found.rows)
    docker.settings = Settings(**TINY, minimize=False)
    (found,) = docker.dock(receptor, [ligand("CCO")], site)
    assert [row["confidence"] for row in found.rows] == [None] * len(found.rows)
    other = Docker.load(SHIPPED.with_name("dock_disco.safetensors"), **TINY)
    assert other.confidence is None
    (found,) = other.dock(receptor, [ligand("CCO")], site)
    assert [row["confidence"] for row in found.rows] == [None] * len(found.rows)
    physics = Docker.load("none", **TINY)
    assert physics.checkpoint == "none" and physics.confidence is None
    with pytest.raises(InputError, match="rank_by"):
        Settings(rank_by="luck")


def test_the_shipped_model_belongs_to_the_shipped_network():
    assert Docker.load().confidence is not None


def test_pools_are_made_and_a_stopped_run_goes_on(tmp_path, capsys):
    folder = tmp_path / "data"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for file in ("protein.pdb", "ligand.sdf"):
            (folder / name / file).write_bytes((DEMO / file).read_bytes())
    (folder / "b" / "ligand.sdf").write_text("no ligand\n")
    (folder / "manifest.csv").write_text("id,split,cluster\na,val,7\nb,val,8\n")
    words = ["--data", str(folder), "--split", "val", "--out", str(tmp_path / "pools.csv")]
    words += [f"{key}={value}" for key, value in TINY.items()]
    assert pools_command.main(words) == 3
    text = (tmp_path / "pools.csv").read_text()
    found, network = read_pools(tmp_path / "pools.csv")
    assert network == Docker.load(None).checkpoint
    assert found["val"].ids == ("a",) and found["val"].clusters == ("7",)
    (folder / "b" / "ligand.sdf").unlink()
    assert pools_command.main(words) == 3 and (tmp_path / "pools.csv").read_text() == text
    (tmp_path / "pools.csv").write_text(text.replace("support", "share", 1))  # of another version
    assert pools_command.main(words) == 2
    assert "pools.csv: holds other columns" in capsys.readouterr().err
    (tmp_path / "pools.csv").write_text(text)
    assert pools_command.main([*words, "--manifest", "no.csv"]) == 2
    assert pools_command.main([*words, "stops=3"]) == 2
    assert pools_command.main([*words, "--part", "moon"]) == 2
