"""Prompts: what an episode starts from (paper 4.1: context frames and all game actions).

A prompt is the initial state of the MDP and its conditioning; the policy's actions, the visual
tokens or latents, are what it has to find. The true continuation (``target_frames``) may come
along for rewards and metrics that compare with it; the policy never sees it.

Letters: P prompts, G group size, C context frames, F frames, S slots, A word length, H and W the
frame size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlir_env.recordings import Clip, ClipFilter, ClipSource, VPTHygiene, list_recordings
from rlir_env.recordings.recording import read_options
from rlir_env.recordings.vpt_hygiene import NO_HYGIENE


@dataclass(frozen=True)
class GenerationPrompt:
    """A batch of prompts.

    Game action j acts between frames j and j+1, so it conditions frame j+1.

    Attributes:
        context_frames: uint8 ``[P, C, 3, H, W]``.
        game_action: int64 ``[P, F-1, S]``, slots.
        game_action_word: int64 ``[P, F-1, A]``, local ids 0..69; the env adds its ``num_codes``.
        target_frames: uint8 ``[P, F-C, 3, H, W]``, the true continuation, or None.
        rewarded_game_action: int64 ``[P, F-1, S]``, what the reward compares with where that is not what the model is
            told: a control. None for ``game_action``.
    """

    context_frames: torch.Tensor
    game_action: torch.Tensor
    game_action_word: torch.Tensor
    target_frames: torch.Tensor | None = None
    rewarded_game_action: torch.Tensor | None = None

    @property
    def num_prompts(self) -> int:
        """P."""
        return self.context_frames.shape[0]


class PromptSource(ABC):
    """A finite set of prompts with stable indices."""

    @property
    @abstractmethod
    def num_prompts(self) -> int:
        """How many prompts there are."""

    @abstractmethod
    def get(self, indices: torch.Tensor | Sequence[int]) -> GenerationPrompt:
        """The prompts with these indices (long ``[P]``, repeats allowed)."""


class PromptsBySplit(Mapping[str, PromptSource]):
    """Prompts by the name of their split, each made once, when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], PromptSource]]) -> None:
        """Keep what makes the prompts of each split."""
        self._makers = makers
        self._made: dict[str, PromptSource] = {}

    def __getitem__(self, split: str) -> PromptSource:
        """The prompts of a split; raises what their maker raises."""
        if split not in self._made:
            self._made[split] = self._makers[split]()
        return self._made[split]

    def __iter__(self) -> Iterator[str]:
        """Names of the splits."""
        return iter(self._makers)

    def __len__(self) -> int:
        """How many splits there are."""
        return len(self._makers)


