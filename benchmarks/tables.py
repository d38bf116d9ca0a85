"""Cells of the tables that the benchmarks print."""

import math
import statistics
from collections.abc import Iterable


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard error, such as over seeds; what is not finite is left out."""
    given = list(values)
    finite = [value for value in given if math.isfinite(value)]
    if not finite:
        return "none" if given else ""
    mean = f"{statistics.mean(finite):.{digits}f}"
    if len(finite) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(finite) / math.sqrt(len(finite)):.{digits}f}"


def additive(
    neither: float, first: float, second: float, both: float
) -> tuple[float, float, float, float]:
    """Do two gains add? Change of a measure's logarithm by the first, the second, their sum, both.

    Args:
        neither: the measure without either, > 0; and so on.
    """
    a, b, together = (math.log(value / neither) for value in (first, second, both))
    return a, b, a + b, together
