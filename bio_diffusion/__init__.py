"""Diffusion models for molecules and genomes on one shared core.

The public names load on first use, so that importing the package (and every `--help`) imports no
torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # name -> module
    "Designer": "bio_diffusion.design.pipeline",
    "Docker": "bio_diffusion.dock.pipeline",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
