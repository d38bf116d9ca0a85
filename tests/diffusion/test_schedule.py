"""Grids and the adaptive engine, against closed forms for Gaussian data, and its traps."""

import json
import math

import pytest
import torch

from bio_diffusion.diffusion import lengths, online, schedule
from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.noise import EDM, VE, VP
from bio_diffusion.diffusion.product import R3, SO3, ProductDiffusion
from tests.toys import OnCylinder

LOW, HIGH, C = 0.02, 50.0, 0.5


def denoiser_of(process, c=C):
    """The exact denoiser of N(0, c^2)."""

    def denoise(x_t, t, cond=None):
        y, a = x_t / process.schedule.alpha(t)[:, None], process.sigma(t)[:, None]
        return (c**2 * y / (c**2 + a**2)).to(x_t)

    return denoise


def fitted(process, length, c=C, probe=64, count=512):
    data = c * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return schedule.fit_curve(
        process, denoiser_of(process, c), length, [(data, None)], probe, generator
    )


def corrector_length(sigma, c):
    """Lambda of the corrector's cost for Gaussian data, per degree of freedom (from level 0)."""
    return 2 * (math.asinh(sigma / c) - sigma / math.hypot(sigma, c))


def test_fixed_grids_fall_from_one_to_zero():
    for process in (GaussianDiffusion(VP()), GaussianDiffusion(VE()), OnCylinder().process):
        for grid in (schedule.log_snr, schedule.karras, schedule.cosine):
            for n in (1, 5, 40):
                times = grid(process, n)
                assert len(times) == n + 1 and times[0] == 1 and times[-1] == 0
                assert (times[1:] < times[:-1]).all()
    assert torch.equal(schedule.uniform(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    with pytest.raises(ValueError, match="at least one step"):
        schedule.karras(process, 0)


def test_fixed_grids_are_even_in_what_they_say():
    process = GaussianDiffusion(VE(LOW, HIGH))
    i = torch.arange(10) / 10

    def levels(times):
        return process.level(times[:-1]).float()

    low, high = LOW ** (1 / 7), HIGH ** (1 / 7)
    torch.testing.assert_close(
        levels(schedule.karras(process, 10)), (high + i * (low - high)) ** 7, rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        levels(schedule.log_snr(process, 10)), HIGH * (LOW / HIGH) ** i, rtol=1e-4, atol=0
    )
    angle = math.atan(HIGH) + i * (math.atan(LOW) - math.atan(HIGH))
    torch.testing.assert_close(levels(schedule.cosine(process, 10)), angle.tan(), rtol=1e-3, atol=0)
    # All clocks of a product are geometric, so even in log noise is even in time.
    torch.testing.assert_close(
        schedule.log_snr(OnCylinder().process, 8), schedule.uniform(8), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("noise", [VE(LOW, HIGH), EDM(LOW, HIGH)], ids=["ve", "edm"])
def test_corrector_length_of_gaussian_data(noise):
    curve = fitted(GaussianDiffusion(noise), lengths.CorrectorOptimised(), probe=96)
    expected = corrector_length(HIGH, C) - corrector_length(LOW, C)
    # 4096 numbers: the mean square is known to 2.2 %, its root to 1.1 %.
    assert curve.total == pytest.approx(expected, rel=0.025)


def test_costs_are_taken_in_the_unscaled_frame():
    # In the scaled frame of VP a unit Gaussian never changes and the schedule would be undefined.
    process = GaussianDiffusion(VP())
    curve = fitted(process, lengths.CorrectorOptimised(), c=1.0)
    low, high = (float(process.level(torch.tensor([t]))) for t in (curve.times[0], 1.0))
    assert curve.total == pytest.approx(
        corrector_length(high, 1.0) - corrector_length(low, 1.0), rel=0.03
    )


def test_length_does_not_depend_on_the_probe():
    process = GaussianDiffusion(VE(LOW, HIGH))
    totals = [fitted(process, lengths.CorrectorOptimised(), probe=k).total for k in (64, 256)]
    rho = schedule.times_at(
        process, torch.linspace(LOW ** (1 / 7), HIGH ** (1 / 7), 129).double() ** 7
    )
    rho[0], rho[-1] = 0, 1
    totals.append(fitted(process, lengths.CorrectorOptimised(), probe=rho).total)
    assert max(totals) / min(totals) < 1.02


def test_gaussian_optimum_is_found_by_the_terminal_error():
    # For N(0, c^2) the best grid of the probability flow is even in arctan(sigma / c).
    process = GaussianDiffusion(VE(LOW, HIGH))
    curve = fitted(process, lengths.TruncationError(data_scale=C), probe=128)
    known = schedule.cosine(process, 8, scale=C)
    ratio = process.level(curve.knots(8)[1:-1]) / process.level(known[1:-1])
    assert (ratio - 1).abs().max() < 0.05


def test_truncation_length_beats_the_corrector_on_gaussian_data():
    # The corrector's length neglects noise below the data's width, and is the worst of all there.
    process = GaussianDiffusion(VE(LOW, HIGH), bridge=Bridge(0.0))
    errors = {}
    for name, length in [
        ("corrector", lengths.CorrectorOptimised()),
        ("normalised", lengths.VelocityNormalised()),
        ("terminal", lengths.TruncationError(data_scale=C)),
    ]:
        level = process.level(fitted(process, length).knots(8).double())
        level[-1] = LOW
        # Exact DDIM on Gaussian data multiplies y by this at every step.
        shrink = 1 - level[:-1] * (level[:-1] - level[1:]) / (C**2 + level[:-1] ** 2)
        width = float(shrink.prod()) * math.hypot(C, HIGH)
        errors[name] = abs(math.log(width / math.hypot(C, LOW)))
    assert errors["terminal"] < errors["normalised"] < errors["corrector"]


def test_equal_costs_are_a_fixed_point():
    times = torch.linspace(0, 1, 9).tolist()
    curve = schedule.Curve.from_costs(times, [4.0] * 8, 2)
    assert curve.total == pytest.approx(16)
    torch.testing.assert_close(curve.knots(8), schedule.uniform(8))


def test_a_dead_interval_still_rises():
    curve = schedule.Curve.from_costs([0.0, 0.5, 0.7, 1.0], [1.0, 0.0, 1.0], 2)
    knots = curve.knots(50)
    assert (knots[1:] < knots[:-1]).all()


@pytest.mark.parametrize("costs", [[1.0, math.nan], [1.0, -1.0], [0.0, 0.0]])
def test_bad_costs_are_refused(costs):
    with pytest.raises(ValueError, match="costs"):
        schedule.Curve.from_costs([0, 0.5, 1], costs, 2)


def test_roots_follow_the_mean():
    # Averaging roots of batches instead would be biased low: sqrt is concave.
    process, generator = GaussianDiffusion(VE(LOW, HIGH)), torch.Generator().manual_seed(0)
    data = [(C * torch.randn(4, 1, generator=generator), None) for _ in range(60)]
    denoise, length = denoiser_of(process), lengths.CorrectorOptimised()
    whole = schedule.fit_curve(process, denoise, length, data, 16, generator).total
    apart = (
        sum(schedule.fit_curve(process, denoise, length, [b], 16, generator).total for b in data)
        / 60
    )
    assert apart < 0.97 * whole


def gaussian_costs(levels, velocity):
    """Exact corrector costs between falling levels for N(0, C^2)."""
    a, b = levels[:-1], levels[1:]
    change = 1 / (C**2 + b**2) - 1 / (C**2 + a**2)
    return velocity(a, b) ** 2 * (C**2 + a**2) * change**2


def test_iterating_on_the_knots_in_use_collapses_and_one_fine_pass_does_not():
    def refit(levels, n, velocity):
        low = levels[-1]
        times = (levels[0] - levels) / (levels[0] - low)  # any increasing label will do
        costs = gaussian_costs(levels, velocity)
        curve = schedule.Curve.from_costs(times.tolist(), costs.tolist(), 2)
        rising = curve.at(torch.linspace(0, 1, n + 1).double())
        return levels[0] - (levels[0] - low) * rising

    def clean(a, b):
        return b

    start = torch.logspace(math.log10(80), math.log10(0.002), 11, dtype=torch.float64)
    coarse = start
    for _ in range(30):
        coarse = refit(coarse, 10, clean)
    fine = torch.logspace(math.log10(80), math.log10(0.002), 301, dtype=torch.float64)
    once = refit(fine, 10, clean)
    # The last interior knots, computed by hand-written iteration of the published recipe:
    # 29 when iterated, 0.9 from the fine grid: iterating leaves everything to the last step.
    assert float(coarse[-2]) > 20
    assert float(once[-2]) == pytest.approx(0.9, abs=0.1)
    assert once[-4:-1].tolist() == pytest.approx([2.8, 1.7, 0.9], abs=0.1)


def test_curves_survive_json():
    curve = fitted(GaussianDiffusion(VE(LOW, HIGH)), lengths.VelocityNormalised(), probe=16)
    assert schedule.Curve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
    with pytest.raises(ValueError, match="rise strictly"):
        schedule.Curve((0.0, 0.5, 0.4), (0.0, 1.0, 2.0))


def test_curves_blend_linearly():
    even = schedule.Curve.from_costs(torch.linspace(0, 1, 33).tolist(), [1.0] * 32, 1)
    bent = schedule.Curve.from_costs(torch.linspace(0, 1, 33).tolist(), list(range(1, 33)), 1)
    u = torch.linspace(0, 1, 33)
    for gamma in (0.0, 0.1, 1.0):
        moved = even.toward(bent, gamma).at(u) - even.at(u)
        torch.testing.assert_close(moved, gamma * (bent.at(u) - even.at(u)), rtol=1e-9, atol=1e-12)


def test_online_curve_approaches_the_offline_one():
    process = GaussianDiffusion(VE(LOW, HIGH))
    length, denoise = lengths.VelocityNormalised(), denoiser_of(process)
    follower = online.Online(process, length, probe=16, gamma=0.2, visits=4)
    generator = torch.Generator().manual_seed(2)
    flat = follower.curve.knots(10)
    for _ in range(3 * 16):
        follower.update(denoise, C * torch.randn(256, 8, generator=generator), generator=generator)
    torch.testing.assert_close(follower.curve.knots(10), flat)  # not before all are seen four times
    for _ in range(10 * 16):
        follower.update(denoise, C * torch.randn(256, 8, generator=generator), generator=generator)
    target = fitted(process, length, probe=16)
    torch.testing.assert_close(follower.curve.knots(10), target.knots(10), rtol=0, atol=0.02)
    again = online.Online(process, length, probe=16)
    again.load_state_dict(json.loads(json.dumps(follower.state_dict())))
    assert again.curve == follower.curve and again.costs == follower.costs


def test_compact_factors_cost_nothing_once_uniform():
    # Beyond sigma of a turn the law of a rotation has stopped changing; only the translation works.
    def knots(sigma_max):
        world = OnCylinder()
        world.process = ProductDiffusion(
            {
                "height": (R3(), 0.05, 10.0, 0.0),
                "angle": (world.process.kernels["angle"], 0.05, sigma_max, 1.0),
            }
        )
        batches = [(world.data(256, torch.Generator().manual_seed(0)), None)]
        curve = schedule.fit_curve(
            world.process, world.denoiser, lengths.CorrectorOptimised(), batches, 48,
            torch.Generator().manual_seed(1),
        )  # fmt: skip
        return world.process.sigma(curve.knots(10))["angle"]

    assert float(knots(6.0)[1]) < 3


def test_fit_needs_data():
    process = ProductDiffusion({"turn": (SO3(), 0.1, 1.0, 1.0)})
    with pytest.raises(ValueError, match="no batches"):
        schedule.fit_curve(process, lambda x, t, c: {}, lengths.CorrectorOptimised(), [])
