"""Guidance: what it does to a transition, and to samples where the answer is known."""

import math

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.guidance import ClassifierFree, EnergyGuidance, Temperature
from bio_diffusion.diffusion.noise import VE
from bio_diffusion.diffusion.sampling import Heun, sample, trajectory
from tests.toys import OnCylinder


class Counting:
    """D = E[x_0 | x_t] for data N(cond, 1), or N(0, 1) when cond is None; counts its calls."""

    def __init__(self, process):
        self.process, self.calls = process, 0

    def __call__(self, x_t, t, cond):
        self.calls += 1
        a, centre = self.process.sigma(t)[:, None].float(), 0.0 if cond is None else cond
        return centre + (x_t - centre) / (1 + a**2)


@pytest.fixture
def process():
    return GaussianDiffusion(VE(0.02, 20.0))


def run(process, denoiser, guidance, cond=1.0, n=4000, steps=60):
    generator = torch.Generator().manual_seed(0)
    x = process.prior(torch.zeros(n, 1), generator)
    times = schedule.log_snr(process, steps)
    return sample(process, denoiser, x, times, cond, guidance, generator)


def test_weight_zero_is_the_plain_model_bit_for_bit(process):
    plain, guided = Counting(process), Counting(process)
    null = ClassifierFree(process, guided, 0.0, lambda cond: None)
    assert torch.equal(run(process, plain, ()), run(process, guided, [null]))
    assert guided.calls == plain.calls == 60


def test_classifier_free_extrapolates_scores(process):
    # N(1, v) and N(0, v) have scores 1 / v apart: s + w (s - s_null) is that of N(1 + w, v).
    for w in (1.0, 2.0, -1.0):
        denoiser = Counting(process)
        guide = ClassifierFree(process, denoiser, w, lambda cond: None)
        x = run(process, denoiser, [guide], steps=200)
        assert denoiser.calls == 400
        assert float(x.mean()) == pytest.approx(1 + w, abs=4 / 4000**0.5)
        # Ancestral steps come out narrow by about h / 2 each, h = 0.035 of log sigma.
        assert float(x.std()) == pytest.approx(1, abs=0.02 + 4 * (0.5 / 4000) ** 0.5)


def test_guidance_keeps_to_its_window(process):
    denoiser = Counting(process)
    run(
        process, denoiser, [ClassifierFree(process, denoiser, 1.0, lambda c: None, (0.5, 0.8))], n=2
    )
    times = schedule.log_snr(process, 60)[:-1]
    assert denoiser.calls == 60 + int(((times >= 0.5) & (times <= 0.8)).sum())


def test_energy_tilts_towards_low_energy(process):
    k = 0.2
    guide = EnergyGuidance(process, lambda x, t, cond: torch.full_like(x, -k), limit=None)
    shifted = run(process, Counting(process), [guide], cond=None, steps=200)
    # A score shifted by k: m = E[y] obeys dm / da^2 = m / (1 + a^2) - k, hence
    # m_0 = k Int_0^{a_1^2} da^2 / (1 + a^2) = k log(1 + a_1^2).
    assert float(shifted.mean()) == pytest.approx(k * math.log1p(20.0**2), rel=0.05)


def test_steep_energies_are_held_back():
    world = OnCylinder()
    x = world.data(5, torch.Generator().manual_seed(0))
    t, s = torch.full((5,), 0.5), torch.full((5,), 0.4)
    q = world.process.transition(x, world.denoiser(x, t), t, s)
    steep = {"height": torch.full((5, 1), 1e6), "angle": torch.full((5, 1), -1e6)}
    guide = EnergyGuidance(
        world.process, lambda x, t, cond: steep, scale=lambda t: 2 * t, limit=0.5
    )
    steered = guide(q, x, t, s, None)
    push = {k: (steered.mean[k] - q.mean[k]) / q.kernel[k][:, None] for k in q.mean}
    torch.testing.assert_close(
        world.process.norm(push, t).float(), torch.full((5,), 0.5), rtol=1e-3, atol=0
    )
    assert (push["height"] < 0).all() and (push["angle"] > 0).all()
    calm = EnergyGuidance(
        world.process, lambda x, t, cond: {k: 1e-3 * v / v for k, v in steep.items()}
    )
    small = calm(q, x, t, s, None)
    torch.testing.assert_close(
        small.mean["height"] - q.mean["height"], -1e-3 * q.kernel["height"][:, None].float(),
        rtol=0.05, atol=0,
    )  # fmt: skip


def test_low_temperature_narrows(process):
    widths = [
        float(run(process, Counting(process), [Temperature(T)], cond=0.0).std()) for T in (0.3, 1.0)
    ]
    assert widths[0] < 0.9 * widths[1]
    with pytest.raises(ValueError, match="temperature"):
        Temperature(-1.0)


def test_times_and_steps_are_checked(process):
    x = torch.zeros(2, 1)
    for bad in ([1.0], [0.0, 1.0], [1.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="falling strictly"):
            sample(process, Counting(process), x, torch.tensor(bad))
    with pytest.raises(ValueError, match="under guidance"):
        sample(
            process,
            Counting(process),
            x,
            torch.tensor([1.0, 0.0]),
            guidance=[Temperature(1)],
            step=Heun(),
        )


def test_trajectory_yields_every_state_from_the_first(process):
    x = torch.zeros(2, 1)
    states = list(trajectory(process, Counting(process), x, schedule.uniform(4)))
    assert len(states) == 5 and states[0] is x
