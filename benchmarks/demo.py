"""The run that is measured: the demo's own config and classes, with nothing to evaluate and nothing to keep."""

from __future__ import annotations

from collections.abc import Sequence

from rlir_agents.commands.assembly import Assembly, assemble
from rlir_agents.commands.composition import Config, compose_config

# On the CPU, because memory is read from the process and cores are what a demo has; an iteration alone, without the
# evaluations between iterations.
_FIXED = ("experiment=demo", "device=cpu", "trainer.evaluate_every=0", "trainer.keep_best_by=null")


def demo_config(overrides: Sequence[str] = ()) -> Config:
    """The config of the demo.

    Args:
        overrides: ``key=value`` of ``rlir train``; later ones win.
    """
    return compose_config("train", [*_FIXED, *overrides])


def assemble_demo(overrides: Sequence[str] = ()) -> Assembly:
    """The demo, ready to run; see `demo_config`."""
    return assemble(demo_config(overrides))
