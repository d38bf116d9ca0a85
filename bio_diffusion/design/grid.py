"""Time grids of sampling, by name or from a file."""

from __future__ import annotations

import difflib
from pathlib import Path

from torch import Tensor

from bio_diffusion import checkpoint
from bio_diffusion.diffusion.schedule import Curve, quarter, sine, uniform
from bio_diffusion.schedule import read_grid

__all__ = ["SCHEDULES", "grid"]

_FIXED = {"uniform": uniform, "sine": sine, "cosine": quarter}
SCHEDULES = (*_FIXED, "adaptive")


def grid(schedule: str | None, steps: int, model: Path, curve: Curve | None) -> Tensor:
    """(steps + 1,) times from 1 to 0.

    Args:
        schedule: "uniform"; "sine" (short steps at low noise) or "cosine" (at high noise);
            "adaptive", the one kept in the model; a file that `schedule fit --save` wrote; or None
            for the one kept in the model where there is one, and even steps elsewhere.
        steps: N.
        model: its file.
        curve: kept in it, or None.

    Raises:
        ValueError: there is no such schedule, or it does not suit the model; one line.
    """
    if schedule is None:
        schedule = "uniform" if curve is None else "adaptive"
    times = _named(schedule, steps, model, curve)
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(
            f"{steps} steps are too many for the schedule {schedule}: some of its times coincide; "
            "ask for fewer"
        )
    return times


def _named(schedule: str, steps: int, model: Path, curve: Curve | None) -> Tensor:
    if schedule in _FIXED:
        return _FIXED[schedule](steps)
    if schedule == "adaptive":
        if curve is None:
            raise ValueError(
                f"the model {model.stem} has no fitted time grid; name another schedule, or fit "
                "one: python -m bio_diffusion.schedule fit --model FILE"
            )
        return curve.knots(steps)
    if not Path(schedule).exists():
        near = difflib.get_close_matches(schedule, SCHEDULES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SCHEDULES)}"
        raise ValueError(f"no schedule is called {schedule!r}, and there is no such file; {hint}")
    return read_grid(Path(schedule), checkpoint.load(model, "design")).knots(steps)
