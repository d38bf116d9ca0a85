"""Linear diffusions with auxiliaries: kernels, laws, bounds, learned Q and D, and samplers.

Exact answers come from high-precision arithmetic (mpmath), from Gaussian data, for which every
expectation is a trace, and from mixtures of points.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from linear_exact import MEAN, WIDTH, Exact, loss_spread, marginal, variance_error

from bio_diffusion.diffusion import lengths, schedule
from bio_diffusion.diffusion import linear_steps as steps
from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.guidance import Temperature
from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import (
    Clock,
    Recipe,
    alda,
    apply,
    check,
    cld,
    kernel,
    malda,
    vpsde,
)
from bio_diffusion.diffusion.linear_learned import (
    DataPrediction,
    LearnedDiffusion,
    NoisePrediction,
)
from bio_diffusion.diffusion.linear_likelihood import Implicit, bits_per_dim, bound, denoising
from bio_diffusion.diffusion.noise import VP
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.training import fit
from tests import laws

DOUBLE = torch.float64
RECIPES = {"vpsde": vpsde(), "cld": cld(), "heavy": cld(0.25), "alda": alda(), "malda": malda()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(variables, **options):
    return LearnedDiffusion(variables, generator=seeded(), **options)


PROCESSES = {
    **{name: lambda r=recipe: LinearDiffusion(r) for name, recipe in RECIPES.items()},
    "fast malda": lambda: LinearDiffusion(malda(4), rate=2.0),
    "learned-2": lambda: learned(2),
    "learned-3, full": lambda: learned(3, full=True),
}


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]()


@pytest.fixture(params=RECIPES, ids=str)
def recipe(request):
    return RECIPES[request.param]


# --- matrices and kernels ------------------------------------------------------------------------


def test_stationary_law_is_kept(process):
    with torch.no_grad():
        A, (_, D, S) = process.recipe.A, process.recipe
        assert ((A * S + S[:, None] * A.mT + 2 * D).abs() < 1e-14 * A.abs().max()).all()
        E, Sigma = kernel(process.recipe, torch.tensor([0.3], dtype=DOUBLE))
        torch.testing.assert_close((E * S) @ E.mT + Sigma, torch.diag(S)[None])


def exact_kernel(recipe, tau, start):
    """E, Sigma and its factor, tau after N(0, diag(start)), in 60 digits, by the block."""
    K = len(recipe.S)
    with mpmath.workdps(60):
        A, D = (mpmath.matrix(m.tolist()) for m in (recipe.A, recipe.D))
        block = mpmath.zeros(2 * K)
        block[:K, :K], block[:K, K:], block[K:, K:] = A, 2 * D, -A.T
        big = mpmath.expm(block * mpmath.mpf(tau))
        E = big[:K, :K]
        Sigma = big[:K, K:] * E.T + E * mpmath.diag(start.tolist()) * E.T
        L = mpmath.cholesky((Sigma + Sigma.T) / 2)
        return [np.array(m.tolist(), float).reshape(K, K) for m in (E, Sigma, L)]


@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("hybrid", [False, True])
def test_kernel_has_all_its_digits(recipe, t, hybrid):
    process = LinearDiffusion(recipe, hybrid=hybrid)
    time = torch.tensor([t], dtype=DOUBLE)
    start = torch.full_like(recipe.S, process.init_var * hybrid)
    start[0] = 0
    E, Sigma, L = exact_kernel(recipe, float(process.clock.tau(time)), start)
    ours = [m[0].numpy() for m in process.conditional(time)]
    columns = slice(1) if hybrid else slice(None)
    scale = np.sqrt(np.diag(Sigma))
    assert np.abs(ours[0][:, columns] - E[:, columns]).max() < 5e-14
    assert np.abs((ours[1] - Sigma) / np.outer(scale, scale)).max() < 5e-14
    # Relative to the smallest of the three conditional widths; ALDA at t = 1e-5 has v given x
    # known to a millionth, and loses as many digits.
    assert np.abs((ours[2] - L) / np.diag(L)[:, None]).max() < (1e-7 if t < 1e-4 else 1e-11)


def test_three_ways_to_the_kernel_agree(recipe):
    tau, K = torch.tensor([5.0], dtype=DOUBLE), len(recipe.S)
    E, Sigma = kernel(recipe, tau)
    A, zero = recipe.A, torch.zeros_like(recipe.A)
    block = torch.linalg.matrix_exp(
        5 * torch.cat([torch.cat([A, 2 * recipe.D], 1), torch.cat([zero, -A.mT], 1)])
    )
    C, H = block[:K, K:], block[K:, K:]
    stationary = torch.diag(recipe.S) - (E[0] * recipe.S) @ E[0].mT
    for other in (C @ torch.linalg.inv(H), C @ torch.linalg.matrix_exp(5 * A).mT, stationary):
        # e^10 of 2e-16 is lost in the block of the fastest of them, eigenvalue -1.5
        torch.testing.assert_close(Sigma[0], other, rtol=0, atol=2e-16 * math.exp(15))


@pytest.mark.parametrize("mass", [1.0, 0.25])
def test_cld_has_its_closed_form(mass):
    recipe, w = cld(mass), 1 / math.sqrt(mass)
    tau = torch.logspace(-3, 0.7, 9, dtype=DOUBLE)
    one = torch.eye(2, dtype=DOUBLE)
    E = (-w * tau).exp()[:, None, None] * (one + tau[:, None, None] * (recipe.A + w * one))
    ours, Sigma = kernel(recipe, tau)
    torch.testing.assert_close(ours, E, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        Sigma, torch.diag(recipe.S) - (E * recipe.S) @ E.mT, rtol=0, atol=1e-13
    )


def test_kernel_is_that_of_euler_maruyama(recipe):
    count, n, t = 20_000, 400, torch.tensor([0.5], dtype=DOUBLE)
    process = LinearDiffusion(recipe)
    tau = float(process.clock.tau(t))
    h, u = tau / n, torch.ones(count, len(recipe.S), 1)
    root = (2 * recipe.D).sqrt().float()  # diagonal, all of them
    generator = seeded()
    for _ in range(n):
        noise = torch.randn(u.shape, generator=generator)
        u = u + h * apply(recipe.A, u) + math.sqrt(h) * apply(root, noise)
    E, Sigma, _ = process.between(torch.zeros_like(t), t)
    # Euler's bias is h |A|^2 tau / 2, at most 0.4 %; Monte Carlo's error 1 / sqrt(count) = 0.7 %
    mean, covariance = (
        u[..., 0].mean(0).double(),
        torch.cov(u[..., 0].T).double().reshape(E.shape[1:]),
    )
    torch.testing.assert_close(mean, E[0].sum(1), rtol=0, atol=0.03)
    torch.testing.assert_close(covariance, Sigma[0], rtol=0, atol=0.03)


def test_schur_complements_at_small_tau():
    # Conditional variance of v given x: (2/3) G tau given x_0 alone, (1/2) G tau given u_0: the
    # weight of score matching is unbounded either way, and hybrid only takes a quarter off it.
    t = torch.tensor([1e-5], dtype=DOUBLE)
    for hybrid, slope in ((True, 2 / 3), (False, 1 / 2)):
        process = LinearDiffusion(cld(), hybrid=hybrid)
        L = process.conditional(t)[2][0]
        ratio = float(L[1, 1] ** 2 / (2 * process.clock.tau(t)))
        assert ratio == pytest.approx(slope, rel=1e-3)


def test_gradients_flow_through_kernel_and_factors():
    process = learned(3, full=True, rate=1.3)
    t = torch.tensor([0.02, 0.7], dtype=DOUBLE)

    def outputs(q, d):
        process.q.data, process.d.data = q, d
        with torch.nn.utils.parametrize.cached():
            del process._parameters["q"], process._parameters["d"]
            process.q, process.d = q, d
            out = (*process.conditional(t), *process.between(torch.zeros_like(t), t))
            del process.q, process.d
            process.register_parameter("q", torch.nn.Parameter(q.detach()))
            process.register_parameter("d", torch.nn.Parameter(d.detach()))
        return out

    q, d = (p.detach().clone().requires_grad_() for p in (process.q, process.d))
    assert torch.autograd.gradcheck(outputs, (q, d), atol=1e-6)


def test_a_kept_kernel_is_not_mistaken_for_another():
    """`conditional` returns what it computed last only while t and the matrices are the same."""
    process, t = LinearDiffusion(malda()), torch.tensor([0.2, 0.9])
    first = process.conditional(t)
    assert process.conditional(t)[1] is first[1]
    t += 0.05
    again = process.conditional(t)
    fresh = LinearDiffusion(malda()).conditional(torch.tensor([0.25, 0.95]))
    for one, other in zip(again, fresh, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    process.load_state_dict(LinearDiffusion(alda()).state_dict())
    torch.testing.assert_close(process.conditional(t), LinearDiffusion(alda()).conditional(t))
    process = learned(2)
    with torch.no_grad():
        before = process.conditional(t)[1]
        process.q += 0.3
        assert not torch.equal(process.conditional(t)[1], before)
    assert process.conditional(t)[1].requires_grad  # though the last was without
    with torch.inference_mode():
        process.conditional(torch.ones(2))


def test_rate_is_that_of_the_slowest_mode():
    for variables in (1, 2, 4):
        process = learned(variables, rate=0.7)
        values = torch.linalg.eigvals(process.recipe.A.detach())
        assert float(-values.real.max()) == pytest.approx(0.7)
        check(process.recipe)


BAD = [
    (Recipe(torch.eye(2), torch.eye(2), torch.ones(2)), "Q is not skew-symmetric"),
    (Recipe(cld().Q * torch.nan, cld().D, torch.ones(2)), "Q must be finite"),
    (Recipe(cld().Q, cld().D * torch.inf, torch.ones(2)), "D must be finite"),
    (Recipe([[0.0]], [[0.5]], 1.0), "S holds a variance for each variable"),
    (Recipe(torch.zeros(2, 2), torch.ones(2, 2).triu(), torch.ones(2)), "D is not symmetric"),
    (Recipe(cld().Q, torch.diag(torch.tensor([-0.5, 1.0])), torch.ones(2)), "eigenvalue is -0.5"),
    (Recipe(cld().Q * 0, cld().D, torch.ones(2)), r"does not mix: eigenvalue -?0.* of -\(Q"),
    (Recipe(cld().Q, cld().D * 0, torch.ones(2)), r"does not mix: eigenvalue .*0[+-]1j"),
    (Recipe(cld().Q, cld().D, torch.ones(3)), r"shape \(3, 3\)"),
    (Recipe(cld().Q, cld().D, -torch.ones(2)), "S holds variances"),
]


@pytest.mark.parametrize("recipe, message", BAD, ids=[m for _, m in BAD])
def test_bad_matrices_are_named(recipe, message):
    with pytest.raises(ValueError, match=message) as error:
        LinearDiffusion(recipe)
    assert "\n" not in str(error.value)


def test_other_bad_input():
    for bad in ({"rate": -1.0}, {"init_var": 0.0}, {"t_min": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LinearDiffusion(cld(), **bad)
    with pytest.raises(ValueError, match="b0 < b1"):
        Clock(1.0, 0.5)
    with pytest.raises(ValueError, match="singular to float64"):
        LinearDiffusion(alda()).conditional(torch.tensor([1e-120], dtype=DOUBLE))


# --- one variable is VP --------------------------------------------------------------------------


def test_one_variable_is_the_gaussian_diffusion():
    linear, vp = LinearDiffusion(vpsde()), GaussianDiffusion(VP(0.1, 10.0))
    x, x_0 = torch.randn(5, 3, generator=seeded(), dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    t, s = torch.linspace(0.2, 1, 5), torch.tensor([0.1, 0.0, 0.5, 0.2, 0.0])
    alpha, sigma = vp.schedule.alpha(t)[:, None], vp.schedule.sigma(t)[:, None]
    score = (alpha * x_0 - x) / sigma**2  # of a prediction x_0
    q, p = vp.transition(x, x_0, t, s), linear.transition(x[:, None], score[:, None], t, s)
    torch.testing.assert_close(p.mean[:, 0], q.mean)
    torch.testing.assert_close(p.factor[:, 0, 0] ** 2, q.variance)
    torch.testing.assert_close(p.kernel[:, 0, 0], q.kernel)
    torch.testing.assert_close(
        linear.score(score[:, None], x[:, None], t)[:, 0], vp.score(x_0, x, t)
    )
    torch.testing.assert_close(linear.level(t), vp.sigma(t))
    torch.testing.assert_close(linear.norm(score[:, None], t), vp.norm(score, t))
    noised, other = (
        process.perturb(state, t, seeded(3)).x_t
        for process, state in ((linear, x_0[:, None]), (vp, x_0))
    )
    torch.testing.assert_close(noised[:, 0], other)
    torch.testing.assert_close(linear.reframe(x[:, None], t, s)[:, 0], vp.reframe(x, t, s))


# --- the laws ------------------------------------------------------------------------------------


class Points:
    """Three points on R^2 with auxiliaries, under a linear diffusion; see `toys.Line`."""

    modes = torch.tensor([[-1.5, -1.5], [0.3, 0.3], [1.6, 1.6]])
    weights = torch.tensor((0.5, 0.2, 0.3))

    def __init__(self, process):
        self.process = process.requires_grad_(False)

    def data(self, count, generator):
        x = self.modes[torch.multinomial(self.weights, count, True, generator=generator)]
        return self.process.lift(x, generator)

    def denoiser(self, x_t, t, cond=None):
        """The score: those of the modes' kernels, weighed by their posterior."""
        E, _, L = (
            LinearDiffusion.conditional(self.process, t) if self.process.hybrid else self._wide(t)
        )
        centres = torch.einsum("bk,md->bmkd", E[..., 0], self.modes.to(DOUBLE))
        z = torch.linalg.solve_triangular(
            L[:, None], x_t.to(DOUBLE)[:, None] - centres, upper=False
        )
        log_p = self.weights.to(DOUBLE).log() - z.square().flatten(2).sum(-1) / 2
        scores = torch.linalg.solve_triangular(L.mT[:, None], -z, upper=True)
        return torch.einsum("bm,bmkd->bkd", log_p.softmax(-1), scores).to(x_t)

    def _wide(self, t):
        self.process.hybrid = True
        try:
            return self.process.conditional(t)
        finally:
            self.process.hybrid = False

    def nearest(self, u):
        return torch.cdist(u[:, 0], self.modes.to(u)).argmin(-1)

    def moments(self, u):
        x = u[:, 0]
        return torch.stack([x[:, 0], x[:, 1] ** 2, x[:, 0] * x[:, 1]], -1)


