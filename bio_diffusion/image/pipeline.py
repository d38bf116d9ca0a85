"""`ImageSampler`: from a trained model to pictures and their measures.

    latents from the prior, noise -> `diffusion.sample` on a time grid -> pixels

Every picture has a random stream of its own, keyed by seed and number, and the network always sees
`CHUNK` of them at once, so that the first k pictures do not depend on how many are asked for.

Shapes: B batch (`CHUNK`), N pictures, C channels, H, W pixels, V levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bio_diffusion import checkpoint
from bio_diffusion.command import choose_device
from bio_diffusion.diffusion.bridge import Bridge
from bio_diffusion.diffusion.categorical import Tokens
from bio_diffusion.diffusion.gaussian import GaussianDiffusion
from bio_diffusion.diffusion.guidance import ClassifierFree
from bio_diffusion.diffusion.latents import Latents, gumbel_softmax, sample_prior
from bio_diffusion.diffusion.likelihood import gaussian_bound, token_bound
from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_likelihood import bits_per_dim, bound
from bio_diffusion.diffusion.linear_steps import EulerMaruyama, ProbabilityFlow, SymmetricSplitting
from bio_diffusion.diffusion.process import Guidance, evaluating
from bio_diffusion.diffusion.sampling import Heun, Reverse, Step, sample
from bio_diffusion.diffusion.schedule import cosine, karras, log_snr, sine, uniform
from bio_diffusion.diffusion.training import keyed_generator, keyed_seed
from bio_diffusion.grids import kept
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.metrics import Classifier
from bio_diffusion.image.model import ImageModel, restored
from bio_diffusion.schedule import read_grid

__all__ = ["ImageSampler", "load_classifier", "schedule_probe"]

CHUNK = 32


class Family(NamedTuple):
    """What is used with a kind of process: samplers and time grids, the usual one first, and how
    many steps unless told (a fitted grid comes before the usual one)."""

    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    steps: int

    @classmethod
    def of(cls, model: ImageModel) -> Family:
        if model.discrete:
            return cls(("ancestral",), ("uniform", "sine", "adaptive"), 64)
        if model.multivariate:
            named = ("ancestral", *STEPS)
            return cls(named, ("karras", "logsnr", "uniform", "adaptive"), 64)
        grids = ("karras", "logsnr", "cosine", "uniform", "adaptive")
        return cls(("heun", "euler", "ancestral"), grids, 18)


# of multivariate processes, beside the ancestral one
STEPS: dict[str, Step] = {
    "flow": ProbabilityFlow(),
    "sscs": SymmetricSplitting(),
    "em": EulerMaruyama(),
}


class ImageSampler:
    """A trained picture model, ready to draw and to be measured; made by `load`.

    Attributes:
        model: network, process and what belongs to its latents.
        samplers: that it has, the usual one first.
        schedules: that it may have, the usual one first (an adaptive one comes before it).
        steps: that are taken unless told.
        curve: the fitted time grid, or None.
        sha256: of the model's file.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        loaded = checkpoint.load(path, "image")
        self.path, self.name, self.device, self.sha256 = path, path.stem, device, loaded.sha256
        self.data: str = loaded.config["experiment"]["data"]
        self.model = restored(loaded).to(device)
        self.samplers, self.schedules, self.steps = Family.of(self.model)
        self.curve = kept(loaded)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The models that ship."""
        return checkpoint.shipped("image")

    @classmethod
    def load(cls, model: str = "mnist", device: str = "auto") -> ImageSampler:
        """A model that ships, by name, or one of your own, by file.

        Raises:
            CheckpointError: the file cannot be used, or there is none of that name.
            InputError: there is no such device.
        """
        return cls(checkpoint.find(model, "image"), torch.device(choose_device(device)))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.model.shape

    def times(self, steps: int, schedule: str | None = None) -> Tensor:
        """N + 1 times of a grid by name, or of a file that `schedule fit --save` wrote; the fitted
        one where there is one and none is named.

        Raises:
            ValueError: for a grid that the model does not have, or a file that is none of its.
        """
        process = self.model.process
        schedule = schedule or self.usual_schedule
        if schedule not in self.schedules:
            if Path(schedule).is_file():
                return read_grid(Path(schedule), checkpoint.load(self.path, "image")).knots(steps)
            known = ", ".join(self.schedules)
            raise ValueError(
                f"{self.path} has no grid {schedule!r}, and there is no such file; it has {known}"
            )
        if schedule == "adaptive":
            if self.curve is None:
                raise ValueError(
                    f"no time grid has been fitted to {self.path}: run python -m "
                    f"bio_diffusion.schedule fit --model {self.path}, or say another --schedule"
                )
            return self.curve.knots(steps)
        if schedule in ("uniform", "sine"):
            return {"uniform": uniform, "sine": sine}[schedule](steps)
        assert isinstance(process, GaussianDiffusion | LinearDiffusion)
        if schedule == "cosine":
            return cosine(process, steps, process.sigma_data)
        return karras(process, steps) if schedule == "karras" else log_snr(process, steps)

    @property
    def usual_schedule(self) -> str:
        """The fitted grid, else Karras' (pictures) or an even one (tokens)."""
        return self.schedules[0] if self.curve is None else "adaptive"

    def draw(
        self,
        n: int,
        *,
        times: Tensor,
        sampler: str | None = None,
        seed: int = 0,
        guidance: float = 0.0,
        latents: str = "prior",
        first: int = 0,
    ) -> Iterator[Tensor]:
        """Pictures `first` .. n - 1 in batches of uint8 pixels (B, C, H, W).

        Args:
            n: how many from number 0.
            times: of `times`.
            sampler: heun, euler or ancestral; the usual one when None.
            seed: of all randomness.
            guidance: weight away from hidden latents; needs latents, and not Heun.
            latents: prior, or null to hide them.
            first: number of the first; a multiple of `CHUNK`.

        Raises:
            ValueError: for a sampler or guidance that the model does not allow.
        """
        step, guides = self.check(sampler, guidance)
        for start in range(first, n, CHUNK):
            rows = [keyed_generator(seed, start + row) for row in range(CHUNK)]
            with evaluating(self.model):
                cond = self._latents(rows, latents)
                like = self.model.like(CHUNK).to(self.device)
                noise = self.model.process.prior(like, rows)
                state = sample(
                    self.model.process, self.model.denoiser, noise, times.to(self.device), cond,
                    guides, rows, step,
                )  # fmt: skip
                yield self.model.pixels(state).cpu()[: n - start]

    def check(self, sampler: str | None, guidance: float) -> tuple[Step, list[Guidance]]:
        """The step and guidance that are asked for.

        Raises:
            ValueError: the model does not allow them.
        """
        sampler = sampler or self.samplers[0]
        if sampler not in self.samplers:
            known = ", ".join(self.samplers)
            raise ValueError(f"{self.path} has no sampler {sampler!r}; it has {known}")
        process = self.model.process
        if isinstance(process, GaussianDiffusion):
            process.bridge = Bridge(eta=1.0 if sampler == "ancestral" else 0.0)
        step: Step = {"heun": Heun(), **STEPS}.get(sampler, Reverse())
        if not guidance:
            return step, []
        if self.model.encoder is None:
            raise ValueError(f"{self.path} has no latents to guide on; leave --guidance")
        if not isinstance(step, Reverse):
            raise ValueError(f"guidance goes with --sampler euler or ancestral, not with {sampler}")
        guide = ClassifierFree(process, self.model.denoiser, guidance, Latents.hidden)
        return step, [guide]

    def check_prior(self) -> None:
        """Raises: ValueError if the model has latents and no prior to draw them from."""
        if self.model.encoder is not None and self.model.prior is None:
            raise ValueError(
                f"the latents of {self.name} have no prior yet: fit one with "
                f"python -m bio_diffusion.train experiment=image/mnist_prior "
                f"experiment.model={self.path}"
            )

    def _latents(self, rows: list[torch.Generator], source: str) -> Latents | None:
        encoder, prior = self.model.encoder, self.model.prior
        if encoder is None:
            return None
        like = torch.zeros(len(rows), encoder.latents, encoder.codes, device=self.device)
        hidden = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        if source == "null":
            return Latents(like, ~hidden)
        self.check_prior()
        assert prior is not None
        return Latents(sample_prior(prior, like, generator=rows), hidden)

    def bits_per_dim(
        self, pixels: Tensor, draws: int = 16, seed: int = 0, latents: str = "encoder"
    ) -> Tensor:
        """A bound on the bits that each picture costs a pixel and channel, (N,) float64.

        For tokens the bits are those of the V levels that the model knows. With latents it is

            E_{z ~ E(x)} [bound on -log p(x given z)] + KL(E(x) || prior), by one draw of z.

        Args:
            pixels: (N, C, H, W) uint8.
            draws: times that each picture is looked at.
            seed: of all randomness.
            latents: encoder, or null to hide them.
        """
        process, found, d = self.model.process, [], math.prod(self.shape)
        values = torch.arange(256, device=self.device) / 127.5 - 1
        with evaluating(self.model):
            for number, part in enumerate(pixels.split(CHUNK)):
                rows = [keyed_generator(seed, number, row) for row in range(len(part))]
                cond, nats = self._encoded(part, rows, latents)
                if isinstance(process, LinearDiffusion):
                    x = self.model.continuous(part.to(self.device), rows)
                    key = keyed_seed(seed, number, "bound")
                    told = bound(process, self.model.denoiser, x, cond, draws, key)
                    found.append((bits_per_dim(told - nats, d, d * math.log(2), 256)).cpu())
                    continue
                x_0 = self.model.state(part).to(self.device)
                if isinstance(process, Tokens):
                    told = token_bound(
                        process, self.model.denoiser, x_0, cond, draws, generator=rows
                    )
                    nats = nats + told.sum(1)
                else:
                    nats = nats + gaussian_bound(
                        process, self.model.denoiser, x_0, values, cond, draws, rows
                    )
                found.append((nats / (math.log(2) * d)).cpu())
        return torch.cat(found)

    def _encoded(
        self, part: Tensor, rows: list[torch.Generator], source: str
    ) -> tuple[Latents | None, Tensor]:
        """Latents of pictures and what they cost by the prior, nats (B,)."""
        cost = torch.zeros(len(part), dtype=torch.float64, device=self.device)
        if self.model.encoder is None or source == "null":
            return (None if self.model.encoder is None else self._latents(rows, "null")), cost
        logits = self.model.encoder(part.to(self.device).float() / 127.5 - 1)
        z = gumbel_softmax(logits, 1.0, True, rows)
        if self.model.prior is not None:
            q, p = (each.double().log_softmax(-1) for each in (logits, self.model.prior(z)))
            cost = (z * (q - p)).sum((-2, -1))
        return Latents(z, torch.zeros(len(z), dtype=torch.bool, device=z.device)), cost


