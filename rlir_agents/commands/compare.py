"""rlir compare: every arm with every seed, one after the other, and the table of results made from them.

    rlir compare                              # hours; stopped, it goes on with the same command
    rlir compare seeds=[0] "overrides=['trainer.num_iterations=5']" folder=runs/try results=runs/try.json readme=null
    rlir compare only=[rlir_seed1]            # this run alone, so that several commands can share the work

A run is one `rlir train` in <folder>/<arm>_seed<n>. Those that are finished replace their entries in the results; those
of other runs stay. The control `more_pretraining` takes as long as the training of `rlir` with the same seed took.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlir_agents.commands.arms import Run, all_runs, chosen_runs, store_results
from rlir_agents.commands.assembly import frozen_parts
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.further_pretraining import FurtherPretraining, check_overrides
from rlir_agents.commands.train import Learn, train
from rlir_agents.commands.training_run import TrainingRun
from rlir_agents.evaluation import Evaluation
from rlir_agents.report import beyond_control, check_block, console_table, replace_block, results_table

_TIMED_BY, _CONTROL = "rlir", "more_pretraining"  # the arm whose training time the control gets


def run(arguments: Sequence[str]) -> None:
    """Run what is missing, and renew the README's table of results."""
    compare(compose_config("compare", arguments), ["rlir", "compare", *arguments], "results")


def compare(config: Config, command: Sequence[str], block: str) -> None:
    """Run what is missing of a comparison by the judge, storing the results after each run.

    Args:
        config: of the comparison.
        command: words of the command line; with another ``only`` it makes a run alone, as the run's report says.
        block: of the README that holds the table.
    """
    if config["readme"] is not None:
        check_block(config["readme"], block)
    shared = [word for word in command if not word.startswith("only=")]
    for chosen in chosen_runs(config):
        if not _is_finished(chosen):
            train(chosen.train_config(), shlex.join([*shared, f"only=[{chosen.name}]"]), _learn(chosen))
            store_results(config["results"], _finished(config))
        print(console_table(_summary(chosen)), flush=True)
    entries = store_results(config["results"], _finished(config))
    table = results_table(entries)
    if config["readme"] is not None:
        replace_block(config["readme"], block, table)
    print(f"\n{table}\n\n{config['results']}")


def help_text() -> str:
    """What ``rlir compare --help`` prints."""
    return f"{__doc__}\n{describe('compare')}"


def _learn(run: Run) -> Learn:
    """What an arm does between before and after."""
    if run.arm != _CONTROL:
        return TrainingRun.learn
    timed = replace(run, arm=_TIMED_BY)
    if not _is_finished(timed):
        raise ValueError(f"more_pretraining takes as long as {_TIMED_BY} took: run {timed.name} first")
    return FurtherPretraining(run.config["more_pretraining"], _summary(timed)["training_seconds"])


def _is_finished(run: Run) -> bool:
    """Whether there is its summary, made with the settings of now."""
    is_finished = run.has(_summary_file(run))
    if is_finished and run.arm == _CONTROL:
        check_overrides(run.folder, run.config["more_pretraining"])
    return is_finished


def _finished(config: Config) -> list[dict[str, Any]]:
    """Summaries of the runs that there are; those of `rlir` with what they have over further pre-training."""
    finished = [run for run in all_runs(config) if _is_finished(run)]
    return [_summary(run) | _beyond_control(run, replace(run, arm=_CONTROL), finished) for run in finished]


def _beyond_control(run: Run, control: Run, finished: Sequence[Run]) -> dict[str, Any]:
    if run.arm != _TIMED_BY or control not in finished:
        return {}
    spec, summary = frozen_parts(run.train_config())["spec"], _summary(run)
    result, other = (Evaluation.load(one.folder / "evaluations" / "after.safetensors", spec) for one in (run, control))
    return {f"beyond_{_CONTROL}": beyond_control(result, other, summary["counted_slots"], run.seed, summary["judge"])}


def _summary(run: Run) -> dict[str, Any]:
    return json.loads(_summary_file(run).read_text())


def _summary_file(run: Run) -> Path:
    return run.folder / "summary.json"
