"""Attention between the frames of a video: inside a frame everything sees everything, across frames only what is past.

A frame may stand there once, or as several *copies*: the clean one, which is what later frames see, and noisy ones at
different timesteps, which nobody else sees. Every copy attends to the clean frames before it and to itself, so what a
frame's copies attend to is one rectangle: no masks, no products that a mask would throw away, and on a GPU no special
kernels. That is how one forward evaluates many denoising steps of all frames exactly (DanceGRPO on causal frames; LIVE,
arXiv 2602.03747, and Self-Forcing have the mask; reference page, section 4).

Letters: B rows, H heads, U copies of all frames in order, S tokens of a frame, D head dimension, m tokens of context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.kernels import suits_cpu

# Scores that a CPU works on at a time, 4 MB: fewer are lost in overhead, more in fresh pages of memory.
_SCORES_PER_BLOCK = 2**20

# From scaled queries, keys and values [B, H, U, S, D] to attention output of that shape.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Frame(NamedTuple):
    """Where a frame's copies stand, ``first .. last - 1``, and how many clean frames they see."""

    first: int
    last: int
    num_context: int


@dataclass(frozen=True)
class FrameLayout:
    """Which copies of which frames stand in a sequence: frame by frame, the clean copy before the noisy ones.

    Attributes:
        num_frames: All frames.
        num_clean: The first frames, which have a clean copy.
        num_noisy: Noisy copies of each frame from ``first_noisy`` on.
        first_noisy: First frame with noisy copies.

    Example:
        >>> layout = FrameLayout(num_frames=3, num_clean=2, num_noisy=2, first_noisy=1)
        >>> layout.frame_index  # clean; clean, noisy, noisy; noisy, noisy
        [0, 1, 1, 1, 2, 2]
        >>> layout.clean_copies, layout.noisy_copies
        ([0, 1], [2, 3, 4, 5])
    """

    num_frames: int
    num_clean: int
    num_noisy: int = 0
    first_noisy: int = 0

    @property
    def frame_index(self) -> list[int]:
        """The frame of every copy, U numbers."""
        return [index for index, frame in enumerate(self.frames()) for _ in range(frame.first, frame.last)]

    @property
    def clean_copies(self) -> list[int]:
        """Where the clean copies stand."""
        return [frame.first for frame in self.frames()][: self.num_clean]

    @property
    def noisy_copies(self) -> list[int]:
        """Where the noisy copies stand."""
        clean = set(self.clean_copies)
        return [copy for copy in range(len(self.frame_index)) if copy not in clean]

    def frames(self) -> list[Frame]:
        """Every frame, in order."""
        frames, last = [], 0
        for index in range(self.num_frames):
            first = last
            last += int(index < self.num_clean) + self.num_noisy * int(index >= self.first_noisy)
            frames.append(Frame(first, last, min(index, self.num_clean)))
        return frames


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unmasked attention of n queries to m keys.

    On a CPU in plain products, some rows at a time: for the few queries of a frame 1.6 times as fast as torch's fused
    kernel (35 queries, 315 keys, bfloat16).

    Args:
        query: ``[B, H, n, D]``, scaled already: scores are plain products.
        key: ``[B, H, m, D]``; fastest if its transpose is what lies in memory.
        value: ``[B, H, m, D]``.

    Returns:
        ``[B, H, n, D]``.
    """
    if not suits_cpu(query):
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    num_rows = max(1, _SCORES_PER_BLOCK // (query.shape[1] * query.shape[2] * key.shape[2]))
    precise = torch.promote_types(query.dtype, torch.float32)
    attended = []
    for q, k, v in zip(*(tensor.split(num_rows) for tensor in (query, key, value)), strict=True):
        attended.append((q @ k.mT).softmax(-1, dtype=precise).to(v.dtype) @ v)
    return torch.cat(attended)


def frame_attention(query: Tensor, key: Tensor, value: Tensor, layout: FrameLayout) -> Tensor:
    """Let every copy of every frame attend to the clean frames before it and to itself; differentiable.

    Args:
        query: ``[B, H, U, S, D]``, scaled already.
        key: ``[B, H, U, S, D]``.
        value: ``[B, H, U, S, D]``.
        layout: What the U copies are.

    Returns:
        ``[B, H, U, S, D]``.
    """
    flat = (tensor.flatten(0, 1).contiguous() for tensor in (query, key, value))  # results are written into their like
    return _FrameAttention.apply(*flat, layout).view(query.shape)


class _FrameAttention(torch.autograd.Function):
    """Products frame by frame, results written where they belong: no pass is spent on joining them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: FrameLayout) -> Tensor:
        output = torch.empty_like(query)
        probs = []
        for rows in _row_blocks(query, layout):
            block = _Block(query[rows], key[rows], value[rows], layout)
            probs += block.attend(output[rows])
        ctx.save_for_backward(query, key, value, output, *probs)
        ctx.layout = layout
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, *probs = ctx.saved_tensors
        (grad_output,) = (gradient.contiguous() for gradient in gradients)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for index, rows in enumerate(_row_blocks(query, ctx.layout)):
            block = _Block(query[rows], key[rows], value[rows], ctx.layout)
            own, *seen = probs[index * (ctx.layout.num_frames + 1) :][: ctx.layout.num_frames + 1]
            block.backward(own, seen, output[rows], grad_output[rows], *(grad[rows] for grad in grads))
        return *grads, None


