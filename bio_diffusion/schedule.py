"""Fits an adaptive time grid to a trained model: `python -m bio_diffusion.schedule fit`.

The fitted curve is kept in the model's file, so that any number of steps can be drawn from it
later; `--schedule adaptive` then uses it. `show` prints its knots, `set` puts in a grid from a
file: one that `fit --save` wrote, or `{"knots": [1, ..., 0]}` made elsewhere.

What a step costs, by --length:

    velocity     corrector's work, the width of p_t as its speed: Heun, corrected sampling
    corrector    the same with the noise level as its speed, as published; multivariate models
    truncation   local error of an Euler (DDIM) step
    heun         local error of a Heun step
    terminal     truncation, shrunk on the way as for normal data: tensors
    heun-terminal   heun, shrunk likewise: tensors
    walked, heun-walked   the same, walked down to the end: tensors, dear (intervals^2 calls)
    ancestral    what an ancestral step loses in nats
    entropic     even increments of rescaled entropy: tensors
    mixture      ancestral and entropic, half each: ancestral steps of tensors
    path         what a step loses by drawing all sites at once: tokens
    unmasking    the same, read off the losses: masked tokens
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bio_diffusion.command import Parser, exit_status
from bio_diffusion.files import InputError

if TYPE_CHECKING:
    from bio_diffusion.checkpoint import Checkpoint
    from bio_diffusion.diffusion.schedule import Curve

__all__ = ["LENGTHS", "fit", "fingerprint", "main", "read_grid", "save_grid"]

log = logging.getLogger("bio_diffusion.schedule")

_MOST = 100_000  # steps, probes or intervals
LENGTHS = (
    "velocity", "corrector", "truncation", "heun", "terminal", "heun-terminal", "walked",
    "heun-walked", "ancestral", "entropic", "mixture", "path", "unmasking",
)  # fmt: skip
# kind of model -> what gives its process, network and data to measure on
_PROBES = {
    "dock": "bio_diffusion.dock.network:schedule_probe",
    "design": "bio_diffusion.design.pipeline:schedule_probe",
    "image": "bio_diffusion.image.pipeline:schedule_probe",
    "toy": "bio_diffusion.toy:schedule_probe",
}


def fit(
    path: Path, length: str | None, probes: int | None, intervals: int, out: Path | None = None
) -> "tuple[Curve, str]":
    """Fits a curve to the model in `path` and writes the model with it to `out`.

    Args:
        path: a model file.
        length: one of `LENGTHS`; the usual one of the model's process when None.
        probes: complexes, sequences or pictures to measure on; 32 when None, 1024 where losses are
            read off, which are noisy one by one.
        intervals: of the probe grid.
        out: the file to write; `path` itself when None.

    Returns:
        The curve and the new file's sha256.

    Raises:
        CheckpointError: the file cannot be used.
        ValueError: models of its kind have no schedule to fit.
    """
    from bio_diffusion import checkpoint, grids

    kind = checkpoint.header(path)["kind"]
    if kind not in _PROBES:
        raise ValueError(
            f"{path}: no time grid can be fitted to a model of kind {kind!r} (only to "
            f"{', '.join(_PROBES)})"
        )
    module, _, name = _PROBES[kind].partition(":")
    make = getattr(import_module(module), name)
    length = length or grids.usual_length(make(path, 1)[0])
    probes = probes or (1024 if length in ("entropic", "mixture", "unmasking") else 32)
    probe = grids.Probe(*make(path, probes))
    try:
        curve = grids.measure(probe, length, intervals)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    told = {"length": length, "probes": probes, "intervals": intervals}
    return curve, _put(curve, told, path, out or path)


def _put(curve: "Curve", told: Mapping[str, Any], path: Path, out: Path) -> str:
    """Writes the model in `path` with a grid to `out`, as precise as it was; gives the sha256."""
    from bio_diffusion import checkpoint

    if out.resolve().parent == checkpoint.WEIGHTS.resolve():
        log.warning("%s ships with the package and is changed; --out keeps it", out)
    header = checkpoint.header(path)
    model = checkpoint.load(path, header["kind"])
    model = replace(model, grid=curve.to_dict(), info={**model.info, "grid": told})
    return checkpoint.save(out, model, half=bool(header["dtypes"]))


# --- grids in files ------------------------------------------------------------------------------


def fingerprint(model: "Checkpoint") -> str:
    """sha256 of a model's weights alone: the same whatever grid is kept beside them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.best.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_grid(path: Path, model: "Checkpoint") -> None:
    """Writes the grid of a model to a file of its own, with what tells whose it is."""
    from bio_diffusion.files import write_text

    found = {"kind": model.kind, "model": fingerprint(model), **model.grid}
    write_text(path, json.dumps(found, indent=1) + "\n")