@pytest.fixture(params=["cld", "malda", "alda", "learned-3, full"], ids=str)
def world(request):
    return Points(PROCESSES[request.param]())


def test_noising_composes(world):
    laws.noising_composes(world)


@pytest.mark.parametrize("hybrid", [True, False])
def test_target_is_score(world, hybrid):
    world.process.hybrid = hybrid
    laws.target_is_score(world)


STEPS = [None, steps.EulerMaruyama(), steps.SymmetricSplitting(), steps.ProbabilityFlow()]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["vpsde", "cld", "malda"])
def test_sampling_recovers_weights(name, step):
    world = Points(LinearDiffusion(RECIPES[name], rate=1.0))
    laws.sampling_recovers_weights(world, Bridge(), 80, count=1000, step=step)


def test_transitions_are_steerable(world):
    process, count = world.process, 16
    t, s = torch.full((count,), 0.7), torch.full((count,), 0.4)
    x_t = process.perturb(world.data(count, seeded()), t, seeded(1)).x_t
    prediction = world.denoiser(x_t, t)
    q, other = (process.transition(x_t, p, t, s) for p in (prediction, 0 * prediction))
    for same in (q.mix(other, 0.0), q.tilt(0 * x_t), q.temper(1.0), other.mix(q, 1.0)):
        torch.testing.assert_close(same.sample(seeded(2)), q.sample(seeded(2)))
    assert torch.equal(q.temper(0.0).sample(), q.temper(0.0).sample())
    # tilting is adding to the score
    push = torch.randn(x_t.shape, generator=seeded(3))
    E = process.flow(t)
    steered = process.transition(x_t, prediction + apply(torch.linalg.inv(E).mT, push), t, s)
    torch.testing.assert_close(q.tilt(push).mean, steered.mean, rtol=1e-3, atol=1e-4)


