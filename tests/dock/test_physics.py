"""Vina's energy against the vina package, its gradient, its maps, descent and search."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from scipy.optimize import minimize as scipy_minimize
from scipy.stats import spearmanr

from bio_diffusion.dock.atom_types import active_torsions, ligand_types, receptor_types
from bio_diffusion.dock.featurize import ligand_graph
from bio_diffusion.dock.maps import SiteMaps, mapped
from bio_diffusion.dock.physics import ATOM_KINDS, Vina, flexible_pairs, pair_energy, pair_tables
from bio_diffusion.dock.pose import Pose, TorsionTree, project, rotation_matrix, twist
from bio_diffusion.dock.search import Kinematics, anneal, distinct, minimize, random_poses

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "vina_scores.json").read_text())
KINDS = list(ATOM_KINDS)


@cache
def _arrays():
    with np.load(DATA / "vina_structures.npz") as stored:
        return {key: stored[key] for key in stored.files}


@cache
def case(name):
    """Energy, maps and crystal pose of one stored complex; the ligand's centroid is the origin."""
    arrays, at, ligand_at, residue_at = _arrays(), 0, 0, 0
    for other, entry in GOLDEN.items():
        if other == name:
            break
        at += entry["receptor_atoms"]
        ligand_at += entry["atoms"]
        residue_at += entry["residues"]
    entry = GOLDEN[name]
    atoms = slice(at, at + entry["receptor_atoms"])
    residues = slice(residue_at, residue_at + entry["residues"])
    words = {key: arrays[f"{key}_words"][arrays[key]] for key in ("atom", "element", "name")}
    coords = arrays["coords"][atoms] / 100
    kinds = receptor_types(
        coords,
        words["element"][atoms].tolist(),
        words["atom"][atoms].tolist(),
        arrays["residue"][atoms],
        words["name"][residues].tolist(),
    )
    mol = Chem.MolFromSmiles(entry["smiles"])
    place = torch.tensor(arrays["ligand"][ligand_at : ligand_at + entry["atoms"]] / 100).float()
    low, high = place.amin(0), place.amax(0)
    graph = ligand_graph(mol)
    receptor = torch.tensor(coords).float(), torch.tensor(kinds)
    box = (low + high) / 2, (high - low + 8).clamp(min=15.0)
    vina = Vina.for_site(
        *receptor,
        torch.tensor(ligand_types(mol)),
        graph.bonds,
        graph.tree,
        *box,
        active_torsions(mol),
    )
    return vina, SiteMaps(*receptor, *box), Pose(place[None], graph.tree), graph


def names(least=0, most=99, torsions=0, count=5):
    """Stored complexes by size of ligand."""
    chosen = [
        name
        for name, entry in GOLDEN.items()
        if least <= entry["atoms"] <= most and len(case(name)[2].tree) >= torsions
    ]
    return chosen[:count]


def test_scores_of_the_vina_package():
    """64 complexes; when written: rank correlation 0.9995, mean absolute difference 0.034."""
    inter, affinity, intra = [], [], []
    for name, entry in GOLDEN.items():
        vina, _, pose, _ = case(name)
        inter.append((float(vina.inter(pose.coords)), entry["inter"]))
        intra.append((float(vina.intra(pose.coords)), entry["intra"]))
        affinity.append((float(vina.affinity(pose.coords)), entry["affinity"]))
    assert len(inter) >= 50
    for pairs, bound in ((inter, 0.05), (affinity, 0.04), (intra, 0.04)):
        ours, theirs = np.array(pairs).T
        assert np.abs(ours - theirs).mean() < bound
    assert spearmanr(*np.array(inter).T)[0] > 0.998
    assert spearmanr(*np.array(affinity).T)[0] > 0.998


def test_torsions_are_counted_as_by_the_vina_package():
    for name, entry in GOLDEN.items():
        if abs(entry["affinity"]) < 2:
            continue  # three printed decimals do not fix the count
        count = (entry["inter"] / entry["affinity"] - 1) / 0.05846
        assert case(name)[0].torsions == pytest.approx(count, abs=0.06), name


