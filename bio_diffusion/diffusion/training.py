"""Training as a generator of steps: logging, evaluation and saving live in the caller's loop.

    for step in fit(process, denoiser, batches, optimizer, ema=ema, seed=0):
        scheduler.step()
        if step.index % 100 == 0: ...

One step draws t, noises x_0, asks the network, and descends on E_t E[process.loss]. All of its
randomness, dropout included, comes from (seed, step, rank, piece), so a run resumed at step k with
the same data order goes on bit for bit on the same machine, with nothing to save but weights,
optimiser, average and k.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bio_diffusion.diffusion.process import Denoiser, Process, State

__all__ = [
    "EMA",
    "NonFiniteLoss",
    "Step",
    "bfloat16",
    "fit",
    "keyed_generator",
    "stratified_times",
]

log = logging.getLogger(__name__)

MAX_SKIPPED = 20  # updates skipped in a row before a run is given up


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was not finite for many steps in a row."""


@dataclass(frozen=True)
class Step:
    """One update of the weights, as seen afterwards.

    Attributes:
        index: number of the step; resume with ``start=index + 1``.
        loss: mean over the batch, the pieces and the processes.
        grad_norm: before clipping.
        skipped: no update was made, because the loss or the gradient was not finite.
        t: (B,) times of this process's samples, all pieces, on the CPU.
        losses: (B,) loss of each, on the CPU: for curves of loss against noise.
        parts: means of `Process.parts` over this process's samples.
    """

    index: int
    loss: float
    grad_norm: float
    skipped: bool
    t: Tensor
    losses: Tensor
    parts: Mapping[str, float]


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed from a few numbers or names; equal keys give equal seeds, others unrelated."""
    digest = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by `keyed_seed`."""
    return torch.Generator().manual_seed(keyed_seed(*key))


def stratified_times(
    count: int,
    generator: torch.Generator | None = None,
    quantile: Callable[[Tensor], Tensor] | None = None,
    t_min: float = 1e-5,
) -> Tensor:
    """Draw t_1..t_B, one from each of B equal slices of probability, in random order; (B,) float32.

    Less noise in the loss than independent draws, and each t alone still has the density asked for.

    Args:
        count: B.
        generator: source of randomness.
        quantile: inverse distribution function of the density of t; uniform when None,
            ``torch.sqrt`` for Beta(2, 1), which looks more often at high noise.
        t_min: times below are lifted to it, away from where a score has no limit.
    """
    u = (
        torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)
    ) / count
    return (u if quantile is None else quantile(u)).clamp(min=t_min, max=1.0)


