"""rlir train: post-train a world model with inverse rewards, then say what it gained.

The base model and the result are evaluated on test prompts, by the coach that rewarded and by a judge that had no part
in it, beside the real continuation and its reconstruction by the tokenizer. The judge is loaded when training is over.
A run that is stopped goes on where it was with the same command.

    rlir train experiment=demo
    rlir train experiment=demo seed=1 trainer.num_iterations=20 run_dir=runs/short
    rlir train experiment=identity            # no assets needed, half a minute

It leaves in run_dir: summary.json, report.html, policy.safetensors, metrics/, checkpoints/, evaluations/.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from rlir_agents.commands.assembly import Assembly, assemble, make_trainer
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.evaluating import Records, best_top_p, load_readers, make_evaluator, quoted_slots
from rlir_agents.commands.run_claim import claim
from rlir_agents.controls import ShuffledGameActions
from rlir_agents.evaluation import Evaluation
from rlir_agents.policies import TokenPolicy
from rlir_agents.report import console_table, read_csv_curves, summarize, write_report, write_summary

Learn = Callable[[Assembly, Callable[[TokenPolicy], dict[str, float]]], None]
"""Lets the policy of an assembly learn, evaluating it now and then, and leaves the result in it."""

_TRAINING_SECONDS = ("rollout", "reward", "score", "update")


def run(arguments: Sequence[str]) -> None:
    """Train as the overrides say, and print the table."""
    config = compose_config("train", arguments)
    command = shlex.join(["rlir", "train", *arguments])
    summary = train(config, command)
    print(f"\n{console_table(summary)}\n\n{Path(config['run_dir']) / 'report.html'}")


def help_text() -> str:
    """What ``rlir train --help`` prints."""
    return f"{__doc__}\n{describe('train')}"


def train(config: Config, command: str, learn: Learn | None = None) -> dict[str, Any]:
    """Run from the base model to the report.

    Args:
        config: of `rlir train`.
        command: for the report.
        learn: what happens between before and after; reinforcement learning by default.

    Returns:
        The summary.
    """
    started = time.monotonic()
    folder = Path(config["run_dir"])
    assembly = assemble(config)
    parts = assembly.parts
    claim(folder, config, [assembly.policy, parts["tokenizer"], parts["reward_fn"], parts["idm"]])
    seconds_before = logged_seconds(folder)
    records = Records(folder, parts["idm"].spec)
    settings = config["evaluation"]
    dev = make_evaluator(config, parts, "dev", settings["num_dev_clips"], {"coach": parts["idm"]})

    def chosen_top_p(policy: TokenPolicy) -> float:
        return best_top_p(assembly, policy, dev, settings["top_p"])

    top_p = {"before": records.value("top_p_before", lambda: chosen_top_p(assembly.base))}
    slots = quoted_slots(parts)

    def evaluate(policy: TokenPolicy) -> dict[str, float]:
        return dev.evaluate(assembly.policy_at(policy, top_p["before"])).log_entries("coach", slots)

    (learn or learn_by_reward)(assembly, evaluate)
    top_p["after"] = records.value("top_p_after", lambda: chosen_top_p(assembly.policy))
    evaluations = final_evaluations(assembly, records, top_p)
    main = ("before", "after", "reconstruction", "ceiling")
    summary = summarize(
        *(evaluations[name] for name in main),
        seconds=seconds_before + time.monotonic() - started,
        seed=config["seed"],
        install_seconds=config["install_seconds"],
        slots=slots,
        controls={name: record for name, record in evaluations.items() if name not in main},
        paradigm="autoregressive",
        arm=config["arm"],
        command=command,
        top_p=top_p,
        training_seconds=round(logged_seconds(folder, _TRAINING_SECONDS), 1),
        num_iterations=config["trainer"]["num_iterations"],
    )
    write_summary(folder / "summary.json", summary)
    write_report(
        folder / "report.html",
        summary,
        evaluations=evaluations,
        curves=read_csv_curves(folder),
        settings=f"{command}\n\n{yaml.safe_dump(config, sort_keys=False)}",
    )
    return summary


def learn_by_reward(assembly: Assembly, evaluate: Callable[[TokenPolicy], dict[str, float]]) -> None:
    """Reinforcement learning, from the newest checkpoint if there is one; leaves the result in the policy."""
    trainer = make_trainer(assembly, evaluate)
    trainer.train()
    keep_best = assembly.config["trainer"]["keep_best_by"] is not None
    name = "best_policy" if keep_best else "policy"
    weights = load_file(Path(assembly.config["run_dir"]) / f"{name}.safetensors")
    assembly.policy.load_state_dict(weights)


def final_evaluations(assembly: Assembly, records: Records, top_p: dict[str, float]) -> dict[str, Evaluation]:
    """Everything that the tables show, on test prompts, by coach and judge."""
    config, parts = assembly.config, assembly.parts
    readers = load_readers(config, parts)
    evaluator = make_evaluator(config, parts, "test", config["evaluation"]["num_clips"], readers)
    base = assembly.policy_at(assembly.base, top_p["before"])
    result = assembly.policy_at(assembly.policy, top_p["after"])
    shuffled = ShuffledGameActions(evaluator.prompts, config["evaluation"]["seed"])
    makers = {
        "copy_last_frame": evaluator.copy_last_frame,
        "shuffled_actions": lambda: evaluator.evaluate_under(shuffled, base),
        "before": lambda: evaluator.evaluate(base),
        "after": lambda: evaluator.evaluate(result),
        "reconstruction": lambda: evaluator.reconstruction(parts["tokenizer"]),
        "ceiling": evaluator.ceiling,
    }
    return {name: records.evaluation(name, make) for name, make in makers.items()}


def logged_seconds(folder: Path, names: Sequence[str] | None = None) -> float:
    """Seconds that the iterations of a run took, as logged; of all parts, or of the named ones."""
    curves = read_csv_curves(folder)
    wanted = [key for key in curves if key.startswith("seconds/")]
    if names is not None:
        wanted = [key for key in wanted if key.removeprefix("seconds/") in names]
    return sum(value for key in wanted for _, value in curves[key])
