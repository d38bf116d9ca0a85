"""Samplers that keep editing: the marginal laws are kept, and editing happens."""

import pytest
import torch
from scipy import stats

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Uniform
from bio_diffusion.diffusion.editing import Remask, Remasking, Renoising
from bio_diffusion.diffusion.noise import CosineSurvival
from bio_diffusion.diffusion.sampling import trajectory
from tests.laws import seeded
from tests.toys import Words

EVER = (0.0, 1.0)
EDITING = {
    "renoise some": lambda: Renoising(4, share=0.3, window=EVER),
    "renoise all": lambda: Renoising(4, share=1.0, window=EVER),
    "remask rescaled": lambda: Remasking(4, share=0.2, cap=1.0),
    "remask capped": lambda: Remasking(4, cap=0.1),
    "remask all": lambda: Remasking(4, CosineSurvival(), share=1.0, cap=1.0),
}


@pytest.fixture(params=EDITING, ids=str)
def world(request):
    return Words(EDITING[request.param]())


def known(x_0: int, count: int) -> torch.Tensor:
    log_p = torch.full((count, 1, 4), -torch.inf, dtype=torch.float64)
    log_p[..., x_0] = 0
    return log_p


def test_given_the_data_the_marginal_law_is_kept(world):
    """sum over x_t of q(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0), one site."""
    process, count = world.process, int(world.states.max()) + 1
    x_t = torch.arange(count)[:, None]

    def marginal(t):
        alpha = float(process.schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        law = torch.zeros(count, dtype=torch.float64)
        law[2] = alpha
        rest = torch.full((4,), 0.25) if isinstance(process, Uniform) else torch.eye(5)[4]
        return law + (1 - alpha) * rest.double()

    for s, t in ((0.0, 0.3), (0.2, 0.4), (0.7, 0.9), (0.5, 1.0)):
        when = torch.full((count,), t, dtype=torch.float64)
        q = process.transition(x_t, known(2, count), when, torch.full_like(when, s))
        arrived = marginal(t) @ q.law()[:, 0]
        torch.testing.assert_close(arrived, marginal(s), rtol=0, atol=1e-12)


def test_exact_sampling_still_comes_to_the_data(world):
    few, many = (world.distance(world.law_of_samples(schedule.uniform(n))) for n in (8, 128))
    assert many < few / 2 and many < 0.06


def test_samples_of_a_step_have_its_law():
    process, count = Remasking(4, share=0.5, cap=1.0), 20000
    x_t = torch.tensor([[1, 4, 3]]).expand(count, -1)
    log_p = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(count, 3, 4)
    q = process.transition(x_t, log_p, torch.full((count,), 0.6), torch.full((count,), 0.3))
    assert isinstance(q, Remask)
    drawn, law = q.sample(seeded()), q.law()[0].double()
    for site in range(3):
        seen = torch.bincount(drawn[:, site], minlength=5)
        some = law[site] > 0
        assert int(seen[~some].sum()) == 0
        expected = count * law[site][some] / law[site].sum()
        assert stats.chisquare(seen[some], expected).pvalue > 1e-4
    # guidance keeps what is erased
    assert torch.equal(q.temper(0.5).erase, q.erase)


def test_nothing_forgotten_is_the_plain_step():
    for plain, editing in (
        (Uniform(4), Renoising(4, share=0.0)),
        (Absorbing(4), Remasking(4, cap=0.0)),
        (Absorbing(4), Remasking(4, window=(0.9, 1.0))),
    ):
        world = Words(plain)
        t = torch.full((len(world.states),), 0.6, dtype=torch.float64)
        prediction = world.denoiser(world.states, t)
        laws = [p.transition(world.states, prediction, t, t / 2).law() for p in (plain, editing)]
        torch.testing.assert_close(*laws, rtol=0, atol=1e-14)


def edits(process, steps: int = 32, count: int = 500) -> float:
    """How often a letter is changed after it was first chosen, a site."""
    world = Words(process)
    x = process.prior(world.data(count, seeded()), seeded(1))
    states = list(
        trajectory(process, world.denoiser, x, schedule.uniform(steps), generator=seeded(2))
    )
    changes = torch.stack([(a != b) & (a != 4) for a, b in zip(states, states[1:], strict=False)])
    return float(changes.double().sum(0).mean())


def test_masks_are_written_once_unless_remasked():
    assert edits(Absorbing(4)) == 0
    assert edits(Remasking(4, cap=0.1)) > 0.3
    assert edits(Renoising(4, share=0.3, window=EVER)) > edits(Uniform(4)) + 0.5


def test_shares_lie_between_none_and_all():
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        Renoising(4, share=1.5)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        Remasking(4, cap=-0.1)
