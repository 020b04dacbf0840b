"""Seconds of several ways to do the same, taken side by side: only their ratios say something about the code."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(
    ways: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median of each way over several rounds.

    A round runs every way once, so that what else the machine does meets all of them alike. One round before is not
    timed: it touches fresh memory and chooses kernels.

    Args:
        ways: By name.
        repeats: Rounds that are timed.
        clock: Seconds since some moment.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for timed in (False,) + (True,) * repeats:
        for name, run in ways.items():
            start = clock()
            run()
            if timed:
                seconds[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}
