"""What has been read so far of videos that are made frame by frame, and the noise that their past is seen with.

A frame is read once, when a later one needs it; siblings share one reading of their prompt. Context noise is drawn once
for a frame, as a function of its place, so that every denoising step of every later frame sees the same past, in a
rollout as in its evaluation.

Letters: B rows, F frames, n finished ones, A width of a game-action vector; c, h, w a latent's channels, height and
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.latent import LatentWorldModel
from rlir_agents.world_models.weights_version import weights_version
from rlir_env.noise import CONTEXT_NOISE, step_normal


def as_context(frames: Tensor, seed: Tensor, timestep: float) -> Tensor:
    """Finished frames as later ones see them.

    Args:
        frames: The first n frames of videos, clean, ``[B, n, c, h, w]``.
        seed: Of the context noise, long ``[B]``.
        timestep: Share of noise; 0 leaves the frames as they are.

    Returns:
        ``[B, n, c, h, w]``.
    """
    if timestep == 0:
        return frames
    index = torch.arange(frames.shape[1], device=frames.device)
    return torch.lerp(frames, step_normal(seed[:, None], frames.shape[2:], index, CONTEXT_NOISE), timestep)


@dataclass
class _Reading:
    """Videos under way: which weights read them, their cache, and everything that was read."""

    version: tuple[tuple[int, int], ...]
    cache: FrameCache
    frames: Tensor
    vector: Tensor
    seed: Tensor


class FrameReader:
    """Keeps the cache of B videos while they grow; it is dropped when the reader is pickled or deep-copied.

    Attributes:
        context_timestep: Share of noise with which finished frames are seen.
        dtype: Of keys and values; None takes the weights' own.
    """

    def __init__(self, context_timestep: float = 0.0, dtype: torch.dtype | None = None) -> None:
        """Start with nothing read.

        Raises:
            ValueError: if the timestep is out of range.
        """
        if not 0 <= context_timestep < 1:
            raise ValueError(f"context_timestep={context_timestep}: give a timestep from 0 (clean) to below 1")
        self.context_timestep, self.dtype = context_timestep, dtype
        self._reading: _Reading | None = None

    def __reduce__(self) -> tuple[type[FrameReader], tuple[float, torch.dtype | None]]:
        return FrameReader, (self.context_timestep, self.dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache as it stands."""
        return 0 if self._reading is None else self._reading.cache.num_bytes

    def read(self, world_model: LatentWorldModel, frames: Tensor, vector: Tensor, seed: Tensor) -> FrameCache:
        """The cache after the given frames.

        It goes on from the last call if videos, game actions and weights do; otherwise everything is read again.

        Args:
            world_model: Reads, as its weights are at this moment.
            frames: The finished frames, clean, ``[B, n, c, h, w]``.
            vector: Game-action vectors of all frames, ``[B, F, A]``.
            seed: Of the context noise, long ``[B]``.

        Returns:
            A cache for F frames that holds n.
        """
        seen = as_context(frames, seed, self.context_timestep)
        times = vector.new_full(frames.shape[:2], self.context_timestep)
        version, reading = weights_version(world_model), self._reading
        if reading is None or not _continues(reading, version, frames, vector, seed):
            self._reading = None  # frees the old cache before there is a new one
            dtype = next(world_model.parameters()).dtype if self.dtype is None else self.dtype
            cache = world_model.read(seen, times, vector[:, : frames.shape[1]], vector.shape[1], dtype)
        else:
            cache = reading.cache
            new = slice(cache.num_frames, frames.shape[1])
            if new.start < new.stop:
                world_model.append(seen[:, new], times[:, new], vector[:, new], cache)
        # Clones: a caller may go on writing into what it has shown.
        self._reading = _Reading(version, cache, frames.clone(), vector.clone(), seed.clone())
        return cache

    def forget(self) -> None:
        """Free the cache: at the published sizes it is tens of gigabytes, and an update needs the memory."""
        self._reading = None


def _continues(
    reading: _Reading, version: tuple[tuple[int, int], ...], frames: Tensor, vector: Tensor, seed: Tensor
) -> bool:
    """Whether the videos go on from what was read, by the same weights."""
    length = reading.cache.num_frames
    if length > frames.shape[1] or version != reading.version or frames.device != reading.frames.device:
        return False
    pairs = ((reading.vector, vector), (reading.seed, seed), (reading.frames[:, :length], frames[:, :length]))
    return all(torch.equal(before, now) for before, now in pairs)
