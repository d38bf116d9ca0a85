"""The arithmetic of the benchmark scripts: curves, savings, correlations within series, products.

Scripts are loaded from `benchmarks/`, which is no package but on the path of the tests.
"""

from dataclasses import replace
from pathlib import Path

import diffdock_layers
import dock_affinity
import dock_quality
import dock_vs_peers
import image_disco
import linear_images
import linear_science
import momentum
import numpy as np
import paths
import pytest
import tables
import torch

from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.linear_kernels import cld, malda, vpsde
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.schedule import karras
from bio_diffusion.dock.experiment import docking_process
from bio_diffusion.dock.pose import Pose, rotation_matrix
from tests.dock import networks


def row(key, variant, rmsd, cpu, rank=1, valid="True"):
    return {
        "id": key, "split": "val", "part": "", "site": "known", "variant": variant, "seed": "0",
        "rank": str(rank) if rmsd else "", "rmsd": str(rmsd), "valid": valid,
        "cpu_seconds": str(cpu),
    }  # fmt: skip


def curve(method, budget, hits, cpu):
    return [
        row(f"c{i}", f"{method}, {budget}" if method != "vina" else f"vina ({budget})",
            1.0 if hit else 5.0, cpu)
        for i, hit in enumerate(hits)
    ]  # fmt: skip


def test_outcome_counts_a_failure_as_a_miss_and_an_unchecked_pose_as_unknown():
    failed = dock_quality.Outcome.of([row("a", "network", "", 1.0)])
    assert (failed.top, failed.both, failed.best, failed.valid) == (False, False, False, False)
    poses = [row("a", "v", 3.0, 2.0, 1, ""), row("a", "v", 1.5, 2.0, 2, "")]
    outcome = dock_quality.Outcome.of(poses[::-1])
    assert (outcome.top, outcome.both, outcome.best, outcome.valid) == (False, False, True, None)
    assert outcome.rmsd == 3.0
    assert dock_quality.checked_rate([True, None]) == "not checked"


def test_seeds_are_averaged_and_held_against_a_variant_with_one():
    rows = [
        row(key, "network", rmsd, 1.0) | {"seed": seed}
        for seed, found in (("0", (1.0, 5.0)), ("1", (1.0, 1.0)))
        for key, rmsd in zip("ab", found, strict=True)
    ]
    rows += [row(key, "vina", rmsd, 9.0) for key, rmsd in (("a", 1.0), ("b", 5.0))]
    printed = dock_quality.render(rows)
    assert "network, by seed: [1, 2], mean 1.500 ± 0.500" in printed
    assert "above vina on 2 complexes, in points: 25.000 ± 25.000" in printed


def test_points_keep_the_complexes_that_all_have_and_sort_by_time():
    rows = curve("network", "64 starts", [1, 1, 0], 4.0) + curve("network", "8 starts", [1, 0], 1.0)
    rows += curve("vina", "exhaustiveness 8", [1, 0, 1], 40.0)
    found = dock_vs_peers.points(rows)
    assert [p.name for p in found] == [
        "network, 8 starts", "network, 64 starts", "vina, exhaustiveness 8",
    ]  # fmt: skip
    assert all(set(p.outcomes) == {"c0", "c1"} for p in found)
    assert [p.cpu for p in found] == [1.0, 4.0, 40.0]
    text = dock_vs_peers.render(found)
    assert "| network | 64 starts | 2 | 100.0 %" in text
    assert "| network, 64 starts against vina, exhaustiveness 8 | 4.0 against 40.0 |" in text


def test_time_to_a_success_is_read_off_the_curve():
    cpu, success = [1.0, 4.0, 16.0], [0.2, 0.6, 0.5]
    assert dock_vs_peers.cheapest(cpu, success, 0.1) == 1.0  # the cheapest point already does
    assert dock_vs_peers.cheapest(cpu, success, 0.6) == pytest.approx(4.0)
    assert dock_vs_peers.cheapest(cpu, success, 0.4) == pytest.approx(2.0)  # halfway in log time
    assert dock_vs_peers.cheapest(cpu, success, 0.7) == np.inf


