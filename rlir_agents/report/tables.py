"""The result of one run as a plain-text table, and how figures are set in type everywhere.

Everything is a function of `summary.json` alone (`rlir_agents.report.summary`), so that a table can
always be made again from what is on disk, and no figure in the README is typed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Summary = Mapping[str, Any]

FIGURE_NAMES = {
    "copy_last_frame": "copy of the given frame",
    "shuffled_actions": "before, under shuffled game actions",
    "before": "before (base model)",
    "after": "after (post-trained)",
    "ceiling_reconstruction": "real video, through the tokenizer",
    "ceiling": "real video (ceiling)",
}


def console_table(summary: Summary) -> str:
    """The result of one run as aligned plain text.

    Args:
        summary: as `summarize` makes it.
    """
    readers, psnr = readers_of(summary), summary["psnr"]
    f1 = [f"{readers[0]} F1", "95 %", *(f"{reader} F1" for reader in readers[1:])]
    header = ["", *f1, "camera", "P / R / F1 of all buttons", "PSNR dB"]
    rows = [_console_row(name, figures, readers) for name, figures in summary["figures"].items()]
    counted = f"{summary['num_clips']} clips; F1 over {', '.join(summary['counted_slots'])}"
    return "\n".join(
        [
            align([header, *rows]),
            "",
            *(f"gain by the {reader}   {gain(summary[f'{reader}_f1'])}" for reader in readers),
            f"share of gap closed {percent(summary['share_of_gap_closed'])}"
            f"  {bounds(summary['share_of_gap_closed_ci95'], percent)}",
            f"PSNR                {signed(psnr['after'] - psnr['before'], 2)} dB"
            f"  {bounds(summary['psnr_change_ci95'], lambda value: signed(value, 2))}",
            *_stillness_line(summary),
            counted,
        ]
    )


def _stillness_line(summary: Summary) -> list[str]:
    """Where PSNR was gained or lost; nothing where no copy of the given frame was evaluated."""
    quarters = summary.get("psnr_change_by_stillness")
    if quarters is None:
        return []
    changes = ", ".join(signed(quarter["change"], 2) for quarter in quarters)
    return [f"                    {changes} in quarters of the clips, from those that move most to the stillest"]


def readers_of(summary: Summary) -> list[str]:
    """Whose verdicts there are, the one that counts first: judge and coach, or the coach's alone."""
    return ["coach"] if summary["judge"] == summary["coach"] else ["judge", "coach"]


def _console_row(name: str, figures: Mapping[str, Any], readers: Sequence[str]) -> list[str]:
    first, *others = (figures[reader] for reader in readers)
    return [
        FIGURE_NAMES.get(name, name.replace("_", " ")),
        number(first["f1"]),
        bounds(first["f1_ci95"]),
        *(number(other["f1"]) for other in others),
        number(first["camera_accuracy"]),
        protocol(first),
        number(figures["psnr"], 2),
    ]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: a rule below the first row, all columns but the first to the right.

    Example:
        >>> print(align([["", "a"], ["row", "1.00"]]))
                a
        ---------
        row  1.00
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Rows of cells as a Markdown table; the first row is its head, all but the first columns to the right."""
    rule = ["---"] * num_left + ["---:"] * (len(rows[0]) - num_left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def gain(figures: Mapping[str, Any]) -> str:
    """After minus before, with its interval."""
    difference = signed(figures["after"] - figures["before"])
    return f"{difference} {bounds(figures['gain_ci95'], signed)}".rstrip()


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.0f} %"


def bounds(interval: Sequence[float] | None, form=number) -> str:
    """An interval in brackets; nothing where there is none."""
    return "" if interval is None else f"[{form(interval[0])}, {form(interval[1])}]"


def protocol(figures: Mapping[str, Any]) -> str:
    """Macro precision, recall and F1, averaged over all button slots as MineWorld's benchmark does."""
    return " / ".join(number(figures["protocol"][key]) for key in ("precision", "recall", "f1"))
