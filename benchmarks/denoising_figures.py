"""What was measured of diffusion world models, as plain numbers and as tables: nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.denoising import FORMS, PRESET, Measurement
from benchmarks.figures import Figures, timed_figures, work_cells
from benchmarks.peaks import Peaks
from rlir_agents.report.tables import align, number, percent

LEAST_TIMES_AS_FAST = 3.0
"""What we ask of form C beside form A."""
LEAST_SHARE_OF_FLOPS = 0.7
"""What we ask of form C beside form A2: so much of what it saves in FLOPs it is to save in time."""

_PASSES = {"forward": "forward", "forward_backward": "forward and backward"}
_WAYS = {
    "group": "a group at once",
    "one_by_one": "its videos one by one",
    "without_cache": "a group without a cache",
}


def denoising_figures(
    forms: Mapping[str, Mapping[str, Measurement]], rollouts: Measurement, peaks: Peaks
) -> dict[str, Figures]:
    """Everything in plain numbers.

    Args:
        forms: By world model and pass.
        rollouts: Of the preset.
        peaks: Of the machine.
    """
    by_model = {
        model: {"setting": passes["forward"].setting}
        | {name: _form_figures(one, peaks) for name, one in passes.items()}
        for model, passes in forms.items()
    }
    return {"forms": by_model, "rollouts": {"setting": rollouts.setting, **_rollout_figures(rollouts, peaks)}}


def _form_figures(measured: Measurement, peaks: Peaks) -> Figures:
    """Seconds and work of every form, both beside those of C, and how it stands with what we ask of C."""
    rows: Figures = {form: timed_figures(measured.seconds[form], measured.works[form], peaks) for form in FORMS}
    for row in rows.values():
        row["times_seconds_of_c"] = row["seconds"] / rows["C"]["seconds"]
        row["times_flops_of_c"] = row["flops"] / rows["C"]["flops"]
    share = rows["A2"]["times_seconds_of_c"] / rows["A2"]["times_flops_of_c"]
    return {**rows, "c_is_times_as_fast_as_a": rows["A"]["times_seconds_of_c"], "share_of_flops_saved_from_a2": share}


def _rollout_figures(measured: Measurement, peaks: Peaks) -> Figures:
    """Denoising steps a second of every way, and what a group with a cache is to it."""
    rates = {way: measured.num_steps[way] / seconds for way, seconds in measured.seconds.items()}
    return {
        way: {
            "steps_per_second": rate,
            "group_is_times_as_fast": rates["group"] / rate,
            "num_steps": measured.num_steps[way],
            **timed_figures(measured.seconds[way], measured.works[way], peaks),
        }
        for way, rate in rates.items()
    }


def denoising_tables(figures: Figures) -> str:
    """All figures of `denoising_figures` as plain text."""
    forms, rollouts = figures["forms"], figures["rollouts"]
    parts = [_forms_text(model, of_model) for model, of_model in forms.items()]
    return "\n\n".join([*parts, _rollout_text(rollouts)])


def _forms_text(model: str, figures: Figures) -> str:
    setting = figures["setting"]
    layers, all_layers = setting["num_layers"], setting["num_layers_of_model"]
    note = "" if layers == all_layers else ", for the ratios only"
    heading = (
        f"{model}, {layers} of {all_layers} layers{note}: log-probs of a batch of {setting['num_rows']}, "
        f"{setting['num_selected']} of {setting['num_denoising_steps']} denoising steps a frame; {_sizes(setting)}"
    )
    return "\n\n".join([heading, *(_form_table(title, figures[name]) for name, title in _PASSES.items())])


def _form_table(title: str, figures: Figures) -> str:
    header = [title, "seconds", "x C's", "TFLOP", "GB", "limit s", "times its limit", "x C's FLOPs"]
    rows = []
    for form in FORMS:
        row = figures[form]
        seconds = [number(row["seconds"], 2), number(row["times_seconds_of_c"], 2)]
        limit = [number(row["times_limit"], 2), number(row["times_flops_of_c"], 2)]
        rows.append([f"form {form}", *seconds, *work_cells(row), *limit])
    faster, share = figures["c_is_times_as_fast_as_a"], figures["share_of_flops_saved_from_a2"]
    verdict = (
        f"C is {number(faster, 2)} times as fast as A (asked: {LEAST_TIMES_AS_FAST:.0f}): "
        f"{_met(faster >= LEAST_TIMES_AS_FAST)}. "
        f"A2 takes {number(figures['A2']['times_seconds_of_c'], 2)} times as long as C for "
        f"{number(figures['A2']['times_flops_of_c'], 2)} times the FLOPs, {percent(share)} of that "
        f"(asked: {percent(LEAST_SHARE_OF_FLOPS)}): {_met(share >= LEAST_SHARE_OF_FLOPS)}."
    )
    return f"{align([header, *rows])}\n{verdict}"


def _rollout_text(figures: Figures) -> str:
    setting = figures["setting"]
    num_all = figures["group"]["num_steps"]
    heading = f"{PRESET.world_model}: rollouts of a group of {setting['num_rows']} videos; {_sizes(setting)}"
    header = ["rollouts", "denoising steps/s", "a group is x as fast", "steps", "seconds", "TFLOP", "GB", "limit s"]
    rows = [
        [
            title,
            number(figures[way]["steps_per_second"], 0),
            number(figures[way]["group_is_times_as_fast"], 2),
            f"{figures[way]['num_steps']} of {num_all}",
            number(figures[way]["seconds"], 2),
            *work_cells(figures[way]),
            number(figures[way]["times_limit"], 2),
        ]
        for way, title in _WAYS.items()
    ]
    return f"{heading}\n\n{align([[*header, 'times its limit'], *rows])}"


def _sizes(setting: Figures) -> str:
    return (
        f"{setting['num_frames']} frames of {setting['tokens_per_frame']} tokens, "
        f"{setting['num_parameters'] / 1e6:.2f} M parameters; in {setting['dtype']}"
    )


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"
