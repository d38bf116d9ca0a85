"""The length of a step of tokens, and the grids that it gives, on worlds of 64 words."""

import math

import pytest
import torch

from bio_diffusion.diffusion import information, online, schedule
from bio_diffusion.diffusion.categorical import Absorbing, Uniform
from tests.laws import seeded
from tests.toys import Words


def at(value, count):
    return torch.full((count,), value, dtype=torch.float64)


def length(world, t, s, count=4000, seed=0):
    x_t = world.process.perturb(world.data(count, seeded(seed)), at(t, count), seeded(seed + 1)).x_t
    cost = information.PathDivergence(seeded(seed + 2))
    return cost(world.process, world.denoiser, x_t, at(t, count), at(s, count))


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_a_length_is_none_where_there_is_no_step_and_else_of_second_order(kind):
    world = Words(kind(4))
    assert float(length(world, 0.55, 0.55).max()) == 0
    long, short = (float(length(world, 0.5, 0.5 - h, 20000).mean()) for h in (0.1, 0.05))
    # 20,000 draws tell each mean to 2 %, and the next order adds O(h) to the ratio
    assert math.log2(long / short) == pytest.approx(information.PathDivergence.order, rel=0.15)


def entropy_of_a_mask(world, alpha):
    """h(alpha): nats of a masked site's letter when the others are seen with chance alpha."""
    total = 0.0
    for x, seen in [(x, [i for i in range(3) if x[i] < 4]) for x in world.states if int(x[0]) == 4]:
        match = torch.stack([world.words[:, i] == x[i] for i in seen] or [world.p > -1]).all(0)
        joint = torch.where(match, world.p, 0.0)
        letter = torch.nn.functional.one_hot(world.words[:, 0], 4).double()
        chance = joint @ letter / joint.sum()
        weight = joint.sum() * alpha ** len(seen) * (1 - alpha) ** (2 - len(seen))
        total -= float(weight * torch.xlogy(chance, chance).sum())
    return total


def test_the_length_of_a_masked_step_is_what_the_first_half_tells_the_second():
    """(alpha_s - alpha_m) sum over sites of h(alpha_t) - h(alpha_m); sites alike by symmetry."""
    world = Words(Absorbing(4))
    a, b, c = world.words.T
    # make the three sites exchangeable, so that one h serves all
    index = [torch.stack(order, -1) @ torch.tensor([16, 4, 1]) for order in (
        (a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a))]  # fmt: skip
    world.p = torch.stack([world.p[i] for i in index]).mean(0)
    t, m, s = 0.7, 0.5, 0.3
    h = [entropy_of_a_mask(world, 1 - time) for time in (t, m)]
    costs = length(world, t, s, 20000)
    error = float(costs.std()) / math.sqrt(len(costs))
    assert float(costs.mean()) == pytest.approx(3 * (m - s) * (h[0] - h[1]), abs=4 * error)


def copies():
    """Words that repeat their first letter, mostly all through."""
    words = Words(Absorbing(4)).words
    p = 1e-9 + (words[:, 0] == words[:, 1]).double() * (1 + 20 * (words[:, 1] == words[:, 2]))
    return p / p.sum()


def parity():
    """Words whose letters add up to a multiple of four: two tell the third."""
    p = 1e-9 + (Words(Absorbing(4)).words.sum(-1) % 4 == 0).double()
    return p / p.sum()


def divergence(world, times):
    law = world.law_of_samples(times)
    return float((torch.xlogy(world.p, world.p) - torch.xlogy(world.p, law)).sum())


@pytest.mark.parametrize("kind, share", [(Absorbing, 1.0), (Uniform, 0.6)])
@pytest.mark.parametrize("data", [copies, parity])
def test_the_fitted_grid_beats_even_steps(kind, share, data):
    world = Words(kind(4))
    world.p = data()
    batches = [(world.data(512, seeded(i)), None) for i in range(4)]
    curve = schedule.fit_curve(
        world.process, world.denoiser, information.PathDivergence(seeded(5)), batches, 40, seeded(9)
    )
    for steps in (4, 8):
        knots = curve.knots(steps)
        assert knots[0] == 1 and knots[-1] == 0 and bool((knots[1:] < knots[:-1]).all())
        assert divergence(world, knots) < share * divergence(world, schedule.uniform(steps))


def test_a_sine_helps_uniform_noise_without_measuring():
    world = Words(Uniform(4))
    for steps in (4, 8, 32):
        even, sine = (world.distance(world.law_of_samples(grid(steps))) for grid in
                      (schedule.uniform, schedule.sine))  # fmt: skip
        assert sine < 0.65 * even
    grid = schedule.sine(5)
    assert grid[0] == 1 and grid[-1] == 0 and bool((grid[1:] < grid[:-1]).all())


def test_a_curve_follows_training():
    world = Words(Absorbing(4))
    follower = online.Online(world.process, information.PathDivergence(seeded(0)), 8, visits=1)
    for number in range(16):
        follower.update(world.denoiser, world.data(64, seeded(number)), generator=seeded(number))
    assert min(follower.seen) == 2 and follower.curve.total > 0
