"""The identity world: frozen components whose right answer is the game action itself.

It is for tests that must learn in seconds. A frame is a few patches of constant grey, one per
token; token i stands for slot i mod S, and its code modulo the slot's number of classes *is* the
class. A world model obeys when it copies the game action's word into the picture. Nothing here is
trained, and nothing is a mock: the components keep the contracts of the real ones.

Letters: K tokens per frame, A word length (= S), F frames, S slots, C most classes of any slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlir_env.envs import DenoisingEnv, TokenGenerationEnv
from rlir_env.game_actions import GameActionSpec, Slot
from rlir_env.inverse_dynamics import GameActionReading, InverseDynamicsModel
from rlir_env.prompts import GenerationPrompt, PromptSource
from rlir_env.rewards import InverseDynamicsReward
from rlir_env.schedules import shifted_grid
from rlir_env.testing.identity_tokenizers import IdentityLatents, IdentityTokenizer
from rlir_env.tokenizers import Tokenizer

IDENTITY_SPEC = GameActionSpec((Slot("move", ("none", "left", "right")), Slot("jump", ("none", "pressed"))))

# What every class gets besides its votes: log-probabilities stay finite, and a wrong reading has
# log(1/102) or so.
_FREE_VOTES = 0.01


class IdentityInverseDynamics(InverseDynamicsModel):
    """Reads the class of slot s from the tokens s, s + S, ... of the next frame; they vote."""

    def __init__(self, tokenizer: IdentityTokenizer, spec: GameActionSpec = IDENTITY_SPEC) -> None:
        """Read frames of this tokenizer.

        Raises:
            ValueError: if a frame has fewer tokens than a game action has slots, or a slot more
                classes than codes.
        """
        super().__init__()
        if tokenizer.tokens_per_frame < spec.num_slots:
            raise ValueError(f"{tokenizer.tokens_per_frame} tokens cannot show {spec.num_slots} slots")
        if tokenizer.num_codes < max(spec.num_classes):
            raise ValueError(f"{tokenizer.num_codes} codes cannot show {max(spec.num_classes)} classes")
        self.spec = spec
        self.tokenizer = tokenizer

    def read_frames(self, frames: Tensor) -> GameActionReading:
        """One reading per frame; the last frame, having no next one, reads itself."""
        codes = self.tokenizer.encode(frames)
        codes = torch.cat([codes[:, 1:], codes[:, -1:]], dim=1)  # [B, F, K]
        widest = max(self.spec.num_classes)
        log_probs = torch.full((*codes.shape[:2], self.spec.num_slots, widest), -math.inf)
        for slot, num_classes in enumerate(self.spec.num_classes):
            read = codes[..., slot :: self.spec.num_slots] % num_classes
            votes = torch.nn.functional.one_hot(read, num_classes).sum(-2) + _FREE_VOTES
            log_probs[..., slot, :num_classes] = (votes / votes.sum(-1, keepdim=True)).log()
        log_probs = log_probs.to(frames.device)
        return GameActionReading(log_probs, log_probs.argmax(-1))


class IdentityPrompts(PromptSource):
    """Random game actions and context frames; the real continuation shows what was pressed."""

    def __init__(
        self,
        tokenizer: IdentityTokenizer,
        spec: GameActionSpec = IDENTITY_SPEC,
        num_prompts: int = 16,
        num_frames: int = 4,
        seed: int = 0,
    ) -> None:
        """Draw all clips at once.

        Args:
            tokenizer: Paints the frames.
            spec: What a game action is.
            num_prompts: How many clips.
            num_frames: F.
            seed: Of the clips.
        """
        noise = torch.Generator().manual_seed(seed)
        context = torch.randint(tokenizer.num_codes, (num_prompts, 1, tokenizer.tokens_per_frame), generator=noise)
        self._game_action = torch.stack(
            [torch.randint(n, (num_prompts, num_frames - 1), generator=noise) for n in spec.num_classes],
            dim=-1,
        )
        offsets = torch.tensor([sum(spec.num_classes[:s]) for s in range(spec.num_slots)])
        self._word = self._game_action + offsets
        self._context = _as_uint8(tokenizer.decode(context))
        self._target = _as_uint8(tokenizer.decode(right_codes(self._game_action, tokenizer)))

    @property
    def num_prompts(self) -> int:
        """How many clips there are."""
        return len(self._game_action)

    def get(self, indices: Tensor | Sequence[int]) -> GenerationPrompt:
        """The clips of these indices, long ``[P]``."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        return GenerationPrompt(
            context_frames=self._context[rows],
            game_action=self._game_action[rows],
            game_action_word=self._word[rows],
            target_frames=self._target[rows],
        )


