"""Noise schedules and Gaussian diffusion against the formulas of the papers they come from."""

import math

import numpy as np
import pytest
import torch

from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.noise import EDM, VE, VP, Cosine, LinearAlpha

SCHEDULES = [VP(), Cosine(), LinearAlpha(), VE(), EDM()]


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda n: type(n).__name__)
def test_derivatives_agree_with_autograd(noise):
    t = torch.linspace(0.01, 0.99, 23, dtype=torch.float64, requires_grad=True)
    for value, derivative in [
        (noise.alpha, noise.dalpha),
        (noise.sigma, noise.dsigma),
        (noise.log_snr, noise.dlog_snr),
    ]:
        (slope,) = torch.autograd.grad(value(t).sum() + 0 * t.sum(), t)
        torch.testing.assert_close(derivative(t).detach(), slope, rtol=1e-9, atol=1e-12)
    assert (noise.dlog_snr(t) < 0).all()
    torch.testing.assert_close(noise.level(t), torch.exp(-noise.log_snr(t) / 2))


@pytest.mark.parametrize("noise", [VP(), Cosine(), LinearAlpha()], ids=lambda n: type(n).__name__)
def test_variance_is_preserved_to_the_last_digit(noise):
    t = torch.linspace(0, 1, 50)
    torch.testing.assert_close(noise.alpha(t) ** 2 + noise.sigma(t) ** 2, torch.ones(50).double())
    assert float(noise.alpha(t)[-1]) > 0 and float(noise.sigma(t)[0]) == 0


def test_vp_noise_keeps_its_digits_near_the_data():
    t = torch.tensor([1e-12], dtype=torch.float64)
    # sigma^2 = 1 - exp(-b0 t - ...) = b0 t (1 - b0 t / 2 ...), which 1 - alpha^2 would round away.
    assert float(VP().sigma(t)) == pytest.approx(math.sqrt(0.1 * 1e-12), rel=1e-9)


def test_edm_times_are_the_published_grid():
    i = np.arange(18)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(
        EDM().sigma(torch.linspace(1, 0, 18, dtype=torch.float64)), published, rtol=1e-12
    )


def test_transition_is_ddpm_at_eta_one_and_ddim_at_eta_zero():
    noise = VP()
    generator = torch.Generator().manual_seed(0)
    x_t, x_0 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    t, s = torch.full((5,), 0.6).double(), torch.full((5,), 0.55).double()
    bar_t, bar_s = float(noise.alpha(t)[0] ** 2), float(noise.alpha(s)[0] ** 2)
    alpha, beta = bar_t / bar_s, 1 - bar_t / bar_s
    # Ho et al. 2020, Eq. 7.
    mean = (
        math.sqrt(bar_s) * beta / (1 - bar_t) * x_0
        + math.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * x_t
    )
    q = GaussianDiffusion(noise).transition(x_t, x_0, t, s)
    torch.testing.assert_close(q.mean, mean)
    assert float(q.variance[0]) == pytest.approx((1 - bar_s) / (1 - bar_t) * beta, rel=1e-10)
    # Song, Meng & Ermon 2021, Eq. 12 with sigma = 0.
    eps = (x_t - math.sqrt(bar_t) * x_0) / math.sqrt(1 - bar_t)
    q = GaussianDiffusion(noise, bridge=Bridge(0.0)).transition(x_t, x_0, t, s)
    torch.testing.assert_close(q.mean, math.sqrt(bar_s) * x_0 + math.sqrt(1 - bar_s) * eps)
    assert float(q.variance.max()) == 0


def test_last_step_is_the_prediction():
    x_t, x_0 = torch.randn(4, 2), torch.randn(4, 2)
    for noise in (VP(), VE(), EDM(), Cosine()):
        q = GaussianDiffusion(noise).transition(x_t, x_0, torch.full((4,), 0.1), torch.zeros(4))
        torch.testing.assert_close(q.sample(), x_0)


@pytest.mark.parametrize("noise", [VP(), VE(0.01, 20.0)], ids=["vp", "ve"])
def test_score_and_frame(noise):
    # Data N(0, c^2): y_t ~ N(0, c^2 + a^2) has score -y / (c^2 + a^2), and D = c^2 y / (c^2 + a^2).
    process, c = GaussianDiffusion(noise), 0.7
    x_t, t, s = torch.randn(6, 2).double(), torch.full((6,), 0.4), torch.full((6,), 0.3)
    a, y = process.sigma(t)[:, None], x_t / noise.alpha(t)[:, None]
    score = process.score(c**2 * y / (c**2 + a**2), x_t, t)
    torch.testing.assert_close(score, -y / (c**2 + a**2))
    torch.testing.assert_close(process.reframe(x_t, t, s) / noise.alpha(s)[:, None], y)
    torch.testing.assert_close(
        process.move(x_t, torch.ones_like(y), t, s) / noise.alpha(s)[:, None], y + 1
    )


def test_preconditioning():
    process = GaussianDiffusion(EDM(1e-4, 80.0), sigma_data=0.5)
    silent = Preconditioned(lambda x, noise, cond: torch.zeros_like(x), process)
    x = torch.randn(3, 4)
    torch.testing.assert_close(silent(x, torch.zeros(3)), x, rtol=1e-5, atol=1e-6)
    # Weight times c_out^2 is one: an output off by one costs one at every noise level.
    t = torch.tensor([0.1, 0.5, 0.9])
    unit = Preconditioned(lambda x, noise, cond: torch.ones_like(x), process)
    noised = process.perturb(x, t)
    off = unit(noised.x_t, t) - silent(noised.x_t, t)
    loss = process.loss(x + off, noised, x, t)
    torch.testing.assert_close(loss, torch.ones(3))


# Bayes-optimal |D - y|^2 for eight Gaussians of width 0.2 on a circle of radius 3, from 2e5 draws.
@pytest.mark.parametrize("sigma, error", [(0.2, 0.0400), (0.5, 0.167), (1.0, 1.100), (3.0, 5.92)])
def test_exact_denoiser_of_a_ring_has_the_known_loss(sigma, error):
    turn = torch.arange(8) * math.pi / 4
    modes, c = 3 * torch.stack([turn.cos(), turn.sin()], -1), 0.2
    process = GaussianDiffusion(VE(sigma / 2, sigma * 2))
    t, generator = torch.full((100_000,), 0.5), torch.Generator().manual_seed(0)
    x_0 = modes[torch.randint(8, (100_000,), generator=generator)]
    x_0 = x_0 + c * torch.randn(x_0.shape, generator=generator)
    x_t = process.perturb(x_0, t, generator).x_t
    total = c**2 + sigma**2
    posterior = (-(torch.cdist(x_t, modes) ** 2) / (2 * total)).softmax(-1)
    denoised = (c**2 * x_t + sigma**2 * posterior @ modes) / total
    squares = ((denoised - x_0) ** 2).sum(-1)
    slack = 4 * float(squares.std()) / 100_000**0.5 * 1.5  # both numbers are from samples
    assert float(squares.mean()) == pytest.approx(error, abs=slack + 5e-4 * error)
