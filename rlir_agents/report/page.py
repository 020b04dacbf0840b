"""report.html: the result of one run on one self-contained page.

No network, no script, no file beside it: charts are inline SVG, videos are data URIs. All figures
come from the summary (`rlir_agents.report.summary`); the sections only set them in type. What is
missing (no curves yet, no videos) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from rlir_agents.evaluation import Evaluation
from rlir_agents.report.charts import Curve
from rlir_agents.report.figure_sections import figures_table, overview, result_cards, slots_table
from rlir_agents.report.media_sections import curve_section, video_section
from rlir_agents.report.tables import Summary
from rlir_env.atomic_files import write_text


def write_report(path: str | Path, summary: Summary, **parts: Any) -> None:
    """Write the page atomically; arguments as in `build_report`."""
    write_text(path, build_report(summary, **parts))


def build_report(
    summary: Summary,
    *,
    evaluations: Mapping[str, Evaluation] | None = None,
    curves: Mapping[str, Curve] | None = None,
    settings: str | None = None,
    title: str = "RLIR: does the world model follow its actions?",
    num_videos: int = 6,
) -> str:
    """The page as HTML.

    Args:
        summary: as `summarize` makes it.
        evaluations: by name; `ceiling`, `before` and `after` are shown side by side, as far as they
            hold frames.
        curves: log key -> (iteration, value) pairs.
        settings: the run's configuration and commands, shown verbatim.
        title: of the page.
        num_videos: clips to show at most.
    """
    sections = [
        _head(summary, title),
        result_cards(summary),
        overview(summary),
        figures_table(summary),
        slots_table(summary),
        video_section(summary, evaluations or {}, num_videos),
        curve_section(curves or {}),
        f"<h2>Settings</h2><pre>{escape(settings)}</pre>" if settings else "",
    ]
    return html_page(title, sections)


def html_page(title: str, sections: Sequence[str]) -> str:
    """Sections of HTML, empty ones left out, as a page in the report's style."""
    template = files("rlir_agents.report").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body="\n".join(filter(None, sections)))


def _head(summary: Summary, title: str) -> str:
    if summary["judge"] == summary["coach"]:
        verdict = (
            "its own verdict on prompts that had no part in the training: there is no other reader of this game, and "
            "so they cannot tell obeying from pleasing it."
        )
    else:
        verdict = (
            f"the verdict of another one, the {_reader('judge', summary)}, which had no part in the training, on "
            "prompts that had no part in it either."
        )
    return (
        f"<h1>{escape(title)}</h1>"
        "<p>A video world model was post-trained so that it obeys the game actions it is given. An "
        f"inverse dynamics model, the {_reader('coach', summary)}, read the actions back from "
        f"generated videos, and what it read correctly was the reward. The figures below are {verdict}</p>"
    )


def _reader(role: str, summary: Summary) -> str:
    """The role, and the name of who plays it where that says more."""
    name = summary[role]
    return f"<b>{role}</b>" if name == role else f"<b>{role}</b> ({escape(name)})"
