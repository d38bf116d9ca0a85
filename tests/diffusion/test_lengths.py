"""Lengths against closed forms: Gaussian data, two modes, and words under masks."""

import json
import math

import pytest
import torch

from bio_diffusion.diffusion import information, lengths, online, schedule
from bio_diffusion.diffusion.categorical import Absorbing, Uniform
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import cld
from bio_diffusion.diffusion.noise import VE, VP
from tests.laws import seeded
from tests.toys import OnCylinder, Words

LOW, HIGH, C = 0.02, 50.0, 0.5


def exact(process, means=(0.0,), weights=(1.0,), c=C):
    """The denoiser of a mixture of N(mean, c^2) in one dimension, coordinate by coordinate."""
    mu, w = torch.tensor(means).double(), torch.tensor(weights).double()

    def denoise(x_t, t, cond=None):
        alpha, a = process.schedule.alpha(t), process.sigma(t)
        y = x_t.double() / alpha.reshape(-1, *[1] * (x_t.ndim - 1))
        v = (c**2 + a**2).reshape(-1, *[1] * x_t.ndim)
        log_p = w.log() - (y[..., None] - mu) ** 2 / (2 * v)
        narrow = mu + c**2 / v * (y[..., None] - mu)
        return (log_p.softmax(-1) * narrow).sum(-1).to(x_t)

    return denoise


def gaussian(count=512, d=8, seed=0):
    return [(C * torch.randn(count, d, generator=seeded(seed)), None)]


def at(value, count):
    return torch.full((count,), value, dtype=torch.float64)


def relative_cost(length, h, count=20000):
    """Mean cost of a step from sigma 1 to 1 - h, two modes of unequal weight."""
    process = GaussianDiffusion(VE(0.01, 10.0))
    denoise = exact(process, (-1.0, 1.0), (0.7, 0.3), 0.05)
    t, s = schedule.times_at(process, torch.tensor([1.0, 1 - h]).double())
    modes = torch.tensor([-1.0, 1.0]).double()
    x = modes[torch.multinomial(torch.tensor([0.7, 0.3]), count, True, generator=seeded())]
    x_t = (x + torch.randn(count, generator=seeded(1)).double())[:, None]
    times = (torch.full((count,), float(time), dtype=torch.float64) for time in (t, s))
    return float(length(process, denoise, x_t, *times).mean())


def test_an_exact_euler_predictor_costs_to_the_fourth_order():
    # Independent computation on these two modes: L_p = 2.2e-3, 1.1e-4, 6.4e-6 and L_c = 1.0e-1,
    # 2.2e-2, 5.0e-3 for steps of 0.2, 0.1 and 0.05, each to the digits given.
    predictor = [relative_cost(lengths.PredictorOptimised(), h) for h in (0.2, 0.1, 0.05)]
    corrector = [relative_cost(lengths.CorrectorOptimised(), h) for h in (0.2, 0.1, 0.05)]
    # 20,000 draws tell the means to 1 %; the digits given, to 5 %; a tail of two modes, the rest
    assert corrector == pytest.approx([1.0e-1, 2.2e-2, 5.0e-3], rel=0.12)
    assert predictor == pytest.approx([2.2e-3, 1.1e-4, 6.4e-6], rel=0.12)
    for costs, order in ((predictor, 4), (corrector, 2)):
        for wide, narrow in zip(costs, costs[1:], strict=False):
            assert math.log2(wide / narrow) == pytest.approx(order, rel=0.15)


def test_the_predictors_push_is_the_change_of_variables():
    # For Gaussian data a step multiplies y by m, and the pushed law is m times as wide.
    process = GaussianDiffusion(VE(LOW, HIGH))
    times = schedule.times_at(process, torch.tensor([1.0, 0.7]).double())
    t, s = (time.expand(4000) for time in times)
    x_t = math.hypot(C, 1.0) * torch.randn(4000, 1, generator=seeded()).double()
    m = 1 - 1.0 * 0.3 / (C**2 + 1)
    gap = 1 / (C**2 + 0.49) - 1 / (m**2 * (C**2 + 1))
    expected = 0.49 * gap**2 * m**2 * (C**2 + 1)
    found = lengths.PredictorOptimised()(process, exact(process), x_t, t, s).mean()
    assert float(found) == pytest.approx(expected, rel=0.1)  # 4,000 squares: 2.2 % each
    with pytest.raises(ValueError, match="tensors"):
        world = OnCylinder()
        lengths.PredictorOptimised()(world.process, world.denoiser, world.data(3, seeded()), t, s)


