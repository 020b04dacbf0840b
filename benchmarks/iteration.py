"""One iteration of the demo: seconds of its parts as the trainer logs them, and the work of each part.

Letters: P prompts, G group size, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.demo import assemble_demo, demo_config
from benchmarks.rollout_work import RolloutWork
from benchmarks.work import ProductCounter, Work
from rlir_agents.commands.assembly import Assembly, make_trainer
from rlir_agents.commands.building import build
from rlir_agents.policy_update import PolicyUpdate
from rlir_agents.rollouts import collect
from rlir_agents.scoring import sequence_log_prob
from rlir_agents.trainer_config import TrainerConfig
from rlir_agents.world_models import MineWorld

PARTS = ("rollout", "reward", "score", "update")

# AdamW reads weight, gradient and two moments and writes all but the gradient, in float32.
_OPTIMIZER_BYTES = 7 * 4


def seconds_of_parts(overrides: Sequence[str]) -> dict[str, float]:
    """Seconds of each part of an iteration; the second one, for the first one touches fresh memory.

    Args:
        overrides: Of the demo's config.
    """
    trainer = make_trainer(assemble_demo(overrides), evaluate=None)
    trainer.run_iteration()
    figures = trainer.run_iteration()
    return {part: figures[f"seconds/{part}"] for part in PARTS}


def rollout_work(assembly: Assembly) -> dict[str, list[Work]]:
    """The work of the fused rollout, by its parts.

    Raises:
        ValueError: if the world model is not a MineWorld, whose layers are counted.
    """
    env, policy = assembly.parts["env"], assembly.policy
    world_model = policy.world_model
    if not isinstance(world_model, MineWorld):
        raise ValueError(f"rollout_work.py counts MineWorld's layers; add a count for {type(world_model).__name__}")
    dtype = policy.autocast_dtype or next(world_model.parameters()).dtype
    return RolloutWork(world_model.config, env.layout, env.num_groups, env.batch_size[0], dtype).parts()


def counted_work(overrides: Sequence[str]) -> dict[str, list[Work]]:
    """The work of reward, score and update, counted on a micro-batch while it runs.

    They treat row for row alike, so the whole batch has as much more as it has rows. (Weights, too, are read again for
    every micro-batch.)

    Args:
        overrides: Of the demo's config.
    """
    config = demo_config(overrides)
    num_prompts, group_size = config["env"]["num_prompts"], config["env"]["group_size"]
    settings = config["trainer"]
    few = min(num_prompts, max(1, (settings["micro_batch_size"] or num_prompts * group_size) // group_size))
    assembly = assemble_demo([*overrides, f"env.num_prompts={few}", "trainer.num_minibatches=1"])
    counts = _count_batch(assembly)
    scaled = {part: [work.times(num_prompts / few) for work in works] for part, works in counts.items()}
    num_parameters = sum(parameter.numel() for parameter in assembly.parts["params"])
    step = Work(0, _OPTIMIZER_BYTES * num_parameters, torch.float32)
    scaled["update"] += [step] * settings["num_epochs"] * settings["num_minibatches"]
    return scaled


def _count_batch(assembly: Assembly) -> dict[str, list[Work]]:
    """Count one batch, treated as the trainer treats it."""
    parts, policy = assembly.parts, assembly.policy
    settings: TrainerConfig = build(assembly.config["trainer"], {}, "trainer")
    env, reference = parts["env"], parts["reference_policy"]
    counters = {part: ProductCounter() for part in ("reward", "score", "update")}
    env.score = _counted(env.score, counters["reward"])
    rollout = collect(env, policy)  # [P, G, T]
    rows = rollout.flatten(0, 1)
    scorers = {"action_log_prob": policy} if settings.recompute_log_prob else {}
    scorers |= {} if reference is None else {"ref_log_prob": reference}
    with counters["score"]:
        for key, scorer in scorers.items():
            log_prob = sequence_log_prob(scorer, rows, micro_batch_size=settings.micro_batch_size or len(rows))
            rollout[key] = log_prob.unflatten(0, rollout.shape[:2])
    parts["advantage"](rollout)
    update = PolicyUpdate(parts["loss"], parts["optimizer"], settings)
    with counters["update"]:
        update(rollout, iteration=0)
    return {part: counter.works for part, counter in counters.items()}


def _counted(function: Callable[..., Any], counter: ProductCounter) -> Callable[..., Any]:
    """The same function, its products counted."""

    def run(*args: Any) -> Any:
        with counter:
            return function(*args)

    return run
