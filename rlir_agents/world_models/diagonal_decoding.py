"""MineWorld's diagonal decoding: rows of a frame advance side by side, each a few columns behind the one above.

A frame takes ``(rows - 1) w + columns`` passes instead of rows x columns. It is not the model's own distribution: the
codes of a diagonal are drawn independently of one another, a row begins before the one above it has ended and reads a
*substitute* for its last code, and what is not yet written is seen as keys and values of zero. So are the published
models used; which of them were trained for it is not known.

What is fed where is a schedule, a list of numbers; one loop runs it. Every place is fed at most once, so a schedule can
also be run as one forward over finished videos, which is what a loss needs (`teacher_forced`). A code depends on
earlier passes alone: the sum of log-probabilities over codes is that of the video under the approximation, exactly.
Sampling one code after another is in `decoding.py`, playing with the model frame by frame in `interactive.py`.

Letters: B rows of a batch, L sequence length, K tokens of a frame, A word length, F generated frames, n positions of a
pass, w window, H query heads, KV key/value heads, d head dimension, u zeros that are read as keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.layers import Attend
from rlir_agents.world_models.mineworld import MineWorldDecoding
from rlir_agents.world_models.positioned_cache import PositionedCache
from rlir_agents.world_models.sampling import TokenSampler
from rlir_env.layout import TokenLayout
from rlir_env.noise import counter_uniform

Diagonal = Literal["image_diagonal", "video_diagonal"]


@dataclass(frozen=True)
class Pass:
    """One call of the network.

    Attributes:
        positions: Where keys and values are written, n ascending places of the sequence.
        sources: The place whose id is fed at each; another one only where the id is a substitute.
        wanted: At which of them logits are wanted.
        targets: The places that are sampled from these; none where ids are only read.
    """

    positions: tuple[int, ...]
    sources: tuple[int, ...]
    wanted: tuple[int, ...]
    targets: tuple[int, ...]


def diagonal_schedule(
    layout: TokenLayout, grid_size: tuple[int, int], window: int, decoding: Diagonal
) -> Iterator[Pass]:
    """All passes that make the frames behind the first one.

    Args:
        layout: Where frames and words stand; the first frame and the first word are the prompt.
        grid_size: Rows and columns of a frame's codes.
        window: w, by how many columns a row trails the one above; 1 to the number of columns.
        decoding: ``"image_diagonal"`` finishes a frame before the next one begins, ``"video_diagonal"`` goes on with
            the next frame's first row as with any other.

    Raises:
        ValueError: if grid or window do not fit.
    """
    check_window(layout, grid_size, window)
    if decoding == "image_diagonal":
        for frame in range(1, layout.num_frames):
            yield from frame_schedule(layout, frame, grid_size, window)
    elif decoding == "video_diagonal":
        starts = layout.frame_starts.tolist()[1:]
        yield _prompt_pass(range(starts[0]), starts[0])
        yield from front(layout, starts, grid_size, window)
    else:
        raise ValueError(f"decoding={decoding!r}: choose 'naive', 'image_diagonal' or 'video_diagonal'")


def check_window(layout: TokenLayout, grid_size: tuple[int, int], window: int) -> None:
    """Raise a ValueError if grid or window do not fit."""
    rows, columns = grid_size
    if rows * columns != layout.tokens_per_frame:
        raise ValueError(
            f"grid_size={grid_size}: give rows and columns of the {layout.tokens_per_frame} codes of a frame"
        )
    if not 1 <= window <= columns:
        raise ValueError(f"window={window}: a row trails the one above by 1 to {columns} columns")


def frame_schedule(layout: TokenLayout, frame: int, grid_size: tuple[int, int], window: int) -> Iterator[Pass]:
    """The passes of ``"image_diagonal"`` that make a frame, 1 .. F; all before it have been made so."""
    start = int(layout.frame_starts[frame])
    # The first one reads the prompt, the others the last code of the frame before, and the word.
    yield _prompt_pass(range(0 if frame == 1 else start - layout.word_length - 1, start), start)
    yield from front(layout, [start], grid_size, window)


def _prompt_pass(places: range, target: int) -> Pass:
    """Read known ids and sample what follows the last one."""
    return Pass(tuple(places), tuple(places), (len(places) - 1,), (target,))


def front(
    layout: TokenLayout,
    starts: list[int],
    grid_size: tuple[int, int],
    window: int,
    substitute: Literal["given", "newest"] = "given",
) -> Iterator[Pass]:
    """Every pass of some frames but the first one, which samples the first code of the first frame.

    Args:
        layout: Where frames and words stand.
        starts: Where the frames begin.
        grid_size: Rows and columns of a frame's codes.
        window: w.
        substitute: What a row reads for the last code of the one above, which has not ended: that of the ``"given"``
            first frame, or the ``"newest"`` code of the row above.
    """
    rows, columns = grid_size
    last = (rows * len(starts) - 1) * window + columns - 1
    for step in range(1, last + 1):
        positions: list[int] = []
        sources: list[int] = []
        wanted: list[int] = []
        targets: list[int] = []
        for line in range(rows * len(starts)):  # rows of all frames
            column = step - line * window
            if not 0 <= column < columns:
                continue
            frame, row = divmod(line, rows)
            target = starts[frame] + row * columns + column
            if column == 0 and row == 0:  # the frame's word; the last code before it is never fed
                places = list(range(target - layout.word_length, target))
                fed = places
            else:
                places = [target - 1]
                newest = target - columns + window - 1
                fed = places if column else [newest if substitute == "newest" else row * columns - 1]
            positions += places
            sources += fed
            wanted.append(len(positions) - 1)
            targets.append(target)
        yield Pass(tuple(positions), tuple(sources), tuple(wanted), tuple(targets))


@torch.no_grad()
def run_schedule(
    weights: MineWorldDecoding,
    token: Tensor,
    schedule: Iterator[Pass],
    sampler: TokenSampler,
    seed: Tensor,
    cache: PositionedCache,
    noise_offset: int = 0,
) -> Tensor:
    """Run a schedule.

    Args:
        weights: Of the world model.
        token: Integer ``[B, L]`` with the first frame and all words in their places; filled in place.
        schedule: For instance that of :func:`diagonal_schedule`.
        sampler: How a code is chosen.
        seed: Episode seeds, long ``[B]``; a code's noise is a function of its place, as in `decoding.py`.
        cache: Fresh; or that of another video, whose keys and values are then seen where nothing is written yet. The
            published script never clears its cache.
        noise_offset: Places of the video that stand before those of the tokens, for the noise.

    Returns:
        Log-probabilities of the codes in their places, float32 ``[B, L]``; 0 where nothing was sampled.
    """
    log_prob = torch.zeros(token.shape, device=token.device)
    for one in schedule:
        positions = torch.tensor(one.positions, device=token.device)
        attend = [partial(cache.attend, layer, positions) for layer in range(len(cache.keys))]
        logits = weights.feed_at(token[:, list(one.sources)], positions, attend, list(one.wanted))
        if not one.targets:
            continue
        targets = torch.tensor(one.targets, device=token.device)
        codes, log_probs = sampler.draw(logits, counter_uniform(seed[:, None], targets + noise_offset))
        token[:, targets], log_prob[:, targets] = codes.to(token.dtype), log_probs
    return log_prob


@dataclass(frozen=True)
class TeacherForced:
    """A schedule as one forward over finished videos.

    Attributes:
        sources: The place whose id stands at each place, long ``[L]``.
        is_visible: Which keys a place sees, bool ``[L, L + u]``; the last u are zero, and so are their values.
    """

    sources: Tensor
    is_visible: Tensor

    def attention(self, length: int) -> Attend:
        """Attention among the first places of a sequence."""
        num_places = len(self.sources)
        is_visible = torch.cat([self.is_visible[:length, :length], self.is_visible[:length, num_places:]], dim=1)
        num_zeros = self.is_visible.shape[1] - num_places

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mask = is_visible.to(query.device)
            keys, values = (F.pad(entry, (0, 0, 0, num_zeros)) for entry in (key, value))
            is_grouped = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=is_grouped)

        return attend


def teacher_forced(schedule: Iterable[Pass], length: int) -> TeacherForced:
    """What a schedule feeds where, and what each place sees when it is fed.

    A place sees all that was written before its own pass or in it, up to itself; what was not written then is seen as
    zeros. Those are counted here, and stand behind the sequence: their order does not matter.

    Args:
        schedule: That feeds every place at most once.
        length: L.
    """
    never = torch.iinfo(torch.long).max
    fed_by = torch.full((length,), never)
    sources = torch.arange(length)
    for index, one in enumerate(schedule):
        fed_by[list(one.positions)] = index
        sources[list(one.positions)] = torch.tensor(one.sources)
    is_before = torch.ones(length, length, dtype=torch.bool).tril()
    is_written = fed_by <= fed_by[:, None]
    num_zeros = (is_before & ~is_written).sum(1)
    is_zero_seen = torch.arange(int(num_zeros.max())) < num_zeros[:, None]
    return TeacherForced(sources, torch.cat([is_before & is_written, is_zero_seen], dim=1))