@dataclass(frozen=True)
class IdentityWorld:
    """The frozen components of one world, in the shape of a shipped asset set.

    Attributes:
        tokenizer: Grey levels, as ids or as latents.
        coach: Reads them.
        prompts: ``dev``, ``test`` and ``train`` clips.
        class_frequency: Share of every class of every slot; uniform.
        num_word_ids: Ids of the action words.
        visible_slots: Every slot shows.
    """

    tokenizer: Tokenizer
    coach: IdentityInverseDynamics
    prompts: dict[str, IdentityPrompts]
    class_frequency: list[list[float]]
    num_word_ids: int = field(default=sum(IDENTITY_SPEC.num_classes))
    visible_slots: tuple[str, ...] | None = None

    def env(self, split: str = "dev", match: str = "per_slot", **kwargs) -> TokenGenerationEnv:
        """A token env of this world; further keywords are those of :class:`TokenGenerationEnv`."""
        reward_fn = self._reward_fn(match)
        return TokenGenerationEnv(
            self.prompts[split], self.coach.tokenizer, reward_fn, num_word_ids=self.num_word_ids, **kwargs
        )

    def denoising_env(
        self, split: str = "dev", match: str = "per_slot", num_denoising_steps: int = 4, **kwargs
    ) -> DenoisingEnv:
        """A denoising env of this world's frames; further keywords are those of :class:`DenoisingEnv`."""
        timesteps = shifted_grid(num_denoising_steps)
        return DenoisingEnv(
            self.prompts[split], IdentityLatents(self.coach.tokenizer), self._reward_fn(match), timesteps, **kwargs
        )

    def _reward_fn(self, match: str) -> InverseDynamicsReward:
        return InverseDynamicsReward(self.coach, match=match, class_frequency=self.class_frequency)


def identity_world(
    spec: GameActionSpec = IDENTITY_SPEC,
    num_codes: int = 6,
    grid_size: tuple[int, int] = (1, 2),
    patch_size: int = 4,
    num_frames: int = 4,
    num_prompts: int = 16,
    seed: int = 0,
    tokenizer: str = "tokenizer",
) -> IdentityWorld:
    """Make an identity world; by default 6 codes, 2 tokens a frame, 3 generated frames.

    Args:
        spec: What a game action is.
        num_codes: Grey levels.
        grid_size: Patches of a frame down and across.
        patch_size: Pixels of a patch's side.
        num_frames: F.
        num_prompts: Of every split.
        seed: Of the clips.
        tokenizer: ``"tokenizer"`` for ids, ``"kl_tokenizer"`` for latents, as in `rlir_env.assets.load_world`.

    Raises:
        ValueError: if the codes cannot show the game actions, or there is no such tokenizer.

    Example:
        >>> env = identity_world().env(num_prompts=2, group_size=3, tokens_per_step="frame")
        >>> env.batch_size, env.num_steps
        (torch.Size([6]), 3)
    """
    codes = IdentityTokenizer(num_codes, grid_size, patch_size)
    tokenizers = {"tokenizer": codes, "kl_tokenizer": IdentityLatents(codes)}
    if tokenizer not in tokenizers:
        raise ValueError(f"no tokenizer {tokenizer!r}: use one of {', '.join(tokenizers)}")
    prompts = {
        split: IdentityPrompts(codes, spec, num_prompts, num_frames, seed + offset)
        for offset, split in enumerate(("dev", "test", "train"))
    }
    return IdentityWorld(
        tokenizer=tokenizers[tokenizer],
        coach=IdentityInverseDynamics(codes, spec),
        prompts=prompts,
        class_frequency=[[1 / n] * n for n in spec.num_classes],
        num_word_ids=sum(spec.num_classes),
    )


def right_codes(game_action: Tensor, tokenizer: IdentityTokenizer) -> Tensor:
    """Codes ``[..., K]`` that show game actions ``[..., S]``; one right answer of several."""
    slot_of_token = torch.arange(tokenizer.tokens_per_frame) % game_action.shape[-1]
    return game_action[..., slot_of_token.to(game_action.device)]


def _as_uint8(frames: Tensor) -> Tensor:
    return (frames * 255).round().to(torch.uint8)