def test_saving_is_a_bound_where_the_cheapest_point_suffices_and_none_where_no_point_does():
    rows = curve("network", "8 starts", [1, 1, 0, 0], 2.0)
    rows += curve("vina", "exhaustiveness 1", [1, 0, 0, 0], 10.0)
    rows += curve("vina", "exhaustiveness 8", [1, 1, 1, 0], 80.0)
    ours, easy, hard = dock_vs_peers.points(rows)
    ids = sorted(ours.outcomes)
    assert dock_vs_peers.saving([ours], easy, ids) == pytest.approx(5.0)
    assert dock_vs_peers.saving_line([ours], easy, ids).startswith("at least 5.0 |")
    assert dock_vs_peers.saving([ours], hard, ids) == 0.0
    assert dock_vs_peers.saving_line([ours], hard, ids).startswith("not reached |")


def test_a_run_can_be_of_one_part_and_of_vina_alone(tmp_path, capsys, monkeypatch):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "id,split,test_part,n_rot\na,test,new,3\nb,test,new,14\nc,test,seen,3\nd,val,,3\n"
    )
    called = []
    monkeypatch.setattr(dock_vs_peers.subprocess, "run", lambda words, **_: called.append(words))
    out = tmp_path / "run"
    where = ["--data", str(tmp_path), "--manifest", str(manifest), "--out", str(out)]
    which = ["--split", "test", "--part", "new", "--sample", "0", "--max-torsions", "13"]
    command = ["run", *where, *which, "--starts", "--exhaustiveness", "1", "2"]
    assert dock_vs_peers.main(command) == 0
    assert (out / "ids.txt").read_text().split() == ["a"]
    assert [Path(words[words.index("--out") + 1]).name for words in called] == [
        "vina_1.csv", "vina_2.csv",
    ]  # fmt: skip
    columns = "id,split,part,rank,energy,rmsd,cpu_seconds,exhaustiveness,failure\n"
    for level, rmsd in ((1, 3.0), (2, 1.0)):
        line = f"a,test,new,1,-5.0,{rmsd},4.0,{level},\n"
        (out / f"vina_{level}.csv").write_text(columns + line)
    command = ["table", str(out), "--data", str(tmp_path), "--exhaustiveness", "1", "2"]
    assert dock_vs_peers.main(command) == 0
    printed = capsys.readouterr().out
    assert "| vina | exhaustiveness 1 | 1 | 0.0 %" in printed
    assert "| vina | exhaustiveness 2 | 1 | 100.0 %" in printed


def test_correlations_have_the_sign_one_hopes_for():
    rows = [
        {"affinity": -a, "energy": e, "heavy": h, "logp": 1.0}
        for a, e, h in [(6, -5.0, 20), (7, -6.0, 21), (8, -8.0, 23), (9, -7.0, 25)]
    ]
    rho, tau = dock_affinity.correlations(rows, "energy", 1)
    assert (rho, tau) == (pytest.approx(0.8), pytest.approx(2 / 3))  # by hand: one pair swapped
    assert dock_affinity.correlations(rows, "heavy", -1) == (pytest.approx(1), pytest.approx(1))
    assert dock_affinity.correlations(rows, "logp", -1) == (0.0, 0.0)  # constant: ranks nothing


def test_report_averages_over_series_and_joins_tables_by_ligand():
    ours = [
        {"id": f"{s}{i}", "target": s, "affinity": str(-i), "energy": str(-i if s == "a" else i),
         "heavy": str(i)}
        for s in "ab" for i in range(3)
    ]  # fmt: skip
    vina = [{"id": f"a{i}", "target": "a", "affinity": str(-i), "vina": str(-i)} for i in range(3)]
    text = dock_affinity.render([ours, vina])
    first, second = text.split("1 series, 3 ligands")
    assert "2 series, 6 ligands" in first
    assert "| energy, minimised | 0.000 ± 1.000 | 0.000 ± 1.000 | -1.000 ± 1.000 | 1/2 |" in first
    assert "| Vina package, minimised | 1.000 | 1.000 | 0.000 | 1/1 |" in second


