"""rlir train: post-train a world model with inverse rewards, then say what it gained.

The base model and the result are evaluated on test prompts, by the coach that rewarded and by a judge that had no part
in it (published worlds have none), beside the real continuation and its reconstruction by the tokenizer. The judge is
loaded when training is over.
A run that is stopped goes on where it was with the same command.

    rlir train experiment=demo
    rlir train experiment=demo seed=1 trainer.num_iterations=20 run_dir=runs/short
    rlir train experiment=identity            # no assets needed, half a minute
    rlir train experiment=mineworld_700m_rlir trainer.dry_run=true    # memory and time on GPUs; trains nothing

It leaves in run_dir: summary.json, report.html, policy.safetensors, metrics/, checkpoints/, evaluations/.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlir_agents.commands import dry_run
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.evaluating import load_readers, make_evaluator
from rlir_agents.commands.training_run import TrainingRun
from rlir_agents.controls import ShuffledGameActions
from rlir_agents.evaluation import Evaluation
from rlir_agents.report import console_table, read_csv_curves, summarize, write_report, write_summary

Learn = Callable[[TrainingRun], None]
"""Lets the policy of a run learn, and leaves the result in it."""

_DRY_RUN = "trainer.dry_run=true"
_TRAINING_SECONDS = ("rollout", "reward", "score", "update")


def run(arguments: Sequence[str]) -> None:
    """Train as the overrides say, and print the table."""
    if _DRY_RUN in arguments:
        dry_run.run([argument for argument in arguments if argument != _DRY_RUN])
        return
    config = compose_config("train", arguments)
    command = shlex.join(["rlir", "train", *arguments])
    summary = train(config, command)
    print(f"\n{console_table(summary)}\n\n{Path(config['run_dir']) / 'report.html'}")


def help_text() -> str:
    """What ``rlir train --help`` prints."""
    return f"{__doc__}\n{describe('train')}"


def train(config: Config, command: str, learn: Learn = TrainingRun.learn) -> dict[str, Any]:
    """Run from the base model to the report.

    Args:
        config: of `rlir train`.
        command: for the report.
        learn: what happens between before and after; reinforcement learning by default.

    Returns:
        The summary.
    """
    started = time.monotonic()
    print(f"{config['run_dir']}: reading models and prompts", flush=True)
    run = TrainingRun(config)
    seconds_before = run.logged_seconds()
    learn(run)
    evaluations = _final_evaluations(run)
    main = ("before", "after", "reconstruction", "ceiling")
    summary = summarize(
        *(evaluations[name] for name in main),
        seconds=seconds_before + time.monotonic() - started,
        seed=config["seed"],
        install_seconds=config["install_seconds"],
        judge="coach" if config["world"]["judge"] is None else "judge",
        slots=run.slots,
        controls={name: record for name, record in evaluations.items() if name not in main},
        paradigm=config["paradigm"],
        arm=config["arm"],
        command=command,
        sampling=run.sampling,
        training_seconds=round(run.logged_seconds(_TRAINING_SECONDS), 1),
        num_iterations=config["trainer"]["num_iterations"],
    )
    write_summary(run.folder / "summary.json", summary)
    write_report(
        run.folder / "report.html",
        summary,
        evaluations=evaluations,
        curves=read_csv_curves(run.folder),
        settings=f"{command}\n\n{yaml.safe_dump(config, sort_keys=False)}",
    )
    return summary


def _final_evaluations(run: TrainingRun) -> dict[str, Evaluation]:
    """Everything that the tables show, on test prompts, by coach and judge."""
    assembly, config, parts = run.assembly, run.config, run.assembly.parts
    readers = load_readers(config, parts)
    evaluator = make_evaluator(config, parts, "test", config["evaluation"]["num_clips"], readers)
    base, result = run.sampled_best(assembly.base), run.sampled_best(assembly.policy)
    shuffled = ShuffledGameActions(evaluator.prompts, config["evaluation"]["seed"])
    makers = {
        "copy_last_frame": evaluator.copy_last_frame,
        "shuffled_actions": lambda: evaluator.evaluate_under(shuffled, base),
        "before": lambda: evaluator.evaluate(base),
        "after": lambda: evaluator.evaluate(result),
        "reconstruction": lambda: evaluator.reconstruction(parts["tokenizer"]),
        "ceiling": evaluator.ceiling,
    }
    return {name: run.records.evaluation(name, make) for name, make in makers.items()}
