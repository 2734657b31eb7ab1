"""How the benchmarks measure."""

from __future__ import annotations

import statistics
import time


def medians(first, second, repeats: int) -> tuple[float, float]:
    """Median seconds of two functions, called in turn so that a busy machine slows both. Warm them up before."""
    times = ([], [])
    for _ in range(repeats):
        for function, spent in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            spent.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