def test_product_is_equivariant_and_as_large_as_the_published_one():
    o3 = pytest.importorskip("e3nn.o3")
    widths = diffdock_layers.WIDTHS[-1]
    product = diffdock_layers.Product(widths, widths)
    irreps = o3.Irreps("24x0e + 6x1o + 6x1e + 24x0o")
    full = o3.FullyConnectedTensorProduct(irreps, "1x0e + 1x1o", irreps, shared_weights=False)
    assert product.weights == full.weight_numel == 1872
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(5, n, generator=generator) for n in (irreps.dim, product.weights))
    unit = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    turn = turn * torch.det(turn)

    def turned(features, sign):
        even, vectors, axial, odd = features.split(widths.split, 1)
        vectors, axial = (v.reshape(5, -1, 3) @ turn.T for v in (vectors, axial))
        return torch.cat([even, sign * vectors.flatten(1), axial.flatten(1), sign * odd], 1)

    for sign in (1, -1):  # with a reflection, too
        made = product(turned(x, sign), sign * unit @ turn.T, w)
        assert torch.allclose(made, turned(product(x, unit, w), sign), atol=1e-4)


def test_edges_are_copied_for_each_pose_and_joined_both_ways():
    residues = 4.0 * torch.arange(6)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    coords = torch.tensor([[0.0, 5, 0], [1.5, 5, 0], [9.0, 5, 0]]).repeat(2, 1, 1)
    coords[1] += torch.tensor([0.0, 40, 0])  # out of reach of the receptor
    bonds = torch.tensor([[0, 1], [1, 0]])
    within, down, among, up = diffdock_layers.edges_of(coords, bonds, residues, 0.0)
    assert len(within.receiver) == 2 * (2 + 2)  # the bond and the pair within 5 Å, both ways
    assert set(down.receiver.tolist()) == {0, 1, 2}
    assert down.sender.min() >= 6 and down.sender.max() < 6 + 6
    assert torch.equal(down.receiver, up.sender) and torch.equal(down.sender, up.receiver)
    assert len(among.receiver) == 2 * 2 * (5 + 4 + 3)  # up to three places apart, within 15 Å
    nodes = torch.randn(2 * (3 + 6), diffdock_layers.SCALARS)
    made = diffdock_layers.Layers().eval()(nodes, [within, down, among, up])
    assert made.shape == (18, sum(diffdock_layers.WIDTHS[-1].split))


def test_a_network_of_vpsde_read_as_a_denoiser_of_plain_noise_gives_back_its_score():
    process = linear_science.make("VPSDE")
    denoiser = linear_images.NoisePrediction(lambda x, noise, cond: torch.sin(3 * x), process)
    plain = linear_images.DataPrediction(linear_images.Plain(denoiser), process)
    u, t = torch.randn(4, 1, 2, 2), torch.tensor([1e-3, 0.01, 0.3, 1.0])
    torch.testing.assert_close(plain(u.double(), t).float(), denoiser(u, t), rtol=1e-4, atol=1e-4)


def flights(process, pose):
    """Poses of a random chain, noised to the middle of the time of `docking_process`."""
    u = pose.coords.new_zeros(len(pose), process.linear.variables, 3)
    x_0 = momentum.Flight(pose, u, pose.coords[0].mean(0))
    t = process.time(torch.full((len(pose),), 0.5))
    return process.perturb(x_0, t, torch.Generator().manual_seed(0)).x_t, t


@pytest.mark.parametrize("recipe", [vpsde(), cld(), malda()], ids=["vpsde", "cld", "malda"])
def test_time_with_velocity_tells_as_much_of_the_centre_as_docking_does(recipe):
    process, told = momentum.Momentum(recipe), torch.linspace(0.01, 1, 7, dtype=torch.float64)
    t = process.time(told)
    torch.testing.assert_close(process.told(t), told, rtol=0, atol=1e-6)
    sigma = momentum.DataPrediction(torch.nn.Identity(), process.linear).statistic(t)[1]
    wanted = docking_process().sigma(told)["tr"]
    torch.testing.assert_close(process.unit * sigma, wanted, rtol=1e-4, atol=0)


def test_flow_carries_the_noise_of_one_time_to_that_of_another():
    linear, (t, s) = momentum.Momentum(cld()).linear, (torch.tensor([x]) for x in (0.5, 0.2))
    (_, Sigma_t, _), (_, Sigma_s, _) = linear.conditional(t), linear.conditional(s)
    R = momentum._turn(linear, float(t), float(s))
    torch.testing.assert_close(R @ Sigma_t @ R.mT, Sigma_s, rtol=1e-4, atol=0)


