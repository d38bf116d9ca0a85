"""The training loop learns, resumes bit for bit, averages, and gives up with a reason."""

import copy
import itertools
import os
import socket

import pytest
import torch
from torch import nn

from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.latents import Latents, gumbel_softmax, hide
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.training import (
    EMA,
    NonFiniteLoss,
    bfloat16,
    fit,
    keyed_generator,
    stratified_times,
)


class Net(nn.Module):
    """A small network with dropout, which draws from torch's global generator."""

    def __init__(self, width=32, seed=0, dropout=0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(3, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 2)
            )

    def forward(self, x, noise, cond):
        return self.body(torch.cat([x, noise[:, None]], -1))


def world(seed=0):
    process = GaussianDiffusion(EDM(0.01, 10.0), sigma_data=1.0)
    model = Preconditioned(Net(seed=seed), process)
    return process, model, torch.optim.Adam(model.parameters(), lr=3e-3)


def batches(start=0, count=None, size=64, rank=0):
    """Two points on a line, in an order fixed by the number of the batch."""
    numbers = itertools.count(start) if count is None else range(start, start + count)
    for number in numbers:
        sign = torch.randint(0, 2, (size, 1), generator=keyed_generator(7, number, rank)) * 2.0 - 1
        yield sign.expand(size, 2).contiguous(), None


def test_times_are_stratified():
    t = stratified_times(100, torch.Generator().manual_seed(0))
    assert torch.equal((t * 100).floor().long().sort().values, torch.arange(100))
    assert not torch.equal(t, t.sort().values)
    skewed = stratified_times(10_000, torch.Generator().manual_seed(0), torch.sqrt)
    assert float(skewed.mean()) == pytest.approx(2 / 3, abs=1e-3)  # Beta(2, 1)
    assert float(stratified_times(1, quantile=torch.zeros_like)) == pytest.approx(1e-5)


def test_keys_make_independent_streams():
    draws = [
        float(torch.rand(1, generator=keyed_generator(*k))) for k in [(0, 1), (1, 0), (0, 1, 0)]
    ]
    assert len(set(draws)) == 3
    assert draws[0] == float(torch.rand(1, generator=keyed_generator(0, 1)))


def test_it_learns():
    process = GaussianDiffusion(EDM(0.5, 10.0))
    model = Preconditioned(Net(64, dropout=0.0), process)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = [step.loss for step in fit(process, model, batches(count=300), optimizer, seed=1)]
    # The best there is: E[x_0 | x_t] = tanh(sum(x_t) / sigma^2) (1, 1).
    x_0, t = next(batches(size=20_000))[0], stratified_times(20_000)
    noised = process.perturb(x_0, t, keyed_generator(0))
    best = torch.tanh(noised.x_t.sum(-1, keepdim=True) / process.sigma(t)[:, None] ** 2)
    bayes = float(process.loss(best.expand(-1, 2).float(), noised, x_0, t).mean())
    # A network that puts out zero loses about 1; three hundred steps close most of the gap. 3200
    # samples in the last fifty steps: that loss is known to about 3 %.
    assert 0.93 * bayes < sum(losses[-50:]) / 50 < (1 + bayes) / 2


def test_steps_report_what_happened():
    process, model, optimizer = world()
    step = next(fit(process, model, batches(), optimizer, start=5, accumulate=3))
    assert step.index == 5 and not step.skipped and step.grad_norm > 0
    assert step.t.shape == step.losses.shape == (192,)
    assert step.loss == pytest.approx(float(step.losses.mean()), rel=1e-6)
    assert step.parts["loss"] == pytest.approx(step.loss, rel=1e-5)


def test_training_ends_with_its_data():
    process, model, optimizer = world()
    assert len(list(fit(process, model, batches(count=5), optimizer, accumulate=2))) == 3


def test_a_resumed_run_goes_on_bit_for_bit():
    def run(model, optimizer, ema, start, count):
        source = batches(start * 2, count * 2)
        for _ in fit(process, model, source, optimizer, start=start, accumulate=2, ema=ema, seed=3):
            torch.rand(7)  # what others draw from the global generator must not matter

    process, model, optimizer = world()
    ema = EMA(model, 0.9)
    run(model, optimizer, ema, 0, 6)

    process, half, half_optimizer = world()
    half_ema = EMA(half, 0.9)
    run(half, half_optimizer, half_ema, 0, 3)
    saved = copy.deepcopy([half.state_dict(), half_optimizer.state_dict(), half_ema.state_dict()])

    process, again, again_optimizer = world(seed=9)
    again_ema = EMA(again, 0.9)
    for target, state in zip((again, again_optimizer, again_ema), saved, strict=True):
        target.load_state_dict(state)
    run(again, again_optimizer, again_ema, 3, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(ema.average[name], again_ema.average[name])


def test_seeds_matter_and_global_state_is_left_alone():
    def weights(seed):
        process, model, optimizer = world()
        list(fit(process, model, batches(count=2), optimizer, seed=seed))
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, two, other = weights(0), weights(0), weights(1)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.rand(3), expected)


