"""``rlir train ... trainer.dry_run=true``: what an iteration of a training would take, before anybody rents a GPU.

Files of others are not needed: `dry_run` of the experiment says which published shapes stand for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from rlir_agents.commands.assembly import Parts, world_parts
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import FILES, Config, compose_dry_run
from rlir_agents.dry_run import Batch, Estimate, Meter, estimate_table, hollow, policy_phases, reward_phase
from rlir_agents.hardware import choose_autocast_dtype
from rlir_agents.minibatches import check_minibatches
from rlir_agents.world_models.low_rank import add_low_rank
from rlir_env.assets import World
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.tokenizers import Tokenizer

_CPU = torch.device("cpu")


def run(arguments: Sequence[str]) -> None:
    """Print the estimate for `rlir train` with these overrides."""
    config, has_shapes = compose_dry_run(arguments)
    build(config["trainer"], {}, "trainer")  # what a trainer would refuse
    files = [argument for argument in arguments if argument.partition("=")[0] in FILES]
    if has_shapes and files:
        print(f"counted for the published shapes; nothing is read of {', '.join(files)}")
    print("counting an iteration, without its memory; minutes at the published sizes", file=sys.stderr, flush=True)
    print(estimate_table(estimate(config, has_shapes)))


def estimate(config: Config, has_shapes: bool) -> Estimate:
    """Count the work of an iteration.

    Args:
        config: of `rlir train`.
        has_shapes: the config builds networks of given sizes instead of reading files: they get no memory.
    """
    meter = Meter()
    with torch.device("meta") if has_shapes else nullcontext():
        parts, world_model = _networks(config)
    parts["prompts"] = build(config["prompts"], parts, "prompts")
    parts["reward_fn"] = build(config["reward"], parts, "reward")
    env = build(config["env"], parts, "env")
    world_model = meter.fake(world_model)
    tokenizer: Tokenizer = meter.fake(parts["tokenizer"])
    coach: InverseDynamicsModel = meter.fake(parts["idm"])
    policy = build(config["policy"], parts | env.interface | {"world_model": world_model}, "policy")
    batch = _batch(config, env.batch_size[0], env.num_groups)
    has_critic = config["algorithm"]["critic"] is not None
    rollout, *learning = policy_phases(policy, meter, batch, num_learners=1 + has_critic)
    num_frames, dtype = env.layout.num_frames, parts["autocast_dtype"]
    reward = reward_phase(tokenizer, coach, meter, num_frames, batch.num_videos, dtype)
    networks: dict[str, nn.Module] = {"world model": world_model, "tokenizer": tokenizer, "coach": coach}
    sizes = {name: _num_parameters(network) for name, network in networks.items()}
    num_learnt = sum(p.numel() for p in world_model.parameters() if p.requires_grad) * (1 + has_critic)
    held = {
        "world model": 4 * sizes["world model"] * (1 + has_critic),
        "moments of the optimiser": 8 * num_learnt,
        "base model": 4 * sizes["world model"],
        "tokenizer and coach": 4 * (sizes["tokenizer"] + sizes["coach"]),
    }
    if config["algorithm"]["has_reference"] and config["trainer"]["sync_reference_every"]:
        held["reference"] = 4 * sizes["world model"]
    if config["trainer"]["ema_decay"] is not None:
        held["mean of the weights"] = 4 * sizes["world model"]
    height, width = tokenizer.frame_size
    title = (
        f"{config['name']}: an iteration of {env.num_groups} x {env.group_size} videos of {num_frames} frames of "
        f"{height} x {width}, {batch.rollout_batch_size} generated and {batch.micro_batch_size} learnt from at once"
    )
    return Estimate(
        title,
        sizes,
        held,
        [rollout, reward, *learning],
        batch.num_videos,
        batch.rollout_batch_size,
        config["trainer"]["num_iterations"],
    )


def _networks(config: Config) -> tuple[Parts, nn.Module]:
    """The parts of the world and the world model, without their memory."""
    is_auto = config["autocast"] == "auto"  # as on a GPU
    dtype = torch.bfloat16 if is_auto else choose_autocast_dtype(config["autocast"], _CPU)
    machine = {"device": _CPU, "autocast_dtype": dtype}
    world: World = build(config["world"]["frozen"], machine, "world.frozen")
    world_model = hollow(build(config["world_model"], machine, "world_model"))
    world_model.checkpoints_activations = config["checkpoint_activations"]
    if config["lora"]["rank"]:
        add_low_rank(world_model, **config["lora"])
    world = replace(world, tokenizer=hollow(world.tokenizer), coach=hollow(world.coach))
    return world_parts(world, machine), world_model


def _batch(config: Config, num_videos: int, num_groups: int) -> Batch:
    trainer = config["trainer"]
    check_minibatches(num_groups, trainer["num_minibatches"])
    rows = num_videos // trainer["num_minibatches"]
    return Batch(
        num_videos,
        rollout_batch_size=min(trainer["rollout_batch_size"] or num_videos, num_videos),
        micro_batch_size=min(trainer["micro_batch_size"] or rows, rows),
        num_epochs=trainer["num_epochs"],
        num_log_probs=trainer["recompute_log_prob"] + config["algorithm"]["has_reference"],
    )


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
