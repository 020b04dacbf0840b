"""summary.json: everything that is claimed about one run, as one dict of numbers.

Tables, README and page are functions of this dict, so a figure exists in one place only. Undefined
figures (the share of a gap where there is none) are None, never NaN: JSON has no NaN.

Letters: D bootstrap draws, N clips, S slots, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlir_agents.bootstrap import NUM_DRAWS, interval, share_of_gap
from rlir_agents.evaluation import Evaluation
from rlir_env.atomic_files import write_text
from rlir_env.metrics import draw_weights
from rlir_env.metrics.action_following import MEASURES

_PSNR_OF_EQUAL_VIDEOS = 100.0  # MineWorld's convention; says nothing, so tables show a dash


def summarize(
    before: Evaluation,
    after: Evaluation,
    reconstruction: Evaluation,
    ceiling: Evaluation,
    *,
    seconds: float,
    seed: int,
    install_seconds: float | None = None,
    judge: str = "judge",
    coach: str = "coach",
    slots: Sequence[str] | None = None,
    controls: Mapping[str, Evaluation] | None = None,
    num_draws: int = NUM_DRAWS,
    **extras: Any,
) -> dict[str, Any]:
    """Sum up one run.

    Args:
        before: the base model on the test prompts.
        after: the post-trained model on the same prompts with the same seeds.
        reconstruction: the tokenizer's reconstruction of the real continuations.
        ceiling: the real continuations.
        seconds: what the run took, without installation.
        seed: of the run; also of the bootstrap.
        install_seconds: what the installation took, None if it is not known.
        judge: name of the IDM that had no part in training.
        coach: name of the IDM that rewarded.
        slots: slots that may count in the quoted F1, by name (the visible ones); default: all
            button slots. Those with one class only do not count.
        controls: further evaluations of the same prompts, by name, for the table.
        num_draws: D.
        **extras: JSON-able entries to add, such as `paradigm` and `arm`.

    Returns:
        A JSON-able dict: `judge_f1` and `coach_f1` (`before`, `after`, `ceiling`,
        `ceiling_reconstruction`, `gain_ci95`), `psnr` (`before`, `after`), `share_of_gap_closed`
        (by the judge), `num_clips`, `seconds`, `install_seconds`, `seed`; beside these `figures`
        (every evaluation by name), `slots` (F1 slot by slot, by the judge), `counted_slots`,
        `share_of_gap_closed_ci95`, `psnr_change_ci95`, `psnr_change_by_stillness` (where the controls have
        `copy_last_frame`), `num_draws`, `judge`, `coach`.

    Raises:
        ValueError: if the evaluations are not of the same prompts, or an extra entry has the name
            of a figure.
    """
    evaluations = {
        **(controls or {}),
        "before": before,
        "after": after,
        "ceiling_reconstruction": reconstruction,
        "ceiling": ceiling,
    }
    _check_paired(evaluations)
    readers = {"judge": judge, "coach": coach}
    weights = draw_weights(before.num_clips, num_draws, seed)
    draws = {
        name: {reader: one.f1_draws(idm, weights, slots) for reader, idm in readers.items()}
        for name, one in evaluations.items()
    }
    figures = {name: _figures(one, readers, slots, draws[name]) for name, one in evaluations.items()}
    share_draws = share_of_gap(*(draws[name]["judge"] for name in ("before", "after", "ceiling")))
    psnr_draws = weights @ (after.psnr - before.psnr).double() / before.num_clips
    is_counted = before.quoted_slots(slots).tolist()
    summary = {
        "judge_f1": _f1_entry("judge", figures, draws),
        "coach_f1": _f1_entry("coach", figures, draws),
        "psnr": {"before": _mean(before.psnr), "after": _mean(after.psnr)},
        "share_of_gap_closed": _share(figures),
        "num_clips": before.num_clips,
        "seconds": round(seconds, 1),
        "install_seconds": _rounded(install_seconds, 1),
        "seed": seed,
        "share_of_gap_closed_ci95": interval(share_draws),
        "psnr_change_ci95": interval(psnr_draws),
        "psnr_change_by_stillness": psnr_change_by_stillness(before, after, evaluations.get("copy_last_frame")),
        "num_draws": num_draws,
        **readers,
        "counted_slots": list(compress(before.spec.names, is_counted)),
        "figures": figures,
        "slots": _slot_figures(evaluations, judge),
    }
    clash = sorted(summary.keys() & extras.keys())
    if clash:
        raise ValueError(f"extra entries {', '.join(clash)} have names of figures: rename them")
    return {**summary, **extras}


def beyond_control(
    result: Evaluation, control: Evaluation, slots: Sequence[str], seed: int, judge: str = "judge"
) -> dict[str, Any]:
    """What a result has over that of a control which began at the same base model.

    Args:
        result: on the test prompts.
        control: on the same prompts with the same seeds.
        slots: those that count in the quoted F1, by name.
        seed: of the bootstrap.
        judge: name of the IDM that had no part in training.

    Returns:
        JSON-able: `judge_f1` and `psnr`, result minus control, and `judge_f1_ci95`, `psnr_ci95` over clips.

    Raises:
        ValueError: if the evaluations are not of the same prompts.
    """
    _check_paired({"result": result, "control": control})
    weights = draw_weights(result.num_clips, NUM_DRAWS, seed)
    difference = (result.psnr - control.psnr).double()
    draws = result.f1_draws(judge, weights, slots) - control.f1_draws(judge, weights, slots)
    return {
        "judge_f1": round(result.f1(judge, slots) - control.f1(judge, slots), 6),
        "judge_f1_ci95": interval(draws),
        "psnr": _mean(difference),
        "psnr_ci95": interval(weights @ difference / result.num_clips),
    }


def write_summary(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as JSON, atomically; NaN and infinity are errors."""
    write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def psnr_change_by_stillness(
    before: Evaluation, after: Evaluation, copy: Evaluation | None
) -> list[dict[str, float]] | None:
    """Where the picture gains or loses: by quarters of the clips, from those that move most to those that stand still.

    A reward for readable keys may teach motion where the real clip has none: then the last
    quarter pays. Quarters are of the PSNR of a copy of the given frame, which knows nothing of either model.

    Args:
        before: the base model.
        after: the post-trained model, same prompts.
        copy: the given frame, repeated.

    Returns:
        A quarter each: mean PSNR of the `copy`, and mean `change` of PSNR, both in dB. None without a copy.
    """
    if copy is None:
        return None
    quarters = copy.psnr.argsort().tensor_split(4)
    change = after.psnr - before.psnr
    return [{"copy": _mean(copy.psnr[clips]), "change": _mean(change[clips])} for clips in quarters if len(clips)]


