"""The networks of the track, each with its process: what is trained, kept in a file and sampled.

    gaussian              pictures in [-1, 1] under EDM noise; the U-Net preconditioned to D
    uniform, absorbing    grey levels 0..V-1 as tokens (UDLM, MDLM); the U-Net gives V logits for
                          each site, or a mean and a width, binned over the levels (truncated
                          logistic)
    vpsde, cld, alda,     pictures in [-1, 1], pixels made continuous by even noise, together with
    malda, learned-2, -3, auxiliary variables as further channels; the U-Net preconditioned to the
    linear                noise. Those that are learned learn Q and D with the network, `linear` has
                          matrices of the user's own

Shapes: B batch, C channels, H, W pixels, L = C H W sites, V levels, m latents, K codes, and of
multivariate processes K variables.

Source: Karras et al. 2022; Schiff et al. 2025 and Campbell et al. 2022 (the head); Singhal et al.
    2023 (multivariate processes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.checkpoint import Checkpoint
from bio_diffusion.diffusion.categorical import Absorbing, Tokens, Uniform
from bio_diffusion.diffusion.gaussian import GaussianDiffusion, Preconditioned
from bio_diffusion.diffusion.latents import CausalPrior, Latents
from bio_diffusion.diffusion.linear import LinearDiffusion
from bio_diffusion.diffusion.linear_kernels import Recipe, alda, cld, malda, vpsde
from bio_diffusion.diffusion.linear_learned import LearnedDiffusion, NoisePrediction
from bio_diffusion.diffusion.noise import EDM
from bio_diffusion.diffusion.process import Source, uniform
from bio_diffusion.image.latents import PictureEncoder
from bio_diffusion.image.unet import UNet

__all__ = ["ARGUMENTS", "PROCESSES", "ImageModel", "restored", "truncated_logistic"]

TOKENS: dict[str, type[Tokens]] = {"uniform": Uniform, "absorbing": Absorbing}
RECIPES: dict[str, Callable[[], Recipe]] = {
    "vpsde": vpsde, "cld": cld, "alda": alda, "malda": malda,
}  # fmt: skip
LEARNED = {"learned-2": 2, "learned-3": 3}
MULTIVARIATE = (*RECIPES, *LEARNED)
OWN = "linear"
PROCESSES = ("gaussian", *TOKENS, *MULTIVARIATE, OWN)
HEADS = ("softmax", "logistic")
ARGUMENTS = ("shape", "process", "levels", "network", "latents", "sigma_data", "head", "recipe")
"""Of `ImageModel`, by which settings hold them in every experiment that trains one."""
SIGMA_DATA = 1.0
"""Of pixels in [-1, 1], unless told: with MNIST's, whose root mean square is 0.96, inputs have unit
size."""


class ImageModel(nn.Module):
    """A process, its denoiser and, with latents, their encoder and prior.

    Args:
        shape: (C, H, W).
        process: of `PROCESSES`.
        levels: V, of tokens; pixels of the other processes always have 256.
        network: arguments of `UNet`.
        latents: arguments of `PictureEncoder`, and `hierarchical`; none without.
        prior: arguments of `CausalPrior`; None until one has been fitted.
        sigma_data: width of the pixels in [-1, 1], for EDM's scalings.
        head: of `HEADS`, of tokens: what the network gives for a site.
        recipe: Q, D (K, K) and S (K,) of the process `linear`, see `linear_kernels.Recipe`; its
            slowest mode is brought to rate 1.

    Attributes:
        denoiser: x_t, t, cond -> prediction, as the process wants it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        process: str = "gaussian",
        levels: int = 256,
        network: Mapping[str, Any] | None = None,
        latents: Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        sigma_data: float = SIGMA_DATA,
        head: str = "logistic",
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if process not in PROCESSES:
            raise ValueError(f"no process is called {process!r}; there are {', '.join(PROCESSES)}")
        self.shape = C, H, W = tuple(shape)
        self.levels = levels if process in TOKENS else 256
        given = dict(latents or {})
        hierarchical = bool(given.pop("hierarchical", False))
        self.encoder = PictureEncoder(self.shape, **given) if given else None
        codes = (0, 0) if self.encoder is None else (self.encoder.latents, self.encoder.codes)
        size = {**(network or {}), "hierarchical": hierarchical}
        size |= {"latents": codes[0], "codes": codes[1]}
        patch = size.get("patch", 1)
        if H % patch or W % patch:
            raise ValueError(f"pictures of {H} x {W} pixels do not divide into patches of {patch}")
        self.process: GaussianDiffusion | Tokens | LinearDiffusion
        self.denoiser: nn.Module
        if process == "gaussian":
            self.process = GaussianDiffusion(EDM(), sigma_data=sigma_data)
            self.denoiser = Preconditioned(UNet(C, C, **size), self.process)
        elif process in (*MULTIVARIATE, OWN):
            self.process = multivariate(process, sigma_data, recipe)
            channels = C * self.process.variables
            lifted = VariablesAsChannels(UNet(channels, channels, **size))
            self.denoiser = NoisePrediction(lifted, self.process)
        else:
            self.process = TOKENS[process](levels)
            if head not in HEADS:
                raise ValueError(f"no head is called {head!r}; there are {', '.join(HEADS)}")
            numbers = levels if head == "softmax" else 2
            network_ = UNet(2 * C, numbers * C, **size)
            self.denoiser = TokenDenoiser(network_, self.process, self.shape, head)
        self.prior = None if prior is None else CausalPrior(*codes, **prior)

    @property
    def discrete(self) -> bool:
        return isinstance(self.process, Tokens)

    @property
    def multivariate(self) -> bool:
        return isinstance(self.process, LinearDiffusion)

    def state(self, pixels: Tensor, generator: Source = None) -> Tensor:
        """uint8 pixels (B, C, H, W) as the process takes them.

        Under a multivariate one what makes pixels continuous and the auxiliaries are drawn.
        """
        if self.discrete:
            return (pixels.flatten(1).long() * self.levels) // 256
        if isinstance(self.process, LinearDiffusion):
            return self.process.lift(self.continuous(pixels, generator), generator)
        return pixels.float() / 127.5 - 1

    def continuous(self, pixels: Tensor, generator: Source = None) -> Tensor:
        """Pixels drawn evenly from their cells, the 256 even parts of [-1, 1]."""
        known = pixels.float()
        return (known + uniform(known.shape, generator, known)) / 128 - 1

    def pixels(self, state: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) of a state; token v becomes the v-th of V even greys."""
        if self.discrete:
            grey = (state.double() * (255 / (self.levels - 1))).round()
            return grey.to(torch.uint8).unflatten(1, self.shape)
        if self.multivariate:
            return ((state[:, 0].double() + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
        return ((state.double() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def like(self, count: int) -> Tensor:
        """A blank state of so many pictures."""
        return self.state(torch.zeros(count, *self.shape, dtype=torch.uint8))

    def times_of(self, mean: float, std: float) -> Callable[[Tensor], Tensor] | None:
        """Quantile function of training times with ln sigma ~ N(mean, std^2); None for tokens, and
        that of the bound for multivariate processes.

        Source: Karras et al. 2022, Table 1 (-1.2 and 1.2, for data of width 0.5).
        """
        if self.discrete:
            return None
        if isinstance(self.process, LinearDiffusion):
            return self.process.quantile
        noise = self.process.schedule
        assert isinstance(noise, EDM)
        low, high = (s ** (1 / noise.rho) for s in (noise.sigma_min, noise.sigma_max))

        def quantile(u: Tensor) -> Tensor:
            log_sigma = mean + std * torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
            return (((log_sigma / noise.rho).exp() - low) / (high - low)).clamp(0, 1).to(u)

        return quantile


def multivariate(
    name: str, sigma_data: float, recipe: Mapping[str, Any] | None = None
) -> LinearDiffusion:
    """A process of `MULTIVARIATE`, or `OWN` by its recipe; its slowest mode at rate 1."""
    if name == OWN:
        if not isinstance(recipe, Mapping) or set(recipe) != {"Q", "D", "S"}:
            raise ValueError(
                'the process \'linear\' wants recipe={"Q": [[...]], "D": [[...]], "S": [...]}'
            )
        try:
            matrices = Recipe(*(torch.tensor(recipe[key], dtype=torch.float64) for key in "QDS"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe is no matrices of numbers: {error}") from None
        return LinearDiffusion(matrices, rate=1.0, sigma_data=sigma_data)
    if name in LEARNED:
        return LearnedDiffusion(LEARNED[name], sigma_data=sigma_data)
    return LinearDiffusion(RECIPES[name](), rate=1.0, sigma_data=sigma_data)


class VariablesAsChannels(nn.Module):
    """A network of states (B, K, C, H, W), told ln tau, by one of pictures of K C channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, noise: Tensor, cond: Latents | None = None) -> Tensor:
        return self.network(x.flatten(1, 2), noise / 8, cond).unflatten(1, x.shape[1:3])


