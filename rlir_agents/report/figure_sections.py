"""The report's sections of figures, as HTML: cards, the overview of dots, and two tables.

All of them are functions of the summary; no figure is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlir_agents.report.charts import dot_chart
from rlir_agents.report.tables import (
    FIGURE_NAMES,
    Summary,
    bounds,
    number,
    percent,
    protocol,
    readers_of,
    signed,
)

_DOTS = {
    "before": ("before", "before"),
    "after": ("after", "after"),
    "ceiling_reconstruction": ("reconstruction", "real, via tokenizer"),
    "ceiling": ("ceiling", "real"),
}


def result_cards(summary: Summary) -> str:
    """The four figures to read first."""
    judge, psnr = summary["judge_f1"], summary["psnr"]
    gain, change = judge["after"] - judge["before"], psnr["after"] - psnr["before"]
    low = judge["gain_ci95"][0] if judge["gain_ci95"] else 0.0
    install = summary["install_seconds"]
    cards = [
        (
            f"F1 gain by the {readers_of(summary)[0]}",
            signed(gain),
            f"95 %: {bounds(judge['gain_ci95'], signed)}",
            _tone(low > 0, gain < 0),
        ),
        (
            "Gap to real video closed",
            percent(summary["share_of_gap_closed"]),
            f"95 %: {bounds(summary['share_of_gap_closed_ci95'], percent)}",
            "",
        ),
        (
            "PSNR",
            f"{signed(change, 2)} dB",
            f"{number(psnr['before'], 2)} to {number(psnr['after'], 2)} dB",
            "",
        ),
        (
            f"Time, seed {summary['seed']}",
            _duration(summary["seconds"]),
            (f"and {_duration(install)} of installation; " if install is not None else "")
            + f"{summary['num_clips']} clips",
            "",
        ),
    ]
    return f'<div class="cards">{"".join(_card(*card) for card in cards)}</div>'


def _card(name: str, value: str, detail: str, tone: str) -> str:
    return (
        f'<div class="card"><div class="name">{name}</div><div class="value {tone}">{value}</div>'
        f'<div class="detail">{detail}</div></div>'
    )


def _tone(is_good: bool, is_bad: bool) -> str:
    return "good" if is_good else "bad" if is_bad else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def overview(summary: Summary) -> str:
    """Before, after and the ceilings on one axis, by every reader."""
    rows = {}
    for reader in readers_of(summary):
        rows[reader] = [
            (
                *_DOTS[name],
                summary["figures"][name][reader]["f1"],
                summary["figures"][name][reader]["f1_ci95"],
            )
            for name in _DOTS
        ]
    return (
        "<h2>Where it started, where it is, where it could be</h2>"
        '<p class="note">Macro F1 of the game actions read back from the video; bars are 95 % '
        "bootstrap intervals over clips. Real video is the ceiling: the reader itself is not "
        "perfect. The gain has its own, paired interval, which is narrower than these bars "
        f"suggest.</p>{dot_chart(rows)}"
    )


def figures_table(summary: Summary) -> str:
    """Every evaluation with all its figures."""
    readers = readers_of(summary)
    f1 = [f"{reader} F1" for reader in readers]
    header = ["", *f1, f"camera, {readers[0]}", "P / R / F1 of all buttons", "PSNR, dB"]
    rows = []
    for name, figures in summary["figures"].items():
        verdicts = [figures[reader] for reader in readers]
        cells = [
            escape(FIGURE_NAMES.get(name, name.replace("_", " "))),
            *(f'{number(one["f1"])} <span class="ci">{bounds(one["f1_ci95"])}</span>' for one in verdicts),
            number(verdicts[0]["camera_accuracy"]),
            protocol(verdicts[0]),
            number(figures["psnr"], 2),
        ]
        rows.append((name, cells))
    counted = escape(", ".join(summary["counted_slots"]))
    return (
        f"<h2>Figures</h2>{_table(header, rows)}"
        f'<p class="note">F1: macro F1, mean over {counted}. Camera: share of pitch and yaw bins '
        "read right. MineWorld's benchmark averages over all button groups, and an action that never "
        "occurs counts there as 1.</p>"
    )


def slots_table(summary: Summary) -> str:
    """The figure that counts slot by slot."""
    names = list(_DOTS)
    header = ["slot", "share pressed", *(FIGURE_NAMES[name] for name in names)]
    rows = []
    for slot, figures in summary["slots"].items():
        cells = [
            escape(slot),
            percent(figures["pressed"]),
            *(number(figures[name]) for name in names),
        ]
        rows.append(("" if slot in summary["counted_slots"] else "uncounted", cells))
    return (
        f"<h2>Slot by slot</h2>{_table(header, rows)}"
        f'<p class="note">Macro F1 by the {readers_of(summary)[0]}; accuracy for the camera. Grey slots do not count '
        "in the mean.</p>"
    )


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f'<tr class="{css}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for css, cells in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
