"""The compiled loops against the lines of torch that they stand in for."""

import subprocess
import sys

import pytest
import torch

from bio_diffusion.dock import ahead, kernels
from bio_diffusion.dock.layers import Features, Message, Neighbours, Size, nearest
from bio_diffusion.dock.maps import SiteMaps, mapped
from bio_diffusion.dock.physics import ATOM_KINDS, PairField, Vina, flexible_pairs
from bio_diffusion.dock.pose import TorsionTree
from bio_diffusion.dock.search import Kinematics


def both(function, *arguments):
    """What the kernels say, and what torch says."""
    with torch.no_grad():
        fast = function(*arguments)
    return fast, function(*arguments)


@pytest.mark.parametrize("pair_types", [0, 5])
@pytest.mark.parametrize(("nodes", "others", "k"), [(40, 40, 12), (9, 70, 1)])
@pytest.mark.parametrize("size", [Size(), Size(scalars=7, vectors=3, hidden=5)])
def test_messages(size, pair_types, nodes, others, k):
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    torch.manual_seed(0)
    message = Message(size, pair_types)
    senders = Features(some(others, size.scalars), some(others, 3, size.vectors))
    index = torch.randint(0, others, (nodes, k), generator=generator)
    edges = Neighbours(index, some(nodes, k, 16), some(nodes, k, 3))
    kinds = torch.randint(0, pair_types, (nodes, k), generator=generator) if pair_types else None
    fast, slow = both(message, some(nodes, size.scalars), senders, edges, kinds)
    assert not fast.scalars.requires_grad and slow.scalars.requires_grad
    torch.testing.assert_close(tuple(fast), tuple(s.detach() for s in slow), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("others", "k"), [(200, 12), (12, 12), (5, 12), (1, 1)])
def test_nearest(others, k):
    generator = torch.Generator().manual_seed(2)
    receivers = 9 * torch.randn(50, 3, generator=generator)
    senders = 9 * torch.randn(others, 3, generator=generator)
    fast, slow = both(nearest, receivers, senders, k)
    assert fast.shape == (50, min(k, others))
    far = [(senders[i] - receivers[:, None]).norm(dim=-1).sort(1).values for i in (fast, slow)]
    torch.testing.assert_close(*far, rtol=0, atol=0.01)  # torch's come from products, less exact
    assert all(len(set(row)) == min(k, others) for row in fast.tolist())
    receivers[3] = torch.nan
    with torch.no_grad():
        assert nearest(receivers, senders, k)[3].max() < others


