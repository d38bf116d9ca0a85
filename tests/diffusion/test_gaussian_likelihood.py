"""The bound on -log p of tensors with entries from a few values."""

import math

import pytest
import torch

from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.likelihood import gaussian_bound
from bio_diffusion.diffusion.noise import EDM, Cosine
from bio_diffusion.diffusion.training import keyed_generator

VALUES = torch.linspace(-1, 1, 5)
SHARES = torch.tensor([0.4, 0.1, 0.05, 0.15, 0.3])


def exact(process):
    """E[x_0 | x_t] of independent entries with the law SHARES over VALUES."""

    def denoise(x_t, t, cond=None):
        a = process.sigma(t).view(-1, 1, 1)
        y = x_t.double() / process.schedule.alpha(t).view(-1, 1)
        w = (SHARES.log() - (y[..., None] - VALUES.double()).square() / (2 * a**2)).softmax(-1)
        return (w * VALUES).sum(-1).to(x_t)

    return denoise


def drawn(count, sites=4):
    places = torch.multinomial(SHARES, count * sites, True, generator=keyed_generator(5))
    return VALUES[places].view(count, sites)


def test_an_exact_denoiser_reaches_the_entropy():
    """With the exact E[x_0 | x_t] the bound is tight in the mean: -E log p = the entropy."""
    process = GaussianDiffusion(EDM(0.01, 80.0))
    x_0 = drawn(3000)
    found = gaussian_bound(process, exact(process), x_0, VALUES, None, 32, keyed_generator(0)) / 4
    entropy = float(torch.special.entr(SHARES).sum())
    wanted = -SHARES.log()[(x_0[..., None] - VALUES).abs().argmin(-1)].mean()  # of these very x_0
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - float(wanted)) < 4 * error + 0.01
    assert abs(float(wanted) - entropy) < 0.05


def test_a_worse_denoiser_costs_more():
    process = GaussianDiffusion(EDM(0.01, 80.0))
    x_0 = drawn(300)
    good, blunt = (
        gaussian_bound(process, f, x_0, VALUES, None, 16, keyed_generator(0)).mean()
        for f in (exact(process), lambda x, t, c: 0.8 * exact(process)(x, t))
    )
    assert blunt > good + 0.5


def test_rows_with_their_own_generators_do_not_depend_on_the_batch():
    process = GaussianDiffusion(EDM(0.01, 80.0))
    x_0 = drawn(4)

    def bound(part, rows):
        streams = [keyed_generator(9, row) for row in rows]
        return gaussian_bound(process, exact(process), part, VALUES, None, 4, streams)

    torch.testing.assert_close(bound(x_0[2:], [2, 3]), bound(x_0, range(4))[2:])


def test_noise_that_starts_at_zero_is_refused():
    process = GaussianDiffusion(Cosine())
    with pytest.raises(ValueError, match="start above 0"):
        gaussian_bound(process, exact(process), drawn(2), VALUES)