def test_rows_do_not_see_each_other(world):
    laws.rows_do_not_see_each_other(world)


def test_lengths_have_their_order(world):
    laws.lengths_have_their_order(world, lengths.CorrectorOptimised())


def test_steps_take_no_guidance():
    world = Points(LinearDiffusion(cld()))
    x = world.data(2, seeded())
    with pytest.raises(ValueError, match="takes no guidance"):
        sample(
            world.process, world.denoiser, x, schedule.uniform(2), None, [Temperature(0.5)],
            step=steps.EulerMaruyama(),
        )  # fmt: skip


def test_level_rises(process):
    level = process.level(torch.logspace(-4, 0, 60, dtype=DOUBLE))
    assert (level.diff() > 0).all()


# --- Gaussian data: everything is a trace ---------------------------------------------------------


ENTROPY = 0.5 * (1 + math.log(2 * math.pi * WIDTH**2))  # of the data
NODES = torch.tensor([MEAN - WIDTH, MEAN + WIDTH], dtype=DOUBLE)  # their mean is that over the data


@pytest.mark.parametrize("name", ["vpsde", "cld", "malda"])
def test_bounds_agree_in_expectation(name):
    for scale in (1.0, 1.1):
        exact = [
            Exact(LinearDiffusion(RECIPES[name], hybrid=hybrid), scale=scale)
            for hybrid in (True, False)
        ]
        implicit, hybrid = exact[0].integrals(NODES)
        # HSM and ISM given x; DSM needs v_0 too and is put to Monte Carlo below.
        slack = 1e-8 if name == "vpsde" else 1e-7
        assert (implicit - hybrid).abs().max() < slack