@pytest.mark.parametrize("way", momentum.WAYS)
def test_poses_with_velocity_reach_a_known_centre(way):
    class Known(torch.nn.Module):
        """The exact denoiser of one centre; rotation and torsions are not told anything."""

        def forward(self, pose, t, cond):
            sigma = docking_process().sigma(t)["tr"][:, None].float()
            missing = torch.tensor([1.0, 2.0, 3.0]) - pose.coords.mean(1)
            still = {name: torch.zeros(shape) for name, shape in pose.tangent_shapes().items()}
            return {**still, "tr": missing / sigma**2}

    pose = networks.poses(networks.ligand(), 4)
    process = momentum.Momentum(cld())
    start = momentum.Flight(pose, torch.zeros(4, 2, 3), torch.zeros(3))
    generator = torch.Generator().manual_seed(0)
    pilot = momentum.Pilot(process, Known())
    found = momentum.draw(process, pilot, start, None, 6, way, generator)
    wanted = torch.tensor([1.0, 2.0, 3.0]).expand(4, 3)
    torch.testing.assert_close(found.coords.mean(1), wanted, rtol=0, atol=1e-3)


def test_scores_of_place_and_velocity_turn_with_the_complex():
    process, graph, receptor = momentum.Momentum(cld()), networks.ligand(), networks.receptor()
    torch.manual_seed(0)
    score = networks.randomised(momentum.Hearing(docking_process(), networks.SIZE)).float()
    pilot, turn = momentum.Pilot(process, score), rotation_matrix(torch.tensor([0.4, -2.0, 0.9]))
    x_t, t = flights(process, networks.poses(graph))
    turned = momentum.Flight(
        Pose(x_t.pose.coords @ turn.T, graph.tree), x_t.u @ turn.T, x_t.origin @ turn.T
    )
    around = replace(
        receptor, coords=receptor.coords @ turn.T, residue_coords=receptor.residue_coords @ turn.T
    )
    plain = pilot(x_t, t, score.encode(receptor, graph))
    other = pilot(turned, t, score.encode(around, graph))
    for name in ("tr", "rot"):
        torch.testing.assert_close(other[name], plain[name] @ turn.T, rtol=1e-3, atol=1e-3)


def test_curvature_is_that_of_a_normal_laws_flow():
    """x_i(a) = b_i sqrt((c_i^2 + a^2) / (c_i^2 + A^2)): a plane curve with a known curvature."""
    process, c2 = GaussianDiffusion(EDM(0.01, 10.0), sigma_data=1.0), torch.tensor([4.0, 0.04])

    def exact(x_t, t, cond):
        return x_t * c2 / (c2 + process.sigma(t)[:, None] ** 2)

    begin = torch.tensor([[3.0, 5.0], [-8.0, 2.0]]).double()
    found = paths.walk(process, exact, begin, karras(process, 400).double())
    a2 = torch.tensor(found.levels).double()[:, None, None] ** 2
    root = ((c2 + a2) / (c2 + 100)).sqrt()
    first = begin * a2.sqrt() / ((c2 + a2) * (c2 + 100)).sqrt()
    second = begin * c2 / ((c2 + 100).sqrt() * (c2 + a2) ** 1.5)
    turn = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    wanted = turn.abs() / first.norm(dim=-1) ** 3
    # one-sided differences over dt: at low noise they are off by dt / a of the curvature
    torch.testing.assert_close(found.bends, wanted, rtol=0.06, atol=1e-6)
    curve = begin * root
    length = (curve[1:] - curve[:-1]).norm(dim=-1).sum(0)
    ratio = length / (curve[-1] - curve[0]).norm(dim=-1)
    torch.testing.assert_close(found.ratio, ratio, rtol=0.02, atol=0)


def test_gains_add_when_their_ratios_multiply():
    assert tables.additive(8.0, 4.0, 2.0, 1.0) == pytest.approx(
        [-0.6931472, -1.3862944, -2.0794415, -2.0794415]
    )


def test_the_rival_at_equal_time_lies_between_its_calls():
    drawn = {f"Karras {n}": {"distance": 100 / n} for n in (5, 7, 9, 11, 17, 21)}
    run = {"drawn": {"none": drawn}}
    for milliseconds in (9.0, 15.0, 16.5, 25.0, 63.0, 70.0):  # 3 a call
        found = image_disco.at(run, "Karras", milliseconds, 3.0)
        assert found == pytest.approx(300 / milliseconds)
