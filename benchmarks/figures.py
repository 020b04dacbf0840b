"""What was measured as one tree of plain numbers, and the tables made from it: nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.generation import WAYS, Generation
from benchmarks.peaks import Peaks
from benchmarks.work import Work, limit, total
from rlir_agents.report.tables import align, number, percent

MOST_TIMES_LIMIT = 3.0
"""What we ask of the fused rollout."""

Figures = dict[str, Any]


def peak_figures(peaks: Peaks) -> Figures:
    """Rates in FLOP/s and bytes/s."""
    products = {_type_name(dtype): rate for dtype, rate in peaks.flops.items()}
    return {"matrix_product_flops_per_second": products, "memory_copy_bytes_per_second": peaks.copy}


def generation_figures(generations: Mapping[str, Generation]) -> Figures:
    """Rates and memory of each way, and what fused is to it."""
    fused = generations["fused"]
    return {
        name: {
            "tokens_per_second": one.tokens_per_second,
            "fused_is_times_as_fast": fused.tokens_per_second / one.tokens_per_second,
            "peak_bytes": one.peak_bytes,
            "seconds": one.seconds,
            "tokens_of_each_video": one.num_tokens_of_video,
        }
        for name, one in generations.items()
    }


def work_figures(works: Sequence[Work], peaks: Peaks) -> Figures:
    """FLOPs, bytes and the limit of a part, and which of the two makes the limit."""
    flops, num_bytes = total(works)
    seconds = limit(works, peaks)
    by_flops = sum(work.flops / peaks.flops[work.dtype] for work in works)
    is_product = by_flops > num_bytes / peaks.copy
    bound_by = "product" if is_product else "copy"
    return {"flops": flops, "bytes": num_bytes, "limit_seconds": seconds, "bound_by": bound_by}


def timed_figures(seconds: float, works: Sequence[Work], peaks: Peaks) -> Figures:
    """Seconds of a part beside its work."""
    counted = work_figures(works, peaks)
    return {"seconds": seconds, **counted, "times_limit": seconds / counted["limit_seconds"]}


def iteration_figures(seconds: Mapping[str, float], works: Mapping[str, Sequence[Work]], peaks: Peaks) -> Figures:
    """Every part's seconds beside its work, and the whole iteration."""
    everything = [work for part in seconds for work in works[part]]
    rows = {part: (seconds[part], works[part]) for part in seconds} | {"iteration": (sum(seconds.values()), everything)}
    return {
        part: {"share": taken / sum(seconds.values()), **timed_figures(taken, of_part, peaks)}
        for part, (taken, of_part) in rows.items()
    }


def token_tables(figures: Figures) -> str:
    """All figures of tokens as plain text."""
    return "\n\n".join(
        [
            _setting_text(figures["batch"], figures["world_model"]),
            _generation_table(figures["generation"], figures["batch"]["tokens_of_each_video"]),
            _iteration_table(figures["iteration"]),
            _rollout_table(figures["rollout"]),
            _verdict(figures["iteration"]["rollout"]["times_limit"]),
        ]
    )


def machine_text(machine: Figures, peaks: Figures) -> str:
    """The machine and its peaks."""
    products = peaks["matrix_product_flops_per_second"].items()
    rates = " and ".join(f"{number(rate / 1e12, 2)} TFLOP/s in {name}" for name, rate in products)
    copy = f"{number(peaks['memory_copy_bytes_per_second'] / 1e9, 1)} GB/s, read and written"
    return (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}\n"
        f"peaks: matrix product {rates}; memory copy {copy}"
    )


def _setting_text(batch: Figures, model: Figures) -> str:
    return (
        f"{batch['num_prompts']} prompts x {batch['group_size']} siblings, {batch['tokens_of_each_video']} tokens "
        f"a video; {model['num_parameters'] / 1e6:.2f} M parameters, {model['num_hidden_layers']} layers, "
        f"{model['num_attention_heads']} heads on {model['num_key_value_heads']} of keys and values; "
        f"rollouts in {batch['dtype']}"
    )


def _generation_table(generation: Figures, num_tokens: int) -> str:
    header = ["generation, without rewards", "tokens/s", "fused is x as fast", "peak memory MB", "tokens of a video"]
    rows = [
        [
            WAYS[name].title,
            number(one["tokens_per_second"], 0),
            number(one["fused_is_times_as_fast"], 2),
            number(one["peak_bytes"] / 1e6, 0),
            f"{one['tokens_of_each_video']} of {num_tokens}",
        ]
        for name, one in generation.items()
    ]
    return align([header, *rows])


def _iteration_table(iteration: Figures) -> str:
    header = ["one iteration", "seconds", "share", "TFLOP", "GB", "limit s", "times its limit"]
    rows = [
        [part, number(one["seconds"], 2), percent(one["share"]), *work_cells(one), number(one["times_limit"], 2)]
        for part, one in iteration.items()
    ]
    return align([header, *rows])


def _rollout_table(rollout: Figures) -> str:
    header = ["the rollout's limit", "TFLOP", "GB", "limit s", "bound by"]
    return align([header, *([part, *work_cells(one), one["bound_by"]] for part, one in rollout.items())])


def work_cells(one: Figures) -> list[str]:
    """FLOPs, bytes and limit of a part, in a table."""
    return [number(one["flops"] / 1e12, 2), number(one["bytes"] / 1e9, 1), number(one["limit_seconds"], 2)]


def _verdict(times_limit: float) -> str:
    word = "within" if times_limit <= MOST_TIMES_LIMIT else "NOT within"
    return f"The fused rollout takes {times_limit:.2f} times its limit: {word} {MOST_TIMES_LIMIT:.0f} times."


def _type_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