@pytest.mark.parametrize("name, slack", [("vpsde", 1e-5), ("cld", 3e-4), ("malda", 5e-4)])
def test_exact_score_leaves_only_the_prior_mismatch(name, slack):
    exact = Exact(LinearDiffusion(RECIPES[name]))
    gap = -ENTROPY - float(exact.mismatch()) - float(exact.elbo(NODES).mean())
    assert abs(gap) < slack  # what is dropped below t_min = 1e-5 grows like it
    if name == "vpsde":
        # Golden: -H - KL at beta from 0.1 to 10, by an independent computation.
        assert float(exact.elbo(NODES).mean()) == pytest.approx(-0.908631, abs=2e-5)


# Deficits in nats at t_min = 1e-2, 1e-3 without and with offset, from an independent computation.
DEFICITS = {
    "vpsde": [(1.3e-3, 0.0), (9e-5, 0.0)],
    "cld": [(0.232, 0.0475), (0.0204, 4e-4)],
    "malda": [(0.464, 0.095), (0.0407, 8e-4)],
}


@pytest.mark.parametrize("name", DEFICITS)
def test_offset_closes_the_gap_of_truncation(name):
    for t_min, (bare, closed) in zip((1e-2, 1e-3), DEFICITS[name], strict=True):
        exact = Exact(LinearDiffusion(RECIPES[name]), t_min)
        best = -ENTROPY - float(exact.mismatch())
        without = best - float(exact.elbo(NODES).mean())
        with_ = without - float(exact.offset(NODES).mean())
        assert without == pytest.approx(bare, rel=0.05)
        assert with_ == pytest.approx(closed, rel=0.1, abs=5e-5)


