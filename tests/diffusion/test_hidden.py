"""Steering by hidden states, on features that are the logits themselves."""

import pytest
import torch

from bio_diffusion.diffusion import schedule
from bio_diffusion.diffusion.categorical import Absorbing, Uniform
from bio_diffusion.diffusion.hidden import HiddenStates
from bio_diffusion.diffusion.sampling import sample

B, L, V = 6, 5, 4
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(V + 1, V, generator=GENERATOR)
WEIGHTS = torch.randn(L, V, generator=GENERATOR)


def features(x_t, t, cond):
    """Logits that depend on the letter that stands."""
    return LOGITS[x_t]


def read(h):
    return h.log_softmax(-1)


def log_p(h):
    """Logistic in the features of all sites."""
    return torch.nn.functional.logsigmoid((h * WEIGHTS).sum((1, 2)))


def state(kind):
    x_t = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    if kind is Absorbing:
        x_t[:, ::2] = V
    return x_t, torch.full((B,), 0.5)


def steered(kind, log_p=log_p, **how):
    return HiddenStates(kind(V), features, read, log_p, **how)


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_a_head_that_knows_nothing_changes_nothing(kind):
    x_t, t = state(kind)
    found = steered(kind, lambda h: 0 * h.sum((1, 2)), count=5)(x_t, t)
    torch.testing.assert_close(found, read(features(x_t, t, None)))


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_the_first_step_moves_every_feature_by_its_size(kind):
    x_t, t = state(kind)
    found = steered(kind, count=1, size=0.3, stability=100.0)(x_t, t)
    free = torch.ones(B, L, 1) if kind is Uniform else (x_t == V)[..., None]
    expected = read(features(x_t, t, None) + 0.3 * free * WEIGHTS.sign())
    torch.testing.assert_close(found, expected)


def test_more_steps_satisfy_the_head_and_stability_holds_them_back():
    x_t, t = state(Uniform)
    before = read(features(x_t, t, None))

    def moved(**how):
        after = steered(Uniform, size=0.2, **how)(x_t, t)
        return (before.exp() * (before - after)).sum(), log_p(after).mean()

    near, some = moved(count=1)
    far, more = moved(count=10, stability=0.0)
    held, less = moved(count=10, stability=3.0)
    assert log_p(before).mean() < some < more and less < more
    assert near < far and held < 0.5 * far


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_a_sequence_does_not_depend_on_those_beside_it(kind):
    x_t, t = state(kind)
    every = steered(kind, stability=0.1)(x_t, t)
    alone = torch.cat([steered(kind, stability=0.1)(x_t[i : i + 1], t[:1]) for i in range(B)])
    torch.testing.assert_close(every, alone)


@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_samples_go_where_the_head_points(kind):
    process, generator = kind(V), torch.Generator().manual_seed(2)
    like = torch.zeros(400, L, dtype=torch.long)

    def share(network):
        x = sample(
            process,
            network,
            process.prior(like, generator),
            schedule.uniform(6),
            generator=generator,
        )
        return (x == WEIGHTS.argmax(-1)).float().mean()

    plain = share(lambda x_t, t, cond: read(features(x_t, t, cond)))
    assert share(steered(kind, size=0.5)) > plain + 0.05


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="one gradient step or more, got 0"):
        steered(Uniform, count=0)
