"""RLIR's training loop (paper, section 4, Fig. 2): generate, read back, compare siblings, update.

The loop is ours; what runs in it is handed in and may be anything that keeps the contract: env,
policy, reward (in the env), advantage, loss, optimiser. There is no branch here on which of them it
has. (TorchRL's PPO trainers flatten sequences to steps, its GRPO trainer moves data to the CPU.)
What is *not* here: how a rollout is collected (``rollouts.py``), the gradient steps
(``policy_update.py``), what the logged figures mean (``health.py``), and building objects from a
config (``commands/``).

Letters: P prompts, G group size, T steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from tqdm import tqdm

from rlir_agents.advantages import Advantage
from rlir_agents.finite_checks import NonFiniteError
from rlir_agents.health import console_line, rollout_health
from rlir_agents.minibatches import check_minibatches
from rlir_agents.policy_update import PolicyUpdate
from rlir_agents.rollouts import collect
from rlir_agents.run_folder import RunFolder
from rlir_agents.scoring import reference_entries, sequence_log_prob
from rlir_agents.stopwatch import Stopwatch
from rlir_agents.trainer_config import TrainerConfig
from rlir_agents.training_state import (
    load_modules_state,
    modules_state,
    random_state,
    set_random_state,
)
from rlir_agents.world_models.low_rank import merged_state_dict

# Rounding stays far below: 1e-6 in float32, 1e-3 in bfloat16 where micro-batches differ in shape.
_LARGEST_DRIFT = 0.02


class Trainer:
    """Collect, score, compare, update, log, evaluate, checkpoint; and again.

    If the run's folder holds a checkpoint, `train` goes on from it and ends bitwise where it would
    have ended undisturbed (on the same machine, with the same number of threads).
    """

    def __init__(
        self,
        env: Any,
        policy: TensorDictModuleBase,
        loss: LossModule,
        advantage: Advantage,
        optimizer: Optimizer,
        config: TrainerConfig,
        run_dir: Path | str,
        *,
        scheduler: LRScheduler | None = None,
        reference_policy: TensorDictModuleBase | None = None,
        logger: Logger | None = None,
        evaluate: Callable[[TensorDictModuleBase], Mapping[str, float]] | None = None,
        breakdown_names: Mapping[str, Sequence[str]] | None = None,
        diagnose: Callable[[TensorDictBase], Mapping[str, float]] | None = None,
        collect_fn: Callable[[Any, TensorDictModuleBase], TensorDictBase] | None = None,
    ) -> None:
        """Hand in everything that runs.

        Args:
            env: a `VideoGenerationEnv`; an iteration is one batch of its P * G episodes.
            policy: the world model as a policy: samples in step mode, ``get_dist`` in sequence
                mode. The precision of networks is their own (``autocast_dtype``), the same in both.
            loss: its ``loss_*`` entries are summed; holds the policy and perhaps a critic.
            advantage: writes ``advantage`` into the rollout.
            optimizer: over everything that learns.
            config: the numbers.
            run_dir: folder of the run; see `RunFolder`.
            scheduler: stepped once an iteration.
            reference_policy: frozen; what a leash to it reads is written into rollouts (`reference_entries`). It is
                the trainer's own where ``sync_reference_every`` is set: its weights change.
            logger: TorchRL logger; by default CSV files in the run's folder.
            evaluate: from the policy to figures for the log.
            breakdown_names: which entries of the reward's breakdown to log by name, for example
                ``{"frame_match": spec.names}``.
            diagnose: from a scored batch [P, G, T] to further figures; asked at the first iteration
                and with every ``evaluate_every``-th.
            collect_fn: from (env, policy) to a rollout [P, G, T]; None takes `collect`, ``rollout_batch_size`` videos
                at once.

        Raises:
            ValueError: if the config asks for an evaluation or a reference that was not passed, for minibatches that
                the env's groups cannot be dealt out to, or for several updates without log-probs to compare with.
        """
        check_minibatches(env.num_groups, config.num_minibatches)
        if config.evaluate_every and evaluate is None:
            raise ValueError("evaluate_every is set but there is nothing to call: pass evaluate=")
        if config.sync_reference_every and reference_policy is None:
            raise ValueError("sync_reference_every is set but there is no reference policy: pass reference_policy=")
        has_log_prob = config.recompute_log_prob or "action_log_prob" in policy.out_keys
        if config.num_updates > 1 and not has_log_prob:
            raise ValueError(
                f"{config.num_updates} updates a batch compare with log-probs of the policy that sampled it, and this "
                "one writes none: set trainer.recompute_log_prob=true, or num_epochs=1 and num_minibatches=1"
            )
        self.env, self.policy, self.loss, self.advantage = env, policy, loss, advantage
        self.optimizer, self.scheduler, self.config = optimizer, scheduler, config
        self.reference_policy = reference_policy
        self._following = reference_policy if config.sync_reference_every else None
        self.evaluate = evaluate
        self.breakdown_names = dict(breakdown_names or {})
        self.run_folder = RunFolder(run_dir, num_checkpoints=config.num_checkpoints, logger=logger)
        self.iteration = 0
        self._best = -float("inf")
        self._collect_fn = collect_fn or partial(collect, batch_size=config.rollout_batch_size)
        self._diagnose = diagnose
        self._update = PolicyUpdate(loss, optimizer, config)
        self._watch = Stopwatch()
        self._average: AveragedModel | None = None
        if config.ema_decay is not None:
            self._average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
            self._average.update_parameters(policy)  # the base model is the first of the mean

    @property
    def result(self) -> TensorDictModuleBase:
        """What is evaluated and left: the policy, or the mean of its weights where one is kept."""
        return self.policy if self._average is None else self._average.module

    def train(self) -> dict[str, float]:
        """Run to the end, from the newest checkpoint if there is one.

        Returns:
            The figures of the last iteration; empty if nothing was left to do.

        Raises:
            NonFiniteError: naming the source; the checkpoints up to the last good one remain.
            ValueError: if the folder holds a run with another config.
        """
        self._resume_or_start()
        figures: dict[str, float] = {}
        total = self.config.num_iterations
        with tqdm(total=total, initial=self.iteration, unit="it", dynamic_ncols=True) as bar:
            while self.iteration < total:
                figures = self._iterate_and_keep()
                bar.set_postfix_str(console_line(figures), refresh=False)
                bar.update()
        self.run_folder.save_policy(self.result)
        return figures

    def run_iteration(self) -> dict[str, float]:
        """Collect one batch and learn from it: this is the algorithm.

        Returns:
            The iteration's figures, explained in ``health.py``.
        """
        # The reward is paid inside the last step of the env: that is where it can be timed.
        watch = self._watch
        with watch("rollout"), watch.calls(self.env, "score", "reward", part_of="rollout"), torch.no_grad():
            rollout = self._collect_fn(self.env, self.policy)  # [P, G, T]
        if self.iteration == 0:
            _require_different_siblings(rollout)
        with self._watch("score"):
            self._score(rollout)
            self.advantage(rollout)
        figures = rollout_health(rollout, self.breakdown_names)
        if self.iteration == 0 and figures["train/groups_without_spread"] == 1:
            warnings.warn(
                "all siblings were paid alike, so there is nothing to learn: take a finer reward (reward=log_prob is "
                "the finest), a larger group_size, or a reader that can read",
                stacklevel=2,
            )
        if self._diagnose is not None and (self.iteration == 0 or self._is_evaluation_due(self.iteration + 1)):
            with self._watch("diagnose"):
                figures |= self._diagnose(rollout)
        with self._watch("update"):
            figures |= self._update(rollout, self.iteration).figures()
        figures["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.iteration == 0:
            self._check_ratio(figures)
        if self.scheduler is not None:
            self.scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.policy)
        self.iteration += 1
        if self._following is not None and self.iteration % self.config.sync_reference_every == 0:
            self._following.load_state_dict(merged_state_dict(self.policy))
        return figures | self._watch.lap()

    def _check_ratio(self, figures: Mapping[str, float]) -> None:
        """Before the first optimiser step policy and behaviour are one: self-test of every part between them."""
        ratio = figures.get("train/ratio_at_first_update", 1.0)
        if self.config.recompute_log_prob and abs(ratio - 1) > _LARGEST_DRIFT:
            raise ValueError(
                f"the probability ratio before the first update is {ratio:g}, not 1: the policy's get_dist gives "
                "another log-prob each time it is called, or for another batch; dropout, a random draw in it, or a "
                "network in half precision throughout would do that"
            )
        clip = float(torch.as_tensor(getattr(self.loss, "clip_epsilon", 1.0)).min())
        if abs(ratio - 1) > clip / 2:
            warnings.warn(
                f"the probability ratio before the first update is {ratio:.6f}, and the loss clips at {clip:g}: "
                "rounding alone clips actions; use autocast=float32, or a larger clip_epsilon",
                stacklevel=2,
            )

    def _score(self, rollout: TensorDictBase) -> None:
        """Write what the loss compares with: log-probs, and the reference's, [P, G, T(, k)]."""
        groups, videos = rollout.shape[:2], rollout.flatten(0, 1)
        micro_batch_size = self.config.micro_batch_size or len(videos)
        if self.config.recompute_log_prob:
            if "action_log_prob" in rollout.keys():
                rollout.rename_key_("action_log_prob", "collection_log_prob")
            log_prob = sequence_log_prob(self.policy, videos, micro_batch_size=micro_batch_size)
            rollout["action_log_prob"] = log_prob.unflatten(0, groups)
        if self.reference_policy is not None:
            entries = reference_entries(self.reference_policy, videos, micro_batch_size=micro_batch_size)
            rollout.update(entries.unflatten(0, groups))

    def _iterate_and_keep(self) -> dict[str, float]:
        """One iteration, evaluated, logged and stored where that is due."""
        try:
            figures = self.run_iteration()
        except NonFiniteError as error:
            raise NonFiniteError(
                f"iteration {self.iteration + 1}: {error}. "
                f"The last good checkpoint is {self.run_folder.checkpoints.newest()}"
            ) from error
        is_last = self.iteration == self.config.num_iterations
        figures |= self._evaluate(is_forced=is_last)
        self.run_folder.log(figures, self.iteration)
        if is_last or self.iteration % self.config.checkpoint_every == 0:
            self.run_folder.save_checkpoint(self.iteration, self._state())
        return figures

    def _evaluate(self, is_forced: bool) -> dict[str, float]:
        """Figures of the evaluation if it is due; keeps the best policy."""
        if not self.config.evaluate_every or not (is_forced or self._is_evaluation_due(self.iteration)):
            return {}
        with self._watch("evaluate"):
            assert self.evaluate is not None  # checked by the constructor
            figures = dict(self.evaluate(self.result))
        best_by = self.config.keep_best_by
        if best_by is not None and best_by not in figures:
            raise ValueError(f"keep_best_by={best_by!r}: the evaluation gives {', '.join(sorted(figures))}")
        if best_by is not None and figures[best_by] > self._best:
            self._best = figures[best_by]
            self.run_folder.save_policy(self.result, "best_policy")
        return figures | self._watch.lap()

    def _is_evaluation_due(self, iteration: int) -> bool:
        every = self.config.evaluate_every
        return bool(every) and iteration % every == 0

    def _resume_or_start(self) -> None:
        state = self.run_folder.newest_state()
        if state is not None:
            self._load_state(state)
            return
        self.run_folder.log(self._evaluate(is_forced=True), self.iteration)
        self.run_folder.save_checkpoint(self.iteration, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "iteration": self.iteration,
            "best": self._best,
            "num_groups_drawn": self.env.num_groups_drawn,
            "modules": modules_state(self.policy, self.loss),
            "average": None if self._average is None else self._average.state_dict(),
            "reference": None if self._following is None else self._following.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": random_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.run_folder.require_same(state["config"], asdict(self.config))
        self.iteration, self._best = state["iteration"], state["best"]
        self.env.num_groups_drawn = state["num_groups_drawn"]
        load_modules_state(self.policy, self.loss, state["modules"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._following is not None:
            self._following.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"])


def _require_different_siblings(rollout: TensorDictBase) -> None:
    """Refuse a batch ``[P, G, T]`` whose siblings are copies: nothing tells which was better, now or later."""
    action = rollout["action"]
    if action.shape[1] > 1 and torch.equal(action, action[:, :1].expand_as(action)):
        raise ValueError(
            "all siblings of a group are the same video, so there is nothing to compare: a policy that draws nothing "
            "while sampling (policy=flow_matching, an SDE without noise) needs env.is_initial_noise_shared=false, and "
            "one that samples tokens a temperature and a top-p above 0"
        )
