"""Tilting samples by a reward of clean states: 64 words whose tilted law is known."""

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.guidance import ExactClassifier
from bio_diffusion.diffusion.montecarlo import Metropolis, Particles, best_of, rejection
from tests.laws import seeded
from tests.toys import Words

REWARD = 3 * torch.rand(64, generator=seeded(3), dtype=torch.float64)
COUNT = 4000


def number(x):
    return (x * torch.tensor([16, 4, 1])).sum(-1)


def reward(x):
    return REWARD[number(x)]


def tilted(beta, forbidden=None):
    p = Words(Uniform(4)).p * (beta * REWARD).exp()
    if forbidden is not None:
        p = torch.where(forbidden, 0.0, p)
    return p / p.sum()


def distance(x, law):
    """Total variation of the counts of x, and what it would be on average for draws from law."""
    seen = torch.bincount(number(x), minlength=64) / len(x)
    chance = (2 / torch.pi * law * (1 - law) / len(x)).sqrt().sum() / 2
    return float((seen - law).abs().sum() / 2), float(chance)


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_proposals_leave_the_data_as_they_are(kind):
    """Detailed balance to the data, p(x) K(x, x') = p(x') K(x', x), by matrices of many steps."""
    world, t = Words(kind(4)), 0.6
    kernel = world.noising_matrix(0.0, t)
    times = t * schedule.uniform(256).double()
    for a, b in zip(times[:-1], times[1:], strict=True):
        now, then = (time.expand(len(world.states)) for time in (a, b))
        prediction = world.denoiser(world.states, now)
        kernel = kernel @ world.step_matrix(
            world.process.transition(world.states, prediction, now, then)
        )
    written = (world.states < 4).all(-1)
    flow = world.p[:, None] * kernel[written][:, written]
    assert float((flow - flow.T).abs().sum()) / 2 < 3e-3
    assert float((flow.sum(0) - world.p).abs().sum()) / 2 < 3e-3


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_chains_come_to_the_tilted_law(kind):
    world, law = Words(kind(4)), tilted(1.5)
    x_0 = world.data(COUNT, seeded())
    assert distance(x_0, law)[0] > 0.4
    chain = Metropolis(world.process, world.denoiser, reward, 0.7 * schedule.uniform(16), beta=1.5)
    *_, (x, now) = chain.chains(x_0, 20, seeded(1))
    far, chance = distance(x, law)
    assert far < 2 * chance + 0.01
    assert torch.equal(now, reward(x))


def test_what_is_forbidden_is_left_and_never_entered():
    world = Words(Absorbing(4))
    forbidden = torch.arange(64) % 2 == 0

    def allowed(x):
        return torch.where(forbidden[number(x)], -torch.inf, 0.0)

    x_0 = world.data(1000, seeded())
    chain = Metropolis(world.process, world.denoiser, allowed, schedule.uniform(3))
    rewards = [now for _, now in chain.chains(x_0, 30, seeded(1))]
    free = torch.stack(rewards) == 0
    assert bool((free[1:] >= free[:-1]).all()) and bool(free[-1].all())


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_a_population_comes_to_the_tilted_law(kind):
    # finite steps leave untilted samples at 0.02 of the data, and few words make up what is wanted
    world, law = Words(kind(4)), tilted(1.5)
    grid = schedule.sine(24) if kind is Uniform else schedule.uniform(24)
    x_1 = world.process.prior(world.data(COUNT, seeded()), seeded(1))
    x = Particles(world.process, world.denoiser, reward, grid, beta=1.5)(x_1, seeded(2))
    assert distance(x, law)[0] < 0.12
    plain = Particles(world.process, world.denoiser, reward, grid, beta=0.0)(x_1, seeded(2))
    assert distance(plain, world.p)[0] < 0.04


def test_a_guided_population_never_ends_forbidden():
    """Guidance proposes, weights decide; half of the words may not be."""
    world = Words(Absorbing(4))
    forbidden = torch.arange(64) % 2 == 0

    def log_p(x, t):
        joint = world.p * world.evidence(x, t).prod(-1)
        return ((joint @ (~forbidden).double()) / joint.sum(-1)).log().clamp(min=-20)

    def allowed(x):
        return torch.where(forbidden[number(x)], -torch.inf, 0.0)

    x_1 = world.process.prior(world.data(500, seeded()))
    for guidance in ((), (ExactClassifier(log_p),)):
        particles = Particles(
            world.process, world.denoiser, allowed, schedule.uniform(8), guidance=guidance
        )
        assert bool((allowed(particles(x_1, seeded(2))) == 0).all())


def test_the_best_come_first():
    x = Words(Uniform(4)).words
    best = best_of(x, reward, 5)
    assert torch.equal(reward(best), REWARD.sort(descending=True).values[:5])


def test_rejection_gives_what_was_asked_for_or_what_there_is():
    world = Words(Absorbing(4))
    batches = []

    def draw(index):
        batches.append(index)
        return world.data(50, seeded(index))

    def accept(x):
        return x[:, 0] == 2

    assert len(rejection(draw, accept, 20, 100)) == 20
    assert bool(accept(rejection(draw, accept, 20, 100)).all())
    batches.clear()
    few = rejection(draw, lambda x: x[:, 0] > 3, 20, 4)
    assert len(few) == 0 and batches == [0, 1, 2, 3]


def test_left_to_right_chains_write_the_end_anew():
    """One of three sites: exact at once, since what is kept is kept."""
    world, law = Words(Autoregressive(4)), tilted(1.5)
    ends = tilted(1.5).reshape(16, 4)
    start = world.data(COUNT, seeded())
    chain = Metropolis(world.process, world.denoiser, reward, schedule.uniform(3)[-2:], beta=1.5)
    *_, (x, _) = chain.chains(start, 20, seeded(1))
    assert torch.equal(x[:, :2], start[:, :2])
    given = world.p.reshape(16, 4).sum(1, keepdim=True) * ends / ends.sum(1, keepdim=True)
    far, chance = distance(x, given.flatten())
    assert far < 2 * chance and distance(x, law)[0] > 0.1