class TokenDenoiser(nn.Module):
    """log p(x_0) (B, L, V) of tokens (B, L) that are grey levels.

    The network sees a level as a number in [-1, 1], and beside it whether the site is masked.

    Args:
        network: `UNet` from 2 C channels to V C, or to 2 C of the logistic head.
        process: gives V and the mask; under masking the network is not told t.
        shape: (C, H, W).
        head: `softmax` of V numbers a site, or `logistic`, see `truncated_logistic`.
    """

    def __init__(
        self, network: nn.Module, process: Tokens, shape: Sequence[int], head: str
    ) -> None:
        super().__init__()
        self.network, self.shape, self.head = network, tuple(shape), head
        self.letters, self.timed = process.letters, not isinstance(process, Absorbing)

    def forward(self, x_t: Tensor, t: Tensor, cond: Latents | None = None) -> Tensor:
        masked = x_t == self.letters
        value = (2.0 * x_t / (self.letters - 1) - 1).masked_fill(masked, 0.0)
        seen = [part.float().unflatten(1, self.shape) for part in (value, masked)]
        noise = t.float() if self.timed else torch.zeros_like(t, dtype=torch.float32)
        output = self.network(torch.cat(seen, 1), noise, cond).float()
        if self.head == "softmax":
            return output.unflatten(1, (self.letters, -1)).flatten(2).mT.log_softmax(-1)
        mean, width = output.chunk(2, 1)
        return truncated_logistic(value + mean.flatten(1), width.flatten(1), self.letters)


