"""Trajectories of denoising steps as videos: what sequence mode reads, of a policy as of a critic.

A row of a rollout is one trajectory, and its last state holds the finished frames of all earlier ones. Given these,
every denoising step of every frame is independent of the others (reference page, section 4.1), so one forward over the
video serves all of them. `Arrangement` puts steps beside the frames that they belong to and takes the answers back.

Letters: B trajectories, T env steps, k denoising steps per env step, I = T k items, F frames, M frames from the first
to the last item's, K most items of a frame; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlir_agents.world_models import ActionEncoder, LatentWorldModel
from rlir_env.layout import LatentLayout


class LatentSequences(NamedTuple):
    """Trajectories of a tensordict, one item a denoising step.

    Attributes:
        frames: The last state's video, ``[B, F, c, h, w]``: whatever an item's frame looks back at is finished there.
        latent: Before each step, ``[B, I, c, h, w]``.
        action: After each step, of the same shape; that of ``latent`` where actions were not asked for.
        frame_index: Of each item, long ``[B, I]``.
        denoising_step: Of each item, long ``[B, I]``.
    """

    frames: Tensor
    latent: Tensor
    action: Tensor
    frame_index: Tensor
    denoising_step: Tensor


def latent_sequences_of(tensordict: TensorDictBase, with_action: bool = True) -> LatentSequences:
    """Read trajectories ``[..., T]``, or a flat batch ``[B]`` as B trajectories of one env step.

    Args:
        tensordict: Holds ``latent``, ``frame_index`` and ``denoising_step``, and ``action`` if it is asked for.
        with_action: Every denoising step inside an env step is an item; otherwise the states alone are (k = 1).

    Raises:
        ValueError: if the env steps of a row do not belong to one trajectory.
    """
    num_steps = tensordict.batch_size[-1] if tensordict.batch_dims > 1 else 1
    video = tensordict["latent"]
    video = video.reshape(-1, num_steps, *video.shape[-4:])  # [B, T, F, c, h, w]
    frame_index = tensordict["frame_index"].reshape(-1, num_steps)
    step = tensordict["denoising_step"].reshape(-1, num_steps)
    first, frames = video[:, 0], video[:, -1]
    is_finished = torch.arange(frames.shape[1], device=frames.device) < frame_index[:, :1]
    is_same = (first == frames).flatten(2).all(-1) | ~is_finished
    if not is_same.all() or (frame_index.diff(dim=1) < 0).any():
        raise ValueError(
            "a row holds steps of several videos or out of order: keep rollouts as [..., T], one trajectory a row, "
            "or pass a flat batch [B] of single steps"
        )
    rows, places = torch.arange(len(video), device=video.device)[:, None], torch.arange(num_steps, device=video.device)
    latent = video[rows, places, frame_index]  # [B, T, c, h, w]
    if not with_action:
        return LatentSequences(frames, latent, latent, frame_index, step)
    action = tensordict["action"].reshape(*frame_index.shape, -1, *video.shape[-3:])  # [B, T, k, c, h, w]
    num_inner = action.shape[2]
    before = torch.cat([latent[:, :, None], action[:, :, :-1]], dim=2).flatten(1, 2)
    inner = torch.arange(num_inner, device=video.device)
    return LatentSequences(
        frames,
        before,
        action.flatten(1, 2),
        frame_index[..., None].expand(-1, -1, num_inner).flatten(1),
        (step[..., None] + inner).flatten(1),
    )


def constant_of(tensordict: TensorDictBase, key: str, num_dims: int = 1) -> Tensor:
    """An entry that never changes in a trajectory, ``[B, ...]`` of ``[..., T]`` or ``[B]``.

    Args:
        tensordict: As for :func:`latent_sequences_of`.
        key: Of the entry.
        num_dims: How many dimensions it has of its own.
    """
    num_steps = tensordict.batch_size[-1] if tensordict.batch_dims > 1 else 1
    entry = tensordict[key]
    return entry.reshape(-1, num_steps, *entry.shape[-num_dims:])[:, 0]


@dataclass(frozen=True)
class Arrangement:
    """Items beside the frames that they belong to: a grid ``[B, M, K]`` with room for every frame's items.

    Attributes:
        first_frame: Of the grid.
        num_frames: M.
        num_slots: K.
        row: Of every item that is arranged, long ``[n]``.
        item: Its place in its row, long ``[n]``.
        frame: Its place in the grid, long ``[n]``.
        slot: Its place beside its frame, long ``[n]``.
    """

    first_frame: int
    num_frames: int
    num_slots: int
    row: Tensor
    item: Tensor
    frame: Tensor
    slot: Tensor

    @classmethod
    def of(cls, frame_index: Tensor, is_arranged: Tensor) -> Arrangement:
        """Arrange some items, at least one.

        Args:
            frame_index: Of every item, long ``[B, I]``.
            is_arranged: Which ones, bool ``[B, I]``.
        """
        # An item's slot is how many arranged items of its frame come before it.
        is_earlier = (frame_index[:, :, None] == frame_index[:, None, :]).tril(-1)
        slots = (is_earlier & is_arranged[:, None, :]).sum(-1)
        row, item = is_arranged.nonzero(as_tuple=True)
        frame, slot = frame_index[row, item], slots[row, item]
        first, last = int(frame.min()), int(frame.max())
        return cls(first, last - first + 1, int(slot.max()) + 1, row, item, frame - first, slot)

    def spread(self, values: Tensor) -> Tensor:
        """Items ``[B, I, ...]`` on the grid, ``[B, M, K, ...]``; empty slots are zero."""
        grid = values.new_zeros(len(values), self.num_frames, self.num_slots, *values.shape[2:])
        grid[self.row, self.frame, self.slot] = values[self.row, self.item]
        return grid

    def collect(self, grid: Tensor) -> Tensor:
        """Values ``[n, ...]`` of the arranged items from a grid ``[B, M, K, ...]``."""
        return grid[self.row, self.frame, self.slot]


def check_fit(world_model: LatentWorldModel, layout: LatentLayout, action_encoder: ActionEncoder) -> None:
    """Hold a model against the videos that it is to make.

    Raises:
        ValueError: if it reads other latents, shorter videos or other vectors.
    """
    if not isinstance(world_model, LatentWorldModel):
        raise ValueError(
            f"a {type(world_model).__name__} makes tokens, not latents: take an NFD, or "
            "paradigm=autoregressive with TokenPolicy"
        )
    if world_model.latent_shape != layout.latent_shape or world_model.max_frames < layout.num_frames:
        raise ValueError(
            f"videos of {layout.num_frames} frames of {layout.latent_shape}, but the world model is made for at most "
            f"{world_model.max_frames} of {world_model.latent_shape}; use the tokenizer that it was trained with, and "
            "not more frames"
        )
    if world_model.action_dim != action_encoder.dim:
        raise ValueError(
            f"the action encoder gives {action_encoder.dim} numbers, the world model reads {world_model.action_dim}: "
            "set action_encoder to the one that it was trained with"
        )


def common_place(tensordict: TensorDictBase) -> tuple[int, int]:
    """Frame and denoising step at which all rows of a flat batch stand.

    Raises:
        ValueError: if the tensordict is not a flat batch, or its rows stand at different steps.
    """
    if tensordict.batch_dims != 1:
        raise ValueError(
            f"step mode needs a flat batch [B], got {list(tensordict.batch_size)}; for trajectories use get_dist"
        )
    places = [tensordict[key] for key in ("frame_index", "denoising_step")]
    if any((place != place[0]).any() for place in places):
        raise ValueError("rows stand at different steps: a batch is denoised in lockstep; reset all rows together")
    frame, step = (int(place[0]) for place in places)
    return frame, step