@pytest.mark.parametrize("name", ["vpsde", "cld", "malda"])
def test_bound_lies_below_the_likelihood(name):
    x = torch.linspace(-1.5, 2.0, 7, dtype=DOUBLE)
    log_p = -0.5 * ((x - MEAN) / WIDTH) ** 2 - math.log(WIDTH * math.sqrt(2 * math.pi))
    gaps = []
    for scale in (1.0, 1.05):
        exact = Exact(LinearDiffusion(RECIPES[name]), scale=scale)
        # A score 5 % too steep is not that of the data: its model's own likelihood is lower than
        # log_p on average, and so the bound is below both.
        gaps.append(
            float((log_p - exact.elbo(x) - exact.offset(x)) @ torch.full((7,), 1 / 7).double())
        )
    assert -1e-3 < gaps[0] < gaps[1]


@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("integrand", [denoising, Implicit(1)], ids=["matching", "implicit"])
def test_monte_carlo_bound_is_the_exact_one(hybrid, integrand):
    process = LinearDiffusion(cld(), hybrid=hybrid)
    exact = Exact(LinearDiffusion(cld()), t_min=process.t_min, scale=1.02)
    x = torch.full((4000, 1), 0.9, dtype=DOUBLE)
    got = bound(process, exact.score, x, draws=4, integrand=integrand)
    at = torch.tensor([0.9], dtype=DOUBLE)
    want = float(exact.elbo(at) + exact.offset(at))
    error = float(got.std()) / 4000**0.5
    assert error < (0.1 if integrand is denoising else 0.3)  # the divergence has heavy tails
    assert float(got.mean()) == pytest.approx(want, abs=4 * error)
    assert float(bits_per_dim(got.mean(), 1)) == pytest.approx(-float(got.mean()) / math.log(2))
    assert float(bits_per_dim(torch.tensor(0.0), 3, levels=256)) == 8


