"""How much there is to do: counted FLOPs and bytes, and the time below which no machine of these peaks can do it.

Counted are products: matrix products, convolutions, attention, forward and backward. What lies between them
(norms, activations, sums) could be done while operands pass by, so it counts nothing; a product reads its operands and
writes its result once. The limit is therefore low, and a ratio to it includes all that is not a product. (It is not
strict: operands that still lie in a cache move faster than a copy does.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.peaks import Peaks


@dataclass(frozen=True)
class Work:
    """One product, or anything else that moves bytes.

    Attributes:
        flops: A multiplication and an addition are two.
        num_bytes: Read and written.
        dtype: Of the operands: it decides which peak holds.
    """

    flops: float
    num_bytes: float
    dtype: torch.dtype

    def times(self, count: float) -> Work:
        """The same work for so many times the rows."""
        return Work(self.flops * count, self.num_bytes * count, self.dtype)

    def limit(self, peaks: Peaks) -> float:
        """Seconds below which it cannot be done: multiplying and moving bytes may overlap, so the longer of the two."""
        return max(self.flops / peaks.flops[self.dtype], self.num_bytes / peaks.copy)


def product(num_rows: int, num_in: int, num_out: int, dtype: torch.dtype) -> Work:
    """Rows times a weight: each operand is read once, the result written once."""
    elements = num_rows * num_in + num_in * num_out + num_rows * num_out
    return Work(2 * num_rows * num_in * num_out, elements * dtype.itemsize, dtype)


def limit(works: Iterable[Work], peaks: Peaks) -> float:
    """Seconds below which works cannot be done one after the other: the sum of their limits.

    Example:
        >>> peaks = Peaks({torch.float32: 100.0}, copy=10.0)
        >>> busy, moving = Work(200, 10, torch.float32), Work(100, 30, torch.float32)
        >>> limit([busy, moving], peaks)  # max(2, 1) + max(1, 3)
        5.0
    """
    return sum(work.limit(peaks) for work in works)


def total(works: Sequence[Work]) -> tuple[float, float]:
    """FLOPs and bytes of all works."""
    return sum(work.flops for work in works), sum(work.num_bytes for work in works)


class ProductCounter(TorchDispatchMode):
    """Notes every product that runs inside the ``with`` block, by torch's own FLOP formulas, and its bytes.

    Beside torch's `FlopCounterMode` it knows bytes, and keeps products apart, as a sum of limits needs them.

    Attributes:
        works: In the order in which they ran.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        self.works: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it if it is a product."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flops_of = flop_registry.get(func._overloadpacket)
        if flops_of is not None:
            operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            num_bytes = sum(map(_num_bytes, operands + results))
            self.works.append(Work(flops_of(*args, **kwargs, out_val=out), num_bytes, operands[0].dtype))
        return out


def _num_bytes(tensor: Tensor) -> int:
    """Bytes in memory; what is expanded lies there once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
