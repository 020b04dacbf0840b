"""Floating-point operations and memory of code that runs on tensors without memory.

Under torch's fake tensors every operation has its shapes, types and strides, and no numbers: a model of a billion
parameters is run in seconds, forward and backward. Operations are counted by torch's own counter; memory as what is
alive at once.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from rlir_agents.world_models.kernels import as_on_gpu

Module = TypeVar("Module", bound=nn.Module)


def hollow(module: Module) -> Module:
    """Replace the weights of a module, which may be on the meta device, by tensors of one number each on the CPU."""
    with torch.device("cpu"):
        return _with_weights(module, lambda weight: torch.zeros((), dtype=weight.dtype).expand(weight.shape))


def _with_weights(module: Module, make: Callable[[Tensor], Tensor]) -> Module:
    """Put what ``make`` makes of each parameter and buffer in its place."""
    for owner in module.modules():
        for name, weight in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(make(weight), requires_grad=weight.requires_grad))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, make(buffer))
    return module


class Count(NamedTuple):
    """What a piece of code costs.

    Attributes:
        flops: Floating-point operations of its products; a multiply-add has two.
        peak_bytes: Most memory that was alive at once of what it made.
    """

    flops: float
    peak_bytes: int


class Meter:
    """Runs code on fake tensors of the CPU, with a GPU's attention, and counts."""

    def __init__(self) -> None:
        """Start with nothing made."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(self, module: Module) -> Module:
        """A copy of a module, to be run under :meth:`count`."""
        whole = copy.deepcopy(module)
        with self._mode:
            return _with_weights(whole, lambda weight: torch.empty(weight.shape, dtype=weight.dtype))

    def count(self, function: Callable[[], Any]) -> Count:
        """Run a function that makes its own tensors; what it returns is dropped."""
        counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS)
        with self._mode, _LiveMemory() as memory, counter, as_on_gpu():
            function()
        return Count(counter.get_total_flops(), memory.peak)


class _LiveMemory(TorchDispatchMode):
    """Adds up the memory of what operations make, while it is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, made)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._now += size
            self.peak = max(self.peak, self._now)
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        self._now -= size
        del self._alive[key]


def _attention_flops(
    query: torch.Size, key: torch.Size, _: Any, dropout_p: float = 0.0, is_causal: bool = False, **__: Any
) -> float:
    """Two products of all queries with all keys; a causal kernel leaves half of them out."""
    rows, heads, num_queries, head_dim = query
    return 4 * rows * heads * num_queries * key[2] * head_dim / (2 if is_causal else 1)


def _attention_gradient_flops(
    _: Any, query: torch.Size, key: torch.Size, value: torch.Size, out: Any, logsumexp: Any, *settings: Any, **more: Any
) -> float:
    """Five products instead of two: the scores are made again."""
    return 2.5 * _attention_flops(query, key, value, *settings, **more)


_ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradient_flops,
}
