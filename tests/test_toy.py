"""The toy experiment learns: samples spread over the modes as the data do."""

import pytest
import torch

from bio_diffusion import toy
from bio_diffusion.config import compose
from bio_diffusion.runs import Run


def test_data_have_the_stated_shares():
    """Each count of a multinomial draw lies within 5 standard deviations of its mean."""
    mixture = toy.Mixture(torch.device("cpu"), batch=20_000)
    x = next(mixture.batches(0, 0, 1))[0]
    counts = torch.cdist(x, torch.tensor(toy.CENTERS)).argmin(-1).bincount(minlength=8)
    share = torch.tensor(toy.SHARES)
    deviation = (20_000 * share * (1 - share)).sqrt()
    assert ((counts - 20_000 * share).abs() < 5 * deviation).all()


@pytest.mark.parametrize("start", [0, 3])
def test_batches_depend_on_their_number_alone(start):
    mixture = toy.Mixture(torch.device("cpu"), batch=4)
    later = mixture.batches(start, 1, 2)
    for number in range(start, start + 2):
        alone = next(mixture.batches(number, 1, 2))[0]
        assert torch.equal(next(later)[0], alone)
        assert not torch.equal(next(mixture.batches(number, 0, 2))[0], alone)


def test_training_finds_the_shares(tmp_path):
    """The prior alone, spread evenly over the angles, errs by sum |k/36 - 1/8| / 2 = 8/36 = 0.22.

    2000 exact samples would err by sqrt(p (1 - p) / (2 pi 2000)) summed over the modes: 0.022.
    """
    config = compose("train", ["experiment=toy/mixture", "fit.max_steps=800", "device=cpu"])
    run = Run(config, tmp_path)
    assert run() == 0
    assert run.found["mass_error"] < 0.1
