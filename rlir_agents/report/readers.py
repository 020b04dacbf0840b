"""What the readers can read, as tables and as a page; a function of `reader_figures` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from rlir_agents.report.charts import dot_chart, line_chart
from rlir_agents.report.page import html_page
from rlir_agents.report.tables import align, bounds, markdown, number, signed

Figures = Mapping[str, Any]
Rows = list[list[str]]

ASKED_F1, ASKED_LOSS = 0.75, 0.05
"""What a reader should reach before its word is optimised: on real clips at least, lost by reconstruction at most."""

_COLOURS = {"judge": "after", "coach": "reconstruction"}  # classes of the page's style
_VIDEOS = ("real", "reconstructed")


def readers_console(figures: Figures) -> str:
    """All tables as aligned plain text."""
    return _under_titles(figures, align, "{}\n\n")


def readers_markdown(figures: Figures) -> str:
    """All tables for the README."""
    return _under_titles(figures, markdown, "{}:\n\n")


def readers_page(figures: Figures) -> str:
    """Dots for every slot, a curve over clip lengths for every reader, as an HTML page."""
    dots = {
        slot: [
            ("before", "always none", entry["always_none"], None),
            *(
                (_COLOURS.get(name, "ceiling"), name, read["real"]["value"], read["real"]["ci95"])
                for name, read in entry["readers"].items()
            ),
        ]
        for slot, entry in figures["slots"].items()
    }
    curves = [
        f"<figure>{line_chart(curve, name, 'frames of a clip')}<figcaption><b>{name}</b>{_counted(figures)}"
        "</figcaption></figure>"
        for name, entries in figures["lengths"].items()
        if (curve := [(e["num_frames"], e["f1"]["value"]) for e in entries if e["f1"]["value"] is not None])
    ]
    return html_page(
        "What can the readers read?",
        [
            "<h1>What can the readers read?</h1>",
            f"<p>{escape(_source(figures))}</p>",
            "<h2>Macro F1 of every slot on real clips</h2>",
            dot_chart(dots),
            "<h2>Longer clips</h2><p>The same transitions, read in pieces of other lengths.</p>" if curves else "",
            f'<div class="charts">{"".join(curves)}</div>',
            f"<h2>Figures</h2><pre>{escape(readers_console(figures))}</pre>",
        ],
    )


def _under_titles(figures: Figures, table: Callable[[Rows], str], title: str) -> str:
    parts = {
        "Macro F1 of every slot": _slot_rows(figures),
        f"{_counted(figures)}, and the camera": _reader_rows(figures),
        "The same mean by clip length": _length_rows(figures),
    }
    texts = [title.format(name) + table(rows) for name, rows in parts.items()]
    return "\n\n".join([*texts, _source(figures)])


def _slot_rows(figures: Figures) -> Rows:
    readers = list(figures["readers"])
    header = ["slot", "not none", "always none"]
    header += [cell for name in readers for cell in (name, "through the tokenizer")]
    return [
        [*header, "visible"],
        *(
            [
                slot,
                number(entry["pressed"]),
                number(entry["always_none"]),
                *(number(entry["readers"][name][video]["value"]) for name in readers for video in _VIDEOS),
                "yes" if entry["is_visible"] else "no",
            ]
            for slot, entry in figures["slots"].items()
        ),
    ]


def _reader_rows(figures: Figures) -> Rows:
    header = ["", "F1 on real clips", "through the tokenizer", "lost"]
    header += ["camera: right bin", "through the tokenizer"]
    nothing = figures["always_none"]
    rows = [header]
    for name, entry in figures["readers"].items():
        f1 = [_with_interval(entry["f1"][video]) for video in _VIDEOS]
        camera = [number(entry["camera"][video]["exact"]) for video in _VIDEOS]
        rows.append([name, *f1, _with_interval(entry["loss"], signed), *camera])
    rows.append(["always none", number(nothing["f1"]), "", "", number(nothing["camera"]["exact"]), ""])
    return [*rows, ["asked for", f"at least {ASKED_F1}", "", f"at most {ASKED_LOSS}", "", ""]]


def _length_rows(figures: Figures) -> Rows:
    lengths = figures["lengths"]
    header = ["frames", *(cell for name in lengths for cell in (name, "gain over the shortest", "camera: right bin"))]
    rows = [header]
    for entries in zip(*lengths.values(), strict=True):
        row = [str(entries[0]["num_frames"])]
        for entry in entries:
            row += [
                number(entry["f1"]["value"]),
                _with_interval(entry["gain"], signed),
                number(entry["camera"]["exact"]),
            ]
        rows.append(row)
    return rows


def _counted(figures: Figures) -> str:
    """Over which slots the quoted mean runs."""
    buttons = figures["counted_slots"]
    return f"Mean macro F1 over the visible buttons ({', '.join(buttons) or 'none'})"


def _source(figures: Figures) -> str:
    weights = ", ".join(f"{name} {entry['sha256'][:12]}" for name, entry in figures["weights"].items())
    return (
        f"{figures['num_clips']} clips of {figures['num_frames']} frames; by length {figures['num_windows']} clips of "
        f"{figures['window_frames']}, cut; maps: {figures['maps']}; weights (sha256): {weights}. Brackets are 95 % "
        f"intervals over clips. Visible: the coach at least {figures['visible_margin']} above always none. Made by "
        f"`{figures['command']}`."
    )


def _with_interval(figure: Mapping[str, Any], form: Callable[[float], str] = number) -> str:
    if figure["value"] is None:
        return number(None)
    return f"{form(figure['value'])} {bounds(figure['ci95'], form)}".rstrip()