class EMA:
    """An exponential moving average of a module's weights and floating buffers, for sampling.

        average <- decay_n average + (1 - decay_n) weight,  decay_n = min(decay, (1 + n) / (10 + n))

    The warm-up forgets the first random weights fast.

    Args:
        module: what to average.
        decay: limit of the decay; 0.999 averages over the last thousand steps.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.module, self.decay, self.updates = module, decay, 0
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Inside, the module holds the averaged weights; afterwards its own again."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        try:
            yield self.module
        finally:
            self.module.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: KeyError if the names of the weights differ from the module's."""
        if state["average"].keys() != self.average.keys():
            differing = sorted(state["average"].keys() ^ self.average.keys())
            raise KeyError(f"averaged weights differ in {differing[:5]}")
        self.updates = int(state["updates"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)


def fit(
    process: Process,
    denoiser: Denoiser,
    batches: Iterable[tuple[State, Any]],
    optimizer: torch.optim.Optimizer,
    *,
    start: int = 0,
    condition: Callable[[State, Any, torch.Generator], Any] | None = None,
    accelerator: Any = None,
    accumulate: int = 1,
    ema: EMA | Sequence[EMA] = (),
    clip: float | None = 1.0,
    quantile: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Train until `batches` end, yielding a `Step` after every update.

    Args:
        process: noises x_0 and scores predictions. Its own parameters may be learned too.
        denoiser: the network; any callable, so that it may be a wrapped or compiled module.
        batches: (x_0, cond) pairs; x_0 is a state of B (for poses: B noisy copies of one complex
            will be
            drawn from B clean ones), cond goes to the network. On resuming, they must begin with
            the data of step `start`; with several processes each has its own share.
        optimizer: holds every parameter to train, those behind `condition` included.
        start: index of the first step.
        condition: x_0, cond, generator -> cond; where DisCo encodes the clean state into latents.
        accelerator: an `accelerate.Accelerator`, or anything with its `num_processes`,
            `process_index`,
            `backward` and `reduce`. Gradients are averaged here, so modules need not be wrapped by
            it; parameters a batch does not reach are allowed.
        accumulate: batches to one update.
        ema: averages to update after each step.
        clip: largest norm of the gradient; None for no limit.
        quantile: density of t, see `stratified_times`.
        seed: of all randomness.

    Yields:
        Step: after each update (or skipped update).

    Raises:
        NonFiniteLoss: after 20 skipped updates in a row.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    averages = (ema,) if isinstance(ema, EMA) else tuple(ema)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    if world > 1:
        _agree(parameters, accelerator, rank)
    skipped, source = 0, iter(batches)
    for index in itertools.count(start):
        pieces = list(itertools.islice(source, accumulate))
        if not pieces:
            return
        optimizer.zero_grad(set_to_none=True)
        times, losses, parts = [], [], []
        for piece, (x_0, cond) in enumerate(pieces):
            key = (seed, index, rank, piece)
            with _seeded(keyed_seed(*key, 1), parameters[0].device):
                t, loss, part = _loss(
                    process,
                    denoiser,
                    x_0,
                    cond,
                    condition,
                    quantile,
                    keyed_generator(*key),
                    parameters[0].device,
                )
                mean = loss.mean() / len(pieces)
                accelerator.backward(mean) if accelerator else mean.backward()
            times.append(t)
            losses.append(loss.detach())
            parts.append(part)

        each = torch.cat(losses)
        total = each.double().mean()
        if world > 1:
            total = accelerator.reduce(total, "mean")
            _average_gradients(parameters, accelerator)
        norm = nn.utils.clip_grad_norm_(parameters, torch.inf if clip is None else clip)
        # Both numbers are shared by all processes, so all decide alike.
        finite = bool(torch.isfinite(total) & torch.isfinite(norm))
        if finite:
            skipped = 0
            optimizer.step()
            for average in averages:
                average.update()
        else:
            skipped += 1
            log.warning(
                "step %d skipped: loss %g, gradient norm %g", index, float(total), float(norm)
            )
            optimizer.zero_grad(set_to_none=True)
        means = {k: float(torch.cat([p[k] for p in parts]).mean()) for k in parts[0]}
        yield Step(
            index, float(total), float(norm), not finite, torch.cat(times).cpu(), each.cpu(), means
        )
        if skipped >= MAX_SKIPPED:
            raise NonFiniteLoss(
                f"{skipped} updates in a row were not finite, the last at step {index}: lower the "
                "learning rate, clip the gradient harder, or look for bad input; the weights are "
                "those of before"
            )


def bfloat16(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context that multiplies in bfloat16 where that is wanted and the device is built for it.

    A processor without such units works it out in software, ten times as long as in float32.
    """
    if device.type == "cuda":
        built = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        known = tell()  # of older versions, nothing
        built = any(known.get(units, False) for units in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and built)


def _loss(
    process: Process,
    denoiser: Denoiser,
    x_0: State,
    cond: Any,
    condition: Callable[[State, Any, torch.Generator], Any] | None,
    quantile: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One noisy look at a batch: t (B,), loss (B,) with its graph, and its parts."""
    t = stratified_times(len(x_0), generator, quantile).to(device)
    if condition is not None:
        cond = condition(x_0, cond, generator)
    noised = process.perturb(x_0, t, generator)
    prediction = denoiser(noised.x_t, t, cond)
    loss = process.loss(prediction, noised, x_0, t)
    with torch.no_grad():
        parts = process.parts(prediction, noised, x_0, t)
    return t, loss, parts


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's global generators seeded (dropout uses them), and put them back after."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        # `torch.manual_seed` seeds, or notes down with a stack trace to seed, devices of all kinds.
        (torch.manual_seed if cuda else torch.default_generator.manual_seed)(seed)
        yield


@torch.no_grad()
def _agree(parameters: Sequence[Tensor], accelerator: Any, rank: int) -> None:
    """Give every process the weights of the first. A sum with zeros, so no bit changes there."""
    for p in parameters:
        p.copy_(accelerator.reduce(p.detach() if rank == 0 else torch.zeros_like(p), "sum"))


def _average_gradients(parameters: Sequence[Tensor], accelerator: Any) -> None:
    """Average over processes in one message; a parameter nobody reached counts as zero gradient."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = piece.view_as(p)
