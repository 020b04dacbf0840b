"""rlir study: measure before you believe.

rlir study readers       # what can coach and judge read on real video?
rlir study settings      # which reward, credit and rate learn best, by the coach on dev prompts?
rlir study denoising     # which SDE, how much noise, how many denoising steps?
"""

from __future__ import annotations

from collections.abc import Sequence

from rlir_agents.commands import study_denoising, study_readers, study_settings

_SUBJECTS = {"readers": study_readers, "settings": study_settings, "denoising": study_denoising}


def run(arguments: Sequence[str]) -> None:
    """Study a subject.

    Raises:
        ValueError: if there is no such subject.
    """
    subject, *overrides = arguments or [""]
    if subject not in _SUBJECTS:
        raise ValueError(f"write `rlir study SUBJECT [key=value ...]`; subjects are {', '.join(_SUBJECTS)}")
    _SUBJECTS[subject].run(overrides)


def help_text() -> str:
    """What ``rlir study --help`` prints."""
    return "\n\n".join([__doc__, *(subject.help_text() for subject in _SUBJECTS.values())])
