"""What the machine can do: the fastest matrix product and memory copy seen here and now, through torch.

They are measured, not looked up: what a data sheet promises is for all cores of a chip that others may share.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

# Which size is fastest depends on caches and threads; the peak is that of the best.
_PRODUCT_SIZES = (1024, 2048, 3072)
_COPY_BYTES = 2**28  # far beyond any cache
_REPEATS = 6


@dataclass(frozen=True)
class Peaks:
    """Rates that no part of a program can beat.

    Attributes:
        flops: Of matrix products, FLOP per second by type of the operands; a multiplication and an addition are two.
            Those of `measure_peaks` are measured when asked for: a type that is only emulated would take minutes.
        copy: Bytes per second of a memory copy, read and written bytes added.
    """

    flops: dict[torch.dtype, float]
    copy: float


class _MeasuredProducts(dict[torch.dtype, float]):
    def __missing__(self, dtype: torch.dtype) -> float:
        self[dtype] = product_peak(dtype)
        return self[dtype]


def measure_peaks() -> Peaks:
    """Measure, in a second or two."""
    return Peaks(_MeasuredProducts(), copy_peak())


def product_peak(dtype: torch.dtype, sizes: Sequence[int] = _PRODUCT_SIZES) -> float:
    """FLOP per second of the fastest square matrix product."""
    rates = []
    for size in sizes:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        rates.append(2 * size**3 / _best_seconds(partial(torch.mm, left, right, out=out)))
    return max(rates)


def copy_peak(num_bytes: int = _COPY_BYTES) -> float:
    """Bytes per second of a copy, read and written bytes added."""
    source = torch.ones(num_bytes, dtype=torch.uint8)  # ones: pages that were only promised would be read from a cache
    target = torch.ones_like(source)
    return 2 * num_bytes / _best_seconds(lambda: target.copy_(source))


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _best_seconds(function: Callable[[], object]) -> float:
    """The shortest of several runs: others on the machine can only add to it."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
