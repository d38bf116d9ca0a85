"""Where compiled loops may stand in for torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bio_diffusion.dock import ahead

__all__ = ["apply", "kernels_for"]


@cache
def _kernels() -> ModuleType | None:
    try:
        from bio_diffusion.dock import kernels
    except ImportError:  # a machine that trains need not have Numba
        return None
    return kernels


def kernels_for(example: Tensor) -> ModuleType | None:
    """`kernels`, if they may do this work: in float32 on the CPU, and nobody wants gradients."""
    if example.device.type != "cpu" or example.dtype != torch.float32 or torch.is_grad_enabled():
        return None
    return _kernels()


def apply(kernel: Callable[..., Any], *arguments: Tensor | float | tuple[float, ...]) -> None:
    """Calls a kernel on the memory of tensors; those that it fills must be contiguous."""
    ahead.wait(kernel.__name__)
    kernel(*(a.contiguous().numpy() if isinstance(a, Tensor) else a for a in arguments))