@pytest.mark.parametrize("d", [-1.1, -0.7, -0.35, 0.0, 0.4, 1.0, 1.7, 3.0, 4.5])
@pytest.mark.parametrize("pair", [("C_H", "Cl"), ("N_D", "O_A"), ("metal", "O_DA"), ("C_P", "S")])
def test_pair_energy_follows_the_published_terms(d, pair):
    def ramp(good, bad):
        return float(np.clip((d - bad) / (good - bad), 0, 1))

    greasy = pair == ("C_H", "Cl")
    bonded = pair[0] in ("N_D", "metal")
    expected = -0.035579 * np.exp(-((d / 0.5) ** 2)) - 0.005156 * np.exp(-(((d - 3) / 2) ** 2))
    expected += 0.840245 * min(d, 0) ** 2
    expected += -0.035069 * greasy * ramp(0.5, 1.5) - 0.587439 * bonded * ramp(-0.7, 0.0)
    i, j = (torch.tensor([KINDS.index(kind)]) for kind in pair)
    radii, *weights = (table[0] for table in pair_tables(i, j))
    radius = {"C": 1.9, "N": 1.8, "O": 1.7, "S": 2.0, "Cl": 1.8, "metal": 1.2}
    assert float(radii) == pytest.approx(sum(radius[kind.split("_")[0]] for kind in pair))
    energy, _ = pair_energy(torch.tensor([d]), *weights)
    assert float(energy) == pytest.approx(expected, abs=1e-6)


def _published(distance, kinds, others):
    """Table 1 of Trott and Olson, term by term, in float64 for torch's own differentiation."""
    rows = torch.tensor([[float(x) for x in ATOM_KINDS[kind]] for kind in KINDS]).double()
    (r_1, greasy_1, gives_1, takes_1), (r_2, greasy_2, gives_2, takes_2) = (
        rows[index].unbind(-1) for index in (kinds, others)
    )
    d = distance - r_1 - r_2
    bridge = ((gives_1 * takes_2 + takes_1 * gives_2) > 0).double()
    energy = -0.035579 * torch.exp(-((d / 0.5) ** 2)) - 0.005156 * torch.exp(-(((d - 3) / 2) ** 2))
    energy = energy + 0.840245 * torch.where(d < 0, d**2, 0.0)
    energy = energy - 0.035069 * greasy_1 * greasy_2 * (1.5 - d).clamp(0, 1)
    energy = energy - 0.587439 * bridge * (-d / 0.7).clamp(0, 1)
    return torch.where(distance < 8, energy, 0.0)


def test_energy_and_forces_against_a_plain_sum():
    """All pairs in float64; with the ceiling on atoms and on pairs within the ligand."""
    vina, maps, pose, _ = case(names(least=20)[0])
    generator = torch.Generator().manual_seed(0)
    coords = pose.coords.repeat(6, 1, 1)
    coords = coords + 0.3 * torch.randn(coords.shape, generator=generator)
    exact = coords.double().requires_grad_(True)
    apart = (exact[:, :, None] - maps.receptor_coords.double()).norm(dim=-1)
    atoms = _published(apart, vina.types[:, None], maps.receptor_types).sum(-1)
    i, j = vina.pairs.T
    within = _published((exact[:, i] - exact[:, j]).norm(dim=-1), vina.types[i], vina.types[j])
    bent = [torch.where(e > 0, e * 1000 / (e.clamp(min=0) + 1000), e) for e in (atoms, within)]
    energy = bent[0].sum(1) + bent[1].sum(1)
    (gradient,) = torch.autograd.grad(energy.sum(), exact)
    coords.requires_grad_(True)
    ours = vina.energy(coords)
    (our_gradient,) = torch.autograd.grad(ours.sum(), coords)
    # float32 distances of about 10 Å are good to 1e-6 Å, slopes reach tens of kcal/mol/Å.
    torch.testing.assert_close(ours.double(), energy, atol=2e-3, rtol=1e-5)
    torch.testing.assert_close(our_gradient.double(), gradient, atol=2e-3, rtol=1e-4)


def test_energy_does_not_depend_on_the_batch():
    vina, _, pose, _ = case(names(least=20)[0])
    coords = pose.coords + torch.linspace(-2, 2, 7)[:, None, None]
    alone = torch.cat([vina.energy(c[None]) for c in coords])
    torch.testing.assert_close(vina.energy(coords), alone, rtol=1e-4, atol=1e-3)


def test_walls_pull_back_into_the_box():
    vina, _, pose, _ = case(names()[0])
    away = Pose(pose.coords + torch.tensor([60.0, 0.0, 0.0]), pose.tree)
    energy, tangent = vina.energy_and_gradient(away)
    assert float(energy) > 1e3
    assert float(tangent["tr"][0, 0]) > 0
    assert float(vina.inter(away.coords)) == 0


