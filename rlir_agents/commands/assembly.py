"""Everything that a training run is made of, built from its config in the order in which parts need one another."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from rlir_agents.commands.building import build
from rlir_agents.commands.composition import Config
from rlir_agents.commands.machine import set_up_machine
from rlir_agents.trainer import Trainer
from rlir_agents.world_models.low_rank import add_low_rank
from rlir_env.assets import World

Parts = dict[str, Any]
"""Objects of a run by the names under which constructors ask for them, see `build`."""


@dataclass(frozen=True)
class Assembly:
    """A run, ready to start.

    Attributes:
        config: what it was built from.
        parts: all objects by name.
        policy: what learns.
        base: a frozen copy of the policy as it starts.
    """

    config: Config
    parts: Parts
    policy: TensorDictModuleBase
    base: TensorDictModuleBase


def frozen_parts(config: Config) -> Parts:
    """The machine and the world: device, precision, tokenizer, coach."""
    machine = set_up_machine(config)
    if not isinstance(config["seed"], int):
        raise ValueError(f"seed={config['seed']!r}: give a whole number")
    torch.manual_seed(config["seed"])
    return world_parts(build(config["world"]["frozen"], machine, "world.frozen"), machine)


def world_parts(world: World, machine: Parts) -> Parts:
    """The parts of a world beside those of the machine."""
    device = machine["device"]
    return machine | {
        "world": world,
        "tokenizer": world.tokenizer.to(device),
        "frame_size": world.tokenizer.frame_size,
        "grid_size": world.tokenizer.grid_size,
        "idm": world.coach.to(device),
        "spec": world.coach.spec,
        "slots": world.visible_slots,
        "class_frequency": world.class_frequency,
        "num_word_ids": world.num_word_ids,
    }


def assemble(config: Config) -> Assembly:
    """Build a run.

    Args:
        config: of `rlir train`.

    Raises:
        ValueError: if something in the config does not fit.
    """
    parts = frozen_parts(config)
    parts["prompts"] = build(config["prompts"], parts, "prompts")
    parts["reward_fn"] = build(config["reward"], parts, "reward")
    env = parts["env"] = build(config["env"], parts, "env")
    parts |= env.interface
    parts["world_model"] = build(config["world_model"], parts, "world_model").to(parts["device"])
    parts["world_model"].checkpoints_activations = config["checkpoint_activations"]
    policy = build(config["policy"], parts, "policy")
    base = copy.deepcopy(policy).requires_grad_(False)
    if config["lora"]["rank"]:  # torch's copies of adapted modules are bound to their originals: so not before
        add_low_rank(parts["world_model"], **config["lora"])
    parts |= {"policy": policy, "actor_network": policy, "logger": build(config.get("logger"), parts, "logger")}
    reference = base if config["algorithm"]["has_reference"] else None
    if reference is not None and config["trainer"]["sync_reference_every"]:
        reference = copy.deepcopy(base)  # which evaluations still need as it was
    _add_algorithm(parts, config, reference)
    return Assembly(config, parts, policy, base)


def _add_algorithm(parts: Parts, config: Config, reference: TensorDictModuleBase | None) -> None:
    critic = build(config["algorithm"]["critic"], parts, "algorithm.critic")
    parts |= {"critic": critic, "critic_network": critic, "reference_policy": reference}
    loss: nn.Module = build(config["algorithm"]["loss"], parts, "algorithm.loss").to(parts["device"])
    parts |= {"loss": loss, "params": [p for p in loss.parameters() if p.requires_grad]}
    if getattr(loss, "kl_coeff", 0) and reference is None:
        raise ValueError("algorithm: kl_coeff needs a reference policy: set has_reference=true, or kl_coeff=0")
    parts["advantage"] = build(config["credit"], parts, "credit")
    if critic is not None and not hasattr(parts["advantage"], "critic"):
        raise ValueError("credit: the algorithm has a critic, and this credit gives it no targets: use credit=gae")
    if critic is None and parts["env"].group_size < 2:
        raise ValueError("credit: siblings are compared, and there are none: set env.group_size=2 or more")
    parts["optimizer"] = build(config["optimizer"], parts, "optimizer")
    parts["trainer_config"] = build(config["trainer"], {}, "trainer")
    parts["num_iterations"] = parts["trainer_config"].num_iterations
    parts["scheduler"] = build(config["scheduler"], parts, "scheduler")


def make_trainer(assembly: Assembly, evaluate: Any) -> Trainer:
    """The trainer of a run.

    Args:
        assembly: the run.
        evaluate: from the policy to figures for the log.
    """
    parts, config = assembly.parts, assembly.config
    spec, reward_fn = parts["idm"].spec, parts["reward_fn"]
    has_match = "frame_match" in reward_fn.breakdown(1, spec.num_slots)
    return Trainer(
        parts["env"],
        assembly.policy,
        parts["loss"],
        parts["advantage"],
        parts["optimizer"],
        parts["trainer_config"],
        config["run_dir"],
        scheduler=parts["scheduler"],
        reference_policy=parts["reference_policy"],
        logger=parts["logger"],
        evaluate=evaluate,
        breakdown_names={"frame_match": spec.names} if has_match else None,
        diagnose=build(config["diagnose"], parts, "diagnose"),
    )