def test_learning_follows_the_prior_mismatch():
    """With exact scores the bound's slope in Q and D is that of -KL(q_1 || N(0, S))."""
    process = learned(2, rate=0.3)  # slow, so that there is a mismatch to see

    def at(i, h):
        with torch.no_grad():
            process.q[0, 1] += h * (i == 0)
            process.d[0] += h * (i == 1)
            process.d[1] += h * (i == 2)
            exact = Exact(process)
            out = float((exact.elbo(NODES) + exact.offset(NODES)).mean()), -float(exact.mismatch())
            process.q[0, 1] -= h * (i == 0)
            process.d[0] -= h * (i == 1)
            process.d[1] -= h * (i == 2)
        return out

    h = 1e-4
    for i in range(3):
        up, down = at(i, h), at(i, -h)
        slopes = [(a - b) / (2 * h) for a, b in zip(up, down, strict=True)]
        assert slopes[0] == pytest.approx(slopes[1], abs=2e-4), i


def test_loss_teaches_the_process():
    """Autograd through the loss is the finite difference of the bound: Monte Carlo, same noise."""
    process, count = learned(2), 2000
    x_0 = process.lift(
        torch.randn(count, 1, generator=seeded(), dtype=DOUBLE) * WIDTH + MEAN, seeded(1)
    )
    t = process.quantile((torch.arange(count, dtype=DOUBLE) + 0.5) / count)

    def loss():
        noised = process.perturb(x_0, t, seeded(2))
        return process.loss(-noised.x_t, noised, x_0, t).mean()

    loss().backward()
    for name, index in (("q", (0, 1)), ("d", (0,))):
        p, h = getattr(process, name), 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[index] += sign * h
                values.append(float(loss()))
                p[index] -= sign * h
        assert float(p.grad[index]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


# --- times ---------------------------------------------------------------------------------------


def test_density_of_times_is_normalised_and_inverted():
    process = LinearDiffusion(cld())
    t = torch.logspace(-3, 0, 20001, dtype=DOUBLE)
    density = process.clock.beta(t) / -torch.expm1(-process.clock.tau(t)) / process.spread
    assert float(torch.trapezoid(density * t, t.log())) == pytest.approx(1, abs=1e-6)
    cdf = torch.cumulative_trapezoid(density * t, t.log())
    back = process.quantile(cdf)
    torch.testing.assert_close(back, t[1:], rtol=1e-5, atol=0)
    u = torch.linspace(0, 1, 5)
    assert process.quantile(u).dtype == u.dtype
    assert process.quantile(u)[[0, -1]].tolist() == pytest.approx([1e-3, 1.0])
    torch.testing.assert_close(process.clock.time(process.clock.tau(t)), t)


@pytest.mark.parametrize("name", ["vpsde", "cld"])
def test_importance_and_control_take_spread_off_the_estimate(name):
    count = 20_000
    spread, means = loss_spread(LinearDiffusion(RECIPES[name]), count)
    assert spread["quantile", "plain"] < 0.8 * spread["even", "plain"]
    assert spread["quantile", "ours"] < 0.5 * spread["quantile", "plain"]
    for key in means:  # and the mean is the same
        error = math.hypot(spread[key], spread["quantile", "ours"]) / count**0.5
        assert abs(means[key] - means["quantile", "ours"]) < 4 * error


# --- samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cld", "malda"])
def test_samplers_converge_at_their_rate(name):
    process, errors = LinearDiffusion(RECIPES[name]), {}
    for step in (steps.EulerMaruyama(), steps.SymmetricSplitting(), steps.ProbabilityFlow()):
        errors[type(step).__name__] = [variance_error(process, step, n) for n in (50, 100)]
    for few, many in errors.values():
        assert 1.7 < few / many < 2.4, errors  # first order: the score is frozen over a step
    # Golden: independent computation of the same table.
    golden = {"cld": (0.0103, 0.0055), "malda": (0.0142, 0.0066)}[name]
    ours = (errors["EulerMaruyama"][1], errors["SymmetricSplitting"][1])
    assert ours == pytest.approx(golden, rel=0.15)


# --- training ------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self, K):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(K + 1, 32), torch.nn.SiLU(), torch.nn.Linear(32, K)
        )

    def forward(self, x, noise, cond=None):
        return self.layers(torch.cat([x.flatten(1), noise[:, None]], -1))[..., None]


