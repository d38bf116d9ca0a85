"""Pictures under a microscope: what models with and without latents draw, lose and tell.

Shared by `image_disco` and `image_arms`; what each figure is stands in the first.
"""

import copy
import math
import time

import torch
from paths import walk

from bio_diffusion.diffusion.latents import (
    Latents,
    gumbel_softmax,
    prior_loss,
    sample_prior,
    usage,
)
from bio_diffusion.diffusion.process import evaluating
from bio_diffusion.diffusion.sampling import Heun, sample
from bio_diffusion.diffusion.schedule import karras, times_at
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.grids import Probe
from bio_diffusion.grids import measure as fitted
from bio_diffusion.image.dataset import open_pictures
from bio_diffusion.image.metrics import frechet_distance
from bio_diffusion.image.pipeline import load_classifier, schedule_probe

LEVELS = (0.3, 1.0, 3.0, 10.0, 30.0, 80.0)
SOURCES = ("prior", "oracle", "shuffled", "null")
CALLS = (5, 9, 17)
MORE = (7, 11, 21)  # of models without latents, whose calls are cheaper
GRIDS = ("Karras", "adaptive")
SHOWN = (0.3, 1.0, 3.0, 10.0, 30.0)  # noise at which curvature is told


class Lab:
    """A set of pictures, and what describes them.

    Args:
        count: pictures that are looked at, of each kind.
        data: of the set, as in `image` settings.
        classifier: of ten classes; its features are the distance's.
    """

    def __init__(self, count, data="mnist.npz", classifier="mnist_classifier"):
        self.count = count
        self.classifier = load_classifier(classifier, torch.device("cpu"))[0]
        self.train, self.test = (open_pictures(data, s).x for s in ("train", "test"))
        self.real = self.classifier.describe(self.test)

    def distance(self, pixels):
        return self.look(pixels)["distance"]

    @torch.no_grad()
    def look(self, pixels):
        """Frechet distance to the test part; by class as the classifier names them the least share
        over an even one and the entropy in nats; of how many it is sure."""
        features = self.classifier.describe(pixels)
        named = self.classifier.head(features.float()).argmax(-1)
        shares = torch.bincount(named, minlength=10).double() / len(named)
        return {
            "distance": frechet_distance(features, self.real),
            "least": 10 * float(shares.min()),
            "entropy": float(torch.special.entr(shares).sum()),
            "sure": self.classifier.sure(features),
        }

    def some(self, pixels, count, seed):
        order = torch.randperm(len(pixels), generator=keyed_generator(seed, 6))
        return pixels[order[:count]]


def told(model, source, pixels, generator):
    """Latents of pictures by their source; None for a model without."""
    if model.encoder is None:
        return None
    shown = torch.zeros(len(pixels), dtype=torch.bool)
    if source == "prior":
        like = torch.zeros(len(pixels), model.encoder.latents, model.encoder.codes)
        return Latents(sample_prior(model.prior, like, generator=generator), shown)
    z = gumbel_softmax(model.encoder(pixels.float() / 127.5 - 1), 1.0, True, generator)
    if source == "shuffled":
        return Latents(z.roll(1, 0), shown)
    return Latents(z, ~shown if source == "null" else shown)


def losses(model, source, pixels, seed):
    """Mean square of D - x_0 a pixel, at each of LEVELS."""
    x_0, found = model.state(pixels), []
    for number, level in enumerate(LEVELS):
        t = times_at(model.process, torch.tensor([level]).double()).float().expand(len(x_0))
        x_t = model.process.perturb(x_0, t, keyed_generator(seed, number, 7)).x_t
        cond = told(model, source, pixels, keyed_generator(seed, number, 8))
        found.append(float((model.denoiser(x_t, t, cond) - x_0).square().mean()))
    return found


