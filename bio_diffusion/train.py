"""Trains a registered experiment: `python -m bio_diffusion.train experiment=NAME [key=value ...]`.

The run's folder then holds

    config.json        the settings, resolved; `--config` takes such a file, without hydra or yaml
    log.csv            step, loss and its parts, gradient norm, rate, seconds: means between lines
    evaluation.csv     what the experiment's `evaluate` found, with the averaged weights
    model.safetensors  weights, averaged weights and settings: what the commands load
    state-*.safetensors  the last two training states
    train.log          the lines on the screen, and the traceback of a fault

`--resume DIR` goes on where the newest intact state stands, bit for bit as if nothing had happened
(on the same machine and device; on CUDA as far as its kernels repeat themselves). All randomness
of a step comes from (seed, step, rank), so seed and step are the whole random state.

Several devices: `accelerate launch -m bio_diffusion.train ...`; several processes on CPUs:
`torchrun --nproc_per_node 2 -m bio_diffusion.train ...`. Every process takes its share of the
batches, the gradients are averaged, and the first process writes.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.command import Parser
from bio_diffusion.config import ConfigError, choices, compose, override, read, split
from bio_diffusion.files import write_json
from bio_diffusion.runs import Run

log = logging.getLogger("bio_diffusion.train")

FIT = (
    "max_steps", "max_minutes", "accumulate", "clip", "ema", "warmup", "final_rate",
    "log_every", "save_minutes", "evaluate_every",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m bio_diffusion.train",
        description="Trains an experiment; Ctrl-C saves and stops.",
        epilog=f"experiments: {', '.join(choices('experiment'))}",
    )
    parser.add_argument(
        "words", nargs="*", metavar="key=value",
        help="experiment=NAME and settings, such as fit.max_steps=5000 run=runs/mine",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="whole settings, as a run's config.json")
    source.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    given = parser.parse_intermixed_args(arguments)
    try:
        config, folder = _settings(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _logging(folder / "train.log" if first else None):
            return _guarded(config, folder, resume=given.resume is not None, first=first)
    except OSError as error:
        print(f"{folder}: cannot be written ({error.strerror}); say run=FOLDER", file=sys.stderr)
        return 2


def _guarded(config: Mapping[str, Any], folder: Path, *, resume: bool, first: bool) -> int:
    """The exit status of a run, faults included."""
    try:
        run = Run(config, folder, resume=resume)
    except (CheckpointError, FileNotFoundError, ValueError) as error:  # settings and data
        log.debug("refused", exc_info=error)
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the first step", file=sys.stderr)
        return 130
    except Exception as error:
        return _fault(error, folder)
    try:
        if first:
            write_json(folder / "config.json", config)
        return run()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _fault(error, folder)


def _fault(error: Exception, folder: Path) -> int:
    """A fault of ours, or of the machine: the whole of it to the log, a line to the screen."""
    log.debug("fault", exc_info=error)
    reason = " ".join(str(error).split())
    print(f"{type(error).__name__}: {reason} (see {folder / 'train.log'})", file=sys.stderr)
    return 1


def _settings(given: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The settings and the folder that a command line asks for."""
    if given.resume:
        if not (Path(given.resume) / "config.json").is_file():
            raise ConfigError(f"{given.resume}: holds no run; name the folder of one")
        config = override(read(Path(given.resume) / "config.json"), given.words)
    elif given.config:
        config = override(read(given.config), given.words)
    else:
        config = compose("train", given.words)
    for key in ("run", "seed", "device", "experiment.name", *(f"fit.{key}" for key in FIT)):
        part: Any = config
        for name in key.split("."):
            if not isinstance(part, Mapping) or name not in part:
                raise ConfigError(
                    f"the settings lack {key!r}; configs/train.yaml shows all of them"
                )
            part = part[name]
    if given.resume:
        return config, Path(given.resume)
    chosen = dict(map(split, given.words)).get("experiment", config["experiment"]["name"])
    folder = Path(config["run"] or "runs/" + str(chosen).replace("/", "-"))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; say run=FOLDER")
    kept = [*folder.glob("state-*.safetensors"), *folder.glob("model.safetensors")]
    if int(os.environ.get("RANK", 0)) == 0 and kept:
        raise ConfigError(
            f"{folder} holds a run: --resume {folder} goes on, run=FOLDER begins anew"
        )
    return config | {"run": str(folder)}, folder


@contextmanager
def _logging(file: Path | None) -> Iterator[None]:
    """Lines to the screen, and with their time to a file; without a file (other ranks) warnings."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setLevel(logging.INFO if file else logging.WARNING)
    if file:
        handlers.append(logging.FileHandler(file))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("bio_diffusion")
    former, ours.handlers = ours.handlers, handlers
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    try:
        yield
    finally:
        ours.handlers, ours.propagate = former, True
        ours.setLevel(logging.NOTSET)
        for handler in handlers[1:]:
            handler.close()


if __name__ == "__main__":
    sys.exit(main())
