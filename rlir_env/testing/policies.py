"""The smallest policy: uniform codes, for tests of envs and for baselines."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class RandomTokenPolicy(TensorDictModuleBase):
    """Samples every token uniformly, with a generator of its own."""

    def __init__(self, num_codes: int, tokens_per_step: int = 1, seed: int = 0) -> None:
        """Set the action's range ``0 .. num_codes-1``, its length k and the seed."""
        super().__init__()
        self.in_keys = ["position"]
        self.out_keys = ["action", "action_log_prob"]
        self.num_codes = num_codes
        self.tokens_per_step = tokens_per_step
        self._noise = torch.Generator().manual_seed(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action`` long ``[B, k]`` and ``action_log_prob`` float32 ``[B, k]``."""
        shape = (*tensordict.batch_size, self.tokens_per_step)
        action = torch.randint(self.num_codes, shape, generator=self._noise)
        log_prob = torch.full(shape, -math.log(self.num_codes))
        device = tensordict["position"].device
        return tensordict.update({"action": action.to(device), "action_log_prob": log_prob.to(device)})
