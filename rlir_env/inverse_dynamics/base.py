"""The inverse dynamics model (IDM): reads the game actions back from a video (paper, section 3.2).

In the paper it is the verifier: the reward (Eq. 3) is the share of game actions that it reads back
correctly from a generated video. It is frozen, deterministic, and may look at past and future
frames. It is *not* a world model, and it never sees the game actions that the video was generated
for.

Letters: F frames of a clip, n readings, S slots of a game action, C most classes of any slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlir_env.game_actions import GameActionSpec

Alignment = Literal["transition", "mineworld"]

# Clips are read in chunks of about this many pixels, so that memory does not grow with the batch and the activations of
# a chunk stay near the caches. Counted in frames a chunk of the published model, whose frames have twenty times as many
# pixels as the preset's, would take twenty times the memory. At the preset's 24x32 these are 512 frames.
_PIXELS_PER_CHUNK = 512 * 24 * 32


class GameActionReading(NamedTuple):
    """What an IDM reads from clips.

    Attributes:
        log_probs: ``[..., n, S, C]`` float32, ``-inf`` where a slot has fewer than C classes.
        inferred_game_action: ``[..., n, S]`` int64, the class decided for every slot; models may
            have a decision rule other than the largest slot probability (see the VPT model).
    """

    log_probs: Tensor
    inferred_game_action: Tensor


class InverseDynamicsModel(nn.Module, ABC):
    """Base of all IDMs: the alignment of readings with recording lines, batching, and nothing else.

    A subclass sets :attr:`spec` and implements :meth:`read_frames`.

    Attributes:
        spec: The slots and classes that this model reads.
        input_size: (H, W) that the network works at, whatever the size of the frames; None for that of the frames.
    """

    spec: GameActionSpec
    input_size: tuple[int, int] | None = None

    @abstractmethod
    def read_frames(self, frames: Tensor) -> GameActionReading:
        """One reading per frame; that of frame t is what leads from frame t to frame t + 1.

        Args:
            frames: ``[B, F, 3, H, W]``, float in [0, 1] or uint8.

        Returns:
            Readings of shape ``[B, F, ...]``; the last one had no next frame to look at.
        """

    @torch.no_grad()
    def read(self, frames: Tensor, align: Alignment = "transition") -> GameActionReading:
        """Reads the game actions of clips.

        Args:
            frames: ``[..., F, 3, H, W]``, float in [0, 1] or uint8.
            align: ``"transition"`` (Eq. 3 and training): all F frames of the clip go in and n = F-1
                readings come out; the one at t is line t of the recording, which acts between
                frames t and t + 1. ``"mineworld"`` (its evaluation protocol): the generated frames
                alone go in and n = F readings come out, the last without a next frame to look at.
                After one context frame, reading j belongs to frame j + 1 of the video, so the
                caller compares it with line j + 1.

        Returns:
            A :class:`GameActionReading` with leading shape ``[..., n]``.

        Raises:
            ValueError: If ``align`` is unknown, the clip is too short for it, or these are no frames.
        """
        if frames.ndim < 4 or frames.shape[-3] != 3:
            raise ValueError(f"frames are {list(frames.shape)}: give [..., F, 3, H, W]")
        num_readings = _num_readings(frames.shape[-4], align)
        clips = frames.reshape(-1, *frames.shape[-4:])
        chunks = [self.read_frames(chunk) for chunk in clips.split(self._clips_per_chunk(clips))]
        fields = (torch.cat(parts)[:, :num_readings] for parts in zip(*chunks, strict=True))
        return GameActionReading(*(x.reshape(*frames.shape[:-4], *x.shape[1:]) for x in fields))

    def slot_log_probs(self, frames: Tensor, align: Alignment = "transition") -> Tensor:
        """Log-probabilities ``[..., n, S, C]`` of the classes; arguments as in :meth:`read`."""
        return self.read(frames, align).log_probs

    def infer_game_actions(self, frames: Tensor, align: Alignment = "transition") -> Tensor:
        """The game actions read back, ``[..., n, S]`` int64 slots; arguments as in :meth:`read`."""
        return self.read(frames, align).inferred_game_action

    def _clips_per_chunk(self, clips: Tensor) -> int:
        height, width = self.input_size or clips.shape[-2:]
        return max(1, _PIXELS_PER_CHUNK // (clips.shape[1] * height * width))


def _num_readings(num_frames: int, align: str) -> int:
    if align == "mineworld":
        return num_frames
    if align != "transition":
        raise ValueError(f'align must be "transition" or "mineworld", got {align!r}')
    if num_frames < 2:
        raise ValueError('align="transition" needs clips of at least 2 frames: it reads between frames')
    return num_frames - 1