def test_a_quartic_cost_rooted_as_a_square_swings():
    """Re-fitted on its own knots, a cost of order 4 settles by the fourth root, not the second."""

    def spread(order):
        knots = torch.logspace(1, -1, 13, dtype=torch.float64)
        for _ in range(40):
            a, b = knots[:-1], knots[1:]
            middle = (a * b).sqrt()
            costs = ((a - b) / (middle + 0.3)) ** 4  # any smooth density will do
            ell = torch.cat([costs.new_zeros(1), (costs ** (1 / order)).cumsum(0)])
            even = torch.linspace(0, 1, len(knots)).double() * ell[-1]
            cell = torch.searchsorted(ell, even, right=True).clamp(1, len(ell) - 1) - 1
            place = (even - ell[cell]) / (ell[cell + 1] - ell[cell])
            knots = torch.lerp(knots[cell], knots[cell + 1], place)
        costs = ((knots[:-1] - knots[1:]) / ((knots[:-1] * knots[1:]).sqrt() + 0.3)) ** 4
        return float(costs.max() / costs.min())

    # by an independent iteration on another density: about 1 by the fourth root, 70 by the second
    assert spread(4) < 1.001
    assert spread(2) > 70


def test_three_roads_lead_to_the_best_grid_of_a_gaussian():
    # Even in arctan(sigma / c): by the terminal error, walked out, and by the rescaled entropy.
    process = GaussianDiffusion(VE(LOW, HIGH), sigma_data=C)
    known = schedule.cosine(process, 8, scale=C)[1:-1]
    terminal = lengths.TerminalError(schedule.karras(process, 40))
    walked = schedule.fit_curve(
        process, exact(process), terminal, gaussian(32), 60, seeded(1)
    ).knots(8)[1:-1]
    entropic = online.fit_losses(
        process, exact(process), information.RescaledEntropic(), gaussian(), 100, seeded(1)
    ).knots(8)[1:-1]
    for knots, slack in ((walked, 0.08), (entropic, 0.05)):
        assert (process.level(knots) / process.level(known) - 1).abs().max() < slack


def test_the_ancestral_length_counts_what_steps_lose():
    # For N(0, c^2) path and marginals are known: mmse = c^2 s^2 / (c^2 + s^2), s^2 = 1 / lambda, so
    # the length element is sqrt(|mmse'(lambda)|) / 2 = c^2 / (2 (1 + c^2 lambda)) per sqrt(nat).
    process = GaussianDiffusion(VE(LOW, HIGH))
    length = information.AncestralDivergence(seeded(2))
    curve = schedule.fit_curve(process, exact(process), length, gaussian(1024), 150, seeded(1))
    expected = 0.5 * math.log((1 + (C / LOW) ** 2) / (1 + (C / HIGH) ** 2))
    # y_s drawn with D held has too little spread, by about half a step's share of log noise
    assert curve.total == pytest.approx(expected, rel=0.06)


def test_a_mixture_halves_no_share():
    bent = schedule.Curve((0.0, 0.3, 1.0), (0.0, 3.0, 4.0))
    even = schedule.Curve((0.0, 1.0), (0.0, 7.0))
    mixed = schedule.Curve.mixture(bent, even)
    assert mixed.total == pytest.approx(1)
    t = torch.tensor([0.0, 0.15, 0.3, 0.65, 1.0])
    torch.testing.assert_close(mixed.shares(t), (bent.shares(t) + even.shares(t)) / 2)
    torch.testing.assert_close(mixed.at(mixed.shares(t)), t.double())
    knots = [1.0, 0.7, 0.2, 0.0]
    through = schedule.Curve.through(knots).knots(3)
    torch.testing.assert_close(through, torch.tensor(knots))


def test_isotonic_regression_pools():
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 1.0])
    found = online.isotonic(values, weights)
    # means of the pools {3, 2, 2 (twice)} = 9/4 and {5 (three times), 4} = 19/4
    expected = torch.tensor([1.0, 2.25, 2.25, 2.25, 4.75, 4.75]).double()
    torch.testing.assert_close(found, expected)


