"""rlir study settings: which reward, which credit, which rate learns best from the same number of videos?

Everything is read by the coach on dev prompts, so that the choice leaves judge and test prompts untouched.

    rlir study settings                            # hours; stopped, it goes on with the same command
    rlir study settings "+arms.kl_high=['algorithm.loss.kl_coeff=0.2']" only=[kl_high_seed0]   # an arm of your own
    rlir study settings only=[balanced_sequence_seed0]   # this run alone, so that several commands can share the work

A run is one `rlir train`, without its final figures, in <folder>/<arm>_seed<n>; those that are finished replace their
entries in the results, and those of other runs stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlir_agents.commands.arms import Run, all_runs, chosen_runs, store_results
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.training_run import TrainingRun
from rlir_agents.report import check_block, read_csv_curves, replace_block, settings_entry, settings_table
from rlir_env.atomic_files import write_text


def run(arguments: Sequence[str]) -> None:
    """Run what is missing, storing the results after each run."""
    config = compose_config("study_settings", arguments)
    if config["readme"] is not None:
        check_block(config["readme"], "settings")
    entries: list[dict[str, Any]] = []
    for chosen in chosen_runs(config):
        if not chosen.has(_file(chosen)):
            write_text(_file(chosen), json.dumps(_figures(chosen), indent=1, allow_nan=False) + "\n")
        entries = store_results(config["results"], _finished(config))
    table = settings_table(entries)
    if config["readme"] is not None:
        replace_block(config["readme"], "settings", table)
    print(f"\n{table}\n\n{config['results']}")


def help_text() -> str:
    """What ``rlir study settings --help`` prints."""
    return f"{__doc__}\n{describe('study_settings')}"


def _figures(chosen: Run) -> dict[str, Any]:
    run = TrainingRun(chosen.train_config())
    base, policy = run.assembly.base, run.assembly.policy
    before = run.records.evaluation("dev_before", lambda: run.dev.evaluate(run.sampled_best(base)))
    run.learn()
    after = run.records.evaluation("dev_after", lambda: run.dev.evaluate(run.sampled_best(policy)))
    config = run.config
    return settings_entry(
        before,
        after,
        slots=run.slots,
        curves=read_csv_curves(run.folder),
        arm=chosen.arm,
        seed=chosen.seed,
        settings=chosen.config["arms"][chosen.arm],
        sampling=run.sampling,
        num_videos=config["trainer"]["num_iterations"] * config["env"]["num_prompts"] * config["env"]["group_size"],
    )


def _finished(config: Config) -> list[dict[str, Any]]:
    return [json.loads(_file(run).read_text()) for run in all_runs(config) if run.has(_file(run))]


def _file(run: Run) -> Path:
    return run.folder / "settings.json"
