"""Linear diffusions of Gaussian data, where every expectation is a trace: no network, no sampling.

    python benchmarks/linear_exact.py

prints, for x ~ N(0.4, 0.6^2), beta from 0.1 to 10 and init_var 0.01: what truncating the path at
t_min costs the bound, without and with its offset; the spread of one-sample losses; and the error
of each sampler in Var x after n steps (not of ALDA, which at t = 1 has not forgotten the data: that
error is its prior's). The tests hold the same functions to known values.
"""

import numpy as np
import torch

from bio_diffusion.diffusion import linear_steps as steps
from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import alda, cld, malda, vpsde
from bio_diffusion.diffusion.training import keyed_generator

DOUBLE = torch.float64
MEAN, WIDTH = 0.4, 0.6  # of the data
RECIPES = {"VPSDE": vpsde(), "CLD": cld(), "ALDA": alda(), "MALDA": malda()}
STEPS = (steps.EulerMaruyama(), steps.SymmetricSplitting(), steps.ProbabilityFlow())


class Exact:
    """Bounds for x ~ N(MEAN, WIDTH^2) and a score `scale` times the exact one, by quadrature.

    Integrated over log tau by Gauss and Legendre, over [t_min, 1].
    """

    def __init__(self, process, t_min=1e-5, scale=1.0, order=200):
        self.process, self.t_min, self.scale = process, t_min, scale
        ends = process.clock.tau(torch.tensor([t_min, 1.0], dtype=DOUBLE)).log()
        nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(order))
        self.tau = torch.lerp(ends[0], ends[1], (nodes + 1) / 2).exp()
        self.weights = weights * (ends[1] - ends[0]) / 2 * self.tau
        self.t = process.clock.time(self.tau)

    def law(self, t):
        """Mean (n, K) and covariance (n, K, K) of u_t."""
        mean = MEAN * self.process.flow(t)[:, :, 0]
        return mean, marginal(self.process, t)

    def score(self, u, t, cond=None):
        mean, covariance = self.law(t)
        return -self.scale * torch.linalg.solve(covariance, u.to(DOUBLE) - mean[..., None]).to(u)

    def _at(self, x, t):
        """Mean (n, B, K) and covariance (n, K, K) of u_t given x (B,)."""
        E, Sigma, _ = self.process.conditional(t)
        return E[:, None, :, 0] * x[:, None], Sigma

    def expected_square(self, x, t, D):
        """E |s|_D^2 and E <s, g>_D given x, and div D s; each (n, B) or (n, 1)."""
        mean_x, Sigma = self._at(x, t)
        mean, covariance = self.law(t)
        P = self.scale * torch.linalg.inv(covariance)
        gap = mean_x - mean[:, None]
        PDP = P @ D @ P
        square = torch.einsum("nbi,nij,nbj->nb", gap, PDP, gap) + trace(PDP @ Sigma)[:, None]
        # E[-P (u - m) D (-Sigma^-1) (u - m_x)] = tr(P D) as E (u - m_x)(u - m)^T = Sigma
        return square, trace(P @ D)[:, None], -trace(P @ D)[:, None]

    def integrals(self, x):
        """The integral of the bound by ISM and by score matching, each (B,)."""
        process, D = self.process, self.process.recipe.D
        square, cross, divergence = self.expected_square(x, self.t, D)
        _, Sigma, L = process.conditional(self.t)
        kernel_square = trace(torch.linalg.inv(Sigma) @ D)[:, None]
        implicit = square + 2 * divergence
        matching = (square - 2 * cross + kernel_square) - kernel_square
        ends = process.recipe.A.trace()
        return [self.weights @ (part - ends) for part in (implicit, matching)]

    def elbo(self, x):
        """The bound on log p(x) by ISM without offset, (B,)."""
        outer = self.process.mismatch(x[:, None, None] * unit(self.process.variables))
        return -self.integrals(x)[0] - outer + self.process.entropy

    def offset(self, x):
        """E of the offset at t_min, given x; (B,)."""
        process, t = self.process, torch.tensor([self.t_min], dtype=DOUBLE)
        E, Sigma, L = process.between(torch.zeros_like(t), t)
        mean, covariance = (m[0] for m in self.law(t))
        P = self.scale * torch.linalg.inv(covariance)
        E, Sigma, L = E[0], Sigma[0], L[0]
        # eps + L^T s = eps - L^T P (E u_0 + L eps - mean)
        start = process.init_var * torch.diag(1 - unit(process.variables)[:, 0])
        noise = torch.eye(len(P), dtype=DOUBLE) - L.mT @ P @ L
        gap = L.mT @ P @ (E[:, :1] * x - mean[:, None])
        spread = L.mT @ P @ E
        square = (noise**2).sum() + gap.square().sum(0) + trace(spread @ start @ spread.mT)
        return len(P) / 2 - square / 2 + process.clock.tau(t) * process.recipe.A.trace()

    def mismatch(self):
        """KL(q_1 || N(0, S))."""
        mean, covariance = (m[0] for m in self.law(torch.ones(1, dtype=DOUBLE)))
        S = self.process.S
        second = (covariance.diagonal() + mean**2) / S - 1
        return 0.5 * (second.sum() + S.log().sum() - torch.logdet(covariance))


def marginal(process, t):
    """Covariance (n, K, K) of u_t for data of variance WIDTH^2."""
    start = torch.full_like(process.S, process.init_var)
    start[0] = WIDTH**2
    E, Sigma, _ = process.between(torch.zeros_like(t), t)
    return Sigma + (E * start) @ E.mT


