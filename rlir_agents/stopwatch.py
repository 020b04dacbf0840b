"""Where an iteration's time goes: rollout, reward, score, update."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up wall seconds under names.

    Example:
        >>> watch = Stopwatch()
        >>> with watch("rollout"):
        ...     pass
        >>> list(watch.lap())
        ['seconds/rollout']
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str, part_of: str | None = None) -> Iterator[None]:
        """Time a block; name the timed block it is `part_of`, and it is not counted twice."""
        start = _now()
        yield
        seconds = _now() - start
        self._seconds[name] += seconds
        if part_of is not None:
            self._seconds[part_of] -= seconds

    @contextmanager
    def calls(self, owner: object, method: str, name: str, part_of: str | None = None) -> Iterator[None]:
        """Time every call of an object's method in a block; after it the object is as it was."""
        function = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            with self(name, part_of):
                return function(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)  # the class's own shows again

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap as ``seconds/<name>``; starts the next lap."""
        seconds = {f"seconds/{name}": total for name, total in self._seconds.items()}
        self._seconds.clear()
        return seconds


def _now() -> float:
    # Kernels run behind the program's back: wait for them, or their time lands on the next block.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
