"""Trainings that a benchmark needs, from the shipped configurations by settings."""

import sys
from pathlib import Path

from bio_diffusion import checkpoint, train


def trained(folder: Path, *words: str) -> Path:
    """The model file of a run in `folder` by `words`; made, or gone on with, where it is not whole.

    Raises:
        SystemExit: with the status of a training that failed or was broken off.
    """
    file = folder / "model.safetensors"
    if file.exists():
        found = checkpoint.header(file)["data"]
        if found["info"]["steps"] >= found["config"]["fit"]["max_steps"]:
            return file
        status = train.main(["--resume", str(folder)])
    else:
        status = train.main([*words, f"run={folder}"])
    if status:
        sys.exit(status)
    return file
