"""A critic for PPO: how much reward a video that begins like this will get.

The paper's GRPO needs none; this is for the algorithms that do. The value of a state is read at the position before
the step's first token: there everything that is known has been read, the game action too, and nothing of the step.

Letters: T steps, h hidden.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn

from rlir_agents.hardware import autocast
from rlir_agents.policies.sequence import known_prefix, sequences_of
from rlir_agents.world_models import TokenWorldModel, hidden_at


class TokenValue(TensorDictModuleBase):
    """Writes ``state_value``, by one forward per trajectory.

    Works in `ClipPPOLoss` and in GAE with ``shifted=True``: positions are read from the data, so ``next`` states and
    T + 1 states are served alike.

    Attributes:
        world_model: The trunk, trained with the critic; give it a copy of its own unless sharing is meant.
        head: From h to one number; starts at zero, so that the first advantages are the rewards.
    """

    def __init__(self, world_model: TokenWorldModel, *, autocast_dtype: torch.dtype | None = None) -> None:
        """Put a head on a world model.

        Args:
            world_model: The trunk.
            autocast_dtype: Precision of the trunk; None leaves it to the weights and to the caller.
        """
        super().__init__()
        self.in_keys = ["token", "position"]
        self.out_keys = ["state_value"]
        self.world_model = world_model
        self.head = nn.Linear(world_model.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.autocast_dtype = autocast_dtype

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``state_value``, float32 ``[..., T, 1]`` of trajectories ``[..., T]`` or ``[B, 1]`` of states ``[B]``.

        Raises:
            ValueError: if the steps of a row do not belong to one trajectory.
        """
        token, position = sequences_of(tensordict)
        before = position - 1
        with autocast(token.device, self.autocast_dtype):
            hidden = hidden_at(self.world_model.hidden(known_prefix(token, before)), before)
        with torch.autocast(token.device.type, enabled=False):  # values are regressed in float32
            value = self.head(hidden.float())
        return tensordict.set("state_value", value.reshape(*tensordict.batch_size, 1))