class ClipPrompts(PromptSource):
    """Prompts cut from clips of real gameplay, held in memory.

    Example:
        >>> frames = torch.zeros(2, 16, 3, 4, 6, dtype=torch.uint8)
        >>> slots, words = torch.zeros(2, 15, 9).long(), torch.zeros(2, 15, 11).long()
        >>> prompts = ClipPrompts(frames, slots, words)
        >>> prompts.get([1]).target_frames.shape
        torch.Size([1, 15, 3, 4, 6])
    """

    def __init__(
        self,
        frames: torch.Tensor,
        game_action: torch.Tensor,
        game_action_word: torch.Tensor,
        num_context_frames: int = 1,
        has_targets: bool = True,
    ) -> None:
        """Hold clips.

        Args:
            frames: uint8 ``[P, F, 3, H, W]``.
            game_action: int64 ``[P, F-1, S]``.
            game_action_word: int64 ``[P, F-1, A]``, local ids.
            num_context_frames: C, the frames of a clip that are given.
            has_targets: whether :meth:`get` hands out the frames that follow.

        Raises:
            ValueError: if the tensors do not fit together.
        """
        num_prompts, num_frames = frames.shape[:2]
        if frames.dtype != torch.uint8 or not 1 <= num_context_frames < num_frames:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)} with {num_context_frames} given; "
                "pass uint8 [P, F, 3, H, W] and 1 <= num_context_frames < F"
            )
        for name, actions in (("game_action", game_action), ("game_action_word", game_action_word)):
            if actions.shape[:2] != (num_prompts, num_frames - 1):
                raise ValueError(
                    f"{name} is {tuple(actions.shape)}; {num_prompts} clips of {num_frames} frames "
                    f"need [{num_prompts}, {num_frames - 1}, ...], one for each transition"
                )
        self.frames = frames
        self.game_action = game_action
        self.game_action_word = game_action_word
        self.num_context_frames = num_context_frames
        self.has_targets = has_targets

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        frame_size: tuple[int, int],
        num_frames: int = 16,
        num_context_frames: int = 1,
        stride: int | None = None,
        clip_filter: ClipFilter | None = None,
        has_targets: bool = True,
        hygiene: VPTHygiene = NO_HYGIENE,
    ) -> ClipPrompts:
        """Cut the recordings of a folder into clips.

        A shipped set of prompts is one recording whose frames are consecutive clips; the defaults
        (disjoint windows, nothing filtered) give them back. From raw gameplay pass a filter.

        Args:
            folder: holds ``<name>.mp4`` and ``<name>.jsonl``, and for prompts ``<name>-options.json`` with their F.
            frame_size: (H, W) to resize to.
            num_frames: F.
            num_context_frames: C.
            stride: frames between the starts of windows; F where None.
            clip_filter: None keeps all.
            has_targets: see the constructor.
            hygiene: what is mended while reading; for VPT's own recordings.

        Raises:
            RecordingError: if a recording is broken or there are none.
            ValueError: if no clip is left, or the folder holds a set of prompts of another length.
        """
        videos = list_recordings(folder)
        for video in videos:
            _check_clip_length(video, num_frames, stride or num_frames)
        source = ClipSource(
            videos,
            frame_size,
            num_frames,
            stride,
            clip_filter or ClipFilter.keep_all(),
            hygiene=hygiene,
        )
        clips = list(source.iterate())
        if not clips:
            raise ValueError(f"{folder}: no clip of {num_frames} frames ({source.report.to_text()})")
        return cls.from_clips(clips, num_context_frames, has_targets)

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], num_context_frames: int = 1, has_targets: bool = True) -> ClipPrompts:
        """Hold these clips, at least one and all of one length; see the constructor."""
        return cls(
            torch.stack([clip.frames for clip in clips]),
            torch.stack([clip.game_action for clip in clips]),
            torch.stack([clip.game_action_word for clip in clips]),
            num_context_frames,
            has_targets,
        )

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.frames)

    @property
    def num_frames(self) -> int:
        """F."""
        return self.frames.shape[1]

    def get(self, indices: torch.Tensor | Sequence[int]) -> GenerationPrompt:
        """The prompts with these indices (long ``[P]``, repeats allowed)."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        frames = self.frames[rows]
        given = self.num_context_frames
        return GenerationPrompt(
            frames[:, :given],
            self.game_action[rows],
            self.game_action_word[rows],
            frames[:, given:] if self.has_targets else None,
        )

    def subset(self, indices: torch.Tensor | Sequence[int]) -> ClipPrompts:
        """A source of these prompts only, numbered from 0 in the order given."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        columns = (self.frames[rows], self.game_action[rows], self.game_action_word[rows])
        return ClipPrompts(*columns, self.num_context_frames, self.has_targets)


def _check_clip_length(video: Path, num_frames: int, stride: int) -> None:
    """Refuse windows that would run from one clip of a set of prompts into the next."""
    stored = read_options(video).get("num_frames")  # raw gameplay has none: any window will do
    if stored is not None and (stored != num_frames or stride % stored):
        raise ValueError(
            f"{video} is a row of clips of {stored} frames; cut it with num_frames={stored} and a stride that is a "
            f"multiple of it, not with num_frames={num_frames}, stride={stride}"
        )