def test_latents_are_trained_through_the_condition():
    """DisCo on two points: the code learns which point, and the loss falls below any without it."""
    process = GaussianDiffusion(EDM(0.01, 10.0))
    encoder = nn.Linear(2, 2, bias=False)
    nn.init.constant_(encoder.weight, 0.0)
    with torch.no_grad():
        encoder.weight[0, 0] = 0.1
    inner = nn.Linear(2 + 1 + 3, 2)

    def network(x, noise, latents):
        shown = latents.z[:, 0] * ~latents.null[:, None]
        return inner(torch.cat([x, noise[:, None], shown, latents.null[:, None].float()], -1))

    def condition(x_0, cond, generator):
        z = gumbel_softmax(encoder(x_0)[:, None], 1.0, False, generator)
        assert isinstance(hide(z, 0.1, generator), Latents)
        return hide(z, 0.1, generator)

    model = Preconditioned(network, process)
    optimizer = torch.optim.Adam([*encoder.parameters(), *inner.parameters()], lr=0.02)
    list(fit(process, model, batches(count=250), optimizer, condition=condition))
    laws = encoder(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).softmax(-1).detach()
    assert float((laws[0] - laws[1]).abs().max()) > 0.8


def test_average_warms_up():
    module = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(module, 0.5), module.weight.item()
    for n in range(12):
        with torch.no_grad():
            module.weight.fill_(n)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-6)
    with ema.applied() as averaged:
        assert averaged.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == 11
    with pytest.raises(KeyError, match="bias"):
        EMA(nn.Linear(1, 1)).load_state_dict(ema.state_dict())


def test_a_bad_batch_is_skipped_and_counted(caplog):
    process, model, optimizer = world()
    ema = EMA(model)

    def source():
        for number, (x_0, cond) in enumerate(batches(count=4)):
            yield (x_0 * torch.nan if number == 1 else x_0), cond

    before, states = None, []
    for step in fit(process, model, source(), optimizer, ema=ema):
        now = model.state_dict()["network.body.0.weight"].clone()
        if step.index == 1:
            assert step.skipped and torch.equal(now, before)
        before = now
        states.append(step.skipped)
    assert states == [False, True, False, False] and ema.updates == 3
    assert "step 1 skipped" in caplog.text and bool(now.isfinite().all())


def test_a_run_that_stays_bad_stops_with_a_reason():
    process, model, optimizer = world()
    bad = ((x_0 * torch.inf, cond) for x_0, cond in batches())
    with pytest.raises(NonFiniteLoss, match="20 updates in a row .* at step 19"):
        list(fit(process, model, bad, optimizer))


def _train_as_one_of_two(rank, port, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    from accelerate import Accelerator

    process, model, optimizer = world(seed=rank)  # different weights: the first process's must win
    model.unused = nn.Linear(2, 2)  # reached by no batch
    optimizer.add_param_group({"params": list(model.unused.parameters())})
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    source = batches(count=3, rank=rank)
    steps = list(fit(process, model, source, optimizer, accelerator=accelerator, seed=0))
    own = [float(step.losses.mean()) for step in steps]
    torch.save((model.state_dict(), [s.loss for s in steps], own), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_model(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_train_as_one_of_two, (port, str(tmp_path)), nprocs=2)
    (one, losses, own_0), (two, other_losses, own_1) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one if "unused" not in name)
    assert losses == other_losses
    assert losses == pytest.approx([(a + b) / 2 for a, b in zip(own_0, own_1, strict=True)])
    assert own_0 != own_1
    start = world(seed=0)[1].state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in start)


@pytest.mark.parametrize(
    ("units", "wanted", "dtype"),
    [
        ({"avx512_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": True}, False, torch.float32),
        ({"avx512_bf16": False, "avx2": True}, True, torch.float32),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, units, wanted, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    x = torch.ones(2, 2)
    with bfloat16(x.device, wanted):
        assert (x @ x).dtype == dtype
