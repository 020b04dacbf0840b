"""Token generation as an MDP: the world model samples visual tokens, the env writes words (Eq. 4).

One step takes k tokens, from one (the textbook MDP) to a whole frame (what training uses). Action
words are written by the env and are never an action, so no loss sees them (section 4.2). Nothing in
here samples or learns.

Letters: B rows, k tokens per step, K tokens of a frame, A word length, F frames, S slots,
L = F K + (F-1) A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite

from rlir_env.envs.base import VideoGenerationEnv
from rlir_env.game_actions import ActionWord
from rlir_env.layout import TokenLayout
from rlir_env.rewards import RewardFn

if TYPE_CHECKING:  # the env asks nothing of them but their interface
    from rlir_env.prompts import GenerationPrompt, PromptSource
    from rlir_env.tokenizers import Tokenizer


class TokenGenerationEnv(VideoGenerationEnv):
    """The agent is the world model: its action is the next k visual tokens of the video.

    State: ``token`` int32 ``[B, L]`` (-1 = not yet), ``position`` long ``[B, 1]`` (index in the
    sequence of the next token to sample), ``frame_index`` long ``[B, 1]`` (its frame, 1 at the
    reset, ``position // (K + A)``), and the constants ``game_action`` long ``[B, F-1, S]`` and
    ``game_action_word`` long ``[B, F-1, A]`` (ids behind the codes) besides those of
    :class:`VideoGenerationEnv`. A reset gives frame 0 and word 0; the step that completes frame j <
    F-1 appends word j. Action: ``action`` long ``[B, k]``, codes 0 .. num_codes-1, also for k = 1.
    At the end position = L.

    Attributes:
        tokens_per_step: k.
    """

    layout: TokenLayout

    def __init__(
        self,
        prompts: PromptSource,
        tokenizer: Tokenizer,
        reward_fn: RewardFn,
        *,
        num_prompts: int = 1,
        group_size: int = 1,
        tokens_per_step: int | str = 1,
        num_word_ids: int = ActionWord.num_ids,
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Make an env of ``num_prompts * group_size`` rows.

        Args:
            prompts: Clips with one context frame and the words of all game actions.
            tokenizer: Maps frames to codes and back; frozen here.
            reward_fn: What a finished generation is worth.
            num_prompts: P.
            group_size: G.
            tokens_per_step: k, a divisor of K, or ``"frame"``.
            num_word_ids: Ids that the vocabulary holds besides the codes.
            seed: Of the order of prompts and of the noise seeds.
            device: Where states live; the frozen networks are moved there.
            autocast_dtype: Precision of decoding, None for the tokenizer's own. Encoding is never
                autocast: a prompt's codes must not depend on it.

        Raises:
            ValueError: if the granularity does not divide K, or as the base class says.
        """
        super().__init__(
            prompts,
            tokenizer,
            reward_fn,
            num_prompts=num_prompts,
            group_size=group_size,
            seed=seed,
            device=device,
            autocast_dtype=autocast_dtype,
        )
        num_transitions, word_length = self._first_prompt.game_action_word.shape[1:]
        self.layout = TokenLayout(tokenizer.tokens_per_frame, num_transitions + 1, word_length)
        self.tokens_per_step = self.layout.tokens_per_step(tokens_per_step)
        self.num_word_ids = num_word_ids
        self._set_specs(*self._token_specs(), game_action_word=self._word_spec())

    @property
    def num_codes(self) -> int:
        """Size of the code book: actions are 0 .. num_codes-1."""
        return self.tokenizer.num_codes

    @property
    def num_steps(self) -> int:
        """T, the steps of a whole episode."""
        return self.layout.num_steps(self.tokens_per_step)

    @property
    def interface(self) -> dict[str, Any]:
        """Layout, k and the number of codes; see the base class."""
        return {"layout": self.layout, "tokens_per_step": self.tokens_per_step, "num_codes": self.num_codes}

    def num_finished_frames(self, tensordict: TensorDictBase) -> Tensor:
        """See the base class."""
        return (tensordict["position"] + self.layout.word_length) // self.layout.block_length

    def states_along(self, state: TensorDictBase, action: Tensor) -> TensorDict:
        """See the base class."""
        layout, device = self.layout, action.device
        video = state["token"].clone()
        video[:, layout.word_positions.to(device)] = state["game_action_word"].int()
        video[:, layout.action_positions.to(device)] = action.flatten(1).int()
        starts = layout.action_positions[:: self.tokens_per_step]
        position = torch.cat([starts, torch.tensor([layout.sequence_length])]).to(device)  # [T + 1]
        is_known = torch.arange(layout.sequence_length, device=device) < position[:, None]
        # The last frame has no successor: its index stays.
        frame_index = (position // layout.block_length).clamp(max=layout.num_frames - 1)
        return TensorDict(
            {
                "token": torch.where(is_known, video[:, None], -1),  # [B, T + 1, L]
                "position": position[:, None].expand(len(video), -1, 1),
                "frame_index": frame_index[:, None].expand(len(video), -1, 1),
            },
            batch_size=[len(video), len(position)],
        )

    def _codes_of(self, tensordict: TensorDictBase) -> Tensor:
        places = self.layout.frame_positions.to(tensordict["token"].device)
        return tensordict["token"][:, places].long().clamp(min=0)  # [N, F, K]

    def _token_specs(self) -> tuple[Composite, Bounded]:
        rows, device = self.batch_size, self.device
        count = {"dtype": torch.long, "shape": (*rows, 1), "device": device}
        token = Bounded(
            low=-1,
            high=self.num_codes + self.num_word_ids - 1,
            shape=(*rows, self.layout.sequence_length),
            dtype=torch.int32,
            device=device,
        )
        position = Bounded(low=0, high=self.layout.sequence_length, **count)
        frame_index = Bounded(low=0, high=self.layout.num_frames - 1, **count)
        observation = Composite(token=token, position=position, frame_index=frame_index, shape=rows, device=device)
        return observation, Bounded(
            low=0,
            high=self.num_codes - 1,
            shape=(*rows, self.tokens_per_step),
            dtype=torch.long,
            device=device,
        )

    def _start(self, prompt: GenerationPrompt) -> dict[str, Tensor]:
        local = prompt.game_action_word
        if local.min() < 0 or local.max() >= self.num_word_ids:
            raise ValueError(
                f"game_action_word has ids outside 0..{self.num_word_ids - 1}: prompts hold local "
                "ids, to which the env adds num_codes; or set num_word_ids"
            )
        codes = self.tokenizer.encode(prompt.context_frames[:, 0].to(self.device)).cpu()
        word = local + self.num_codes
        token = torch.full((len(word), self.layout.sequence_length), -1, dtype=torch.int32)
        token[:, : self.layout.tokens_per_frame] = codes.int()
        token[:, self.layout.word_positions[0]] = word[:, 0].int()
        position = torch.full((len(word), 1), self.layout.prompt_length)
        return {
            "token": token,
            "position": position,
            "frame_index": torch.ones_like(position),
            "game_action_word": word,
        }

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = self._checked_action(tensordict)
        position, frame_index = tensordict["position"], tensordict["frame_index"]
        token = tensordict["token"].clone()
        token.scatter_(1, position + self._offsets(self.tokens_per_step), action.int())
        position = position + self.tokens_per_step
        is_complete = position == frame_index * self.layout.block_length + self.layout.tokens_per_frame
        is_over = position == self.layout.sequence_length
        has_word = is_complete & ~is_over
        self._append_word(token, tensordict["game_action_word"], position, frame_index, has_word)
        state = TensorDict(
            {
                "token": token,
                "position": position + has_word * self.layout.word_length,
                "frame_index": frame_index + has_word,
                "done": is_over,
                "terminated": is_over.clone(),
            },
            batch_size=self.batch_size,
            device=self.device,
        )
        return state.update(self._pay(state, tensordict))

    def _append_word(
        self, token: Tensor, words: Tensor, position: Tensor, frame_index: Tensor, has_word: Tensor
    ) -> None:
        """Write word j behind frame j in the rows that just completed it."""
        layout = self.layout
        first = position.clamp(max=layout.sequence_length - layout.word_length)  # rows that are over
        places = first + self._offsets(layout.word_length)  # [B, A]
        which = frame_index.clamp(max=layout.num_generated_frames - 1)[..., None]
        word = words.gather(1, which.expand(-1, 1, layout.word_length)).squeeze(1)  # [B, A]
        token.scatter_(1, places, torch.where(has_word, word.int(), token.gather(1, places)))

    def _checked_action(self, tensordict: TensorDictBase) -> Tensor:
        action = tensordict["action"]
        expected = (*self.batch_size, self.tokens_per_step)
        if tuple(action.shape) != expected:
            raise ValueError(f"action has shape {tuple(action.shape)}, expected [B, k] = {expected}")
        if action.is_floating_point() or (action < 0).any() or (action >= self.num_codes).any():
            raise ValueError(
                f"action must be integer codes in 0..{self.num_codes - 1}; ids of action words are "
                "written by the env and cannot be sampled"
            )
        if (tensordict["position"] >= self.layout.sequence_length).any():
            raise ValueError("a video is already complete: reset the env before stepping it again")
        return action

    def _offsets(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _word_spec(self) -> Bounded:
        shape = (*self.batch_size, self.layout.num_generated_frames, self.layout.word_length)
        # Words start at num_codes; from 0, because TorchRL pads with zeros and wants them inside.
        return Bounded(0, self.num_codes + self.num_word_ids - 1, shape, dtype=torch.long, device=self.device)
