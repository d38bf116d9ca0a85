"""Discrete latents: relaxation, prior, and the figures that show a collapse."""

import math

import pytest
import torch

from bio_diffusion.diffusion.collapse import balanced, joined, revive, shared
from bio_diffusion.diffusion.latents import (
    CausalPrior,
    Latents,
    Prefixed,
    enumerate_prior,
    gumbel_softmax,
    hide,
    prior_loss,
    sample_prior,
    usage,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tabular(m=3, k=4, seed=5):
    """A prior whose logits at i are linear in z_<i: strictly causal, easy to enumerate."""
    weight = torch.randn(m, m, k, k, generator=seeded(seed))
    bias = torch.randn(m, k, generator=seeded(seed + 1))
    before = torch.ones(m, m).tril(-1)

    def prior(z, cond):
        return bias + torch.einsum("bjk,ij,ijkl->bil", z.float(), before, weight)

    return prior


@pytest.mark.parametrize("tau", [0.01, 1.0, 5.0])
def test_hard_samples_follow_the_softmax_at_any_temperature(tau):
    logits = torch.tensor([1.0, 0.0, -1.0, -torch.inf])
    n = 20_000
    z = gumbel_softmax(logits.expand(n, 1, 4), tau, True, seeded())
    p = logits.softmax(-1)
    assert torch.allclose(z.sum(-1), torch.ones(n, 1))
    assert ((z.mean((0, 1)) - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_gradients_take_the_soft_path_and_avoid_impossible_codes():
    logits = torch.tensor([[[0.3, -0.2, -torch.inf]]], requires_grad=True)
    value = torch.tensor([1.0, 2.0, 7.0])
    grads = []
    for hard in (True, False):
        z = gumbel_softmax(logits, 1.0, hard, seeded())
        grads += torch.autograd.grad((z * value).sum(), logits)
        assert z[..., 2] == 0
    torch.testing.assert_close(*grads)
    assert grads[0].isfinite().all() and grads[0][0, 0, 0] != 0 and grads[0][0, 0, 2] == 0


def test_relaxation_is_in_single_precision_and_repeats():
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    one, two = (gumbel_softmax(logits, 0.5, False, seeded(1)) for _ in range(2))
    assert one.dtype == torch.float32 and torch.equal(one, two)
    rows = gumbel_softmax(logits, 0.5, False, [seeded(1), seeded(2)])
    alone = gumbel_softmax(logits[1:], 0.5, False, [seeded(2)])
    assert torch.equal(rows[1:], alone)
    with pytest.raises(ValueError, match="tau"):
        gumbel_softmax(logits, 0.0)


def test_latents_are_hidden_all_together():
    latents = hide(torch.zeros(20_000, 3, 2), 0.1, seeded())
    assert latents.null.shape == (20_000,) and latents.null.dtype == torch.bool
    assert float(latents.null.float().mean()) == pytest.approx(
        0.1, abs=4 * math.sqrt(0.09 / 20_000)
    )
    assert bool(latents.hidden().null.all())
    assert isinstance(latents.hidden(), Latents)


def test_prior_enumerates_to_one_and_is_sampled_faithfully():
    codes, log_p = enumerate_prior(tabular(), 3, 4)
    assert codes.shape == (64, 3)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    n = 20_000
    z = sample_prior(tabular(), torch.zeros(n, 3, 4), generator=seeded())
    index = (z.argmax(-1) * torch.tensor([16, 4, 1])).sum(-1)
    share, p = torch.bincount(index, minlength=64) / n, log_p.exp()
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


def test_temperature_zero_is_greedy_and_masks_hold():
    like = torch.zeros(50, 3, 4)
    greedy = sample_prior(tabular(), like, temperature=0.0)
    assert (greedy == greedy[:1]).all()
    allowed = torch.ones(3, 4, dtype=torch.bool)
    allowed[0, :3] = False
    z = sample_prior(tabular(), like, temperature=5.0, allowed=allowed, generator=seeded())
    assert (z[:, 0].argmax(-1) == 3).all() and z[:, 1].argmax(-1).unique().numel() > 1
    with pytest.raises(ValueError, match="no code is allowed for latent 1"):
        allowed[1] = False
        sample_prior(tabular(), like, allowed=allowed)


def test_prefixed_shows_no_more_than_what_came_before():
    seen = []

    def step(z, i, cond):
        seen.append(z)
        return z.sum(1) + i + cond

    prior = Prefixed(step)
    z = torch.eye(4)[torch.tensor([[0, 1, 2], [3, 3, 3]])]
    logits = prior(z, 10.0)
    assert logits.shape == (2, 3, 4)
    for i, shown in enumerate(seen):
        assert torch.equal(shown[:, :i], z[:, :i]) and (shown[:, i:] == 0).all()
    changed = z.clone()
    changed[:, 1:] = torch.eye(4)[0]
    torch.testing.assert_close(prior(changed, 10.0)[:, :2], logits[:, :2])


def test_prior_loss_is_least_when_the_prior_is_the_encoder():
    # An encoder that says the same of every x_0: the best prior is the encoder itself.
    encoder = torch.tensor([[[0.5, -0.5, 0.0, -torch.inf], [1.0, 0.0, 0.0, -torch.inf]]]).expand(
        64, 2, 4
    )
    entropy = torch.special.entr(encoder[0].softmax(-1)).sum()
    exact = prior_loss(lambda z, cond: encoder, encoder, generator=seeded())
    torch.testing.assert_close(exact, entropy.expand(64))
    flat = torch.zeros_like(encoder)
    worse = prior_loss(lambda z, cond: flat, encoder, generator=seeded())
    torch.testing.assert_close(worse, torch.full((64,), 2 * math.log(4)))


def test_prior_loss_has_clean_gradients_where_codes_are_impossible():
    encoder = torch.tensor([[[0.5, -0.5, -torch.inf]]])
    logits = torch.tensor([[[0.1, 0.2, -torch.inf]]], requires_grad=True)
    prior_loss(lambda z, cond: logits, encoder, generator=seeded()).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 0


def test_prior_learns_a_dependence_between_latents():
    # z_1 is even, z_2 copies it: the loss of the best prior is log 2, not 2 log 2.
    weight = torch.zeros(2, 2, requires_grad=True)
    generator = seeded()

    def prior(z, cond):
        first = torch.zeros(len(z), 2)
        return torch.stack([first, z[:, 0] @ weight], 1)

    optimizer = torch.optim.Adam([weight], lr=0.3)
    for _ in range(80):
        code = torch.randint(2, (64,), generator=generator)
        encoder = 20.0 * torch.eye(2)[code][:, None].expand(64, 2, 2)
        loss = prior_loss(prior, encoder, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=0.02)


def test_usage_tells_health_from_collapse():
    sharp = 50.0 * torch.eye(4)[torch.arange(400) % 4][:, None]
    silent = torch.zeros(400, 1, 4)
    stuck = 50.0 * torch.eye(4)[torch.zeros(400, dtype=torch.long)][:, None]
    log_k = math.log(4)
    for logits, marginal, conditional, dead in [
        (sharp, log_k, 0, 0),
        (silent, log_k, log_k, 0),
        (stuck, 0, 0, 0.75),
    ]:
        figures = usage(logits)
        assert float(figures.marginal) == pytest.approx(marginal, abs=1e-9)
        assert float(figures.conditional) == pytest.approx(conditional, abs=1e-9)
        assert float(figures.information) == pytest.approx(marginal - conditional, abs=1e-9)
        assert float(figures.dead) == dead


def test_joined_latents_are_one():
    logits = torch.randn(50, 2, 3, generator=seeded())
    one = joined(logits).softmax(-1).reshape(50, 3, 3)
    p = logits.double().softmax(-1)
    torch.testing.assert_close(one, p[:, 0, :, None] * p[:, 1, None])
    # Given x the latents are independent, so what they do not say adds up.
    together, apart = usage(joined(logits)), usage(logits)
    assert float(together.conditional) == pytest.approx(float(apart.conditional.sum()))
    assert float(together.marginal) <= float(apart.marginal.sum())


def test_information_shared_with_labels():
    labels = torch.arange(400) % 4
    half = torch.stack([labels // 2, labels % 2, torch.zeros(400, dtype=torch.long)], 1)
    logits = 50.0 * torch.nn.functional.one_hot(half, 2)
    log2 = math.log(2)
    torch.testing.assert_close(shared(logits, labels), torch.tensor([log2, log2, 0]).double())
    torch.testing.assert_close(shared(joined(logits), labels), torch.tensor([2 * log2]).double())
    told = 50.0 * torch.eye(400)[:, None]  # says all of x_0: no more of its class than there is
    assert float(shared(told, labels)) == pytest.approx(2 * log2)
    assert float(usage(told).information) == pytest.approx(math.log(400))


def test_balance_adds_its_own_gradient_to_that_of_the_loss():
    start = torch.randn(64, 2, 4, generator=seeded())
    value = torch.randn(64, 2, 4, generator=seeded(1))

    def objective(logits, weight):
        mean = logits.softmax(-1).mean(0)
        penalty = (math.log(4) + (mean * mean.log()).sum(-1)).mean()
        return (logits.softmax(-1) * value).sum() + weight * penalty

    ours, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    out = balanced(ours, 0.3)
    assert torch.equal(out, ours)
    (out.softmax(-1) * value).sum().backward()
    objective(plain, 0.3).backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    with torch.no_grad():  # nothing to teach
        assert balanced(start, 0.3) is start


def test_revived_codes_share_the_work_of_the_most_used():
    x = torch.eye(3)[torch.tensor([0, 1, 0, 2] * 100)]
    weight = torch.zeros(1, 4, 3)
    weight[0, :2] = torch.tensor([[9.0, 0.0, 9.0], [0.0, 9.0, 0.0]])
    bias, table = torch.tensor([[0.0, 0.0, -9.0, -9.0]]), torch.randn(1, 4, 5, generator=seeded())

    def logits():
        return torch.einsum("bd,mkd->bmk", x, weight) + bias

    before = table.clone()
    dead = revive(logits(), bias, [weight, table], seeded(1), jitter=0.01)
    assert dead.tolist() == [[False, False, True, True]]
    mean = logits().softmax(-1).mean((0, 1))
    # Three quarters of the data were the first code's: it gives away half, and then half again.
    assert (mean > 0.1).all() and float(mean[1]) == pytest.approx(1 / 4, abs=0.01)
    assert torch.equal(table[:, :2], before[:, :2])
    torch.testing.assert_close(table[0, 2], before[0, 0], rtol=0.1, atol=0.1)
    assert not torch.equal(table[0, 2], before[0, 0])
    assert not revive(logits(), bias, [weight, table]).any()


def test_causal_prior_learns_what_later_latents_owe_to_earlier_ones():
    torch.manual_seed(0)
    prior, generator = CausalPrior(3, 4, width=16, depth=1, heads=2, dropout=0.0, cond=1), seeded()
    z = torch.eye(4)[torch.randint(4, (8, 3), generator=generator)]
    cond = torch.zeros(8, 1)
    torch.testing.assert_close(prior(z, cond), torch.zeros(8, 3, 4))  # even at first
    optimizer = torch.optim.Adam(prior.parameters(), 0.01)
    for _ in range(150):  # z_1 is even or, told so by cond, zero; z_2 copies it; z_3 is z_1 + 1
        cond = torch.randint(2, (64, 1), generator=generator).float()
        first = torch.randint(4, (64,), generator=generator) * (cond[:, 0] == 0)
        codes = torch.stack([first, first, (first + 1) % 4], 1)
        logits = 20.0 * torch.nn.functional.one_hot(codes, 4)
        loss = prior_loss(prior, logits, cond, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < math.log(4) / 2 + 0.25  # three even latents would cost 4.2
    changed = z.clone()
    changed[:, 1:] = torch.eye(4)[0]
    torch.testing.assert_close(
        prior(changed, torch.zeros(8, 1))[:, :2], prior(z, torch.zeros(8, 1))[:, :2]
    )
    assert not torch.allclose(
        prior(changed, torch.zeros(8, 1))[:, 2], prior(z, torch.zeros(8, 1))[:, 2]
    )
    _, log_p = enumerate_prior(prior, 3, 4, torch.zeros(64, 1))
    assert float(log_p.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_known_prefix_is_kept_and_the_rest_drawn():
    known = torch.eye(4)[torch.tensor([[2], [0]])].repeat(500, 1, 1)
    z = sample_prior(tabular(), torch.zeros(1000, 3, 4), generator=seeded(), known=known)
    assert torch.equal(z[:, :1], known) and torch.equal(z.sum(-1), torch.ones(1000, 3))
    assert z[::2, 1].argmax(-1).unique().numel() > 1
    all_known = sample_prior(tabular(), torch.zeros(1000, 3, 4), known=z)
    assert torch.equal(all_known, z)


def test_groups_follow_the_order_of_the_prior():
    latents = Latents(torch.arange(24.0).reshape(2, 6, 2), torch.tensor([True, False]))
    coarse, fine = latents.groups([2, 4])
    assert coarse.z.shape == (2, 2, 2) and torch.equal(fine.z, latents.z[:, 2:])
    assert torch.equal(fine.null, latents.null)
    with pytest.raises(ValueError, match="groups of .3, 4. beside 6 latents"):
        latents.groups([3, 4])
