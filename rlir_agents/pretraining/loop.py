"""Supervised pre-training: one loop for tokenizer, inverse dynamics model and world model.

What is trained and on what is a `PretrainingTask`; this loop owns the optimiser, the learning rate, the log and exact
resume. It is not the RL trainer (``rlir_agents/trainer.py``): nothing is sampled from a policy here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlir_agents.checkpoint_folder import read_tree
from rlir_agents.finite_checks import NonFiniteError, require_finite_gradient
from rlir_agents.hardware import autocast, device_of
from rlir_agents.learning_rate import cosine_with_warmup
from rlir_agents.run_folder import RunFolder
from rlir_agents.stopwatch import Stopwatch


class PretrainingTask(ABC):
    """A module, a loss on a random batch, and figures on held-out data.

    Attributes:
        module: what is trained; its parameters are float32.
    """

    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the module is; batches are moved there."""
        return device_of(self.module)

    @abstractmethod
    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch of this step, drawn with ``generator``, and detached scalars to be logged."""

    def after_step(self) -> None:  # noqa: B027 (most tasks need none)
        """Called after every optimiser step; for what gradients do not train."""

    def finish(self) -> None:  # noqa: B027 (most tasks need none)
        """Called when all steps are done, also if they were before; for what is measured on the trained module."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on held-out recordings; the same data at every call."""


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Numbers of a pre-training run."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 100
    final_fraction: float = 0.0
    """Share of the learning rate at which the cosine ends."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    validate_every: int = 500
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        """Accept lists from YAML."""
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps}: train for at least one step")


class Pretrainer:
    """Trains a task for a fixed number of steps; killed and started again it ends bitwise the same.

    Batches are functions of (seed, step), so nothing but weights, optimiser and schedule has to be remembered.

    Args:
        task: what to train.
        config: numbers.
        run: where it logs and from where it resumes.
        continue_from: a run whose weights, optimiser and step this one starts from, under settings of its own.
        autocast_dtype: dtype of the network's products on this device, None for float32.
    """

    def __init__(
        self,
        task: PretrainingTask,
        config: PretrainingConfig,
        run: RunFolder,
        autocast_dtype: torch.dtype | None = None,
        continue_from: RunFolder | None = None,
    ) -> None:
        self.task, self.config, self._run, self._continue_from = task, config, run, continue_from
        self._autocast_dtype = autocast_dtype
        self._stopwatch = Stopwatch()
        self._optimizer = torch.optim.AdamW(
            parameter_groups(task.module, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
        )
        self._schedule = cosine_with_warmup(
            self._optimizer,
            config.num_steps,
            warmup_iterations=min(config.warmup_steps, config.num_steps - 1),
            final_fraction=config.final_fraction,
        )

    def train(self) -> dict[str, float]:
        """Go on from the newest checkpoint, if any, to the last step; returns the last validation figures."""
        config = self.config
        first_step = self._resume()
        self.task.module.train()
        figures: dict[str, float] = {}
        with tqdm(total=config.num_steps, initial=first_step, unit="step", desc=self._name) as bar:
            for step in range(first_step, config.num_steps):
                with self._stopwatch("update"):
                    logged = self._step(step)
                bar.update()
                done = step + 1
                if done % 20 == 0:
                    bar.set_postfix({key: f"{float(value):.3f}" for key, value in logged.items()})
                is_last = done == config.num_steps
                if done % config.validate_every == 0 or is_last:
                    with self._stopwatch("evaluate"):
                        figures = self._validate()
                    self._run.log(_named(logged, figures), done)
                    bar.write(_line(done, logged, figures))
                if done % config.checkpoint_every == 0 or is_last:
                    self._run.log(self._stopwatch.lap(), done)  # what the log has cost up to where it can be resumed
                    self._save(done)
        with torch.no_grad(), self._autocast():
            self.task.finish()
        return figures or self._validate()

    @property
    def _remedy(self) -> str:
        newest = self._run.checkpoints.newest()
        return f"The last good checkpoint is {newest}; choose another folder and a lower learning_rate"

    @property
    def _name(self) -> str:
        return f"pretraining {self._run.path.name}"

    def _step(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((self.config.seed << 32) + step)
        with self._autocast():
            loss, logged = self.task.loss(step, generator)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"step {step}: the loss is {loss.item()}. {self._remedy}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.task.module.parameters(), self.config.max_grad_norm)
        try:
            require_finite_gradient(norm, self.task.module)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}. {self._remedy}") from error
        self._optimizer.step()
        self.task.after_step()
        self._schedule.step()
        return {"loss": loss.detach(), **logged}

    def _validate(self) -> dict[str, float]:
        self.task.module.eval()
        with torch.no_grad(), self._autocast():
            figures = self.task.validate()
        self.task.module.train()
        return figures

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.task.device, self._autocast_dtype)

    def _resume(self) -> int:
        state = self._run.newest_state()
        if state is not None:
            self._run.require_same(state["config"], asdict(self.config))
        elif self._continue_from is not None:
            newest = self._continue_from.checkpoints.newest()
            if newest is None:
                raise ValueError(f"{self._continue_from.path} has no checkpoint to continue from")
            state = read_tree(newest)["state"]  # its log stays as it is
        if state is None:
            return 0
        self.task.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None]})
        return state["step"]

    def _save(self, step: int) -> None:
        # The schedule's function is code, made anew from the config.
        schedule = {k: v for k, v in self._schedule.state_dict().items() if k != "lr_lambdas"}
        self._run.save_checkpoint(
            step,
            {
                "config": asdict(self.config),
                "step": step,
                "module": self.task.module.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": schedule,
            },
        )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels decay; biases, gains and other vectors do not, as is usual for AdamW."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _named(logged: Mapping[str, Tensor], figures: Mapping[str, float]) -> dict[str, float]:
    named = {f"train/{name}": float(value) for name, value in logged.items()}
    return named | {f"validation/{name}": value for name, value in figures.items()}


def _line(step: int, logged: Mapping[str, Tensor], figures: dict[str, float]) -> str:
    shown = {"loss": float(logged["loss"]), **figures}
    return f"step {step}: " + "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
