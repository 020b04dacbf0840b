"""The work of an iteration, phase by phase: what is generated, paid, compared and learnt from.

A rollout of either paradigm is a row of passes that read all weights and the cache so far; everything else is a few
large forwards. Neither evaluations nor logging are counted, and of an optimiser's step only its memory.

Letters: B videos of an iteration, L sequence length, F frames, N denoising steps of a frame, K of them selected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from rlir_agents.dry_run.meter import Count, Meter
from rlir_agents.hardware import autocast
from rlir_agents.policies import DenoisingPolicy, TokenPolicy
from rlir_agents.world_models.base import DecodingWeights
from rlir_agents.world_models.kv_cache import KVCache
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.schedules import select_steps
from rlir_env.tokenizers import Tokenizer

_CPU = torch.device("cpu")  # where fake tensors are


@dataclass(frozen=True)
class Phase:
    """A part of an iteration.

    Attributes:
        name: Of the part.
        flops: Floating-point operations of all B videos.
        fixed_bytes: Most memory at once, beside what is held all the time and what videos take.
        video_bytes: Memory of each of the videos that are generated at once.
        read_bytes: What a row of small passes has to read again and again; 0 where arithmetic is the limit.
    """

    name: str
    flops: float
    fixed_bytes: int
    video_bytes: int = 0
    read_bytes: float = 0.0

    def peak_bytes(self, num_videos: int) -> int:
        """Most memory at once with so many videos generated at once, beside what is held all the time."""
        return self.fixed_bytes + self.video_bytes * num_videos


@dataclass(frozen=True)
class Batch:
    """How an iteration is cut up.

    Attributes:
        num_videos: B.
        rollout_batch_size: Videos generated at once.
        micro_batch_size: Videos learnt from at once.
        num_epochs: Passes over the batch.
        num_log_probs: Forwards of the whole batch without gradients: the policy's own, the reference's.
    """

    num_videos: int
    rollout_batch_size: int
    micro_batch_size: int
    num_epochs: int
    num_log_probs: int

    @property
    def num_rollout_batches(self) -> int:
        """In how many parts the videos are generated."""
        return -(-self.num_videos // self.rollout_batch_size)


@dataclass(frozen=True)
class Generation:
    """A rollout.

    Attributes:
        flops: Of one video.
        num_passes: Passes of a video.
        weight_bytes: Read by every pass.
        cache_bytes: Of one video, when it is complete.
        copied_bytes: Memory of the weights in the precision of products.
        video_bytes: Memory of one video, cache and all.
        is_kept: Whether cache and copy stay in memory while the policy learns.
    """

    flops: float
    num_passes: int
    weight_bytes: int
    cache_bytes: int
    copied_bytes: int
    video_bytes: int
    is_kept: bool


@singledispatch
def generation(policy: TensorDictModuleBase, meter: Meter) -> Generation:
    """What it takes to generate a video.

    Args:
        policy: Its world model on fake tensors.
        meter: Counts.

    Raises:
        ValueError: for a kind of policy that is not known here.
    """
    raise ValueError(f"a {type(policy).__name__} cannot be counted: a dry run knows TokenPolicy and DenoisingPolicy")


@singledispatch
def learning(policy: TensorDictModuleBase, num_videos: int) -> Callable[[], Tensor]:
    """What makes the log-probs of every action of so many videos, as a loss asks for them; to be run by a `Meter`."""
    raise ValueError(f"a {type(policy).__name__} cannot be counted: a dry run knows TokenPolicy and DenoisingPolicy")


@generation.register
def _(policy: TokenPolicy, meter: Meter) -> Generation:
    layout, model = policy.layout, policy.world_model
    dtype = policy.autocast_dtype or next(model.parameters()).dtype
    token = torch.zeros(1, layout.sequence_length, dtype=torch.long)

    @torch.no_grad()
    def read() -> None:  # as many products as token after token, in one pass
        with autocast(_CPU, policy.autocast_dtype):
            model(token, layout.action_positions - 1)

    weights: list[DecodingWeights] = []  # stay alive, so that only what comes next is counted
    caches: list[KVCache] = []

    def copy_weights() -> None:
        weights.append(model.decoding_weights(dtype))

    def allocate() -> None:
        caches.append(weights[0].new_cache(1, layout.sequence_length))
        torch.zeros(1, model.num_codes)  # logits

    copied_bytes, video_bytes = (meter.count(step).peak_bytes for step in (copy_weights, allocate))
    return Generation(
        flops=meter.count(read).flops,
        num_passes=policy.num_passes,
        weight_bytes=copied_bytes,
        cache_bytes=caches[0].num_bytes,
        copied_bytes=copied_bytes,
        video_bytes=video_bytes,
        is_kept=True,
    )


@learning.register
def _(policy: TokenPolicy, num_videos: int) -> Callable[[], Tensor]:
    before = policy.layout.action_positions - 1

    def log_probs() -> Tensor:
        length = policy.layout.sequence_length - 1  # nothing follows the last code
        action = torch.zeros(num_videos, len(before), dtype=torch.long)
        return policy.dist_after(torch.zeros(num_videos, length, dtype=torch.long), before, action).log_prob(action)

    return log_probs


@generation.register
def _(policy: DenoisingPolicy, meter: Meter) -> Generation:
    layout, model = policy.layout, policy.world_model
    dtype = policy.autocast_dtype or next(model.parameters()).dtype
    num_frames, num_steps = layout.num_frames, layout.num_denoising_steps

    def frame(index: int, is_denoised: bool, rows: int = 1) -> Count:
        """One pass over a frame behind ``index`` finished ones."""

        @torch.no_grad()
        def run() -> None:
            latent = torch.zeros(rows, *layout.latent_shape)
            vector, timestep = torch.zeros(rows, model.action_dim), torch.zeros(rows)
            cache = model.new_cache(rows, num_frames, dtype)
            cache.num_frames = index
            with autocast(_CPU, policy.autocast_dtype):
                if is_denoised:
                    model.next_velocity(latent, timestep, vector, cache)
                else:
                    model.append(latent[:, None], timestep[:, None], vector[:, None], cache)

        return meter.count(run)

    appended = [frame(index, is_denoised=False) for index in range(num_frames - 1)]
    denoised = [frame(index, is_denoised=True) for index in range(1, num_frames)]
    one_more = frame(num_frames - 1, is_denoised=True, rows=2).peak_bytes - denoised[-1].peak_bytes
    numbers = torch.Size(layout.latent_shape).numel()
    # Of every video the latents before each env step and the action of each denoising step are kept in float32.
    kept = 4 * numbers * (policy.num_steps + 1) * num_frames + 4 * numbers * (num_frames - 1) * num_steps
    return Generation(
        flops=sum(one.flops for one in appended) + policy.num_forwards_per_frame * sum(one.flops for one in denoised),
        num_passes=(num_frames - 1) * (policy.num_forwards_per_frame + 1),
        weight_bytes=sum(p.numel() for p in model.parameters()) * dtype.itemsize,
        cache_bytes=model.new_cache(1, num_frames, dtype).num_bytes,
        copied_bytes=denoised[-1].peak_bytes - one_more,
        video_bytes=one_more + kept,
        is_kept=False,
    )


@learning.register
def _(policy: DenoisingPolicy, num_videos: int) -> Callable[[], Tensor]:
    layout, model = policy.layout, policy.world_model
    frames, shape = layout.num_frames - 1, layout.latent_shape
    trainable = torch.zeros(1, len(policy.counted_steps))
    num_selected = select_steps(trainable, policy.selected_fraction).shape[-1]

    def log_probs() -> Tensor:
        with autocast(_CPU, policy.autocast_dtype):
            velocity = model.velocity_of_steps(
                torch.zeros(num_videos, frames, *shape),
                torch.zeros(num_videos, frames),
                torch.zeros(num_videos, frames, num_selected, *shape),
                torch.zeros(num_videos, frames, num_selected),
                torch.zeros(num_videos, frames + 1, model.action_dim),
            )
        return velocity.square().mean((-3, -2, -1))

    return log_probs


def policy_phases(
    policy: TensorDictModuleBase, meter: Meter, batch: Batch, num_learners: int = 1
) -> tuple[Phase, Phase, Phase]:
    """Rollout, log-probs and update of an iteration.

    Args:
        policy: Its world model on fake tensors.
        meter: Counts.
        batch: How much of it.
        num_learners: 2 with a critic, which is a copy of the world model.
    """
    one = generation(policy, meter)
    # A cache grows from nothing: half of it is read on average.
    read_bytes = one.num_passes * (
        one.weight_bytes * batch.num_rollout_batches + one.cache_bytes / 2 * batch.num_videos
    )
    rollout = Phase("rollout", one.flops * batch.num_videos, one.copied_bytes, one.video_bytes, read_bytes)
    copied_bytes, video_bytes = (one.copied_bytes, one.video_bytes) if one.is_kept else (0, 0)
    log_probs = learning(policy, batch.micro_batch_size)
    with torch.no_grad():
        forward = meter.count(log_probs)
    both = meter.count(lambda: log_probs().sum().backward())
    num_parts = batch.num_videos / batch.micro_batch_size
    return (
        rollout,
        Phase(
            "log-probs",
            forward.flops * num_parts * batch.num_log_probs,
            copied_bytes + forward.peak_bytes,
            video_bytes,
        ),
        Phase(
            "update",
            both.flops * num_parts * batch.num_epochs * num_learners,
            copied_bytes + both.peak_bytes * num_learners,
            video_bytes,
        ),
    )


def reward_phase(
    tokenizer: Tokenizer,
    idm: InverseDynamicsModel,
    meter: Meter,
    num_frames: int,
    num_videos: int,
    dtype: torch.dtype | None,
) -> Phase:
    """Decoding and reading back.

    Args:
        tokenizer: On fake tensors.
        idm: On fake tensors.
        meter: Counts.
        num_frames: F.
        num_videos: B.
        dtype: Of autocast.
    """
    is_latent = len(tokenizer.code_shape) > 1
    codes_dtype = torch.float32 if is_latent else torch.long

    def pay() -> None:
        with torch.no_grad(), autocast(_CPU, dtype):
            frames = tokenizer.decode(torch.zeros(1, num_frames, *tokenizer.code_shape, dtype=codes_dtype))
            idm.read(frames)

    count = meter.count(pay)
    return Phase("reward", count.flops * num_videos, count.peak_bytes)