@pytest.fixture(scope="module")
def site():
    """A chain of 12 atoms of all kinds among 300, and poses of it: some clash, some lie outside."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.arange(len(ATOM_KINDS))
    others = 24 * (torch.rand(300, 3, generator=generator) - 0.5)
    other_kinds = kinds[torch.randint(0, len(kinds), (300,), generator=generator)]
    chain = torch.stack([torch.arange(11), torch.arange(1, 12)], 1)
    tree = TorsionTree.from_bonds(chain, torch.ones(11, dtype=torch.bool), 12)
    steps = 0.9 * torch.randn(30, 12, 3, generator=generator)
    spread = torch.linspace(0, 12, 30)[:, None, None] * torch.tensor([1.0, -0.5, 0.2])
    coords = steps.cumsum(1) + spread
    box = torch.zeros(3), torch.full((3,), 15.0)
    field = PairField(others, other_kinds, kinds[:12])
    vina = Vina(field, kinds[:12], flexible_pairs(chain, tree), 3.0, *box)
    return vina, SiteMaps(others, other_kinds, *box), coords


@pytest.mark.parametrize("field", ["sum", "maps"])
@pytest.mark.parametrize("cap", [1000.0, 10.0])
def test_energies(site, field, cap):
    vina, maps, coords = site
    vina = (mapped(vina, maps) if field == "maps" else vina).softened(cap)
    for part in (vina.field, vina._within, vina.energy_and_force):
        fast, slow = both(part, coords)
        for ours, theirs in zip(fast, slow, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-4)


def test_layout_in_memory_does_not_matter(site):
    vina, maps, coords = site
    turned = coords.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for field in (vina.field, mapped(vina, maps).field, vina._within):
        with torch.no_grad():
            for ours, theirs in zip(field(turned), field(coords), strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("field", ["sum", "maps"])
def test_what_is_no_number_stays_none(site, field):
    vina, maps, coords = site
    vina = mapped(vina, maps) if field == "maps" else vina
    broken = coords[:2].clone()
    broken[1, 3, 1] = torch.nan
    with torch.no_grad():
        energy = vina.inter(broken)
    assert bool(energy[0].isfinite()) and bool(energy[1].isnan())


@pytest.mark.parametrize("bonds", [0, 1, 11])
def test_moves(site, bonds):
    coords = site[2]
    chain = torch.stack([torch.arange(11), torch.arange(1, 12)], 1)
    kinematics = Kinematics(TorsionTree.from_bonds(chain, torch.arange(11) >= 11 - bonds, 12))
    generator = torch.Generator().manual_seed(3)
    step = torch.randn(30, 5 + len(kinematics.moving), generator=generator)
    step[0] = 0
    step[1, 3:6] = 1e-6
    torch.testing.assert_close(*both(kinematics, coords, step), atol=2e-4, rtol=1e-5)
    gradient = torch.randn(coords.shape, generator=generator)
    torch.testing.assert_close(*both(kinematics.pull, coords, gradient), atol=1e-3, rtol=1e-4)


def test_gradients_are_those_of_the_kernels(site):
    vina, _, coords = site
    moving = coords[:2].clone().requires_grad_()
    vina.energy(moving).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(moving.grad, vina.energy_and_force(coords[:2])[1])


NO_CACHE = """
import numba
made = numba.njit
def njit(*function, cache=False, **settings):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return made(*function, **settings)
numba.njit = njit
"""
ONE = """
import torch
from bio_diffusion.dock.layers import Features, Message, Neighbours, Size
one = Features(torch.ones(2, 48), torch.ones(2, 3, 16))
index = torch.zeros(2, 1, dtype=torch.long)
edges = Neighbours(index, torch.ones(2, 1, 16), torch.ones(2, 1, 3))
with torch.no_grad():
    assert Message(Size())(one.scalars, one, edges).vectors.isfinite().all()
"""


def test_where_nothing_can_be_kept_each_process_compiles():
    code = f"{NO_CACHE}\n{ONE}\nimport sys; assert 'bio_diffusion.dock.kernels' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "before", ["sys.modules['numba'] = None", "torch.set_default_dtype(torch.double)"]
)
def test_torch_does_it_without_numba_and_in_doubles(before):
    after = "assert 'bio_diffusion.dock.kernels' not in sys.modules"
    code = f"import sys, torch\n{before}\n{ONE}\n{after}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_compiled_ahead_is_what_docking_calls(site, capsys):
    kernels.compile_all()
    vina, maps, coords = site
    test_messages(Size(), 0, 40, 40, 12)
    test_nearest(200, 12)
    test_moves(site, 11)
    both(vina.energy_and_force, coords)
    both(mapped(vina, maps).energy_and_force, coords)
    size = Size()
    sums = kernels.message_sums(size.hidden, size.scalars, size.vectors)
    public = {getattr(kernels, name) for name in kernels.__all__} - {kernels.message_sums}
    called = {k for k in public if hasattr(k, "signatures")} | {sums}
    assert {k.__name__: len(k.signatures) for k in called} == dict.fromkeys(
        capsys.readouterr().out.split(), 1
    )
    assert kernels.kept()


def test_an_empty_machine_compiles_beside_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = """
from bio_diffusion.dock import ahead, kernels
assert not kernels.kept()
ahead.begin()
ahead.wait("nearest")
ahead.wait()
assert kernels.kept()
ahead.begin()
assert ahead._helper is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_helper_that_dies_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(ahead, "_helper", None)  # another test of this process may have begun one
    monkeypatch.setattr(ahead, "_done", set())
    monkeypatch.setattr(ahead, "_SCRIPT", "raise SystemExit(1)")
    monkeypatch.setattr(kernels, "kept", lambda: False)
    ahead.begin()
    ahead.wait("nearest")
    assert ahead._helper is None
