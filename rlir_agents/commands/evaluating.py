"""What the verbs share about evaluation: evaluators, how a model is sampled there, and records in the run's folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tensordict.nn import TensorDictModuleBase
from torch import nn

from rlir_agents.commands.assembly import Parts
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import Config
from rlir_agents.evaluation import Evaluation
from rlir_agents.evaluator import Evaluator
from rlir_agents.prompt_choice import shipped_prompts
from rlir_agents.video_makers import NoReward
from rlir_env.atomic_files import write_text
from rlir_env.checkpoints import load_strict
from rlir_env.envs import VideoGenerationEnv
from rlir_env.game_actions import GameActionSpec
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.prompts import PromptSource

Sampling = dict[str, Any]
"""Keywords of a policy that say how evaluation samples, for instance ``{"top_p": 0.8}``."""


def make_evaluator(
    config: Config, parts: Parts, split: str, num_clips: int | None, readers: Mapping[str, InverseDynamicsModel]
) -> Evaluator:
    """An evaluator on prompts of the world, in the run's env.

    Args:
        config: with ``env`` and ``evaluation``.
        parts: of `frozen_parts`.
        split: of the prompts.
        num_clips: the first ones; None takes all.
        readers: by name.
    """
    settings = config["evaluation"]
    prompts = shipped_prompts(parts["world"], split, num_clips)
    batch_size = min(settings["batch_size"], prompts.num_prompts)

    return Evaluator(
        lambda prompts: make_env(config, parts, prompts, batch_size),
        prompts,
        readers,
        seed=settings["seed"],
        num_videos=prompts.num_prompts if settings["num_videos"] is None else settings["num_videos"],
        batch_size=batch_size,
        autocast_dtype=parts["autocast_dtype"],
    )


def make_env(config: Config, parts: Parts, prompts: PromptSource, num_rows: int) -> VideoGenerationEnv:
    """The run's env without groups and without a reward, as evaluation needs it."""
    node = config["env"] | {"num_prompts": num_rows, "group_size": 1} | config["evaluation"]["env"]
    return build(node, parts | {"prompts": prompts, "reward_fn": NoReward()}, "env")


def sampling_choices(config: Config) -> list[Sampling]:
    """The ways of sampling that an evaluation may choose from: every combination of ``evaluation.sampling``."""
    choices = config["evaluation"]["sampling"]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def sampling_policy(
    config: Config, parts: Parts, env: VideoGenerationEnv, world_model: nn.Module, sampling: Sampling
) -> TensorDictModuleBase:
    """A world model as evaluation samples from it.

    Args:
        config: with ``policy`` and ``evaluation``, whose own policy comes first.
        parts: of `frozen_parts`.
        env: that it will act in.
        world_model: the generator.
        sampling: keywords of the policy.
    """
    node = (config["evaluation"]["policy"] or config["policy"]) | sampling
    return build(node, parts | env.interface | {"world_model": world_model}, "evaluation.policy")


def load_policy(config: Config, parts: Parts, env: VideoGenerationEnv, sampling: Sampling) -> TensorDictModuleBase:
    """The policy of a config: its world model, with the weights of a run where there are some.

    Args:
        config: with ``world_model``, ``policy``, ``evaluation`` and ``weights``.
        parts: of `frozen_parts`.
        env: that it will act in.
        sampling: keywords of the policy.
    """
    world_model = build(config["world_model"], parts | env.interface, "world_model").to(parts["device"])
    policy = sampling_policy(config, parts, env, world_model, sampling)
    if config["weights"] is not None:
        try:
            load_strict(policy, load_file(config["weights"]))
        except ValueError as error:
            raise ValueError(f"weights={config['weights']} are not of this policy: {error}") from error
    return policy


def load_readers(config: Config, parts: Parts) -> dict[str, InverseDynamicsModel]:
    """Judge and coach, or the coach alone where a world has no other; call it for final figures only."""
    if config["world"]["judge"] is None:
        return {"coach": parts["idm"]}
    judge = build(config["world"]["judge"], parts, "world.judge")
    return {"judge": judge.to(parts["device"]).eval(), "coach": parts["idm"]}


def quoted_slots(parts: Parts) -> list[str]:
    """The visible buttons, over which the quoted F1 averages."""
    spec: GameActionSpec = parts["idm"].spec
    visible = parts["slots"] or spec.names
    return [slot.name for slot in spec.slots if slot.name in visible and not slot.is_ordered]


def describe_sampling(sampling: Sampling) -> str:
    """For people, such as "top-p 0.8"; empty if there is nothing to choose."""
    return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in sampling.items())


def best_sampling(config: Config, parts: Parts, world_model: nn.Module, evaluator: Evaluator) -> Sampling:
    """The way of sampling with which a world model follows game actions best, by the coach on dev prompts."""
    choices = sampling_choices(config)
    if len(choices) == 1:
        return choices[0]
    print(f"choosing how to sample on {evaluator.prompts.num_prompts} dev prompts", flush=True)
    slots, f1 = quoted_slots(parts), []
    for sampling in choices:
        policy = sampling_policy(config, parts, evaluator.env, world_model, sampling)
        f1.append(evaluator.evaluate(policy).f1("coach", slots))
        print(f"coach F1 on dev prompts at {describe_sampling(sampling)}: {f1[-1]:.3f}", flush=True)
    return choices[f1.index(max(f1))]


class Records:
    """Evaluations and choices that a restarted run finds again in its folder."""

    def __init__(self, folder: Path, spec: GameActionSpec) -> None:
        """Name the folder.

        Args:
            folder: of the run.
            spec: of the game.
        """
        self.folder, self._spec = folder, spec

    def evaluation(self, name: str, make: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation of this name, made and stored if it is not there."""
        path = self.folder / "evaluations" / f"{name}.safetensors"
        if not path.is_file():
            print(f"evaluating: {name.replace('_', ' ')}", flush=True)
            make().save(path)
        return Evaluation.load(path, self._spec)

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of this name, made and stored if it is not there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            write_text(path, json.dumps(make()))
        return json.loads(path.read_text())