def drawn(model, source, pixels, times, seed):
    """As many pictures as there are pictures that oracle latents are read from, by Heun; a seed's
    noise is the same for all sources and models."""
    found = []
    for number, part in enumerate(pixels.split(64)):
        cond = told(model, source, part, keyed_generator(seed, number, 9))
        noise = model.process.prior(model.like(len(part)), keyed_generator(seed, number, 10))
        found.append(sample(model.process, model.denoiser, noise, times, cond, step=Heun()))
    return model.pixels(torch.cat(found))


def nats(model, pixels, seed):
    """A latent: of the prior, the histogram, the encoder's own laws, and log K."""
    logits = torch.cat([model.encoder(part.float() / 127.5 - 1) for part in pixels.split(500)])
    cost, found = prior_loss(model.prior, logits, None, keyed_generator(seed)), usage(logits)
    return {
        "prior": float(cost.mean()) / logits.shape[1],
        "histogram": float(found.marginal.mean()),
        "encoder": float(found.conditional.mean()),
        "log K": math.log(logits.shape[2]),
    }


@torch.no_grad()
def costs(models, pictures=64, rounds=8):
    """CPU milliseconds a picture of a call, and of the prior's draw; a round takes all arms."""
    best = {arm: [math.inf, math.inf] for arm in models}
    for _ in range(rounds):
        for arm, model in models.items():
            x, t = torch.randn(pictures, *model.shape), torch.full((pictures,), 0.5)
            cond = told(model, "prior", torch.zeros(pictures, *model.shape), keyed_generator(0))
            parts = [lambda m=model, x=x, t=t, c=cond: m.denoiser(x, t, c)]
            if cond is not None:
                parts.append(lambda m=model, c=cond: sample_prior(m.prior, c.z))
            for number, part in enumerate(parts):
                began = time.process_time()
                part()
                spent = 1000 * (time.process_time() - began) / pictures
                best[arm][number] = min(best[arm][number], spent)
    return {arm: [value if value < math.inf else 0.0 for value in two]
            for arm, two in best.items()}  # fmt: skip


def straight(model, source, seed, count, steps=30):
    """Of Heun's paths on Karras's grid; see `paths`."""
    double = copy.deepcopy(model).double()
    pixels = torch.zeros(count, *model.shape, dtype=torch.uint8)
    cond = told(model, source, pixels, keyed_generator(seed, 11))
    if cond is not None:
        cond = cond._replace(z=cond.z.double())
    x = model.process.prior(model.like(count), keyed_generator(seed, 12)).double()
    times = karras(model.process, steps).double()
    return walk(model.process, double.denoiser, x, times, cond, late=3.0).figures(SHOWN)


@torch.no_grad()
def figures(lab, sampler, seed, paths):
    """All of one model with one seed's pictures and noise."""
    model = sampler.model
    sources = SOURCES if model.encoder else ("none",)
    calls = CALLS if model.encoder else (*CALLS, *MORE)
    test, training = (lab.some(x, lab.count, seed) for x in (lab.test, lab.train))
    curve = fitted(Probe(*schedule_probe(sampler.path, 64)), "heun-terminal", 40)
    grids = {"Karras": lambda n: karras(model.process, n), "adaptive": curve.knots}

    def looked(source, grid, n):
        return lab.look(drawn(model, source, training, grids[grid]((n + 1) // 2), seed))

    with evaluating(model):
        return {
            "weights": {name: sum(p.numel() for p in part.parameters())
                        for name, part in model.named_children() if name != "process"},
            "bits": float(sampler.bits_per_dim(test[:128], 16, seed).mean()),
            "loss": {source: losses(model, source, test, seed) for source in sources},
            "nats": nats(model, lab.some(lab.test, 2000, seed), seed) if model.encoder else None,
            "paths": {source: straight(model, source, seed, paths)
                      for source in sources if source in ("none", "prior", "null")},
            "drawn": {
                source: {f"{grid} {n}": looked(source, grid, n)
                         for grid in (GRIDS if source != "oracle" else GRIDS[:1]) for n in calls}
                for source in sources if source != "shuffled"
            },
        }  # fmt: skip
