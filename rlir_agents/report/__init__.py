"""What is claimed about a run: the summary, the tables made from it, and the page."""

from rlir_agents.report.curves import read_csv_curves
from rlir_agents.report.page import build_report, write_report
from rlir_agents.report.readers import readers_console, readers_markdown, readers_page
from rlir_agents.report.readme import check_block, replace_block, results_table
from rlir_agents.report.settings import settings_entry, settings_table
from rlir_agents.report.summary import beyond_control, summarize, write_summary
from rlir_agents.report.tables import console_table
from rlir_agents.report.videos import Panel, draw_comparison

__all__ = [
    "Panel",
    "beyond_control",
    "build_report",
    "check_block",
    "console_table",
    "draw_comparison",
    "read_csv_curves",
    "readers_console",
    "readers_markdown",
    "readers_page",
    "replace_block",
    "results_table",
    "settings_entry",
    "settings_table",
    "summarize",
    "write_report",
    "write_summary",
]
