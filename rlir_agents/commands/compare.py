"""rlir compare: every arm with every seed, one after the other, and the table of results made from them.

    rlir compare                              # hours; stopped, it goes on with the same command
    rlir compare seeds=[0] overrides=[trainer.num_iterations=20] results=runs/short.json readme=null

A run is one `rlir train` in <folder>/<arm>_seed<n>. The control `more_pretraining` takes as long as the training of
`rlir` with the same seed took.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.further_pretraining import FurtherPretraining
from rlir_agents.commands.train import Learn, train
from rlir_agents.report import console_table, results_table, update_readme
from rlir_agents.report.summary import write_atomically

_TIMED_BY = "rlir"  # the arm whose training time the control gets


def run(arguments: Sequence[str]) -> None:
    """Run what is missing, storing the results after each run."""
    config = compose_config("compare", arguments)
    results: list[dict[str, Any]] = []
    for seed in config["seeds"]:
        for arm in config["arms"]:
            print(f"\n{arm}, seed {seed}", flush=True)
            results.append(_run(config, arm, seed))
            write_atomically(config["results"], json.dumps(results, indent=1) + "\n")
    if config["readme"] is not None:
        update_readme(config["readme"], config["results"])
    print(f"\n{results_table(results)}\n\n{config['results']}")


def help_text() -> str:
    """What ``rlir compare --help`` prints."""
    return f"{__doc__}\n{describe('compare')}"


def _run(config: Config, arm: str, seed: int) -> dict[str, Any]:
    folder = _folder(config, arm, seed)
    overrides = [f"experiment={config['experiment']}", *config["overrides"], *config["arms"][arm]]
    overrides += [f"seed={seed}", f"arm={arm}", f"run_dir={folder}"]
    summary = folder / "summary.json"
    if not summary.is_file():
        command = shlex.join(["rlir", "compare", f"seeds=[{seed}]"])
        train(compose_config("train", overrides), command, _learn(config, arm, seed))
    content = json.loads(summary.read_text())
    print(console_table(content), flush=True)
    return content


def _learn(config: Config, arm: str, seed: int) -> Learn | None:
    """What an arm does between before and after; None for reinforcement learning."""
    if arm != "more_pretraining":
        return None
    timed = _folder(config, _TIMED_BY, seed) / "summary.json"
    if not timed.is_file():
        raise ValueError(f"more_pretraining takes as long as {_TIMED_BY} took: put {_TIMED_BY} before it in arms")
    return FurtherPretraining(config["more_pretraining"], json.loads(timed.read_text())["training_seconds"])


def _folder(config: Config, arm: str, seed: int) -> Path:
    return Path(config["folder"]) / f"{arm}_seed{seed}"