def truncated_logistic(location: Tensor, width: Tensor, letters: int) -> Tensor:
    """log p over V levels of a logistic law with mean tanh(location) and scale exp(width - 2).

        p_v ~ S((v + 1) h - mean') - S(v h - mean'),    S(x) = sigmoid(x / scale),  h = 2 / V

    the levels cutting [-1, 1] evenly, and what lies outside cut off. With a > b

        log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))

    Args:
        location: (B, L).
        width: (B, L).
        letters: V.

    Returns:
        (B, L, V), normalised.

    Source: Campbell et al. 2022, Appendix (the head); rearranged, so that no difference cancels.
    """
    mean = torch.tanh(location)[..., None]
    scale = (2 - width).clamp(-6, 6).exp()[..., None]  # of 1 / scale
    edges = torch.linspace(-1, 1, letters + 1, device=mean.device)
    low, high = ((edge - mean) * scale for edge in (edges[:-1], edges[1:]))
    inside = torch.log(-torch.expm1(-scale * (2 / letters)))
    return (F.logsigmoid(high) + F.logsigmoid(-low) + inside).log_softmax(-1)


def restored(loaded: Checkpoint, prior: Mapping[str, Any] | None = None) -> ImageModel:
    """The model of a checkpoint; with a fresh prior where arguments for one are given.

    Raises:
        CheckpointError: its weights are not those of its settings.
    """
    settings = loaded.config["experiment"]
    arguments = {name: settings[name] for name in ARGUMENTS if name in settings}
    if prior is None:
        model = ImageModel(**arguments, prior=settings.get("prior"))
        loaded.into(model)
        return model.eval()
    loaded.into(bare := ImageModel(**arguments))
    model = ImageModel(**arguments, prior=prior)
    model.load_state_dict(bare.state_dict(), strict=False)
    return model