def test_training_lowers_the_bound_and_learns_the_process():
    process = learned(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = NoisePrediction(Small(2), process)
    before = {name: p.detach().clone() for name, p in process.named_parameters()}

    def data(k, count=64):
        sides = torch.randint(2, (count, 1), generator=seeded(k)) * 2.0 - 1
        return sides + 0.2 * torch.randn(count, 1, generator=seeded(k + 1000))

    held_out = data(9999, 500)
    first = float(bound(process, denoiser, held_out, draws=8).mean())
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)  # the process is part of the denoiser
    batches = ((process.lift(data(k), seeded(k)), None) for k in range(100))
    for step in fit(process, denoiser, batches, optimizer, quantile=process.quantile):
        assert not step.skipped
    last = float(bound(process, denoiser, held_out, draws=8).mean())
    best = -0.5 * (1 + math.log(2 * math.pi * 0.2**2)) - math.log(2)  # -H of the two peaks
    assert first < last < best + 0.05
    assert best - last < 0.7 * (best - first)
    for name, p in process.named_parameters():
        assert not torch.equal(p, before[name])
    assert process.half().S.dtype == DOUBLE and process.q.dtype == DOUBLE


def test_prediction_of_a_silent_network_is_exact_for_gaussian_data():
    process = LinearDiffusion(malda(), sigma_data=WIDTH)
    silent = NoisePrediction(lambda x, noise, cond: torch.zeros_like(x), process)
    u, t = torch.randn(3, 3, 2, dtype=DOUBLE), torch.tensor([0.01, 0.3, 1.0], dtype=DOUBLE)
    expected = -torch.linalg.solve(marginal(process, t), u)
    torch.testing.assert_close(silent(u, t), expected)


