"""Figures about the readers: which slots are visible, how well they are read, what reconstruction and length change.

Everything is a function of the confusion matrices of `rlir_agents.reader_study`.

Letters: N clips, S slots, C most classes of any slot, D draws of clips.
"""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from torch import Tensor

from rlir_agents.bootstrap import NUM_DRAWS, interval
from rlir_agents.reader_study import ReaderTables
from rlir_env.game_actions import GameActionSpec
from rlir_env.metrics import classification_scores, draw_weights, weighted_sum

COACH = "coach"
VISIBLE_MARGIN = 0.1
"""A slot is visible if the coach's macro F1 on real clips is at least this much above that of always reading "none"."""


def visible_slots(tables: ReaderTables) -> Tensor:
    """Slots that pictures reveal, bool ``[S]``; see :data:`VISIBLE_MARGIN`.

    The coach alone is asked: what is rewarded follows from this, and the judge has no say in training.
    """
    read = _slot_f1(tables.real[COACH].sum(0))
    return read >= _slot_f1(tables.always_none.sum(0)) + VISIBLE_MARGIN


def reader_figures(tables: ReaderTables, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[str, Any]:
    """All figures, JSON-able; None where there is nothing to average.

    Args:
        tables: what was read.
        num_draws: D, of the bootstrap over clips.
        seed: of the draws.

    Returns:
        ``visible_slots``, of these ``counted_slots`` (the buttons, over which the mean F1 runs), ``visible_margin``,
        ``slots`` (by name), ``always_none``, ``readers`` and ``lengths`` (by reader). A figure with an interval is
        ``{"value": x, "ci95": [low, high]}``.
    """
    spec, visible = tables.spec, visible_slots(tables)
    counted = visible & ~_is_camera(spec)
    clips = _Draws(len(tables.always_none), num_draws, seed)
    nothing = tables.always_none.sum(0)
    return {
        "visible_slots": list(compress(spec.names, visible.tolist())),
        "counted_slots": list(compress(spec.names, counted.tolist())),
        "visible_margin": VISIBLE_MARGIN,
        "slots": {
            name: {"is_visible": bool(visible[slot]), **_slot_entry(tables, clips, slot)}
            for slot, name in enumerate(spec.names)
        },
        "always_none": {"f1": _rounded(_slot_f1(nothing[counted]).mean()), "camera": _camera(nothing, spec)},
        "readers": {name: _reader_entry(tables, clips, name, counted) for name in tables.real},
        "lengths": {name: _length_entries(tables, name, counted, num_draws, seed) for name in tables.real},
    }


class _Draws:
    """Draws of clips, the same for all tables of these clips, so that differences are paired."""

    def __init__(self, num_clips: int, num_draws: int, seed: int) -> None:
        everything = torch.ones(1, num_clips, dtype=torch.float64)
        self._weights = torch.cat([everything, draw_weights(num_clips, num_draws, seed)])

    def mean_f1(self, tables: Tensor, slots: Tensor) -> Tensor:
        """Mean of macro F1 over some slots, bool ``[S]``: of all clips, then of each draw, ``[1 + D]``."""
        return _slot_f1(weighted_sum(tables[:, slots], self._weights)).mean(-1)


def _figure(values: Tensor) -> dict[str, Any]:
    """A figure with its 95 % interval, from ``[1 + D]``."""
    return {"value": _rounded(values[0]), "ci95": interval(values[1:])}


def _rounded(value: Tensor) -> float | None:
    return None if value.isnan() else round(value.item(), 4)


def _slot_f1(counts: Tensor) -> Tensor:
    """Macro F1 of every slot; classes neither played nor read do not count, as in ``ActionFollowing``."""
    return classification_scores(counts)["f1"]


def _is_camera(spec: GameActionSpec) -> Tensor:
    return torch.tensor([slot.is_ordered for slot in spec.slots])


def _camera(counts: Tensor, spec: GameActionSpec) -> dict[str, float | None]:
    """Shares of camera readings in the right bin, and in it or a neighbour; from ``[S, C, C]``, mean over slots."""
    camera = counts[_is_camera(spec)].double()
    bins = torch.arange(camera.shape[-1])
    distance = (bins[:, None] - bins).abs()
    hits = {"exact": camera * (distance == 0), "within_one_bin": camera * (distance <= 1)}
    return {name: _rounded((hit.sum((-2, -1)) / camera.sum((-2, -1))).mean()) for name, hit in hits.items()}


def _slot_entry(tables: ReaderTables, clips: _Draws, slot: int) -> dict[str, Any]:
    nothing = tables.always_none.sum(0)[slot]  # [C, C]
    chosen = torch.arange(tables.spec.num_slots) == slot
    return {
        "pressed": _rounded(1 - nothing[tables.spec.none_classes[slot]].sum() / nothing.sum()),
        "always_none": _rounded(_slot_f1(nothing)),
        "readers": {
            name: {
                "real": _figure(clips.mean_f1(tables.real[name], chosen)),
                "reconstructed": _figure(clips.mean_f1(tables.reconstructed[name], chosen)),
            }
            for name in tables.real
        },
    }


def _reader_entry(tables: ReaderTables, clips: _Draws, name: str, counted: Tensor) -> dict[str, Any]:
    videos = {"real": tables.real[name], "reconstructed": tables.reconstructed[name]}
    f1 = {video: clips.mean_f1(table, counted) for video, table in videos.items()}
    return {
        "f1": {video: _figure(values) for video, values in f1.items()},
        "loss": _figure(f1["real"] - f1["reconstructed"]),
        "camera": {video: _camera(table.sum(0), tables.spec) for video, table in videos.items()},
    }


def _length_entries(
    tables: ReaderTables, name: str, counted: Tensor, num_draws: int, seed: int
) -> list[dict[str, Any]]:
    """One entry for every length, ascending; the gain is over the shortest."""
    lengths = {length: tables.by_length[length][name] for length in sorted(tables.by_length)}
    f1 = {length: _Draws(len(table), num_draws, seed).mean_f1(table, counted) for length, table in lengths.items()}
    return [
        {
            "num_frames": length,
            "f1": _figure(f1[length]),
            "gain": _figure(f1[length] - f1[min(f1)]),
            "camera": _camera(table.sum(0), tables.spec),
        }
        for length, table in lengths.items()
    ]
