"""Networks out of checkpoints, with the properties that they were taught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bio_diffusion.checkpoint import Checkpoint
from bio_diffusion.design.dataset import Property
from bio_diffusion.design.model import Generator
from bio_diffusion.design.tokenizer import tokenizer_for

__all__ = ["restored", "same_classes"]


def same_classes(some: Sequence[Property], others: Sequence[Property]) -> bool:
    """Whether two models were taught the same; edges may have been kept in half precision."""
    return [(p.name, p.names, len(p.edges)) for p in some] == [
        (p.name, p.names, len(p.edges)) for p in others
    ] and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
        for p, q in zip(some, others, strict=True)
        for a, b in zip(p.edges, q.edges, strict=True)
    )


def restored(loaded: Checkpoint, kind: type[nn.Module]) -> tuple[list[Property], Any]:
    """The properties and the network of a checkpoint, in evaluation mode."""
    settings = loaded.config["experiment"]
    specs = settings["properties"] or {}
    words = [all(isinstance(item, str) for item in spec) for spec in specs.values()]
    cuts = nn.ParameterList(
        nn.Parameter(torch.zeros(0 if w else len(spec), dtype=torch.float64), requires_grad=False)
        for w, spec in zip(words, specs.values(), strict=True)
    )
    classes = [len(s) if w else len(s) + 1 for w, s in zip(words, specs.values(), strict=True)]
    letters = len(tokenizer_for(settings["letters"], settings["length"]).letters)
    arguments = (letters, classes, settings["backbone"])
    model = kind(settings["process"], *arguments) if kind is Generator else kind(*arguments)
    loaded.into(nn.ModuleDict({"model": model, "cuts": cuts}))
    properties = [
        Property(name, names=tuple(spec)) if w else Property(name, edges=tuple(cut.tolist()))
        for (name, spec), w, cut in zip(specs.items(), words, cuts, strict=True)
    ]
    return properties, model.eval()
