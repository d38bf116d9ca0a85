"""The product process: shapes, normalisation, and what it says when a state does not fit."""

import pytest
import torch

from bio_diffusion.diffusion.bridge import Bridge, LowTemperature
from bio_diffusion.diffusion.product import R3, SO3, ProductDiffusion, Torus


class Chain:
    """A stand-in for a ligand: remembers its displacement."""

    def __init__(self, batch, torsions, tangent=None):
        self.batch, self.torsions, self.tangent = batch, torsions, tangent

    def __len__(self):
        return self.batch

    def tangent_shapes(self):
        return {"tr": (self.batch, 3), "rot": (self.batch, 3), "tor": (self.batch, self.torsions)}

    def moved(self, tangent):
        return Chain(self.batch, self.torsions, tangent)


@pytest.fixture
def process():
    return ProductDiffusion(
        {
            "tr": (R3(), 0.1, 19.0, 1.0),
            "rot": (SO3(), 0.03, 1.55, 0.5),
            "tor": (Torus(), 0.03, 3.14, 2.0),
        }
    )


def zeros(x):
    return {name: torch.zeros(shape) for name, shape in x.tangent_shapes().items()}


def test_levels_are_geometric(process):
    sigma = process.sigma(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(sigma["tr"], torch.tensor([0.1, (0.1 * 19) ** 0.5, 19.0]).double())
    assert torch.equal(process.sigma_to(torch.tensor([0.0]))["rot"], torch.zeros(1).double())


def test_each_part_of_the_loss_is_one_for_a_prediction_of_zero(process):
    x_0 = Chain(4000, 2)
    t = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 0.9
    noised = process.perturb(x_0, t, torch.Generator().manual_seed(1))
    parts = process.parts(zeros(x_0), noised, x_0, t)
    for part in parts.values():
        assert float(part.mean()) == pytest.approx(1, abs=4 * float(part.std()) / 4000**0.5)
    loss = process.loss(zeros(x_0), noised, x_0, t)
    torch.testing.assert_close(loss, parts["tr"] + 0.5 * parts["rot"] + 2 * parts["tor"])
    assert torch.equal(process.loss(noised.target, noised, x_0, t), torch.zeros(4000))
    # A network whose numbers are near one is scaled to scores by rms_score.
    scale = process.rms_score(t)
    assert float((noised.target["rot"] / scale["rot"][:, None]).square().mean()) == pytest.approx(
        1, abs=0.1
    )


def test_no_torsions_is_no_trouble(process):
    x_0, t = Chain(3, 0), torch.tensor([0.2, 0.5, 1.0])
    noised = process.perturb(x_0, t)
    loss = process.loss(zeros(x_0), noised, x_0, t)
    assert loss.isfinite().all() and noised.target["tor"].shape == (3, 0)
    q = process.transition(noised.x_t, zeros(x_0), t, t / 2)
    assert q.sample().tangent["tor"].shape == (3, 0)
    assert process.prior(x_0).tangent["tor"].shape == (3, 0)
    assert process.norm(zeros(x_0), t).tolist() == [0, 0, 0]


def test_prior_is_wide_and_uniform(process):
    tangent = process.prior(Chain(20_000, 1), torch.Generator().manual_seed(0)).tangent
    assert float(tangent["tr"].std()) == pytest.approx(19, rel=0.02)
    assert float(tangent["rot"].norm(dim=-1).mean()) == pytest.approx(2.207, abs=0.02)
    assert float(tangent["tor"].std()) == pytest.approx(3.1416 / 3**0.5, rel=0.02)


def test_last_step_is_the_denoised_state_without_noise(process):
    x, t, s = Chain(2, 1), torch.full((2,), 0.3), torch.zeros(2)
    score = {name: torch.ones_like(value) for name, value in zeros(x).items()}
    for eta in (0.0, 0.4, 1.0):
        process.bridge = Bridge(eta)
        tangent = process.transition(x, score, t, s).sample().tangent
        for name, sigma in process.sigma(t).items():
            torch.testing.assert_close(tangent[name][:, 0], (sigma**2).float())


def test_bridge_interpolates_ancestral_and_deterministic():
    a, b = torch.tensor([2.0]), torch.tensor([1.5])
    drift, variance = Bridge(1.0)(a, b)
    torch.testing.assert_close(drift, a**2 - b**2)
    torch.testing.assert_close(variance, (a**2 - b**2) * b**2 / a**2)
    drift, variance = Bridge(0.0)(a, b)
    torch.testing.assert_close(drift, a * (a - b))
    assert float(variance) == 0
    for eta in (0.0, 0.3, 0.7, 1.0):
        # For one x_0, y_t - y_0 has variance a^2 and score -(y_t - y_0) / a^2: y_s must have b^2.
        drift, variance = Bridge(eta)(a, b)
        torch.testing.assert_close(a**2 * (1 - drift / a**2) ** 2 + variance, b**2)


def test_low_temperature_contains_the_ancestral_bridge_and_sharpens():
    a, b = torch.tensor([2.0]), torch.tensor([1.5])
    plain, same = Bridge()(a, b), LowTemperature(1.0, 0.0, 0.5)(a, b)
    torch.testing.assert_close(plain, same)
    assert float(LowTemperature(4.0, 0.0, 0.5)(a, b)[0]) > float(plain[0])
    far = [bridge(1e4 * a, 0.95e4 * a)[0] for bridge in (LowTemperature(4.0, 0.0, 0.5), Bridge())]
    assert float(far[0] / far[1]) == pytest.approx(4, rel=1e-2)
    # However eager, it lands on the denoised state and not beyond.
    assert float(LowTemperature(9.0, 3.0, 0.5)(a, b)[0]) == float(a**2)
    drift, variance = LowTemperature(9.0, 3.0, 0.5)(a, torch.zeros(1))
    assert float(drift) == float(a**2) and float(variance) == 0
    with pytest.raises(ValueError, match="inverse_temperature"):
        LowTemperature(0.0, 0.0, 1.0)


def test_bridges_may_differ_by_factor(process):
    process.bridge = {"tr": Bridge(0.0), "rot": Bridge(1.0), "tor": LowTemperature(2, 1, 0.5)}
    x, t = Chain(2, 1), torch.full((2,), 0.5)
    q = process.transition(x, zeros(x), t, t / 2)
    assert float(q.variance["tr"].max()) == 0 < float(q.variance["rot"].min())


def test_tilt_may_leave_factors_out(process):
    x, t = Chain(2, 1), torch.full((2,), 0.5)
    q = process.transition(x, zeros(x), t, t / 2)
    steered = q.tilt({"tr": torch.ones(2, 3)})
    moved = (process.sigma(t)["tr"] ** 2 - process.sigma(t / 2)["tr"] ** 2).float()
    torch.testing.assert_close(steered.mean["tr"], moved[:, None].expand(2, 3))
    assert torch.equal(steered.mean["rot"], q.mean["rot"])


def test_errors_name_the_cure(process):
    class Rigid(Chain):
        def tangent_shapes(self):
            return {"tr": (self.batch, 3)}

    with pytest.raises(ValueError, match=r"also has \['rot', 'tor'\]"):
        process.perturb(Rigid(2, 0), torch.ones(2))
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        ProductDiffusion({"tr": (R3(), 2.0, 1.0, 1.0)})
    with pytest.raises(ValueError, match="one per row"):
        process.prior(Chain(3, 1), [torch.Generator()] * 2)
    with pytest.raises(ValueError, match="eta"):
        Bridge(1.5)
