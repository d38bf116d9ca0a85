"""Guidance of tokens where the conditioned law is known: 64 words, and a label with p(y | word)."""

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.guidance import (
    ClassifierFree,
    ExactClassifier,
    FirstOrderClassifier,
)
from tests.toys import Words

V = Words.letters
KINDS = [Uniform, Absorbing, Autoregressive]
P_Y = torch.rand(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3


class Label:
    """The exact log p(y | x_t), by a sum over words; counts the sequences it is asked about."""

    def __init__(self, world):
        self.world, self.asked, self.largest = world, 0, 0

    def __call__(self, x_t, t):
        self.asked, self.largest = self.asked + len(x_t), max(self.largest, len(x_t))
        joint = self.world.p * self.world.evidence(x_t, t).prod(-1)
        return ((joint @ P_Y) / joint.sum(-1)).log()


class Linear:
    """A predictor that is linear in one-hots, of ids or of one-hots."""

    weights = torch.randn(3, V + 1, generator=torch.Generator().manual_seed(0))

    def __call__(self, x, t):
        one_hot = x if x.ndim == 3 else torch.nn.functional.one_hot(x, V + 1).float()
        return (one_hot * self.weights).sum((1, 2)) * (1 - t)


def step(kind, x_t=None):
    """A step from every state, with times at which left-to-right writes one site."""
    world = Words(kind(V))
    x_t = world.states if x_t is None else x_t
    t, s = (torch.full((len(x_t),), x, dtype=torch.float64) for x in (2 / 3, 1 / 3))
    return x_t, t, s, world.process.transition(x_t, world.denoiser(x_t, t), t, s), world


def conditioned():
    joint = Words(Uniform(V)).p * P_Y
    return joint / joint.sum()


@pytest.mark.parametrize(
    "kind, steps, error",
    [
        (Uniform, (16, 64, 256), (0.1, 0.025, 0.006)),
        (Absorbing, (16, 64, 256), (0.03, 0.008, 0.002)),
        (Autoregressive, (3,), (1e-6,)),
    ],
)
def test_the_exact_predictor_leads_to_the_conditioned_law(kind, steps, error):
    world = Words(kind(V))
    assert world.distance(world.p, conditioned()) > 0.49
    guide = ExactClassifier(Label(world))
    for count, allowed in zip(steps, error, strict=True):
        law = world.law_of_samples(schedule.uniform(count), guidance=[guide])
        assert world.distance(law, conditioned()) < allowed


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_only_the_middle_of_the_step_is_asked_about(kind):
    x_t, t, s, q, world = step(kind)
    seen = []
    ExactClassifier(lambda x, when: seen.append(when) or torch.zeros(len(x)))(q, x_t, t, s, None)
    assert torch.allclose(torch.cat(seen), torch.tensor(0.5).double())


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_is_the_predictor_at_each_neighbour(kind):
    x_t, t, s, q, world = step(kind)
    label = Label(world)
    evidence = ExactClassifier(label).evidence(q, x_t, t)
    for row in range(0, len(x_t), 6):
        for site in range(3):
            for letter in range(V):
                x = x_t[row : row + 1].clone()
                x[0, site] = letter
                expected = float(label(x, t[:1])) if q.open[row, site] else 0.0
                assert float(evidence[row, site, letter]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind, sites", [(Uniform, 3), (Absorbing, 2), (Autoregressive, 1)])
def test_only_sites_that_may_be_written_are_asked_about(kind, sites):
    x_t = torch.tensor([[1, V, V]]) if kind is not Uniform else torch.tensor([[1, 2, 0]])
    x_t, t, s, q, world = step(kind, x_t.repeat(5, 1))
    label = Label(world)
    guide = ExactClassifier(label, chunk=10)
    whole = ExactClassifier(Label(world))
    assert torch.equal(guide.evidence(q, x_t, t), whole.evidence(q, x_t, t))
    assert label.asked == 5 * sites * V
    assert label.largest <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_one_gradient_is_exact_for_a_linear_predictor(kind):
    x_t, t, s, q, _ = step(kind)
    exact, first = (
        guide(Linear(), 2.0)(q, x_t, t.float(), s.float(), None).law()
        for guide in (ExactClassifier, FirstOrderClassifier)
    )
    torch.testing.assert_close(first, exact, rtol=0, atol=1e-6)
    assert not torch.allclose(exact, q.law(), atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_that_knows_nothing_changes_nothing(kind):
    x_t, t, s, q, world = step(kind)

    def blind(x, t):
        return x.float().sum(tuple(range(1, x.ndim))) * 0 - 0.7

    for guide in (ExactClassifier(blind, 3.0), FirstOrderClassifier(blind, 3.0)):
        torch.testing.assert_close(guide(q, x_t, t, s, None).law(), q.law(), rtol=0, atol=1e-7)
    informed = ExactClassifier(Label(world), 0.0)(q, x_t, t, s, None)
    torch.testing.assert_close(informed.law(), q.law(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_strength_does_not_unmask_more(gamma):
    """Expected count of written sites, for both guidances."""
    x_t, t, s, q, world = step(Absorbing)
    expected = (x_t == V).double().sum(-1) * float((t - s)[0] / t[0])
    other = Linear.weights[:, :V].double().log_softmax(-1)
    free = ClassifierFree(
        world.process, lambda x, t, cond: other.expand(len(x), -1, -1), gamma - 1, lambda cond: cond
    )
    for guide in (ExactClassifier(Label(world), gamma), free):
        law = guide(q, x_t, t, s, None).law()
        written = torch.where(x_t == V, law[..., :V].sum(-1), 0.0).sum(-1)
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-9)


class Told(Words):
    """The words given y when cond says so, and all words otherwise."""

    def __init__(self, process):
        super().__init__(process)
        self.plain, self.given = self.p, conditioned()

    def denoiser(self, x_t, t, cond=None):
        self.p = self.given if cond == "y" else self.plain
        prediction = super().denoiser(x_t, t)
        self.p = self.plain
        return prediction


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_free_at_gamma_zero_and_one_is_one_of_the_models(kind):
    world = Told(kind(V))
    times = schedule.uniform(3)

    def law(gamma):
        guide = ClassifierFree(world.process, world.denoiser, gamma - 1, lambda cond: None)
        return world.law_of_samples(times, lambda x, t, c: world.denoiser(x, t, "y"), [guide])

    plain = world.law_of_samples(times)
    given = world.law_of_samples(times, lambda x, t, c: world.denoiser(x, t, "y"))
    torch.testing.assert_close(law(0.0), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(law(1.0), given, rtol=0, atol=1e-12)
    assert law(2.0) @ P_Y > given @ P_Y > plain @ P_Y


def between_guidances(kind, steps):
    """Distance between the laws of samples by both guidances at gamma = 2."""
    world, times = Told(kind(V)), schedule.uniform(steps)
    free = ClassifierFree(world.process, world.denoiser, 1.0, lambda cond: None)
    by_models = world.law_of_samples(times, lambda x, t, c: world.denoiser(x, t, "y"), [free])
    by_label = world.law_of_samples(times, guidance=[ExactClassifier(Label(world), 2.0)])
    return world.distance(by_models, by_label)


def test_classifier_free_equals_the_classifier_in_short_steps():
    """p(x_s | y) / p(x_s) is p(y | x_s): as steps grow under uniform noise."""
    assert between_guidances(Uniform, 128) < 0.5 * between_guidances(Uniform, 32) < 0.05


def test_under_masks_classifier_free_equals_the_classifier_in_steps_of_any_length():
    """A site is told whole or not at all, so p(v | x_t, y) / p(v | x_t) is all that either sees."""
    for steps in (2, 32, 128):
        assert between_guidances(Absorbing, steps) < 1e-12


def test_the_weight_may_follow_the_time():
    world = Told(Uniform(V))
    x_t, t, s, q, _ = step(Uniform)
    label = Label(world)
    fixed = ExactClassifier(label, 3 * float(1 - t[0]))(q, x_t, t, s, None).law()
    rising = ExactClassifier(label, lambda t: 3 * (1 - t))(q, x_t, t, s, None).law()
    torch.testing.assert_close(rising, fixed, rtol=0, atol=1e-12)
    free = [
        ClassifierFree(world.process, world.denoiser, w, lambda cond: None)(q, x_t, t, s, None)
        for w in (float(1 - t[0]), lambda t: 1 - t)
    ]
    torch.testing.assert_close(free[0].law(), free[1].law(), rtol=0, atol=1e-12)
