"""A token world model as a TorchRL policy: its action is the next k visual tokens (paper, section 4.2).

Step mode (``forward``) samples with a cache, for collection. Sequence mode (``get_dist``) is one teacher-forced forward
over finished trajectories, for losses. Their log-probabilities agree to 1e-5 in float32. Rewards, advantages and losses
are *not* here; the weights belong to the world model, whose class knows nothing of RL.

Letters: B rows, T steps, k tokens per step, F frames, K tokens of a frame, L sequence length, V codes.
"""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Categorical

from rlir_agents.hardware import autocast
from rlir_agents.policies.sequence import known_prefix, sequences_of
from rlir_agents.policies.token_steps import TokenSteps
from rlir_agents.policies.value import TokenValue
from rlir_agents.world_models import Decoder, TokenSampler, TokenWorldModel, hidden_at
from rlir_env.layout import TokenLayout


class TokenPolicy(TensorDictModuleBase):
    """The world model is the agent: it samples visual tokens; game actions are part of what it reads.

    It always samples, whatever TorchRL's exploration type says: with modes, siblings would be identical, advantages
    zero, and nothing would be learnt, without an error. Ids of action words have no probability.

    The distribution is that of the sampler in both modes. With ``top_p < 1`` log-probabilities are those under the
    truncated distribution, and a stored action stays in its support in sequence mode (see `TokenSampler.truncate`);
    training with a truncated policy is possible, but biased, since codes outside are never tried.

    Attributes:
        world_model: Holds all parameters.
        layout: Of the videos.
        tokens_per_step: k.
        sampler: Temperature and top-p.
        autocast_dtype: Precision of the network in both modes; None leaves it to the weights and to the caller.
    """

    # Where TorchRL's losses look for what to read from a rollout.
    dist_sample_keys = ["action"]
    log_prob_keys = ["action_log_prob"]

    def __init__(
        self,
        world_model: TokenWorldModel,
        layout: TokenLayout,
        tokens_per_step: int | str = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        greedy: bool = False,
        top_k: int | None = None,
        positions_per_chunk: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a world model.

        Args:
            world_model: Long enough for the layout.
            layout: That of the env.
            tokens_per_step: k, a divisor of K, or ``"frame"``; that of the env.
            temperature: Divides the logits.
            top_p: See `TokenSampler`.
            greedy: Take the most probable code instead of sampling.
            top_k: See `TokenSampler`.
            positions_per_chunk: In sequence mode logits are made for so many positions at a time, and again in the
                backward pass (see `TokenSteps`); None makes them all at once, which is faster where they fit.
            autocast_dtype: See above.

        Raises:
            ValueError: if the videos are longer than the model allows or a setting is out of range.
        """
        super().__init__()
        if not isinstance(world_model, TokenWorldModel):
            raise ValueError(
                f"a {type(world_model).__name__} makes no tokens: take a MineWorld, or paradigm=diffusion with "
                "DenoisingPolicy"
            )
        if layout.sequence_length > world_model.max_length:
            raise ValueError(
                f"videos of {layout.sequence_length} tokens, but the world model reads {world_model.max_length}; "
                "use fewer frames or tokens per frame"
            )
        # Sequence mode reads the actions, too; losses such as A2C's hand over the in_keys and nothing else.
        self.in_keys = ["token", "position", "episode_seed", "action"]
        self.out_keys = ["action", "action_log_prob"]
        self.world_model = world_model
        self.layout = layout
        self.tokens_per_step = layout.tokens_per_step(tokens_per_step)
        self.sampler = TokenSampler(temperature, top_p, greedy, top_k)
        if positions_per_chunk is not None and positions_per_chunk < 1:
            raise ValueError(f"positions_per_chunk={positions_per_chunk}: give a number from 1 on, or null for all")
        self.positions_per_chunk = positions_per_chunk
        self.autocast_dtype = autocast_dtype
        self._decoder = Decoder(self.sampler, autocast_dtype)

    @property
    def num_steps(self) -> int:
        """T, steps of a whole video."""
        return self.layout.num_steps(self.tokens_per_step)

    @property
    def num_passes(self) -> int:
        """How often a rollout runs the network until a video is finished."""
        return self.layout.num_generated_frames * self.layout.tokens_per_frame

    @property
    def cache_bytes(self) -> int:
        """Memory that the key/value cache of the last collection holds."""
        return self._decoder.cache_bytes

    def make_critic(self) -> TokenValue:
        """A critic on a copy of the world model, so that the two learn apart."""
        return TokenValue(copy.deepcopy(self.world_model), autocast_dtype=self.autocast_dtype)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample one step: write ``action`` long ``[B, k]`` and ``action_log_prob`` float32 ``[B, k]``.

        The cache goes on from the last call if the known tokens do; otherwise they are read again.

        Raises:
            ValueError: if the tensordict is not a flat batch, or its rows stand at different positions.
        """
        token, seed = tensordict["token"].clone(), _rows(tensordict["episode_seed"])
        position = self._common_position(tensordict)
        self._decoder.resume(self.world_model, token, position)
        action, log_prob = self._decoder.sample(position, self.tokens_per_step, seed)
        return tensordict.update({"action": action, "action_log_prob": log_prob})

    @torch.no_grad()
    def generate(self, tensordict: TensorDictBase) -> TensorDict:
        """Sample whole videos, the tokens that ``forward`` would sample step by step.

        Args:
            tensordict: A freshly reset state ``[B]``.

        Returns:
            What ``forward`` writes, for all steps, ``[B, T]``.

        Raises:
            ValueError: if a video has begun already.
        """
        if self._common_position(tensordict) != self.layout.prompt_length:
            raise ValueError("generate makes whole videos: pass a state that the env has just reset")
        video, log_prob = self._decoder.generate(
            self.world_model,
            tensordict["token"].clone(),
            tensordict["game_action_word"],
            self.layout,
            _rows(tensordict["episode_seed"]),
        )
        codes = video[:, self.layout.action_positions.to(video.device)].long()
        taken = {"action": codes, "action_log_prob": log_prob}
        taken = {key: entry.unflatten(1, (self.num_steps, self.tokens_per_step)) for key, entry in taken.items()}
        return TensorDict(taken, batch_size=[len(video), self.num_steps])

    def get_dist(self, tensordict: TensorDictBase) -> Categorical | TokenSteps:
        """The distribution of every token of trajectories, by one forward each, differentiable.

        Args:
            tensordict: ``[..., T]``, a trajectory a row, or ``[B]`` single steps; reads ``token``, ``position`` and
                ``action``.

        Returns:
            Categorical over codes of batch shape ``[..., T, k]``; logits in float32.

        Raises:
            ValueError: if the steps of a row do not belong to one trajectory.
        """
        token, position = sequences_of(tensordict)
        action = tensordict["action"].reshape(*position.shape, -1)  # [N, T, k]
        places = position[..., None] + torch.arange(action.shape[-1], device=position.device)
        # The last step's own tokens are in no state yet; they condition one another.
        token = token.scatter(1, places[:, -1], action[:, -1].to(token.dtype))
        before = places.flatten(1) - 1  # the token at a place is predicted by the position before it
        action = action.reshape(*tensordict.batch_size, *action.shape[2:])
        return self.dist_after(known_prefix(token, before), before, action)

    def dist_after(self, token: Tensor, before: Tensor, action: Tensor) -> Categorical | TokenSteps:
        """The distributions from which codes were taken, by one forward.

        Args:
            token: Sequences as far as they are needed, integer ``[N, L]``.
            before: Positions whose next code is meant, long ``[n]`` or ``[N, n]``.
            action: The codes that were taken, of N n elements in any shape, which the distribution has, too.
        """
        with autocast(token.device, self.autocast_dtype):
            hidden = hidden_at(self._hidden(token), before).flatten(0, 1)
        if self.positions_per_chunk is not None:
            return TokenSteps(hidden, self._score, action, self.positions_per_chunk)
        logits = self._score(hidden, action.flatten())
        return Categorical(logits=logits.reshape(*action.shape, -1), validate_args=False)

    def _hidden(self, token: Tensor) -> Tensor:
        """Hidden states ``[N, L, h]``, of which the one before a code has read what that was sampled after."""
        return self.world_model.hidden(token)

    def _score(self, hidden: Tensor, action: Tensor) -> Tensor:
        """Logits ``[M, V]`` of the distributions that were sampled from, by hidden states and the codes taken there."""
        with autocast(hidden.device, self.autocast_dtype):
            logits = self.world_model.logits(hidden)
        return self.sampler.truncate(logits[..., : self.world_model.num_codes], action)

    def _common_position(self, tensordict: TensorDictBase) -> int:
        if tensordict.batch_dims != 1:
            raise ValueError(
                f"step mode needs a flat batch [B], got {list(tensordict.batch_size)}; for trajectories use get_dist"
            )
        position = tensordict["position"]
        first = int(position[0])
        if not (position == first).all():
            raise ValueError(
                "rows stand at different positions: step mode decodes a batch in lockstep; reset all rows together"
            )
        return first


def _rows(column: Tensor) -> Tensor:
    return column.squeeze(-1)
