"""Diffusion world models: log-probs of a rollout by forms A to C; rollouts with and without a cache, at once and alone.

Weights are untrained, from a fixed seed: they decide nothing about speed. So no assets are needed, nor an env. Policy,
grid and precision are those of `rlir train experiment=doom_nfd_paper`.

Letters: B rows, P prompts, G group size, F frames, M generated ones, N denoising steps of a frame, K selected ones;
c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from benchmarks.denoising_work import DenoisingWork
from benchmarks.timing import median_seconds
from benchmarks.work import Work
from rlir_agents.commands.building import build
from rlir_agents.commands.composition import Config, compose_config
from rlir_agents.hardware import autocast, choose_autocast_dtype
from rlir_agents.policies import DenoisingPolicy
from rlir_agents.world_models import NFD, NFDConfig, as_context
from rlir_agents.world_models.latent import Form
from rlir_env.layout import LatentLayout
from rlir_env.noise import INITIAL_NOISE, step_normal
from rlir_env.schedules import gaussian_log_prob

FORMS: tuple[Form, ...] = get_args(Form)

_SEED = 0
# Fresh gates and heads are zero, and products with zeros are not what a trained model multiplies.
_WEIGHT_NOISE = 0.02
# The group of the paper, of which this many are made one by one: each costs the same.
_GROUP_SIZE = 24
_ROWS_ONE_BY_ONE = 6


@dataclass(frozen=True)
class Subject:
    """A world model and a batch.

    Attributes:
        world_model: Its config.
        num_rows: B.
        num_layers: How many of its layers; None takes all.
    """

    world_model: str
    num_rows: int
    num_layers: int | None = None

    @property
    def overrides(self) -> list[str]:
        """Of the config of `rlir train experiment=doom_nfd_paper`."""
        few = [] if self.num_layers is None else [f"world_model.config.num_layers={self.num_layers}"]
        return [f"world_model={self.world_model}", *few]


# Layers cost the same: one of NFD-310M's, with what stands before and after, has nearly the ratios of them all. Rows
# are few for the sake of form A, which keeps some GB for its backward; its products are large even so.
PRESET = Subject("nfd_doom", num_rows=4)
SUBJECTS = (PRESET, Subject("nfd_310m", num_rows=1, num_layers=1))


@dataclass(frozen=True)
class Measurement:
    """Ways to do the same, measured side by side.

    Attributes:
        setting: What was run.
        seconds: Of each way.
        works: Of each way.
        num_steps: Denoising steps that each way ran or evaluated, those of all rows.
    """

    setting: dict[str, Any]
    seconds: Mapping[str, float]
    works: Mapping[str, Sequence[Work]]
    num_steps: Mapping[str, int]


def measure_forms(subject: Subject, overrides: Sequence[str], repeats: int) -> dict[str, Measurement]:
    """Seconds and work of all forms, ``forward`` as scoring does and ``forward_backward`` as an update does.

    Args:
        subject: What to measure.
        overrides: Later ones win.
        repeats: Of which the median is taken.
    """
    policy, _ = _make_policy([*subject.overrides, *overrides])
    steps = selected_steps(policy, _fresh_state(policy, subject.num_rows))
    work = _work(policy, subject.num_rows)
    num_selected = steps.step.shape[2]
    all_layers = _config([f"world_model={subject.world_model}"])["world_model"]["config"]["num_layers"]
    sizes = {"num_rows": subject.num_rows, "num_selected": num_selected, "num_layers_of_model": all_layers}
    setting = _setting(policy) | sizes

    def forward(form: Form) -> Tensor:
        with torch.no_grad():
            return log_probs(policy, steps, form)

    def forward_backward(form: Form) -> None:
        policy.zero_grad()
        log_probs(policy, steps, form).mean().backward()

    passes: dict[str, tuple[Callable[[Form], object], bool]]
    passes = {"forward": (forward, False), "forward_backward": (forward_backward, True)}
    return {
        name: Measurement(
            setting,
            median_seconds({form: partial(run, form) for form in FORMS}, repeats),
            {form: work.evaluation(form, num_selected, has_backward) for form in FORMS},
            dict.fromkeys(FORMS, steps.step.numel()),
        )
        for name, (run, has_backward) in passes.items()
    }


def measure_rollouts(overrides: Sequence[str], repeats: int) -> Measurement:
    """Seconds and work of a group of rollouts at once, one by one, and without a cache, at the preset's sizes.

    Args:
        overrides: Later ones win.
        repeats: Of which the median is taken.
    """
    policy, group_size = _make_policy([*PRESET.overrides, *overrides])
    state = _fresh_state(policy, group_size)
    layout, num_alone = policy.layout, min(_ROWS_ONE_BY_ONE, group_size)
    videos = videos_of(policy, state)
    frames = range(1, layout.num_frames)
    ways = {
        "group": lambda: policy.generate(state),
        "one_by_one": lambda: generate_one_by_one(policy, state[:num_alone]),
        # A step of every frame: all steps of a frame cost the same.
        "without_cache": lambda: [denoise_without_cache(policy, state, videos[:, :i], videos[:, i], 0) for i in frames],
    }
    work, work_alone = _work(policy, group_size), _work(policy, 1)
    num_steps = layout.num_denoising_steps
    works = {
        "group": work.rollout(num_steps),
        "one_by_one": work_alone.rollout(num_steps) * num_alone,
        "without_cache": [one for frame in frames for one in work.without_cache(frame)],
    }
    counts = {
        "group": group_size * len(frames) * num_steps,
        "one_by_one": num_alone * len(frames) * num_steps,
        "without_cache": group_size * len(frames),
    }
    setting = _setting(policy) | {"num_rows": group_size}
    return Measurement(setting, median_seconds(ways, repeats), works, counts)


@dataclass(frozen=True)
class SelectedSteps:
    """The denoising steps of a rollout that count in a loss, K of every generated frame.

    Attributes:
        context: Frames 0 .. F-2 as later ones saw them, ``[B, F-1, c, h, w]``.
        game_action_vector: ``[B, F, A]``.
        step: Which they are, long ``[B, M, K]``.
        latent: Before each, ``[B, M, K, c, h, w]``.
        next_latent: After each, ``[B, M, K, c, h, w]``.
    """

    context: Tensor
    game_action_vector: Tensor
    step: Tensor
    latent: Tensor
    next_latent: Tensor


def selected_steps(policy: DenoisingPolicy, state: TensorDictBase) -> SelectedSteps:
    """Roll out and keep what counts.

    Args:
        policy: Generates.
        state: A freshly reset one ``[B]``.
    """
    taken, latent_shape = policy.generate(state), policy.layout.latent_shape
    num_frames, num_steps = policy.layout.num_generated_frames, policy.layout.num_denoising_steps
    after = taken["action"].reshape(len(state), num_frames, num_steps, *latent_shape)
    prompt_seed = state["prompt_seed"].squeeze(-1)
    frame = torch.arange(1, num_frames + 1, device=after.device)
    start = step_normal(prompt_seed[:, None], latent_shape, frame, INITIAL_NOISE)
    before = torch.cat([start[:, :, None], after[:, :, :-1]], dim=2)
    is_counted = taken["loss_mask"].reshape(len(state), num_frames, num_steps)
    *_, step = is_counted.nonzero(as_tuple=True)  # as many in every frame
    step = step.view(len(state), num_frames, -1)
    index = step[..., None, None, None].expand(-1, -1, -1, *latent_shape)
    finished = torch.cat([state["latent"][:, :1], after[:, :-1, -1]], dim=1)
    return SelectedSteps(
        as_context(finished, prompt_seed, policy.context_timestep),
        policy.action_encoder.of_frames(state["game_action"]),
        step,
        before.gather(2, index),
        after.gather(2, index),
    )


def log_probs(policy: DenoisingPolicy, steps: SelectedSteps, form: Form) -> Tensor:
    """Log-probs of selected steps by one of the forms, differentiable, float32 ``[B, M, K]``."""
    timestep = policy.layout.grid.float().to(steps.step.device)[steps.step]
    context_timestep = torch.full_like(steps.context[:, :, 0, 0, 0], policy.context_timestep)
    with autocast(steps.latent.device, policy.autocast_dtype):
        velocity = policy.world_model.velocity_of_steps(
            steps.context, context_timestep, steps.latent, timestep, steps.game_action_vector, form
        )
    table = policy.table.to(steps.latent.device)
    mean = table.mean(steps.latent, velocity, steps.step)
    return gaussian_log_prob(steps.next_latent, mean, table.std[steps.step], policy.log_prob_reduction)


def generate_one_by_one(policy: DenoisingPolicy, state: TensorDictBase) -> TensorDictBase:
    """The rollouts of a group, each on its own; what `DenoisingPolicy.generate` gives for all at once."""
    return torch.cat([policy.generate(state[row : row + 1]) for row in range(len(state))])


@torch.no_grad()
def denoise_without_cache(
    policy: DenoisingPolicy, state: TensorDictBase, frames: Tensor, latent: Tensor, step: int
) -> Tensor:
    """The latent that step mode would sample, from one pass over everything before it.

    Args:
        policy: Its world model and table are used.
        state: Has seeds and game actions ``[B]``.
        frames: The finished ones, clean, ``[B, n, c, h, w]``.
        latent: Of the frame behind them, ``[B, c, h, w]``.
        step: The denoising step that it stands at.

    Returns:
        ``[B, c, h, w]``.
    """
    index = frames.shape[1]
    context = as_context(frames, state["prompt_seed"].squeeze(-1), policy.context_timestep)
    seen = torch.cat([context, latent[:, None]], dim=1)
    timestep = seen.new_full(seen.shape[:2], policy.context_timestep)
    timestep[:, index] = policy.layout.timesteps[step]
    vector = policy.action_encoder.of_frames(state["game_action"])[:, : index + 1]
    with autocast(latent.device, policy.autocast_dtype):
        velocity = policy.world_model(seen, timestep, vector)[:, index]
    table = policy.table.to(latent.device)
    noise = step_normal(state["episode_seed"].squeeze(-1), policy.layout.latent_shape, index, step)
    return table.mean(latent, velocity, step) + table.std[step] * noise


def videos_of(policy: DenoisingPolicy, state: TensorDictBase) -> Tensor:
    """Clean latents of whole videos, ``[B, F, c, h, w]``."""
    action = policy.generate(state)["action"]
    ends = action.reshape(len(state), policy.layout.num_generated_frames, -1, *policy.layout.latent_shape)[:, :, -1]
    return torch.cat([state["latent"][:, :1], ends], dim=1)


def _make_policy(overrides: Sequence[str]) -> tuple[DenoisingPolicy, int]:
    """The policy of a config, untrained, and its group size."""
    config = _config(overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        world_model: NFD = build(config["world_model"], {}, "world_model")
        with torch.no_grad():
            for weight in world_model.parameters():
                weight.add_(torch.randn_like(weight), alpha=_WEIGHT_NOISE)
    timesteps = build(config["env"]["timesteps"], {}, "env.timesteps")
    layout = LatentLayout(world_model.latent_shape, tuple(torch.as_tensor(timesteps).tolist()))
    parts = {
        "world_model": world_model,
        "layout": layout,
        "steps_per_action": config["env"]["steps_per_action"],
        "autocast_dtype": choose_autocast_dtype(config["autocast"], "cpu"),
    }
    return build(config["policy"], parts, "policy"), config["env"]["group_size"]


def _config(overrides: Sequence[str]) -> Config:
    fixed = ("experiment=doom_nfd_paper", "device=cpu", f"env.group_size={_GROUP_SIZE}")
    return compose_config("train", [*fixed, *overrides])


def _fresh_state(policy: DenoisingPolicy, num_rows: int) -> TensorDict:
    """Siblings of one random prompt, as an env would hand them out."""
    layout, slots = policy.layout, policy.action_encoder.spec.num_classes
    draw = torch.Generator().manual_seed(_SEED)
    latent = torch.zeros(num_rows, layout.num_frames, *layout.latent_shape)
    latent[:, 0] = torch.randn(layout.latent_shape, generator=draw)
    game_action = [torch.randint(count, (layout.num_generated_frames,), generator=draw) for count in slots]
    row = torch.arange(num_rows)[:, None]
    return TensorDict(
        {
            "latent": latent,
            "frame_index": torch.ones_like(row),
            "denoising_step": torch.zeros_like(row),
            "game_action": torch.stack(game_action, dim=-1).expand(num_rows, -1, -1),
            "prompt_seed": torch.full_like(row, _SEED),
            "episode_seed": row,
        },
        batch_size=[num_rows],
    )


def _work(policy: DenoisingPolicy, num_rows: int) -> DenoisingWork:
    dtype = policy.autocast_dtype or torch.float32
    return DenoisingWork(_config_of(policy), policy.layout.num_frames, num_rows, dtype)


def _config_of(policy: DenoisingPolicy) -> NFDConfig:
    """Sizes of the world model.

    Raises:
        ValueError: if it is not an NFD, whose layers are counted.
    """
    if not isinstance(policy.world_model, NFD):
        raise ValueError(f"denoising_work.py counts NFD's layers; add a count for {type(policy.world_model).__name__}")
    return policy.world_model.config


def _setting(policy: DenoisingPolicy) -> dict[str, Any]:
    config = _config_of(policy)
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "tokens_per_frame": config.tokens_per_frame,
        "num_parameters": sum(math.prod(weight.shape) for weight in policy.world_model.parameters()),
        "num_frames": policy.layout.num_frames,
        "num_denoising_steps": policy.layout.num_denoising_steps,
        "dtype": str(policy.autocast_dtype or torch.float32).removeprefix("torch."),
    }
