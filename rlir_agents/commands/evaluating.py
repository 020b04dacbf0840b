"""What the verbs share about evaluation: evaluators, the choice of top-p, and records kept in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rlir_agents.commands.assembly import Assembly, Parts
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import Config
from rlir_agents.evaluation import Evaluation
from rlir_agents.evaluator import Evaluator
from rlir_agents.policies import TokenPolicy
from rlir_agents.prompt_choice import shipped_prompts
from rlir_agents.video_makers import NoReward
from rlir_env.atomic_files import write_text
from rlir_env.envs import TokenGenerationEnv
from rlir_env.game_actions import GameActionSpec
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.prompts import PromptSource


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


def make_env(config: Config, parts: Parts, prompts: PromptSource, num_rows: int) -> TokenGenerationEnv:
    """The run's env without groups and without a reward, as evaluation needs it."""
    node = config["env"] | {"num_prompts": num_rows, "group_size": 1}
    return build(node, parts | {"prompts": prompts, "reward_fn": NoReward()}, "env")


def load_policy(config: Config, parts: Parts, env: TokenGenerationEnv, top_p: float) -> TokenPolicy:
    """The policy of a config: its world model, with the weights of a run where there are some.

    Args:
        config: with ``world_model``, ``policy`` and ``weights``.
        parts: of `frozen_parts`.
        env: that it will act in.
        top_p: of its sampling.
    """
    asked = parts | {"layout": env.layout, "tokens_per_step": env.tokens_per_step}
    asked["world_model"] = build(config["world_model"], asked, "world_model").to(parts["device"])
    policy = build(config["policy"] | {"top_p": top_p}, asked, "policy")
    if config["weights"] is not None:
        policy.load_state_dict(load_file(config["weights"]))
    return policy


def load_readers(config: Config, parts: Parts) -> dict[str, InverseDynamicsModel]:
    """Coach and judge; call it for final figures only."""
    judge = build(config["world"]["judge"], parts, "world.judge")
    return {"judge": judge.to(parts["device"]).eval(), "coach": parts["idm"]}


def quoted_slots(parts: Parts) -> list[str]:
    """The visible buttons, over which the quoted F1 averages."""
    spec: GameActionSpec = parts["idm"].spec
    visible = parts["slots"] or spec.names
    return [slot.name for slot in spec.slots if slot.name in visible and not slot.is_ordered]


def best_top_p(assembly: Assembly, policy: TokenPolicy, evaluator: Evaluator, choices: Sequence[float]) -> float:
    """The top-p at which a policy follows game actions best, by the coach on dev prompts."""
    if len(choices) == 1:
        return choices[0]
    print(f"choosing top-p on {evaluator.prompts.num_prompts} dev prompts", flush=True)
    slots = quoted_slots(assembly.parts)
    f1 = {p: evaluator.evaluate(assembly.policy_at(policy, p)).f1("coach", slots) for p in choices}
    print("coach F1 on dev prompts by top-p: " + ", ".join(f"{p:g}: {value:.3f}" for p, value in f1.items()))
    return max(f1, key=f1.__getitem__)


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
