"""How to dock: what a user may set, its defaults and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bio_diffusion.files import InputError

__all__ = ["Settings"]

# Of the settings; the upper ones keep a slip of the finger from running for days or out of memory.
_BOUNDS = {
    "num_poses": (1, 1000),
    "seed": (0, 2**63 - 1),
    "steps": (1, 1000),
    "starts": (1, 1024),
    "conformers": (1, 1000),
    "rounds": (0, 10_000),
    "evaluations": (2, 10_000),
    "refine": (1, 10_000),
    "guidance": (0.0, 100.0),
    "latent_guidance": (0.0, 100.0),
    "inverse_temperature": (1.0, 100.0),
    "spread": (0.0, 100.0),
    "judged": (1, 1000),
    "judgement": (0.0, 1000.0),
    "preference": (0.0, 1000.0),
    "sites": (1, 100),
    "site_size": (5.0, 500.0),
}


@dataclass(frozen=True)
class Settings:
    """How to dock; the meaning and defaults of each value stand in `configs/dock.yaml`."""

    num_poses: int = 10
    seed: int = 0
    steps: int = 20
    schedule: str = "adaptive"
    guidance: float = 0.0
    latent_guidance: float = 0.0
    inverse_temperature: float = 1.0
    minimize: bool = True
    starts: int = 64
    conformers: int = 8
    rounds: int = 20
    evaluations: int = 25
    refine: int = 100
    spread: float = 1.0
    judged: int = 20
    judgement: float = 7.0
    preference: float = 0.38
    rank_by: str = "confidence"
    sites: int = 3
    site_size: float = 22.5

    def __post_init__(self) -> None:
        for setting in fields(self):  # a file or a word may say null
            if getattr(self, setting.name) is None:
                raise InputError("setting", f"{setting.name} is empty; give it a value")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            kind, wanted = (int, "a whole number") if isinstance(low, int) else (float, "a number")
            if isinstance(value, np.generic):  # results are named by plain values
                value = value.item()
                object.__setattr__(self, name, value)
            if not isinstance(value, int | kind) or isinstance(value, bool):
                raise InputError("setting", f"{name} is {value!r}; it must be {wanted}")
            if not low <= value <= high:
                raise InputError(
                    "setting", f"{name} is {value:g}; it must lie between {low:g} and {high:g}"
                )
        if self.rank_by not in ("confidence", "score"):
            raise InputError("setting", f"rank_by is {self.rank_by!r}; say confidence or score")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """The values that a composed configuration holds, its other keys left aside."""
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})