def test_losses_give_the_entropy_and_the_grid_of_masking():
    """n Int_0^1 h d alpha = H(x_0), and the grid is the one that the posteriors give."""
    world = Words(Absorbing(4))
    follower = online.LossCurve(world.process, information.Unmasking(), 24, decay=1.0)
    generator = seeded(3)
    for _ in range(120):
        t = torch.rand(4000, generator=generator).double()
        x_0 = world.data(4000, generator)
        noised = world.process.perturb(x_0, t, generator)
        loss = world.process.loss(world.denoiser(noised.x_t, t), noised, x_0, t)
        follower.update(t, loss)
    # 480,000 losses of spread about 2 nats: three sites' mean is known to 0.01
    assert 3 * sum(follower.errors) / 24 == pytest.approx(world.entropy, abs=0.05)
    batches = [(world.data(4000, seeded(i)), None) for i in range(2)]
    path = information.PathDivergence(seeded(5))
    looked = schedule.fit_curve(world.process, world.denoiser, path, batches, 24, seeded(6))
    knots = [curve.knots(6) for curve in (follower.curve, looked)]
    torch.testing.assert_close(*knots, rtol=0, atol=0.05)
    again = online.LossCurve(world.process, information.Unmasking(), 24)
    with pytest.raises(ValueError, match="no loss has been seen"):
        _ = again.curve
    again.load_state_dict(json.loads(json.dumps(follower.state_dict())))
    assert again.curve == follower.curve


def test_losses_of_a_trained_model_give_the_same_grid():
    world = Words(Absorbing(4))
    batches = [(world.data(3000, seeded(i)), None) for i in range(5)]
    read = online.fit_losses(
        world.process, world.denoiser, information.Unmasking(), batches, 24, seeded(1)
    )
    path = information.PathDivergence(seeded(5))
    looked = schedule.fit_curve(world.process, world.denoiser, path, batches[:1], 24, seeded(6))
    torch.testing.assert_close(read.knots(6), looked.knots(6), rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="no batches"):
        online.fit_losses(world.process, world.denoiser, information.Unmasking(), [])


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_the_entropy_rate_adds_up_to_the_entropy(kind):
    world = Words(kind(4))
    batches = [(world.data(2000, seeded(i)), None) for i in range(4)]
    curve = online.fit_losses(
        world.process, world.denoiser, information.EntropyRate(), batches, 40, seeded(1)
    )
    # the bound is tight with exact posteriors; the last cells, where it rises without limit, are
    # cut square
    assert 3 * curve.total == pytest.approx(world.entropy, rel=0.06)


def test_costs_in_the_scaled_frame_would_be_none():
    """In the frame of VP a unit Gaussian never changes: scores taken there give no schedule."""
    process = GaussianDiffusion(VP())
    x_t = torch.randn(1000, 1, generator=seeded()).double()
    t, s = at(0.6, 1000), at(0.55, 1000)
    denoise = exact(process, c=1.0)
    naive = [
        (process.schedule.alpha(time)[:, None] * denoise(x_t, time) - x_t)
        / process.schedule.sigma(time)[:, None] ** 2
        for time in (t, s)
    ]
    assert float((naive[0] - naive[1]).abs().max()) < 1e-9
    cost = lengths.CorrectorOptimised()(process, denoise, x_t, t, s)
    assert float(cost.mean()) > 1e-4


def test_multivariate_diffusions_have_a_grid():
    process = LinearDiffusion(cld())

    def score(u, t, cond=None):  # data N(0, 1): exact, as the covariance is known
        E, Sigma, _ = process.conditional(t)
        return -torch.linalg.solve(process.covariance(E, Sigma), u.double()).to(u)

    x = process.lift(torch.randn(256, 1, generator=seeded()), seeded(1))
    length = lengths.CorrectorOptimised()
    curve = schedule.fit_curve(process, score, length, [(x, None)], 24, seeded(2))
    knots = curve.knots(10)
    assert knots[0] == 1 and knots[-1] == 0 and bool((knots[1:] < knots[:-1]).all())
