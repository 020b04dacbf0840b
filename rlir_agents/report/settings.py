"""Which settings learn best, by the coach on dev prompts: the figures of a run, and the table of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from rlir_agents.bootstrap import NUM_DRAWS, interval
from rlir_agents.evaluation import Evaluation
from rlir_agents.report.tables import gain, markdown, number, percent
from rlir_env.metrics import draw_weights

Curves = Mapping[str, Sequence[tuple[float, float]]]


def settings_entry(
    before: Evaluation, after: Evaluation, *, slots: Sequence[str], curves: Curves, seed: int, **facts: Any
) -> dict[str, Any]:
    """The figures of one run, JSON-able.

    Args:
        before: the base model on dev prompts, read by ``coach``.
        after: the post-trained model on the same prompts with the same seeds.
        slots: over which the quoted F1 averages.
        curves: what the run logged.
        seed: of the run; also of the bootstrap.
        **facts: JSON-able entries to add: ``arm``, ``settings``, ``num_videos``.

    Returns:
        ``coach_f1`` (``before``, ``after``, ``gain_ci95``), ``camera_accuracy`` (None for a game without a camera) and
        ``psnr`` (``before``, ``after``), ``groups_without_spread`` (mean over iterations), ``num_clips``, ``seed`` and
        the facts.
    """
    weights = draw_weights(before.num_clips, NUM_DRAWS, seed)
    draws = after.f1_draws("coach", weights, slots) - before.f1_draws("coach", weights, slots)
    videos = {"before": before, "after": after}
    f1 = {when: round(video.f1("coach", slots), 6) for when, video in videos.items()}
    camera = {when: video.scores("coach", slots).get("camera_accuracy") for when, video in videos.items()}
    return {
        **facts,
        "seed": seed,
        "coach_f1": f1 | {"gain_ci95": interval(draws)},
        "camera_accuracy": camera,
        "psnr": {when: round(video.psnr.mean().item(), 4) for when, video in videos.items()},
        "groups_without_spread": round(mean(value for _, value in curves["train/groups_without_spread"]), 6),
        "num_clips": before.num_clips,
    }


def settings_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The README's table, the best first.

    Args:
        entries: as `settings_entry` makes them, one a run.
    """
    header = ["setting", "what differs", "seed", "videos", "coach F1", "gain [95 %]", "camera", "PSNR"]
    header += ["groups without spread"]
    ranked = sorted(entries, key=lambda entry: entry["coach_f1"]["after"], reverse=True)
    return markdown([header, *(_row(entry) for entry in ranked)], num_left=2)


def _row(entry: Mapping[str, Any]) -> list[str]:
    f1, psnr = entry["coach_f1"], entry["psnr"]
    return [
        entry["arm"].replace("_", " "),
        ", ".join(f"`{setting}`" for setting in entry["settings"]) or "the preset",
        str(entry["seed"]),
        f"{entry['num_videos']:,}",
        number(f1["after"]),
        gain(f1),
        number(entry["camera_accuracy"]["after"]),
        f"{psnr['after']:.2f} ({psnr['after'] - psnr['before']:+.2f})",
        percent(entry["groups_without_spread"]),
    ]