def plain_denoiser(x, sigma, cond=None):
    """E[x_0 | x_0 + sigma eps] of `Points`."""
    modes = Points.modes.to(x)
    log_p = Points.weights.to(x).log() - torch.cdist(x, modes) ** 2 / (2 * sigma[:, None] ** 2)
    return log_p.softmax(-1) @ modes


def test_a_denoiser_of_plain_noise_has_the_scores_of_every_linear_diffusion(world):
    t = torch.linspace(0.1, 1, 8, dtype=DOUBLE)
    x_t = world.process.perturb(world.data(8, seeded()).double(), t, seeded(1)).x_t
    found = DataPrediction(plain_denoiser, world.process)(x_t, t)
    torch.testing.assert_close(found, world.denoiser(x_t, t), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RECIPES)
def test_ancestral_steps_take_what_tells_of_the_data_where_the_scalar_ones_do(name):
    process = LinearDiffusion(RECIPES[name], init_var=1e-9)  # a step conditions on v_0
    known = DataPrediction(lambda x, sigma, cond: clean, process)
    t, s = torch.linspace(0.4, 1, 5, dtype=DOUBLE), torch.linspace(0.2, 0.9, 5, dtype=DOUBLE)
    u = torch.randn(5, process.variables, 3, generator=seeded(), dtype=DOUBLE)
    clean = torch.randn(5, 3, generator=seeded(1), dtype=DOUBLE)
    q = process.transition(u, known(u, t), t, s)
    (w_t, sigma_t), (w_s, sigma_s) = known.statistic(t), known.statistic(s)
    share = (sigma_s / sigma_t)[:, None] ** 2
    mean = clean + share * (torch.einsum("bk,bkd->bd", w_t, u) - clean)
    torch.testing.assert_close(torch.einsum("bk,bkd->bd", w_s, q.mean), mean)
    spread = (w_s[:, None] @ q.factor).square().sum((1, 2))
    torch.testing.assert_close(spread, sigma_s**2 * (1 - share[:, 0]), rtol=1e-4, atol=0)


def test_the_bound_sees_only_the_error_of_the_denoised_datum_and_the_level(world):
    """|s - g|_D^2 dtau = -|x_hat - x|^2 d(sigma^-2) / 2, whatever Q and D are."""
    process, t, h = world.process, torch.linspace(0.2, 1, 5, dtype=DOUBLE), 1e-5
    x_0 = world.data(5, seeded()).double()
    noised = process.perturb(x_0, t, seeded(1))
    clean = torch.randn(5, 2, generator=seeded(2), dtype=DOUBLE)
    known = DataPrediction(lambda x, sigma, cond: clean, process)
    after, before = (known.statistic(t + d)[1] ** -2 for d in (h, -h))
    fall = -(after - before) / (2 * h) / process.clock.beta(t)
    error = (clean - x_0[:, 0]).square().mean(1)
    found = process.square(known(noised.x_t, t) - noised.target)
    torch.testing.assert_close(found, fall / 2 * error, rtol=1e-4, atol=0)


def test_a_plain_denoiser_wants_the_kernel_given_the_data():
    with pytest.raises(ValueError, match="hybrid"):
        DataPrediction(plain_denoiser, LinearDiffusion(cld(), hybrid=False))
