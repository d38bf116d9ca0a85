"""Trainings that a benchmark needs, from the shipped configurations by settings."""

import sys
from pathlib import Path

from bio_diffusion import checkpoint, train


def whole(file: Path) -> bool:
    """Whether a model file holds all the steps that its run asks for."""
    found = checkpoint.header(file)["data"]
    return bool(found["info"]["steps"] >= found["config"]["fit"]["max_steps"])


def trained(folder: Path, *words: str) -> Path:
    """The model file of a run in `folder` by `words`; made, or gone on with, where it is not whole.

    Raises:
        SystemExit: with the status of a training that failed, or a line on one broken off.
    """
    file = folder / "model.safetensors"
    if file.exists() and whole(file):
        return file
    status = train.main(["--resume", str(folder)] if file.exists() else [*words, f"run={folder}"])
    if status:
        sys.exit(status)
    if not whole(file):
        sys.exit(f"{folder}: training was broken off; the same command goes on")
    return file
