"""Video generation as an MDP: what token and denoising environments share (paper, section 4).

The **agent is the world model**: it makes the video piece by piece. The player's game actions are
part of the observation, all of them known from the reset on; they are never the action. Everything
in here is frozen. This is *not* a simulator of the game and not a learnt environment for a player.

Letters: P prompts, G group size, B = P G rows (row p G + g is sibling g of prompt p), F frames, S
slots.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import make_composite_from_td

from rlir_env.envs.prompt_order import PromptOrder
from rlir_env.rewards import RewardFn

if TYPE_CHECKING:  # the env asks nothing of them but their interface
    from rlir_env.layout import LatentLayout, TokenLayout
    from rlir_env.prompts import GenerationPrompt, PromptSource
    from rlir_env.tokenizers import Tokenizer

EPISODE_KEYS = ("prompt_index", "prompt_seed", "episode_seed", "group_id")
"""Entries that name an episode and its noise; the agent observes everything else."""

_DECODED_NUMBERS = 2**28
"""Of the videos that are paid at once: a gigabyte in float32, or 65 of the published size."""

_MOST_CLASSES = 2**31
"""Of a game action's slot: the env does not know the game, so any index is allowed that any game could have."""


class VideoGenerationEnv(EnvBase):
    """The agent is the world model: reset draws prompts, steps apply its pieces, the end pays.

    The state is the tensordict: :meth:`_step` is a pure function of it, and rows do not influence
    one another. The only thing an env object remembers is how many groups it has drawn
    (:attr:`num_groups_drawn`), because a reset has to give the next prompts. To start from chosen
    prompts and seeds instead, as evaluation does, use :meth:`initial_state` and
    ``env.rollout(env.num_steps, policy, auto_reset=False, tensordict=state)``.

    Entries that never change in an episode (``game_action``, ``prompt_index``, ``prompt_seed``,
    ``episode_seed``, ``group_id``) are TorchRL *state*: written by the reset, carried along, and
    absent from ``next``. The reward is several entries, ``reward [B, 1]``, ``frame_reward [B,
    F-1]`` and the breakdown of the reward function, all zero before the terminal step. The horizon
    is ``terminated``: a finished video is the end of the task, not a time limit.

    Every frame is decoded from its code at the end, the given one too: a reader that compared a camera image with a
    reconstruction would see the tokenizer in the first transition.

    Attributes:
        prompts: Where prompts come from.
        tokenizer: Frozen; makes the context's code and decodes the video.
        reward_fn: What a finished generation is worth.
        group_size: G, siblings of one prompt; they are adjacent rows.
        layout: Where things stand in a video; policies and collectors are made for the same one.
    """

    layout: TokenLayout | LatentLayout

    def __init__(
        self,
        prompts: PromptSource,
        tokenizer: Tokenizer,
        reward_fn: RewardFn,
        *,
        num_prompts: int = 1,
        group_size: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Make an env of ``num_prompts * group_size`` rows.

        Args:
            prompts: Clips with one context frame.
            tokenizer: Maps frames to codes and back; frozen here.
            reward_fn: What a finished generation is worth; frozen here.
            num_prompts: P, the prompts of one batch.
            group_size: G, the siblings of each.
            seed: Of the order of prompts and of the noise seeds.
            device: Where states live; the frozen networks are moved there.
            autocast_dtype: Precision of decoding, None for the tokenizer's own. Encoding is never
                autocast: a prompt's code must not depend on it.

        Raises:
            ValueError: if a count is below one, the seed negative or the source empty, or the
                prompts do not have one context frame.
        """
        if num_prompts < 1 or group_size < 1:
            raise ValueError(f"num_prompts={num_prompts}, group_size={group_size}: both must be 1 or more")
        super().__init__(device=device, batch_size=[num_prompts * group_size])
        self.prompts = prompts
        self.tokenizer = tokenizer.to(device).eval().requires_grad_(False)
        self.reward_fn = reward_fn.to(device).eval().requires_grad_(False)
        self.group_size = group_size
        self.autocast_dtype = autocast_dtype
        self._order = PromptOrder(prompts.num_prompts, seed)
        self._first_prompt = prompts.get(torch.zeros(1, dtype=torch.long))
        num_context_frames = self._first_prompt.context_frames.shape[1]
        if num_context_frames != 1:
            raise ValueError(f"prompts give {num_context_frames} context frames; cut clips with one")

    def train(self, mode: bool = True) -> VideoGenerationEnv:
        """Stay in evaluation mode, whatever ``mode`` says: the networks in here are frozen, their statistics too."""
        return super().train(False)

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """T, the steps of a whole episode."""

    @property
    @abstractmethod
    def interface(self) -> dict[str, Any]:
        """What a policy and its world model are made for, by the names that their constructors give it."""

    @abstractmethod
    def num_finished_frames(self, tensordict: TensorDictBase) -> Tensor:
        """Frames that every row has so far, long ``[N, 1]``; 1 at the reset, F at the end."""

    @abstractmethod
    def states_along(self, state: TensorDictBase, action: Tensor) -> TensorDict:
        """What changes from step to step in whole videos, without stepping through them.

        Args:
            state: That of a reset, ``[B]``.
            action: All actions, ``[B, T, ...]``.

        Returns:
            ``[B, T + 1]``: the entries of the observation before every step, and at the end.
        """

    @abstractmethod
    def _codes_of(self, tensordict: TensorDictBase) -> Tensor:
        """The codes of every frame of N rows, ``[N, F, ...]``, ready to be decoded where frames are finished."""

    @torch.no_grad()
    def frames_of(self, tensordict: TensorDictBase, num_frames: int | None = None) -> Tensor:
        """Decode the first frames of every row's video, finished or not.

        Args:
            tensordict: A state, ``[B]`` or any number of rows ``[N]``.
            num_frames: How many frames from the start; None means F.

        Returns:
            float32 ``[N, num_frames, 3, H, W]`` in [0, 1]; frames that are not finished are black.
        """
        num_frames = self.layout.num_frames if num_frames is None else num_frames
        codes = self._codes_of(tensordict)[:, :num_frames]
        is_autocast = self.autocast_dtype is not None
        with torch.autocast(codes.device.type, dtype=self.autocast_dtype, enabled=is_autocast):
            frames = self.tokenizer.decode(codes).float()
        is_finished = torch.arange(num_frames, device=codes.device) < self.num_finished_frames(tensordict)
        return torch.where(is_finished[..., None, None, None], frames, 0.0)

    @abstractmethod
    def _start(self, prompt: GenerationPrompt) -> dict[str, Tensor]:
        """The paradigm's part of the initial state of N prompts, each entry ``[N, ...]``."""

    @property
    def num_groups(self) -> int:
        """P, the prompts of one batch."""
        return self.batch_size[0] // self.group_size

    @property
    def num_groups_drawn(self) -> int:
        """Groups handed out by resets so far; store it, and set it to resume a run there."""
        return self._order.num_groups_drawn

    @num_groups_drawn.setter
    def num_groups_drawn(self, count: int) -> None:
        self._order.num_groups_drawn = count

    @torch.no_grad()
    def initial_state(self, prompt_index: Tensor, episode_seed: Tensor, group_id: Tensor | None = None) -> TensorDict:
        """Start given prompts with given noise, without touching the order of prompts.

        Args:
            prompt_index: Prompt of every row, long ``[N]``; equal neighbours may be siblings.
            episode_seed: Seed of every row's own noise, long ``[N]``.
            group_id: Group of every row, long ``[N]``; None gives rows with the same prompt one
                group.

        Returns:
            A state of N rows, as the reset gives it (N = B for a rollout of this env).

        Raises:
            ValueError: if the shapes differ or a prompt does not exist.
        """
        prompt_index, episode_seed = prompt_index.cpu().long(), episode_seed.cpu().long()
        group_id = prompt_index if group_id is None else group_id.cpu().long()
        if prompt_index.ndim != 1 or not prompt_index.shape == episode_seed.shape == group_id.shape:
            raise ValueError("prompt_index, episode_seed and group_id must be vectors of one length")
        count = self.prompts.num_prompts
        if prompt_index.min() < 0 or prompt_index.max() >= count:
            raise ValueError(f"prompt_index must be in 0..{count - 1}, got {prompt_index.tolist()}")
        return self._state(prompt_index, episode_seed, group_id)

    def score(self, tensordict: TensorDictBase) -> TensorDict:
        """Pay finished generations: decode and hand them to the reward function.

        Args:
            tensordict: Terminal states of N rows.

        Returns:
            ``reward [N, 1]``, ``frame_reward [N, F-1]`` and the breakdown entries.
        """
        height, width = self.tokenizer.frame_size
        videos_at_once = max(1, _DECODED_NUMBERS // (self.layout.num_frames * 3 * height * width))
        return torch.cat([self._score(rows) for rows in tensordict.split(videos_at_once)])

    def _score(self, tensordict: TensorDictBase) -> TensorDict:
        generation = TensorDict(
            {"frames": self.frames_of(tensordict), "game_action": self._rewarded_game_action(tensordict)},
            batch_size=tensordict.batch_size,
        )
        if self.reward_fn.uses_target_frames:
            generation["target_frames"] = self._target_frames(tensordict["prompt_index"])
        return self.reward_fn(generation)

    def no_reward(self, num_rows: int) -> TensorDict:
        """The reward entries before the end: :meth:`score`'s keys, all zero, ``[num_rows]``."""
        return self.reward_fn.zeros(num_rows, *self._action_shape, device=self.device)

    @property
    def _action_shape(self) -> tuple[int, int]:
        """(F-1, S) of the prompts' game actions."""
        num_transitions, num_slots = self._first_prompt.game_action.shape[1:]
        return num_transitions, num_slots

    def _set_specs(self, observation: Composite, action: Any, **constants: Any) -> None:
        """Declare the interface; called once by subclasses.

        Args:
            observation: What changes from step to step.
            action: Spec of ``action``.
            **constants: Specs of further entries that never change in an episode.
        """
        rows = self.batch_size
        integer = {"dtype": torch.long, "device": self.device}
        seeds = {name: Unbounded((*rows, 1), **integer) for name in EPISODE_KEYS}
        game_action = Bounded(0, _MOST_CLASSES - 1, (*rows, *self._action_shape), **integer)
        self.observation_spec = observation
        self.state_spec = Composite(game_action=game_action, **seeds, **constants, shape=rows)
        self.action_spec = action
        self.reward_spec = make_composite_from_td(self.no_reward(rows[0]))
        done = Binary(n=1, shape=(*rows, 1), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(done=done, terminated=done.clone(), shape=rows)

    def _set_seed(self, seed: int | None) -> None:
        """Restart the order of prompts under a new seed; None leaves it as it is."""
        if seed is not None:
            self._order = PromptOrder(self.prompts.num_prompts, seed)

    @torch.no_grad()
    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        is_reset = None if tensordict is None else tensordict.get("_reset", None)
        groups = self._groups_to_reset(is_reset)
        first = self.num_groups_drawn
        prompt_index = self._order.draw(len(groups)).repeat_interleave(self.group_size)
        group_id = torch.arange(first, first + len(groups)).repeat_interleave(self.group_size)
        sibling = torch.arange(self.group_size).repeat(len(groups))
        state = self._state(prompt_index, self._order.episode_seeds(group_id, sibling), group_id)
        return self._spread(state, groups)

    def _groups_to_reset(self, is_reset: Tensor | None) -> list[int]:
        if is_reset is None:
            return list(range(self.num_groups))
        by_group = is_reset.reshape(self.num_groups, self.group_size)
        if (by_group.any(1) != by_group.all(1)).any():
            raise ValueError("siblings share a prompt: reset whole groups, or use group_size=1")
        return by_group.all(1).nonzero().flatten().tolist()

    def _spread(self, state: TensorDict, groups: list[int]) -> TensorDict:
        """Put the rows of the groups where they belong; TorchRL ignores all other rows."""
        if len(groups) == self.num_groups:
            return state
        source = torch.zeros(self.num_groups, dtype=torch.long)
        source[groups] = torch.arange(len(groups))
        rows = source[:, None] * self.group_size + torch.arange(self.group_size)
        return state[rows.flatten()]

    def _state(self, prompt_index: Tensor, episode_seed: Tensor, group_id: Tensor) -> TensorDict:
        unique, row_of = prompt_index.unique(return_inverse=True)
        prompt = self.prompts.get(unique)
        entries = self._start(prompt)  # once per prompt: siblings get copies
        entries["game_action"] = prompt.game_action
        state = {key: value.to(self.device)[row_of] for key, value in entries.items()}
        seeds = {
            "prompt_index": prompt_index,
            "prompt_seed": self._order.prompt_seeds(group_id),
            "episode_seed": episode_seed,
            "group_id": group_id,
        }
        state |= {key: value[:, None].to(self.device) for key, value in seeds.items()}
        is_over = torch.zeros(len(row_of), 1, dtype=torch.bool, device=self.device)
        state |= {"done": is_over, "terminated": is_over.clone()}
        return TensorDict(state, batch_size=[len(row_of)], device=self.device)

    def _pay(self, state: TensorDict, tensordict: TensorDictBase) -> TensorDict:
        """The reward entries of a step that led to ``state``: :meth:`score` where it is over, zero elsewhere."""
        is_over = state["terminated"].squeeze(-1)
        if is_over.all():
            return self.score(state.copy().update(tensordict.select("game_action", "prompt_index")))
        reward = self.no_reward(self.batch_size[0])
        if is_over.any():  # rows reset at different times, as a vector env may
            constants = tensordict.select("game_action", "prompt_index")
            reward[is_over] = self.score(state.copy().update(constants)[is_over])
        return reward

    def _rewarded_game_action(self, tensordict: TensorDictBase) -> Tensor:
        """What the reward compares with: what the world model was told, except in a control."""
        if self._first_prompt.rewarded_game_action is None:
            return tensordict["game_action"]
        rewarded = self._of_prompts(tensordict["prompt_index"], lambda prompt: prompt.rewarded_game_action)
        assert rewarded is not None  # a source gives it for all prompts or for none
        return rewarded

    def _target_frames(self, prompt_index: Tensor) -> Tensor:
        """The real continuations, float ``[N, F-1, 3, H, W]`` in [0, 1]."""
        frames = self._of_prompts(prompt_index, lambda prompt: prompt.target_frames)
        if frames is None:
            raise ValueError("this reward compares with the real continuation, but the prompts have none")
        return frames.float() / 255

    def _of_prompts(self, prompt_index: Tensor, entry: Callable[[GenerationPrompt], Tensor | None]) -> Tensor | None:
        """An entry of every row's prompt, ``[N, ...]``; each prompt is asked for once, which may read a video."""
        unique, row_of = prompt_index.flatten().cpu().unique(return_inverse=True)
        values = entry(self.prompts.get(unique))
        return None if values is None else values.to(self.device)[row_of]
