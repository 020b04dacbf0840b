"""The runs of a comparison: every arm with every seed, each a `rlir train` in <folder>/<arm>_seed<n>."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlir_agents.commands.composition import Config, compose_config
from rlir_agents.commands.run_claim import check_config
from rlir_env.atomic_files import write_text


@dataclass(frozen=True)
class Run:
    """One of them.

    Attributes:
        config: of the comparison.
        paradigm: a key of `experiments`.
        arm: what it changes; a key of `arms`.
        seed: of the run.
    """

    config: Config
    paradigm: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """What ``only`` and the run's folder call it; the first paradigm is not named."""
        is_first = self.paradigm == next(iter(self.config["experiments"]))
        return f"{self.arm}_seed{self.seed}" if is_first else f"{self.paradigm}_{self.arm}_seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config["folder"]) / self.name

    def has(self, file: Path) -> bool:
        """Whether it has left a file, with the settings that it would have now.

        Raises:
            ValueError: if it was made with others.
        """
        if not file.is_file():
            return False
        check_config(self.folder, self.train_config())
        return True

    def train_config(self) -> Config:
        """Its config of `rlir train`."""
        overrides = [
            f"experiment={self.config['experiments'][self.paradigm]}",
            *self.config["overrides"],
            *self.config["arms"][self.arm],
        ]
        return compose_config("train", [*overrides, f"seed={self.seed}", f"arm={self.arm}", f"run_dir={self.folder}"])


def all_runs(config: Config) -> list[Run]:
    """The runs of a comparison in the order in which they are made: paradigm by paradigm, seed by seed.

    Args:
        config: with ``experiments``, ``overrides``, ``seeds``, ``arms`` and ``folder``.
    """
    empty = [key for key in ("experiments", "seeds", "arms") if not config[key]]
    if empty:
        raise ValueError(f"{', '.join(empty)}: give at least one")
    parts = itertools.product(config["experiments"], config["seeds"], config["arms"])
    return [Run(config, paradigm, arm, seed) for paradigm, seed, arm in parts]


def chosen_runs(config: Config) -> Iterator[Run]:
    """The runs that ``only`` names, or all; each is announced.

    Raises:
        ValueError: if it names one that there is not.
    """
    runs = {run.name: run for run in all_runs(config)}
    unknown = sorted(set(config["only"] or ()) - runs.keys())
    if unknown:
        raise ValueError(f"only: there is no run {', '.join(unknown)}; there are {', '.join(runs)}")
    for name in config["only"] or runs:
        print(f"\n{name}", flush=True)
        yield runs[name]


def store_results(path: str | Path, finished: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the entries of finished runs into the file of results.

    What the file holds of other runs stays: a repository has the results of hours, and not the folders of their runs.

    Args:
        path: of the file.
        finished: each with ``arm`` and ``seed``, and with ``paradigm`` where there are several.

    Returns:
        All entries of the file.
    """
    path = Path(path)
    stored = json.loads(path.read_text()) if path.is_file() else []
    entries = {(entry.get("paradigm"), entry["arm"], entry["seed"]): entry for entry in (*stored, *finished)}
    write_text(path, json.dumps(list(entries.values()), indent=1, allow_nan=False) + "\n")
    return list(entries.values())