def load_classifier(model: str, device: torch.device) -> tuple[Classifier, str, str]:
    """A classifier by name or file, the data that it was trained on, and its file's sha256.

    Raises:
        CheckpointError: the file cannot be used.
    """
    loaded = checkpoint.load(checkpoint.find(model, "image_classifier"), "image_classifier")
    weights = loaded.best
    features, classes = weights["hidden.weight"].shape[0], weights["head.weight"].shape[0]
    channels = weights["convolutions.0.weight"].shape[1]
    network = loaded.into(Classifier(channels, classes, features))
    assert isinstance(network, Classifier)
    return network.to(device).eval(), loaded.config["experiment"]["data"], loaded.sha256


def schedule_probe(path: Path, probes: int) -> tuple[Any, Any, Any]:
    """Process, network and held-out batches, with the latents that their encoder gives."""
    found = ImageSampler(path, torch.device("cpu"))
    pictures = open_pictures(found.data, "val")
    index = torch.randperm(len(pictures), generator=keyed_generator(0))[:probes]
    batches = []
    for number, part in enumerate(index.split(CHUNK)):
        rows = [keyed_generator(0, number, row) for row in range(len(part))]
        with evaluating(found.model):
            cond, _ = found._encoded(pictures.x[part], rows, "encoder")
        batches.append((found.model.state(pictures.x[part], rows), cond))
    return found.model.process, found.model.denoiser, batches
