"""What `image evaluate` measures: bits/dim, the Frechet distance of a classifier's features, and
the FID where the user has the weights of Inception.

Shapes: N pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.image.dataset import Pictures, open_pictures
from bio_diffusion.image.inception import PUBLISHED, Inception, load_inception, load_moments
from bio_diffusion.image.metrics import Classifier, Moments, frechet_distance
from bio_diffusion.image.pipeline import ImageSampler, load_classifier

__all__ = ["Measurement"]

log = logging.getLogger("bio_diffusion.image")

NAMED = "Frechet distance ({} features)"
BITS_DRAWS = 16
USUAL_FID = 50_000  # pictures drawn for a published FID


class Measurement:
    """The measures of one run: its inputs are read and checked when made, and taken when called.

    Args:
        settings: of the run: data, classifier, inception, fid_reference, n, bits_n, seed.
        named: a classifier was asked for by name.
        sampler: the model.

    Attributes:
        title: of the Frechet distance.
        notes: on what is not measured, or not as usual.

    Raises:
        ValueError, InputError, CheckpointError, FileNotFoundError: an input cannot be used.
    """

    def __init__(self, settings: Mapping[str, Any], named: bool, sampler: ImageSampler) -> None:
        self.settings, self.sampler = settings, sampler
        self.notes: list[str] = []
        self.held: Pictures = open_pictures(settings["data"], "test")
        if self.held.shape != sampler.shape:
            raise ValueError(
                f"{settings['data']} holds pictures of the shape {list(self.held.shape)}, and the "
                f"model {settings['model']} draws {list(sampler.shape)}; name another --data"
            )
        self.inception: Inception | None = None
        self.reference: Moments | None = None
        self._find_inception()
        name = settings["classifier"]
        found, taught, self.classifier_sha256 = load_classifier(name, sampler.device)
        self.classifier: Classifier | None = found
        self.title = NAMED.format(name if name != "mnist_classifier" else "MNIST classifier")
        if not named and Path(settings["data"]).name != Path(taught).name:
            self.classifier = None
            if self.inception is None:
                self.notes.append(
                    f"no Frechet distance: the classifier that ships was taught {taught}, not "
                    f"{settings['data']}; train one (experiment=image/mnist_classifier "
                    "experiment.data=...) and name it with --classifier, or give --inception"
                )

    def _find_inception(self) -> None:
        weights, reference = self.settings["inception"], self.settings["fid_reference"]
        if weights is None:
            if reference is not None:
                raise ValueError("--fid-reference needs --inception, whose features it is of")
            return
        self.inception, self.inception_sha256 = load_inception(weights, self.sampler.device)
        if reference is not None:
            self.reference = load_moments(reference)
        if not self.inception_sha256.startswith(PUBLISHED):
            self.notes.append(
                f"{weights} is not Inception's published file (sha256 {PUBLISHED}...) byte for "
                "byte: only if its tensors are the same does the FID compare with others"
            )
        if self.settings["n"] < USUAL_FID:
            self.notes.append(
                f"the FID is of {self.settings['n']} pictures, and published ones are of "
                f"{USUAL_FID:,}: fewer give a higher one"
            )

    def __call__(self, drawn: Tensor) -> dict[str, Any]:
        """The figures of drawn pictures (N, C, H, W) uint8, each with its yardstick."""
        settings, held = self.settings, self.held
        index = torch.randperm(len(held), generator=keyed_generator(0))[: settings["bits_n"]]
        log.info("bits/dim of %d held-out pictures", len(index))
        bits = self.sampler.bits_per_dim(held.x[index], BITS_DRAWS, settings["seed"])
        found: dict[str, Any] = {
            "bits_per_dim": float(bits.mean()),
            "bits_per_dim_se": float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else None,
            "bits_per_dim_levels": self.sampler.model.levels,
        }
        train = self._training_pictures(len(drawn))
        if self.classifier is not None:
            log.info("%s", self.title)
            real, features = self.classifier.describe(held.x), self.classifier.describe(drawn)
            found["frechet_distance"] = frechet_distance(features, real)
            found["classifier_sure"] = self.classifier.sure(features)
            found["classifier_sure_of_held_out"] = self.classifier.sure(real)
            found["frechet_distance_of_training_pictures"] = (
                None if train is None else frechet_distance(self.classifier.describe(train), real)
            )
        if self.inception is not None:
            found |= self._fid(drawn, train)
        return found

    def _fid(self, drawn: Tensor, train: Tensor | None) -> dict[str, Any]:
        assert self.inception is not None
        reference = self.reference
        if reference is None:
            log.info("FID: features of %d held-out pictures", len(self.held))
            reference = Moments.of(self.inception.describe(self.held.x))
        log.info("FID: features of %d drawn pictures and of as many to compare", len(drawn))
        known = (
            None if train is None else frechet_distance(self.inception.describe(train), reference)
        )
        fid = frechet_distance(self.inception.describe(drawn), reference)
        return {"fid": fid, "fid_of_training_pictures": known}

    def _training_pictures(self, n: int) -> Tensor | None:
        """As many training pictures: what perfect samples would be. None where there are fewer."""
        if self.classifier is None and self.inception is None:
            return None
        train = open_pictures(self.settings["data"], "train")
        if len(train) < n:
            return None
        index = torch.randperm(len(train), generator=keyed_generator(self.settings["seed"]))[:n]
        model = self.sampler.model
        return model.pixels(model.state(train.x[index]))

    def about(self) -> dict[str, Any]:
        """What the summary says of the networks that measured."""
        told: dict[str, Any] = {
            "frechet_distance_is": self.title,
            "classifier": {"sha256": self.classifier_sha256},
        }
        if self.inception is not None:
            reference = (
                self.settings["fid_reference"] or f"held-out part of {self.settings['data']}"
            )
            told["inception"] = {"sha256": self.inception_sha256, "reference": reference}
        return told

    def lines(self, measured: Mapping[str, Any]) -> list[str]:
        """The figures in words, for the screen."""
        told = [f"bits/dim <= {measured['bits_per_dim']:.4f}"]
        for name, key in ((self.title, "frechet_distance"), ("FID", "fid")):
            if measured.get(key) is None:
                continue
            known = measured[f"{key}_of_training_pictures"]
            beside = "" if known is None else f" ({known:.3f} for as many training pictures)"
            told.append(f"{name} {measured[key]:.3f}{beside}")
            if key == "frechet_distance":
                sure, real = (100 * measured[f"classifier_sure{of}"] for of in ("", "_of_held_out"))
                told.append(f"classifier sure of {sure:.0f} % ({real:.0f} % of held-out pictures)")
        return told
