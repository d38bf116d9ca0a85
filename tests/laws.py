"""What every process must obey, written once. A world is one of `toys.WORLDS` or its like."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bio_diffusion.diffusion import lengths, schedule
from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.process import tangent_map
from bio_diffusion.diffusion.sampling import sample

LENGTHS = [
    lengths.CorrectorOptimised(),
    lengths.VelocityNormalised(),
    lengths.TruncationError(),
    lengths.TruncationError(solver_order=2),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noising_composes(world: Any, count: int = 8000) -> None:
    """Noising to s and then on to t has the moments of noising to t."""
    x_0 = world.data(count, seeded())
    s, t = torch.full((count,), 0.35), torch.full((count,), 0.6)
    straight = world.moments(world.process.perturb(x_0, t, seeded(1)).x_t)
    half = world.process.perturb(x_0, s, seeded(2)).x_t
    onward = world.moments(world.process.diffuse(half, s, t, seeded(3)))
    # Two means of `count` draws: their difference has variance (var1 + var2) / count.
    error = ((straight.var(0) + onward.var(0)) / count).sqrt()
    assert ((straight.mean(0) - onward.mean(0)).abs() < 4.5 * error + 1e-6).all()


def target_is_score(world: Any, count: int = 4000) -> None:
    """The exact denoiser is the conditional mean of the target: no scaling improves on it."""
    process, x_0 = world.process, world.data(count, seeded())
    t = torch.rand(count, generator=seeded(1)) * 0.9 + 0.05
    noised = process.perturb(x_0, t, seeded(2))
    exact = world.denoiser(noised.x_t, t)
    loss = process.loss(exact, noised, x_0, t)
    for factor in (0.8, 1.2):
        worse = process.loss(tangent_map(lambda p, f=factor: f * p, exact), noised, x_0, t)
        gain = worse - loss
        assert gain.mean() > -3 * gain.std() / math.sqrt(count)


def sampling_recovers_weights(
    world: Any, bridge: Bridge, steps: int, count: int = 3000, step: Any = None
) -> None:
    """With the exact denoiser, each mode is reached as often as it should be, and hit exactly."""
    process = world.process
    process.bridge = bridge
    x_1 = process.prior(world.data(count, seeded()), seeded(1))
    times = schedule.log_snr(process, steps)
    x = sample(process, world.denoiser, x_1, times, generator=seeded(2), step=step)
    share = torch.bincount(world.nearest(x), minlength=3) / count
    # Four standard errors of a share, and 0.02 for finite steps.
    slack = 4 * (world.weights * (1 - world.weights) / count).sqrt() + 0.02
    assert ((share - world.weights).abs() < slack).all(), share
    modes = world.moments(world.data(500, seeded(3))).unique(dim=0)
    apart = torch.cdist(world.moments(x), modes).amin(1)
    assert apart.quantile(0.99) < 0.05  # the last step lands on denoised states


def transitions_are_steerable(world: Any) -> None:
    """mix(0), tilt(0), temper(1) change nothing; mix(1) is the other; tilt needs no noise."""
    process, count = world.process, 16
    t, s = torch.full((count,), 0.7), torch.full((count,), 0.4)
    x_t = process.perturb(world.data(count, seeded()), t, seeded(1)).x_t
    prediction = world.denoiser(x_t, t)
    blind = tangent_map(torch.zeros_like, prediction)
    push = tangent_map(torch.ones_like, process.score(prediction, x_t, t))
    nothing = tangent_map(torch.zeros_like, push)
    pushed = []
    for eta in (1.0, 0.0):
        process.bridge = Bridge(eta)
        q, other = (process.transition(x_t, p, t, s) for p in (prediction, blind))
        expected = world.moments(q.sample(seeded(2)))
        for same in (q.mix(other, 0.0), q.tilt(nothing), q.temper(1.0), other.mix(q, 1.0)):
            assert torch.allclose(world.moments(same.sample(seeded(2))), expected, atol=1e-5)
        cold = [world.moments(q.temper(0.0).sample(seeded(seed))) for seed in (3, 4)]
        assert torch.equal(*cold)
        moved = tangent_map(torch.sub, q.tilt(push).mean, q.mean)
        pushed.append(next(iter(moved.values())) if isinstance(moved, dict) else moved)
    process.bridge = Bridge()
    assert (pushed[0] > 0).all()
    assert torch.allclose(*pushed, rtol=1e-3)


def rows_do_not_see_each_other(world: Any) -> None:
    """With a generator a row, a sample does not depend on the batch it is in."""
    process, times = world.process, schedule.uniform(5)

    def run(count: int) -> torch.Tensor:
        generators = [seeded(100 + row) for row in range(count)]
        like = world.data(1, seeded()) if count == 1 else world.data(count, seeded())
        x = process.prior(like, generators)
        return world.moments(sample(process, world.denoiser, x, times, generator=generators))

    # The prior is centred on `like`, so compare worlds that start at the same mode.
    assert torch.allclose(run(6)[0], run(1)[0], atol=1e-4)


def lengths_have_their_order(world: Any, length: Any, count: int = 2000) -> None:
    """A length is zero at s = t and falls with its stated power of the step."""
    process = world.process
    t = torch.full((count,), 0.55, dtype=torch.float64)
    x_t = process.perturb(world.data(count, seeded()), t, seeded(1)).x_t
    x_t = x_t.double() if isinstance(x_t, torch.Tensor) else x_t

    def denoise(x: Any, time: torch.Tensor) -> Any:
        return world.denoiser(x, time)

    assert float(length(process, denoise, x_t, t, t).max()) == 0
    costs = [float(length(process, denoise, x_t, t, t - h).mean()) for h in (0.02, 0.01)]
    assert costs[1] > 0
    # The next order adds O(h) to the ratio: for these steps, a tenth of log sigma at most, within a
    # fifth of the exponent.
    assert math.log2(costs[0] / costs[1]) == pytest.approx(length.order, rel=0.2)


def adapted_grid_is_sound(world: Any, length: Any) -> None:
    """The fitted grid falls strictly, keeps its ends, and makes steps of equal cost."""
    process = world.process
    batches = [(world.data(128, seeded(i)), None) for i in range(2)]
    curve = schedule.fit_curve(process, world.denoiser, length, batches, 48, seeded(9))
    for n in (1, 2, 7, 40, 200):
        knots = curve.knots(n)
        assert knots[0] == 1 and knots[-1] == 0 and len(knots) == n + 1
        assert (knots[1:] < knots[:-1]).all()
    lengths = torch.tensor(curve.lengths).diff()
    shares = torch.searchsorted(curve.at(torch.linspace(0, 1, 11)), torch.tensor(curve.times))
    per_tenth = torch.zeros(12).index_add(0, shares[1:], lengths.float())[1:11]
    assert per_tenth.std() < 0.5 * per_tenth.mean() + lengths.max()
    assert schedule.Curve.from_dict(curve.to_dict()) == curve
