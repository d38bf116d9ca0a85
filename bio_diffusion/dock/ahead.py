"""Kernels compiled by a process of their own, while this one still loads torch.

Numba takes some seconds to compile them, once on a machine. The first docking there would wait for
it; so it lets another core do that, and waits for each kernel only when it calls it.
"""

from __future__ import annotations

import subprocess
import sys

__all__ = ["begin", "wait"]

_SCRIPT = "from bio_diffusion.dock import kernels; kernels.compile_all()"

_helper: subprocess.Popen[str] | None = None
_done: set[str] = set()


def begin() -> None:
    """Starts the process, unless the kernels are kept from an earlier run."""
    global _helper
    try:
        from bio_diffusion.dock import kernels
    except ImportError:  # no Numba
        return
    if _helper is None and not kernels.kept():
        none = subprocess.DEVNULL
        _helper = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=none, stdout=subprocess.PIPE, stderr=none, text=True,
        )  # fmt: skip


def wait(kernel: str = "") -> None:
    """Until the process, if there is one, has compiled that kernel, or all of them, or failed."""
    global _helper
    if _helper is None or kernel in _done:
        return
    assert _helper.stdout is not None
    for line in _helper.stdout:
        _done.add(line.strip())
        if kernel in _done:
            return
    _helper.communicate()
    _helper = None