def test_a_box_far_from_the_receptor_is_refused():
    vina, _, pose, graph = case(names()[0])
    receptor = torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)
    center = torch.full((3,), 99.0)
    with pytest.raises(ValueError, match="box"):
        Vina.for_site(*receptor, vina.types, graph.bonds, pose.tree, center, torch.ones(3))


def test_pairs_within_the_ligand():
    """Heptane in heavy atoms: pairs four bonds apart or more, all of which a bond moves."""
    bonds = torch.tensor([[i, i + 1] for i in range(6)])
    tree = TorsionTree.from_bonds(bonds, torch.ones(6, dtype=torch.bool), 7)
    expected = [[i, j] for i in range(7) for j in range(i + 4, 7)]
    assert flexible_pairs(bonds, tree).tolist() == expected
    assert len(flexible_pairs(bonds, TorsionTree.rigid(7))) == 0


def test_kinds_of_atoms():
    mol = Chem.MolFromSmiles("NC(=O)c1ccncc1CO")
    kinds = [KINDS[k] for k in ligand_types(mol)]
    assert kinds[0] == "N_D"  # amide
    assert kinds[2] == "O_A"
    assert kinds[6] == "N_A"  # pyridine
    assert kinds[-1] == "O_DA"
    assert kinds[3] == "C_H" and kinds[5] == "C_P"
    assert [KINDS[k] for k in ligand_types(Chem.MolFromSmiles("C[NH3+]"))] == ["C_P", "N_D"]
    assert [KINDS[k] for k in ligand_types(Chem.MolFromSmiles("CN(C)C"))][1] == "N_A"


def test_moves_are_rigid_motion_then_torsions():
    vina, _, pose, _ = case(names(torsions=6)[0])
    generator = torch.Generator().manual_seed(1)
    coords, tree = pose.coords.repeat(4, 1, 1), pose.tree
    kinematics = Kinematics(tree)
    step = 0.8 * torch.randn(4, 6 + len(tree), generator=generator)
    centroid = coords.mean(1, keepdim=True)
    turned = (coords - centroid) @ rotation_matrix(step[:, 3:6]).transpose(1, 2) + centroid
    expected = twist(turned + step[:, None, :3], tree, step[:, 6:])
    torch.testing.assert_close(kinematics(coords, step), expected, atol=2e-5, rtol=0)
    vectors = torch.randn(coords.shape, generator=generator)
    tangent = project(vectors, Pose(coords, tree))
    flat = torch.cat([tangent["tr"], tangent["rot"], tangent["tor"]], 1)
    torch.testing.assert_close(kinematics.pull(coords, vectors), flat, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(kinematics(coords, torch.zeros_like(step)), coords)


def test_maps_stand_in_for_the_sum():
    """Where an atom may be (e < 0.5), cubic splines on 0.375 Å keep to 0.03 kcal/mol an atom."""
    for name in names(least=15, count=3):
        vina, maps, pose, _ = case(name)
        fast = mapped(vina, maps)
        generator = torch.Generator().manual_seed(2)
        coords = pose.coords + 0.4 * torch.randn(50, *pose.coords.shape[1:], generator=generator)
        exact, _ = vina.field(coords)
        read, gradient = fast.field(coords)
        allowed = exact < 0.5
        assert float((exact - read)[allowed].square().mean().sqrt()) < 0.03
        # The gradient is that of the interpolant, not of the sum.
        h = 1e-2
        direction = torch.randn(coords.shape, generator=generator)
        ahead, behind = (fast.field(coords + s * h * direction)[0] for s in (1, -1))
        slope = (ahead - behind) / (2 * h)
        error = (slope - (gradient * direction).sum(-1))[allowed].abs()
        assert float(error.median()) < 2e-3


def test_descent_reaches_what_scipy_reaches():
    """L-BFGS-B on the same freedoms, its gradients by torch through moves and energy."""
    for name in names(least=12, torsions=3, count=3):
        vina, _, pose, _ = case(name)
        kinematics = Kinematics(pose.tree)
        found = minimize(pose, vina, evaluations=150)

        def value(step, coords=pose.coords, kinematics=kinematics, vina=vina):
            step = torch.tensor(step, dtype=torch.float32, requires_grad=True)
            energy = vina.energy(kinematics(coords, step[None])).sum()
            (gradient,) = torch.autograd.grad(energy, step)
            return float(energy.detach()), gradient.double().numpy()

        zero = np.zeros(6 + len(pose.tree))
        reference = scipy_minimize(
            value, zero, method="L-BFGS-B", jac=True, options={"maxfun": 150}
        )
        assert float(found.energy) < float(vina.energy(pose.coords)) + 1e-4
        assert float(found.energy) < reference.fun + 0.3
        assert found.evaluations <= 150


def test_descent_keeps_the_molecule_and_ends_flat():
    vina, _, pose, graph = case(names(least=15, torsions=3)[0])
    found = minimize(pose, vina, evaluations=400, tolerance=0.0)
    i, j = graph.bonds.T
    before = (pose.coords[:, i] - pose.coords[:, j]).norm(dim=-1)
    after = (found.pose.coords[:, i] - found.pose.coords[:, j]).norm(dim=-1)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    kinematics = Kinematics(pose.tree)

    def steepness(coords):
        _, gradient = vina.energy_and_force(coords)
        return float(kinematics.pull(coords, gradient).norm())

    assert steepness(found.pose.coords) < 0.1 * steepness(pose.coords)


def test_random_poses_fill_the_box_and_keep_the_molecule():
    _, _, pose, graph = case(names(least=15, torsions=3)[0])
    center, size = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 6.0, 8.0])
    poses = random_poses(pose, center, size, 400, torch.Generator().manual_seed(3))
    middle = poses.coords.mean(1) - center
    assert bool((middle.abs() <= 0.5 * size + 1e-3).all())
    # Uniform on an edge L: standard deviation L / sqrt(12); of 400 draws known to about 5 %.
    torch.testing.assert_close(middle.std(0), size / 12**0.5, rtol=0.15, atol=0)
    i, j = graph.bonds.T
    bond = (poses.coords[:, i] - poses.coords[:, j]).norm(dim=-1)
    expected = (pose.coords[:, i] - pose.coords[:, j]).norm(dim=-1).expand_as(bond)
    torch.testing.assert_close(bond, expected, atol=1e-3, rtol=0)


