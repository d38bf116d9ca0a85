"""The laws of `laws.py`, put to every process."""

import pytest

from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.sampling import Heun, Langevin, Reverse
from tests import laws
from tests.toys import WORLDS


@pytest.fixture(params=WORLDS, ids=str)
def world(request):
    return WORLDS[request.param]()


def test_noising_composes(world):
    laws.noising_composes(world)


def test_target_is_score(world):
    laws.target_is_score(world)


@pytest.mark.parametrize("eta, steps", [(1.0, 60), (0.5, 60), (0.0, 60)])
def test_sampling_recovers_weights(world, eta, steps):
    laws.sampling_recovers_weights(world, Bridge(eta), steps)


def test_heun_recovers_weights_in_fewer_steps(world):
    laws.sampling_recovers_weights(world, Bridge(), 30, step=Heun())


def test_langevin_correction_keeps_the_weights(world):
    laws.sampling_recovers_weights(world, Bridge(), 40, step=Langevin(Reverse(), 0.1))


def test_transitions_are_steerable(world):
    laws.transitions_are_steerable(world)


def test_rows_do_not_see_each_other(world):
    laws.rows_do_not_see_each_other(world)


@pytest.mark.parametrize("length", laws.LENGTHS, ids=lambda x: f"{type(x).__name__}-{x.order}")
def test_lengths_have_their_order(world, length):
    laws.lengths_have_their_order(world, length)


@pytest.mark.parametrize("length", laws.LENGTHS[:3], ids=lambda x: type(x).__name__)
def test_adapted_grid_is_sound(world, length):
    laws.adapted_grid_is_sound(world, length)
