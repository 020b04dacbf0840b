"""A critic for PPO: how much reward a video that begins like this will get.

The paper's GRPO needs none; this is for the algorithms that do. A critic reads the states alone, never the actions, and
works in `ClipPPOLoss` and in GAE, which calls it on ``next`` states as well.

Letters: T steps, h hidden.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from rlir_agents.hardware import autocast
from rlir_agents.policies.latent_sequence import Arrangement, check_fit, constant_of, latent_sequences_of
from rlir_agents.policies.sequence import known_prefix, sequences_of
from rlir_agents.world_models import (
    ActionEncoder,
    LatentWorldModel,
    NFDGroups,
    TokenWorldModel,
    as_context,
    hidden_at,
)
from rlir_env.layout import LatentLayout


class _Head(nn.Linear):
    """From a hidden state to one number; starts at zero, so that the first advantages are the rewards."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # values are regressed in float32
            return super().forward(hidden.float())


class TokenValue(TensorDictModuleBase):
    """Writes ``state_value``, by one forward per trajectory.

    The value of a state is read at the position before the step's first token: there everything that is known has been
    read, the game action too, and nothing of the step. Positions are read from the data, so ``next`` states and T + 1
    states are served alike.

    Attributes:
        world_model: The trunk, trained with the critic; give it a copy of its own unless sharing is meant.
        head: From h to one number.
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
        self.head = _Head(world_model.hidden_size)
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
        return tensordict.set("state_value", self.head(hidden).reshape(*tensordict.batch_size, 1))


class LatentValue(TensorDictModuleBase):
    """Writes ``state_value`` of denoising states, by one forward per trajectory.

    The value of a state is read from the frame under way, at its timestep, behind the finished frames.

    Attributes:
        world_model: The trunk, trained with the critic; give it a copy of its own unless sharing is meant.
        head: From h to one number.
    """

    def __init__(
        self,
        world_model: LatentWorldModel,
        layout: LatentLayout,
        *,
        action_encoder: ActionEncoder | None = None,
        context_timestep: float = 0.0,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Put a head on a world model.

        Args:
            world_model: The trunk.
            layout: That of the env.
            action_encoder: As in `DenoisingPolicy`.
            context_timestep: As there.
            autocast_dtype: Precision of the trunk; None leaves it to the weights and to the caller.

        Raises:
            ValueError: if layout, model and encoder do not fit.
        """
        super().__init__()
        action_encoder = NFDGroups() if action_encoder is None else action_encoder
        check_fit(world_model, layout, action_encoder)
        self.in_keys = ["latent", "frame_index", "denoising_step", "timestep", "game_action", "prompt_seed"]
        self.out_keys = ["state_value"]
        self.world_model, self.action_encoder, self.context_timestep = world_model, action_encoder, context_timestep
        self.head = _Head(world_model.hidden_size)
        self.autocast_dtype = autocast_dtype

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``state_value``, float32 ``[..., T, 1]`` of trajectories ``[..., T]`` or ``[B, 1]`` of states ``[B]``.

        Raises:
            ValueError: if the steps of a row do not belong to one trajectory.
        """
        items = latent_sequences_of(tensordict, with_action=False)
        place = Arrangement.of(items.frame_index, torch.ones_like(items.frame_index, dtype=torch.bool))
        last = place.first_frame + place.num_frames - 1
        prompt_seed = constant_of(tensordict, "prompt_seed").squeeze(-1)
        context = as_context(items.frames[:, :last], prompt_seed, self.context_timestep)
        vector = self.action_encoder.of_frames(constant_of(tensordict, "game_action", 2))[:, : last + 1]
        with autocast(context.device, self.autocast_dtype):
            hidden = self.world_model.hidden_of_steps(
                context,
                torch.full_like(context[:, :, 0, 0, 0], self.context_timestep),
                place.spread(items.latent),
                place.spread(tensordict["timestep"].reshape(items.frame_index.shape)),
                vector,
            )
        return tensordict.set("state_value", self.head(place.collect(hidden)).reshape(*tensordict.batch_size, 1))
