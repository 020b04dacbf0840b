"""The folder of a run: what it logged, where it can be resumed, and the policies it made.

Layout: ``metrics/`` (CSV log), ``checkpoints/`` (to resume), ``policy.safetensors`` (the end) and
perhaps ``best_policy.safetensors``. A checkpoint remembers how long the log was, so that a run that
goes on from it continues the log there instead of repeating rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchrl.record.loggers import CSVLogger, Logger

from rlir_agents.checkpoint_folder import CheckpointFolder, read_tree
from rlir_agents.world_models.low_rank import merged_state_dict
from rlir_env.assets.models import model_facts
from rlir_env.checkpoints import save_safetensors


class RunFolder:
    """Log, checkpoints and policies of one run."""

    def __init__(self, path: Path | str, *, num_checkpoints: int = 2, logger: Logger | None = None) -> None:
        """Name the folder.

        Args:
            path: the folder; made when the run starts.
            num_checkpoints: how many are kept.
            logger: TorchRL logger that is told too. One CSV file per figure is always written below
                ``metrics/scalars``: the summary and the report are made from it, and only it is cut
                back when a run resumes; another logger sees the iterations since the last
                checkpoint twice.
        """
        self.path = Path(path)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", num_checkpoints)
        self._log_dir = self.path / "metrics"
        self._loggers = [] if logger is None else [logger]
        self._has_csv = False

    def log(self, figures: Mapping[str, float], iteration: int) -> None:
        """Append figures to the log."""
        if not self._has_csv:  # made here, because it makes its folder
            self._loggers.insert(0, CSVLogger(self._log_dir.name, log_dir=str(self.path)))
            self._has_csv = True
        for name, value in figures.items():
            for logger in self._loggers:
                logger.log_scalar(name, value, step=iteration)

    def save_checkpoint(self, iteration: int, state: dict[str, Any]) -> None:
        """Store the state of a run, and where its log stands."""
        self.checkpoints.save(iteration, {"log": self._log_position(), "state": state})

    def newest_state(self) -> dict[str, Any] | None:
        """Read the newest checkpoint and cut the log back to it; without one, None and no log."""
        newest = self.checkpoints.newest()
        if newest is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._rewind_log({})  # rows of a run that died before its first checkpoint
            return None
        stored = read_tree(newest)
        self._rewind_log(stored["log"])
        return stored["state"]

    def require_same(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to go on with a run under other settings: it would end as neither of the two.

        Args:
            then: settings stored in its checkpoint.
            now: settings of this process.

        Raises:
            ValueError: naming the settings that differ.
        """
        stored = json.loads(json.dumps(then))
        changed = [key for key, value in json.loads(json.dumps(now)).items() if stored.get(key) != value]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with another {', '.join(changed)}: resume it with the same config, or choose "
                "another folder"
            )

    def save_policy(self, policy: nn.Module, name: str = "policy") -> Path:
        """Write a policy's weights to ``<name>.safetensors``, atomically; low-rank factors are merged into them.

        Beside them stand class and sizes of its world model, where it has one.
        """
        path = self.path / f"{name}.safetensors"
        world_model = getattr(policy, "world_model", None)
        facts = {} if world_model is None else model_facts(world_model)
        save_safetensors(path, merged_state_dict(policy), facts)
        return path

    def _log_position(self) -> dict[str, int]:
        """Size in bytes of every CSV file, by path below the log's folder."""
        files = sorted(self._log_dir.rglob("*.csv"))
        return {str(path.relative_to(self._log_dir)): path.stat().st_size for path in files}

    def _rewind_log(self, position: Mapping[str, int]) -> None:
        """Cut every CSV file back: rows after it, even half written ones, will come again."""
        for path in sorted(self._log_dir.rglob("*.csv")):
            size = position.get(str(path.relative_to(self._log_dir)))
            if size is None:
                path.unlink()
            else:
                with path.open("r+b") as file:
                    file.truncate(size)