class _Block:
    """Some (row, head) pairs, n of them: queries, keys and values ``[n, U, S, D]``."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: FrameLayout) -> None:
        self.query, self.key, self.value = query, key, value
        self.frames, self.clean = layout.frames(), layout.clean_copies
        self.num_tokens = query.shape[2]
        self.context_key = key[:, self.clean].flatten(1, 2)  # [n, m, D]
        self.context_value = value[:, self.clean].flatten(1, 2)
        self.precise = torch.promote_types(query.dtype, torch.float32)  # of softmax

    def attend(self, output: Tensor) -> list[Tensor]:
        """Write the output; returns what copies pay to themselves ``[n U, S, S]``, and frame by frame to the past."""
        dtype, length = self.query.dtype, self.num_tokens
        own = (_per_copy(self.query) @ _per_copy(self.key).mT).view(*self.query.shape[:3], length)
        context_key_t = self.context_key.mT.contiguous()  # read by every later frame
        seen = []
        for first, last, num_context in self.frames:
            past = num_context * length
            query, own_scores = self.query[:, first:last].flatten(1, 2), own[:, first:last].flatten(1, 2)
            scores = own_scores.new_empty(*own_scores.shape[:2], past + length, dtype=self.precise)
            scores[..., :past] = query @ context_key_t[..., :past]
            scores[..., past:] = own_scores
            probs = scores.softmax(-1)
            own[:, first:last] = probs[..., past:].unflatten(1, (-1, length))
            seen.append(probs[..., :past].to(dtype))
            output[:, first:last] = (seen[-1] @ self.context_value[:, :past]).unflatten(1, (-1, length))
        own = _per_copy(own)
        flat = _per_copy(output)
        torch.baddbmm(flat, own, _per_copy(self.value), out=flat)
        return [own, *seen]

    def backward(
        self,
        own: Tensor,
        seen: list[Tensor],
        output: Tensor,
        grad_output: Tensor,
        grad_query: Tensor,
        grad_key: Tensor,
        grad_value: Tensor,
    ) -> None:
        """Write the gradients."""
        dtype, length = self.query.dtype, self.num_tokens
        # The gradient of softmax is probs * (grad - sum(probs * grad)), and that sum is output * its gradient.
        total = (output.to(self.precise) * grad_output.to(self.precise)).sum(-1, keepdim=True)  # [n, U, S, 1]
        own_grad = _per_copy(grad_output) @ _per_copy(self.value).mT
        own_grad = own_grad.to(self.precise).sub_(_per_copy(total)).mul_(own).to(dtype)
        torch.bmm(own_grad, _per_copy(self.key), out=_per_copy(grad_query))
        torch.bmm(own_grad.mT, _per_copy(self.query), out=_per_copy(grad_key))
        torch.bmm(own.mT, _per_copy(grad_output), out=_per_copy(grad_value))
        context_value_t = self.context_value.mT.contiguous()
        context_key_grad = torch.zeros_like(self.context_key, dtype=self.precise)
        context_value_grad = torch.zeros_like(context_key_grad)
        for (first, last, num_context), probs in zip(self.frames, seen, strict=True):
            past = num_context * length
            query, grad = self.query[:, first:last].flatten(1, 2), grad_output[:, first:last].flatten(1, 2)
            scores_grad = (grad @ context_value_t[..., :past]).to(self.precise)
            scores_grad = scores_grad.sub_(total[:, first:last].flatten(1, 2)).mul_(probs).to(dtype)
            grad_query[:, first:last] += (scores_grad @ self.context_key[:, :past]).unflatten(1, (-1, length))
            context_key_grad[:, :past] += scores_grad.mT @ query
            context_value_grad[:, :past] += probs.mT @ grad
        grad_key[:, self.clean] += context_key_grad.unflatten(1, (-1, length)).to(dtype)
        grad_value[:, self.clean] += context_value_grad.unflatten(1, (-1, length)).to(dtype)


def _per_copy(tensor: Tensor) -> Tensor:
    """Every copy on its own, ``[n, U, S, ...]`` to ``[n U, S, ...]``."""
    return tensor.flatten(0, 1)


def _row_blocks(query: Tensor, layout: FrameLayout) -> Iterator[slice]:
    """(row, head) pairs to work on together, so that their scores stay in cache."""
    num_pairs, _, num_tokens, _ = query.shape
    largest = max((f.last - f.first) * (f.num_context + 1) for f in layout.frames()) * num_tokens**2
    size = max(1, _SCORES_PER_BLOCK // largest) if suits_cpu(query) else num_pairs
    for start in range(0, num_pairs, size):
        yield slice(start, start + size)
