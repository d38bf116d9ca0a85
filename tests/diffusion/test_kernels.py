"""Kernels against quadrature of their defining series, and against each other's limits."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bio_diffusion.diffusion.kernels import R3, SO3, Torus, wrap

DOUBLE = torch.float64


def igso3_series(w, sigma, terms=400):
    """The definition: the character sum with exponent -l(l+1) sigma^2 / 2."""
    degree = np.arange(terms)[:, None]
    weight = (2 * degree + 1) * np.exp(-degree * (degree + 1) * sigma**2 / 2)
    return (weight * np.sin((degree + 0.5) * w)).sum(0) / np.sin(w / 2)


@pytest.mark.parametrize("sigma", [0.15, 0.3, 0.9, 0.999, 1.001, 1.55, 3.0])
def test_igso3_density_is_its_series(sigma):
    # The series cancels in the tail (f against terms of order 1): stay where f > 1e-4 of its peak.
    w = np.linspace(0.01, min(math.pi, 4 * sigma), 50)
    ours = SO3().log_density(torch.tensor(w), torch.tensor(sigma, dtype=DOUBLE)).exp()
    np.testing.assert_allclose(ours, igso3_series(w, sigma), rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.3, 1.0, 2.0])
def test_igso3_density_integrates_to_one(sigma):
    def p(w):
        log_f = SO3().log_density(torch.tensor(w), torch.tensor(sigma, dtype=DOUBLE))
        return float(log_f.exp()) * (1 - math.cos(w)) / math.pi

    total, _ = integrate.quad(p, 0, min(math.pi, 12 * sigma), epsabs=1e-11, limit=200)
    assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.999, 1.001, 2.0])
def test_igso3_score_is_the_slope_of_log_density(sigma):
    angle = torch.linspace(0.02, min(3.1, 6 * sigma), 30, dtype=DOUBLE)
    level, h = torch.full_like(angle, sigma), 1e-5
    slope = (SO3().log_density(angle + h, level) - SO3().log_density(angle - h, level)) / (2 * h)
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=DOUBLE)
    score = SO3().score(angle[:, None] * axis, level)
    torch.testing.assert_close(score @ axis, slope, rtol=1e-5, atol=1e-6)
    assert torch.linalg.cross(score, axis.expand_as(score)).abs().max() < 1e-9 * slope.abs().max()


def test_igso3_small_angles_are_gaussian_with_variance_sigma_squared_per_axis():
    u = torch.tensor([[0.003, -0.004, 0.0]])
    torch.testing.assert_close(
        SO3().score(u, torch.tensor([0.01])), -u / 0.01**2, rtol=1e-4, atol=0
    )
    u = SO3().sample((100_000, 3), torch.full((100_000,), 0.05), torch.Generator().manual_seed(0))
    # Standard error of a variance from 3e5 draws: sqrt(2 / 3e5) = 0.26 %; curvature: 0.02 %.
    assert float(u.square().mean()) == pytest.approx(0.05**2, rel=0.012)


# RMS of the whole score vector, computed once from the series with exponent -l(l+1) sigma^2 / 2.
@pytest.mark.parametrize(
    "sigma, rms", [(0.03, 57.7), (0.1, 17.3), (0.5, 3.36), (1.0, 1.40), (1.55, 0.367)]
)
def test_igso3_mean_square(sigma, rms):
    value = SO3().mean_square(torch.tensor([sigma], dtype=DOUBLE))
    assert float((3 * value).sqrt()) == pytest.approx(rms, rel=3e-3)


@pytest.mark.parametrize("sigma", [0.25, 0.8, 1.55, 2.5])
def test_igso3_mean_square_is_its_integral(sigma):
    def p(w):
        return igso3_series(np.array([w]), sigma)[0] * (1 - math.cos(w)) / math.pi

    def integrand(w, h=1e-5):
        f = igso3_series(np.array([w - h, w + h]), sigma)
        return (math.log(f[1] / f[0]) / (2 * h)) ** 2 * p(w)

    expected, _ = integrate.quad(integrand, 1e-3, min(math.pi - 1e-3, 5 * sigma), limit=200)
    value = SO3().mean_square(torch.tensor([sigma], dtype=DOUBLE))
    assert 3 * float(value) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 1.55])
def test_igso3_samples_follow_the_law(sigma):
    n = 20_000
    u = SO3().sample((n, 3), torch.full((n,), sigma), torch.Generator().manual_seed(1))
    w = np.linspace(1e-4, math.pi, 4001)
    log_f = SO3().log_density(torch.tensor(w), torch.tensor(sigma, dtype=DOUBLE))
    p = log_f.exp().numpy() * (1 - np.cos(w)) / math.pi
    cdf = integrate.cumulative_trapezoid(p, w, initial=0)
    # p > 0.001 by chance one time in a thousand, at this fixed seed.
    assert stats.kstest(u.norm(dim=-1).numpy(), lambda x: np.interp(x, w, cdf)).pvalue > 1e-3
    # No direction is preferred: each mean component has variance E[w^2] / 3 / n.
    assert (u.mean(0).abs() < 4 * (u.square().mean() / n).sqrt()).all()


def test_igso3_sampling_joins_its_gaussian_limit():
    kernel, n = SO3(), 2000
    z = [torch.Generator().manual_seed(2) for _ in range(2)]
    below = kernel.sample((n, 3), torch.full((n,), 0.2 - 1e-6, dtype=DOUBLE), z[0])
    above = kernel.sample((n, 3), torch.full((n,), 0.2 + 1e-6, dtype=DOUBLE), z[1])
    assert (below - above).abs().max() < 2e-5  # 1e-6 |z| of it is the difference in sigma


def test_igso3_tends_to_uniform_rotations():
    kernel, n = SO3(), 10_000
    generator = torch.Generator().manual_seed(3)
    mean = math.pi / 2 + 2 / math.pi  # of the angle of a uniform rotation, 2.2074
    for u in (
        kernel.sample((n, 3), torch.full((n,), 4.0), generator),
        kernel.prior((n, 3), torch.full((n,), 4.0), generator),
    ):
        assert float(u.norm(dim=-1).mean()) == pytest.approx(mean, abs=4 * 0.65 / math.sqrt(n))
    assert kernel.score(u, torch.full((n,), 6.0)).abs().max() < 1e-6


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.5, 3.14, 6.0])
def test_torus_density_is_its_fourier_series(sigma):
    u = torch.linspace(-4, 4, 41, dtype=DOUBLE)[:, None]
    n = torch.arange(1, 200, dtype=DOUBLE)
    series = (1 + 2 * (torch.exp(-(n**2) * sigma**2 / 2) * torch.cos(n * u)).sum(-1)) / (
        2 * math.pi
    )
    ours = Torus().log_density(u, torch.full((41,), sigma, dtype=DOUBLE)).exp()
    torch.testing.assert_close(ours[:, 0], series, rtol=1e-9, atol=1e-12)


def test_torus_score_is_odd_periodic_and_the_slope_of_its_density():
    u = torch.linspace(-3, 3, 13, dtype=DOUBLE)[:, None]
    for level in (0.05, 0.7, 2.0, 3.14):
        sigma, h = torch.full((13,), level, dtype=DOUBLE), 1e-6
        score = Torus().score(u, sigma)
        torch.testing.assert_close(Torus().score(-u, sigma), -score)
        torch.testing.assert_close(
            Torus().score(u + 4 * math.pi, sigma), score, rtol=1e-7, atol=1e-9
        )
        up, down = (Torus().log_density(u + d, sigma) for d in (h, -h))
        torch.testing.assert_close((up - down) / (2 * h), score, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "sigma, square, rel",
    # E[score^2] by independent quadrature, to the digits given.
    [
        (0.1, 100, 1e-3),
        (1.0, 0.94, 1e-2),
        (1.5, 0.230, 5e-3),
        (2.0, 0.037, 2e-2),
        (3.14, 1e-4, 5e-2),
    ],
)
def test_torus_mean_square(sigma, square, rel):
    assert float(Torus().mean_square(torch.tensor([sigma]))) == pytest.approx(square, rel=rel)


def test_torus_samples_are_wrapped_normals():
    u = Torus().sample((50_000, 2), torch.full((50_000,), 1.2), torch.Generator().manual_seed(0))
    assert u.min() >= -math.pi and u.max() < math.pi
    # E[cos u] = exp(-sigma^2 / 2); cos has variance below 1/2 over 1e5 draws.
    assert float(u.cos().mean()) == pytest.approx(math.exp(-0.72), abs=4 * math.sqrt(0.5 / 1e5))


@pytest.mark.parametrize("kernel", [R3, SO3, Torus])
def test_scores_have_the_tabulated_size_and_mean_zero(kernel):
    n, law = 20_000, kernel()
    shape = (n, 3)
    sigma = torch.full((n,), 0.7)
    score = law.score(law.sample(shape, sigma, torch.Generator().manual_seed(4)), sigma)
    assert float(score.square().mean() / law.mean_square(sigma)[0]) == pytest.approx(1, abs=0.04)
    assert (score.mean(0).abs() < 4 * (law.mean_square(sigma)[0] / n).sqrt()).all()


def test_nothing_is_tabulated_before_it_is_asked_for_and_tables_repeat():
    one, two = SO3(), SO3()
    assert not len(one._table)
    sigma = torch.tensor([0.3])
    assert torch.equal(one.mean_square(sigma), two.mean_square(sigma))
    assert torch.equal(one._table, two._table) and one._table.dtype == DOUBLE
    assert not one.state_dict()


def test_empty_factors_work():
    sigma = torch.full((4,), 0.5)
    law = Torus()
    u = law.sample((4, 0), sigma)
    assert u.shape == law.score(u, sigma).shape == law.prior((4, 0), sigma).shape == (4, 0)


def test_wrap():
    angles = torch.tensor([0.0, 4.0, -4.0, 7.0])
    torch.testing.assert_close(wrap(angles).sin(), angles.sin())
    assert wrap(torch.tensor(math.pi)) <= math.pi
