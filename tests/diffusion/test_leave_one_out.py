"""Leave-one-out laws and denoising posteriors, each from the other and from sums over 64 words."""

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.guidance import Temperature
from bio_diffusion.diffusion.leave_one_out import FromPosterior, Sharpened, confidence
from tests.toys import Words

TIMES = (1e-3, 0.2, 0.7, 0.999)


def at(t, world):
    return torch.full((len(world.states),), t, dtype=torch.float64)


@pytest.mark.parametrize("t", TIMES)
def test_the_step_to_the_data_is_the_denoising_posterior(t):
    world = Words(Uniform(4))
    x_t, when = world.states, at(t, world)
    law = world.process.transition(x_t, world.leave_one_out(x_t, when), when, 0 * when).law()
    torch.testing.assert_close(law, world.posterior(x_t, when).exp(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", TIMES)
def test_the_posterior_without_its_own_evidence_is_leave_one_out(t):
    world = Words(Uniform(4))
    x_t, when = world.states, at(t, world)
    converted = FromPosterior(world.process, world.posterior)(x_t, when, None)
    torch.testing.assert_close(
        converted.exp(), world.leave_one_out(x_t, when).exp(), rtol=0, atol=1e-12
    )


def test_a_network_of_posteriors_samples_the_data_once_converted():
    world = Words(Uniform(4))
    times = schedule.uniform(32)
    law = world.law_of_samples(times, FromPosterior(world.process, world.posterior))
    assert world.distance(law) == pytest.approx(0.021, abs=6e-4)
    assert world.distance(world.law_of_samples(times, world.posterior)) > 0.39


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_confidence_is_the_chance_that_a_letter_is_right(kind):
    world = Words(kind(4))
    x_t, when = world.states, at(0.3, world)
    sure = confidence(world.process, world.denoiser(x_t, when), x_t, when)
    true = world.posterior(x_t, when).exp()
    for row in range(0, len(x_t), 5):
        for site in range(3):
            letter = int(x_t[row, site])
            expected = 0.0 if letter == 4 else 1.0 if kind is Absorbing else true[row, site, letter]
            assert float(sure[row, site]) == pytest.approx(float(expected), abs=1e-9)


class Single:
    """Words of which a site tells nothing of the others: the leave-one-out law is the prior."""

    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)

    def __call__(self, x_t, t, cond):
        return self.p.log().expand(*x_t.shape, 4)


@pytest.mark.parametrize("temperature", [0.5, 1.25])
def test_temperature_sharpens_single_letters_exactly(temperature):
    world = Words(Uniform(4))
    expected = Single.p ** (1 / temperature)
    expected = expected / expected.sum()
    law = world.law_of_samples(schedule.uniform(16), Sharpened(Single(), temperature))
    first = law.reshape(4, 4, 4).sum((1, 2))
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)


def test_a_sharpened_step_under_uniform_noise_stays_where_it_started():
    """Why `Temperature` is not for uniform noise: the more steps, the further from p^2."""
    world = Words(Uniform(4))
    squared = world.p**2 / (world.p**2).sum()
    far, near = [], []
    for steps in (16, 256):
        times = schedule.uniform(steps)
        by_step = world.law_of_samples(times, guidance=[Temperature(0.5)])
        far.append(world.distance(by_step, squared))
        near.append(
            world.distance(world.law_of_samples(times, Sharpened(world.denoiser, 0.5)), squared)
        )
    assert far[1] > far[0] + 0.15 > 0.6
    assert max(near) < 0.07
    # an untempered model is at 0.265
    assert world.distance(world.p, squared) == pytest.approx(0.265, abs=1e-3)


@pytest.mark.parametrize("kind", [Absorbing, Autoregressive])
def test_where_sites_are_written_once_both_temperatures_agree(kind):
    world, times = Words(kind(4)), schedule.uniform(3)
    laws = (
        world.law_of_samples(times, Sharpened(world.denoiser, 0.5)),
        world.law_of_samples(times, guidance=[Temperature(0.5)]),
    )
    torch.testing.assert_close(*laws, rtol=0, atol=1e-12)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        Sharpened(Single(), 0.0)
