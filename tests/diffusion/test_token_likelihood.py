"""Bounds on the likelihood of tokens against the 64 words whose chances are known."""

import math

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.likelihood import perplexity, token_bound, token_bound_in_steps
from tests.laws import seeded
from tests.toys import Words

COUNT = 2000


def mean_and_error(nats, world):
    """Mean bound of the data, and its standard error once x_0's own part of it is taken out."""
    x_0 = world.data(COUNT, seeded())
    index = (x_0 * torch.tensor([16, 4, 1])).sum(-1)
    excess = nats(x_0).sum(-1) + world.p[index].log()
    return float(excess.mean()) + world.entropy, float(excess.std()) / math.sqrt(COUNT)


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_the_bound_of_the_exact_model_is_the_entropy(kind):
    world = Words(kind(4))
    mean, error = mean_and_error(
        lambda x_0: token_bound(world.process, world.denoiser, x_0, generator=seeded(1)), world
    )
    assert mean == pytest.approx(world.entropy, abs=4 * error) and error < 0.1


def test_the_left_to_right_likelihood_is_exact():
    world = Words(Autoregressive(4))
    for nats in (
        token_bound(world.process, world.denoiser, world.words, draws=1),
        token_bound_in_steps(world.process, world.denoiser, world.words, schedule.uniform(3)),
    ):
        torch.testing.assert_close(-nats.sum(-1), world.p.log(), rtol=1e-9, atol=1e-6)


def exact_in_steps(world, times):
    """The bound in steps, summed over all x_0 and x_t instead of drawn."""
    total, count = 0.0, len(world.states)
    start = torch.stack([(world.states == w).all(-1) for w in world.words]).double()
    for t, s in zip(times[:-1].double(), times[1:].double(), strict=True):
        chance = world.p[:, None] * (start @ world.noising_matrix(0.0, float(t)))
        when, then = t.expand(count), s.expand(count)
        p = world.process.transition(world.states, world.denoiser(world.states, when), when, then)
        for word, weight in zip(world.words, chance, strict=True):
            known = torch.nn.functional.one_hot(word, 4).double().log().expand(count, -1, -1)
            q = world.process.transition(world.states, known, when, then)
            some = weight > 0
            total += float(weight[some] @ q.divergence(p).sum(-1)[some])
    return total


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_the_bound_in_steps_falls_to_the_entropy(kind):
    world = Words(kind(4))
    exact = [exact_in_steps(world, schedule.uniform(n)) for n in (1, 4, 8, 16)]
    # one step knows the letters of each site alone
    letters = torch.nn.functional.one_hot(world.words, 4).double()
    alone = torch.einsum("w,wlv->lv", world.p, letters)
    assert exact[0] == pytest.approx(float(-torch.xlogy(alone, alone).sum()), abs=1e-9)
    # what is too much falls like the step
    above = [nats - world.entropy for nats in exact]
    assert above[0] > above[1] > above[2] > above[3] > 0
    assert above[2] / above[3] == pytest.approx(2, rel=0.2)
    mean, error = mean_and_error(
        lambda x_0: token_bound_in_steps(
            world.process, world.denoiser, x_0, schedule.uniform(4), generator=seeded(1)
        ),
        world,
    )
    assert mean == pytest.approx(exact[1], abs=4 * error) and error < 0.1


def test_perplexity_leaves_padding_out():
    nats = torch.tensor([[math.log(2), math.log(8), 50.0]])
    counted = torch.tensor([[True, True, False]])
    assert perplexity(nats, counted) == pytest.approx(4)
    assert perplexity(nats[:, :2]) == pytest.approx(4)