def _check_paired(evaluations: Mapping[str, Evaluation]) -> None:
    first_name, first = next(iter(evaluations.items()))
    for name, evaluation in evaluations.items():
        if not torch.equal(evaluation.game_action, first.game_action):
            raise ValueError(f"{name!r} and {first_name!r} are not of the same prompts: evaluate both on one set")


def _figures(
    evaluation: Evaluation,
    readers: Mapping[str, str],
    slots: Sequence[str] | None,
    draws: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What the tables show of one evaluation: figures by reader, and the picture's PSNR."""
    figures: dict[str, Any] = {"psnr": mean_psnr(evaluation.psnr)}
    for reader, idm in readers.items():
        scores = evaluation.scores(idm, slots)
        figures[reader] = {
            "f1": round(evaluation.f1(idm, slots), 6),
            "f1_ci95": interval(draws[reader]),
            "camera_accuracy": _rounded(scores.get("camera_accuracy")),
            "camera_loss": _rounded(scores.get("camera_loss")),
            "protocol": {key: round(scores[f"mineworld/{key}_macro"], 6) for key in MEASURES},
        }
    return figures


def _f1_entry(reader: str, figures: Mapping, draws: Mapping) -> dict[str, Any]:
    names = ("before", "after", "ceiling", "ceiling_reconstruction")
    entry: dict[str, Any] = {name: figures[name][reader]["f1"] for name in names}
    return entry | {"gain_ci95": interval(draws["after"][reader] - draws["before"][reader])}


def _share(figures: Mapping) -> float | None:
    f1 = (figures[name]["judge"]["f1"] for name in ("before", "after", "ceiling"))
    share = share_of_gap(*(torch.tensor(value, dtype=torch.float64) for value in f1)).item()
    return None if math.isnan(share) else round(share, 6)


def _slot_figures(evaluations: Mapping[str, Evaluation], idm: str) -> dict[str, dict[str, float]]:
    """By slot: the share of transitions that are not "none", and every evaluation's figure."""
    figures = {name: evaluation.slot_figures(idm) for name, evaluation in evaluations.items()}
    pressed = evaluations["before"].pressed_shares()
    return {
        slot: {
            "pressed": round(pressed[slot], 6),
            **{name: round(figures[name][slot], 6) for name in figures},
        }
        for slot in pressed
    }


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


def mean_psnr(psnr: Tensor) -> float | None:
    """Mean over clips ``[N]``; None for videos that are the real ones."""
    return None if (psnr >= _PSNR_OF_EQUAL_VIDEOS).all() else _mean(psnr)


def _mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 4)
