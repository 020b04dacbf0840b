"""The numbers of a training run; the paper's are in the presets (``configs/``), not here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerConfig:
    """Numbers of a run.

    Attributes:
        num_iterations: Batches to collect.
        num_epochs: Passes over each batch.
        num_minibatches: Optimiser steps per pass; divides the prompts of a batch.
        micro_batch_size: Rollouts per forward, for memory; None takes a whole minibatch at once.
        rollout_batch_size: Videos generated at once, for memory; None takes the whole batch.
        max_grad_norm: Gradients are clipped to this norm, above 0; infinity clips none.
        recompute_log_prob: Take ratios against a log-prob recomputed in sequence mode. False saves
            one forward and takes the one from collection, whose mismatch is then in every ratio; where the policy
            writes none, and a batch has one update, the loss takes its own.
        drop_zero_advantage: Leave rollouts with zero advantage out of the update. Exact, and
            faster, if the loss is the clipped term alone; a KL term, an entropy bonus or a critic
            would have taught something on them.
        evaluate_every: Iterations between evaluations, which also happen before the first and after
            the last; 0 never evaluates.
        keep_best_by: Figure of the evaluation by which ``best_policy.safetensors`` is kept, higher
            is better; None keeps none.
        checkpoint_every: Iterations between checkpoints.
        num_checkpoints: How many are kept.
        ema_decay: Keep a running mean of the weights, beginning with the base model's: after each iteration
            ``mean = ema_decay mean + (1 - ema_decay) weights``. The mean is evaluated, and is what the run leaves; the
            weights themselves go on sampling and learning. None keeps no mean.
        sync_reference_every: Iterations between those after which the policy becomes the reference that it is leashed
            to (TR-DPO, Gorbatovski et al. 2024; ProRL, Liu et al. 2025, section 3.3). 0 keeps the base model.
        seed: Of the order of minibatches. Prompts and sampling noise have the env's seed.
        dry_run: Not for a `Trainer`, which would train: `rlir train` prints an estimate instead.
    """

    num_iterations: int
    num_epochs: int = 1
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    rollout_batch_size: int | None = None
    max_grad_norm: float = 1.0
    recompute_log_prob: bool = True
    drop_zero_advantage: bool = False
    evaluate_every: int = 0
    keep_best_by: str | None = None
    checkpoint_every: int = 5
    num_checkpoints: int = 2
    ema_decay: float | None = None
    sync_reference_every: int = 0
    seed: int = 0
    dry_run: bool = False

    @property
    def num_updates(self) -> int:
        """Optimiser steps a batch."""
        return self.num_epochs * self.num_minibatches

    def __post_init__(self) -> None:
        """Check what would otherwise fail late, or never."""
        if self.dry_run:
            raise ValueError("a trainer trains: for an estimate give `rlir train` the override trainer.dry_run=true")
        counts = ("num_iterations", "num_epochs", "num_minibatches", "checkpoint_every")
        sizes = [name for name in ("micro_batch_size", "rollout_batch_size") if getattr(self, name) is not None]
        too_small = [name for name in (*counts, *sizes) if getattr(self, name) < 1]
        if too_small:
            raise ValueError(f"{', '.join(too_small)}: must be at least 1")
        negative = [name for name in ("evaluate_every", "sync_reference_every") if getattr(self, name) < 0]
        if negative:
            raise ValueError(f"{', '.join(negative)}: must be at least 0, which is never")
        if self.max_grad_norm is None or not self.max_grad_norm > 0:  # torch would turn gradients round
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: must be above 0; .inf in YAML clips nothing")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: give a number between 0 and 1, for instance 0.9, or null")
        if self.keep_best_by is not None and not self.evaluate_every:
            raise ValueError("keep_best_by compares evaluations: set evaluate_every too")
