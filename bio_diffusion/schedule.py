"""Fits an adaptive time grid to a trained model: `python -m bio_diffusion.schedule fit`.

The fitted curve is kept in the model's file, so that any number of steps can be drawn from it
later; `--schedule adaptive` then uses it. Lengths: `velocity` (the corrector's cost with the width
of p_t as its speed), `corrector` (with the noise level), `truncation` (local error of an Euler
step), and for tokens `path` (what a step loses by drawing all sites at once).
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bio_diffusion.diffusion.process import Denoiser, Process, State
    from bio_diffusion.diffusion.schedule import Curve

__all__ = ["Probe", "fit", "main"]

LENGTHS = {
    "velocity": "VelocityNormalised",
    "corrector": "CorrectorOptimised",
    "truncation": "TruncationError",
    "path": "PathDivergence",
}
# kind of model -> what gives its process, network and data to measure on, and its usual length
_PROBES = {
    "dock": ("bio_diffusion.dock.network:schedule_probe", "velocity"),
    "design": ("bio_diffusion.design.pipeline:schedule_probe", "path"),
}


class Probe(NamedTuple):
    """What a schedule is measured on: batches of (x_0, cond) for a trained denoiser."""

    process: "Process"
    denoiser: "Denoiser"
    batches: "Iterable[tuple[State, Any]]"


def fit(
    path: Path, length: str | None, probes: int, intervals: int, out: Path | None = None
) -> "tuple[Curve, str]":
    """Fits a curve to the model in `path` and writes the model with it to `out`.

    Args:
        path: a model file.
        length: one of `LENGTHS`; the usual one of the model's kind when None.
        probes: complexes, sequences or pictures to measure on.
        intervals: of the probe grid.
        out: the file to write; `path` itself when None.

    Returns:
        The curve and the new file's sha256.

    Raises:
        CheckpointError: the file cannot be used.
        ValueError: models of its kind have no schedule to fit.
    """
    import torch

    from bio_diffusion import checkpoint
    from bio_diffusion.diffusion import lengths, schedule

    kind = checkpoint.header(path)["kind"]
    if kind not in _PROBES:
        raise ValueError(
            f"{path}: no time grid can be fitted to a model of kind {kind!r} (only to "
            f"{', '.join(_PROBES)})"
        )
    probe, usual = _PROBES[kind]
    length = length or usual
    if (length == "path") != (usual == "path"):
        raise ValueError(f"{path}: the length {length!r} does not suit a model of kind {kind!r}")
    module, _, name = probe.partition(":")
    process, denoiser, batches = getattr(import_module(module), name)(path, probes)
    chosen = getattr(lengths, LENGTHS[length])()
    generator = torch.Generator().manual_seed(0)
    curve = schedule.fit_curve(process, denoiser, chosen, batches, intervals, generator)
    loaded = checkpoint.load(path, kind)
    info = {**loaded.info, "grid": {"length": length, "probes": probes, "intervals": intervals}}
    fitted = replace(loaded, grid=curve.to_dict(), info=info)
    return curve, checkpoint.save(out or path, fitted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bio_diffusion.schedule", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="fit")
    command = commands.add_parser("fit", help="fit an adaptive time grid and keep it in the model")
    command.add_argument("--model", type=Path, required=True, help="a model file")
    command.add_argument("--steps", type=int, default=20, help="print the knots for so many steps")
    command.add_argument("--length", choices=LENGTHS, help="what a step costs")
    command.add_argument("--probes", type=int, default=32, help="data to measure on")
    command.add_argument("--intervals", type=int, default=40, help="of the probe grid")
    command.add_argument("--out", type=Path, help="write the model here instead of in place")
    args = parser.parse_args(arguments)
    from bio_diffusion.checkpoint import CheckpointError

    if min(args.steps, args.probes, args.intervals) < 1:
        parser.error("--steps, --probes and --intervals must be 1 or more")
    try:
        curve, sha256 = fit(args.model, args.length, args.probes, args.intervals, args.out)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print(" ".join(f"{t:.4f}" for t in curve.knots(args.steps).tolist()))
    print(f"{args.out or args.model} sha256 {sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
