"""rlir study denoising: which SDE, how much noise, how many denoising steps? One factor at a time, by the judge.

    rlir study denoising                      # hours; stopped, it goes on with the same command
    rlir study denoising only=[flow_0.7_seed0]

A run is one `rlir train` in <folder>/<arm>_seed<n>; its results are kept as `rlir compare` keeps them. The figures are
for the paper's question (its Tables 9 and 10); a preset is chosen by the coach on dev prompts, with `rlir study
settings`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlir_agents.commands.compare import compare
from rlir_agents.commands.composition import compose_config, describe


def run(arguments: Sequence[str]) -> None:
    """Run what is missing, and renew the README's table."""
    command = ["rlir", "study", "denoising", *arguments]
    compare(compose_config("study_denoising", arguments), command, "denoising")


def help_text() -> str:
    """What ``rlir study --help`` prints of it."""
    return f"{__doc__}\n{describe('study_denoising')}"