def read_grid(path: Path, model: "Checkpoint") -> "Curve":
    """The curve in a file that `save_grid` wrote for this model, or that holds bare knots.

    Raises:
        ValueError: one line; the file is none, belongs to another model, or its grid is no grid.
    """
    from bio_diffusion.diffusion.schedule import Curve

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; write one with fit --save") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no grid, want JSON as fit --save writes ({error})") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: is no grid, want JSON as fit --save writes")
    if data.get("kind", model.kind) != model.kind or (
        "model" in data and data["model"] != fingerprint(model)
    ):
        raise ValueError(
            f"{path}: was fitted to another model (of kind {data.get('kind')!r}); fit this one, or "
            "keep only its knots"
        )
    try:
        if "knots" not in data:
            return Curve.from_dict(data)
        knots = data["knots"]
        if not isinstance(knots, list) or any(type(knot) not in (int, float) for knot in knots):
            raise ValueError("knots are a list of numbers, from 1 down to 0")
        if len(knots) < 2 or knots[0] != 1 or knots[-1] != 0:
            raise ValueError("knots run from 1 to 0")
        for high, low in zip(knots, knots[1:], strict=False):
            if not low < high:
                raise ValueError(f"knots must fall strictly, but {low:g} follows {high:g}")
        return Curve.through(knots)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# --- command -------------------------------------------------------------------------------------


class _Task:
    """A command whose model and places to write to are known to be usable.

    Raises:
        InputError: a number is out of bounds, or a folder to write into is missing.
        CheckpointError: there is no such model.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from bio_diffusion.checkpoint import find

        self.options = options
        for name in ("steps", "probes", "intervals"):
            value = getattr(options, name, None)
            if value is not None and not 1 <= value <= _MOST:
                raise InputError("setting", f"--{name} is {value}; it must be 1 to {_MOST}")
        options.model = find(options.model)
        self.written = getattr(options, "out", None) or options.model
        for path in (self.written, getattr(options, "save", None)):
            if path is not None and not path.parent.is_dir():
                raise InputError("out_file", f"{path}: its folder is missing; make it first")

    @property
    def place(self) -> Path | None:
        out: Path | None = getattr(self.options, "out", None)
        return out and out.parent

    def execute(self) -> int:
        try:
            for line in self.options.run(self.options, self.written):
                log.info("%s", line)
        except FileNotFoundError:  # of the data, and says where they were sought
            raise
        except OSError as error:
            place = error.filename2 or error.filename
            raise InputError(
                "out_unwritable", f"{place}: cannot be written ({error.strerror}); use --out"
            ) from error
        return 0


def _fit(options: argparse.Namespace, out: Path) -> Iterator[str]:
    from bio_diffusion import checkpoint

    curve, sha256 = fit(options.model, options.length, options.probes, options.intervals, out)
    if options.save:
        save_grid(options.save, checkpoint.load(out, checkpoint.header(out)["kind"]))
    yield _knots(curve, options.steps)
    yield f"{out} sha256 {sha256}"


def _show(options: argparse.Namespace, _: Path) -> Iterator[str]:
    from bio_diffusion import checkpoint, grids

    model = checkpoint.load(options.model, checkpoint.header(options.model)["kind"])
    curve = grids.kept(model)
    if curve is None:
        raise ValueError(f"{options.model}: holds no time grid; fit one: fit --model FILE")
    told = model.info.get("grid", {})
    yield f"length {told.get('length', 'unknown')}, total {curve.total:.4g}"
    yield _knots(curve, options.steps)


def _set(options: argparse.Namespace, out: Path) -> Iterator[str]:
    from bio_diffusion import checkpoint

    model = checkpoint.load(options.model, checkpoint.header(options.model)["kind"])
    curve = read_grid(options.grid, model)
    yield f"{out} sha256 {_put(curve, {'length': 'from a file'}, options.model, out)}"


def _knots(curve: "Curve", steps: int) -> str:
    return " ".join(f"{t:.4f}" for t in curve.knots(steps).tolist())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(
        prog="python -m bio_diffusion.schedule",
        description=__doc__,
        epilog="Exit status: 0 done; 1 a fault of this program; 2 bad usage, or a model or grid "
        "that cannot be used; 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="fit | show | set")
    model = Parser(add_help=False)
    model.add_argument("--log-file", metavar="FILE", help="full log, with tracebacks")
    model.add_argument("--model", required=True, help="a model file, or the name of one that ships")
    steps = Parser(add_help=False)
    steps.add_argument("--steps", type=int, default=20, help="print the knots for so many steps")
    out = Parser(add_help=False)
    out.add_argument("--out", type=Path, help="write the model here instead of in place")
    command = commands.add_parser(
        "fit", parents=[model, steps, out], help="fit a grid and keep it in the model"
    )
    command.add_argument("--length", choices=LENGTHS, help="what a step costs")
    command.add_argument("--probes", type=int, help="data to measure on")
    command.add_argument("--intervals", type=int, default=40, help="of the probe grid")
    command.add_argument("--save", type=Path, help="write the grid to a file of its own, too")
    command.set_defaults(run=_fit)
    command = commands.add_parser("show", parents=[model, steps], help="print a model's grid")
    command.set_defaults(run=_show)
    command = commands.add_parser("set", parents=[model, out], help="put a grid into a model")
    command.add_argument("--grid", type=Path, required=True, help="a file of fit --save, or knots")
    command.set_defaults(run=_set)
    options = parser.parse_args(arguments)
    options.quiet = False
    from bio_diffusion.checkpoint import CheckpointError

    return exit_status(options, log, _Task, (CheckpointError, ValueError, FileNotFoundError))


if __name__ == "__main__":
    sys.exit(main())