def trace(m):
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)


def unit(K):
    return torch.eye(K, dtype=DOUBLE)[:, :1]


def loss_spread(process, count):
    """Standard deviation and mean of the one-sample loss at x = 0.9 with a score 10 % too steep.

    Keyed by times, drawn evenly or by `quantile`, and by estimate: plain denoising score matching,
    or ours, with what cancels in expectation taken out.
    """
    exact = Exact(process, scale=1.1)
    x_0 = process.lift(torch.full((count, 1), 0.9, dtype=DOUBLE), keyed_generator(0))
    u = torch.rand(count, generator=keyed_generator(1), dtype=DOUBLE)
    rest, ends = process.mismatch(x_0) - process.entropy, process.recipe.A.trace()
    spread, means = {}, {}
    for times in ("quantile", "even"):
        t = process.quantile(u) if times == "quantile" else process.t_min + (1 - process.t_min) * u
        noised, tau = process.perturb(x_0, t, keyed_generator(2)), process.clock.tau(t)
        score = exact.score(noised.x_t, t)
        plain = process.square(score - noised.target) - trace(
            torch.linalg.solve(process.conditional(t)[1], process.recipe.D)
        )
        ours = process.excess(score, noised, t)
        weight = -process.spread * torch.expm1(-tau)
        if times == "even":
            weight = process.clock.beta(t) * (1 - process.t_min)
        for estimate, integrand in (("plain", plain), ("ours", ours)):
            loss = weight * (integrand - ends) + rest
            spread[times, estimate], means[times, estimate] = float(loss.std()), float(loss.mean())
    return spread, means


def variance_error(process, step, n, flow=False):
    """|Var x - exact| at t = 1e-3 for data N(0, WIDTH^2), the moments carried exactly.

    Steps are linear in the state, so three runs without noise give the matrix of a step; its noise
    is read off by feeding unit normals one at a time.
    """
    K = process.variables
    times = 1 - (1 - 1e-3) * (1 - (1 - torch.arange(n + 1, dtype=DOUBLE) / n) ** 2)

    def score(u, t, cond=None):
        return -torch.linalg.solve(marginal(process, t), u)

    covariance = torch.diag(process.S)
    for t, s in zip(times[:-1], times[1:], strict=True):
        matrix, noises = linear_parts(process, step, score, t, s, K)
        covariance = matrix @ covariance @ matrix.mT + noises @ noises.mT
    return abs(float(covariance[0, 0] - marginal(process, times[-1:])[0, 0, 0]))


def linear_parts(process, step, score, t, s, K):
    """The step as u_s = matrix u_t + noises z: every unit vector, and every noise, on its own."""
    draws = 2 if isinstance(step, steps.SymmetricSplitting) else 1
    rows = K + draws * K
    u = torch.zeros(rows, K, 1, dtype=DOUBLE)
    u[:K, :, 0] = torch.eye(K)
    script = torch.zeros(draws, rows, K, 1, dtype=DOUBLE)
    for draw in range(draws):
        start = K * (1 + draw)
        script[draw, start : start + K, :, 0] = torch.eye(K)
    queue = list(script)
    real, steps.normal = steps.normal, lambda shape, source, like: queue.pop(0)
    try:
        out = step(process, score, u, t.expand(rows), s.expand(rows), None, (), None)[..., 0]
    finally:
        steps.normal = real
    return out[:K].mT, out[K:].mT


def deficits(process_of, t_min):
    """Nats that the bound lacks with the exact score, without and with its offset."""
    exact = Exact(process_of(), t_min)
    data = torch.tensor([MEAN - WIDTH, MEAN + WIDTH], dtype=DOUBLE)  # their mean is that over p
    entropy = 0.5 * (1 + np.log(2 * np.pi * WIDTH**2))
    without = -entropy - float(exact.mismatch()) - float(exact.elbo(data).mean())
    return without, without - float(exact.offset(data).mean())


def main():
    torch.set_num_threads(1)
    print("| process | t_min | deficit of the bound, nats, without offset | with it |")
    print("|---|---|---|---|")
    for name, recipe in RECIPES.items():
        for t_min in (1e-2, 1e-3):
            bare, closed = deficits(lambda r=recipe: LinearDiffusion(r), t_min)
            print(f"| {name} | {t_min:g} | {bare:.5f} | {closed:.5f} |")
    print(
        "\n| process | times | standard deviation of a one-sample loss, nats | with our control |"
    )
    print("|---|---|---|---|")
    for name, recipe in RECIPES.items():
        spread, _ = loss_spread(LinearDiffusion(recipe), 100_000)
        for times in ("even", "quantile"):
            plain, ours = (spread[times, estimate] for estimate in ("plain", "ours"))
            print(f"| {name} | {times} | {plain:.1f} | {ours:.1f} |")
    print("\n| process | step | error in Var x at 50 steps | 100 | 200 |")
    print("|---|---|---|---|---|")
    for name in ("CLD", "MALDA"):
        for step in STEPS:
            process = LinearDiffusion(RECIPES[name])
            errors = [f"{variance_error(process, step, n):.4f}" for n in (50, 100, 200)]
            print(f"| {name} | {type(step).__name__} | {' | '.join(errors)} |")


if __name__ == "__main__":
    main()