def test_search_finds_what_descent_from_the_crystal_finds():
    """A small ligand from random poses: at least as low an energy as beside the crystal pose."""
    name = names(least=10, most=18, torsions=2, count=1)[0]
    vina, maps, pose, _ = case(name)
    crystal = minimize(pose, vina).energy

    def found():
        generator = torch.Generator().manual_seed(4)
        start = random_poses(pose, vina.center, 0.5 * vina.size, 48, generator)
        visited = anneal(start, mapped(vina, maps), generator, rounds=10, evaluations=25)
        return distinct(minimize(distinct(visited, 10).pose, vina, 60), 5)

    first, second = found(), found()
    assert torch.equal(first.pose.coords, second.pose.coords)
    assert bool((first.energy.diff() >= 0).all())
    assert float(first.energy[0]) < float(crystal) + 0.3
    gaps = torch.pdist(first.pose.coords.flatten(1)) / pose.coords.shape[1] ** 0.5
    assert float(gaps.min()) >= 1.0


def test_every_minimum_visited_is_returned():
    vina, maps, pose, _ = case(names(least=10, most=18, torsions=2, count=1)[0])
    fast = mapped(vina, maps)
    visited = anneal(pose.repeat(6), fast, torch.Generator().manual_seed(5), 3, evaluations=8)
    assert len(visited.pose) == 24 and visited.evaluations == 32
    torch.testing.assert_close(
        visited.energy, fast.softened(10.0).energy(visited.pose.coords), atol=1e-3, rtol=1e-4
    )
    assert len(distinct(visited, 99, apart=0.0).pose) == 24
    assert float(distinct(visited, 1).energy) == float(visited.energy.min())


def test_a_ceiling_only_softens_clashes():
    vina, _, pose, _ = case(names()[0])
    shifted = pose.coords + torch.linspace(0, 3, 9)[:, None, None]
    soft = vina.softened(10.0).inter(shifted)
    assert bool((soft <= vina.inter(shifted) + 1e-4).all())
    assert bool((soft < 10.0 * pose.coords.shape[1]).all())
    free = replace(vina, center=None, size=None)
    torch.testing.assert_close(
        free.energy(pose.coords), vina.energy(pose.coords), atol=1e-4, rtol=0
    )
