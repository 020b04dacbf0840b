"""Transformers over frames that are just large enough to show everything, with all their parameters at work."""

from collections.abc import Callable

import torch

from rlir_agents.world_models import NFD, NFDConfig, Oasis, OasisConfig
from rlir_agents.world_models.frame_transformer import FrameTransformer

LATENT, NUM_FRAMES, NUM_STEPS, ACTION_DIM = (3, 4, 6), 6, 3, 5


def small_nfd_config(**settings) -> NFDConfig:
    defaults = {
        **{"latent_shape": LATENT, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 48},
        **{"action_dim": ACTION_DIM, "max_frames": NUM_FRAMES},
    }
    return NFDConfig(**defaults | settings)


def small_nfd(**settings) -> NFD:
    return at_work(lambda: NFD(small_nfd_config(**settings)))


def small_oasis(**settings) -> Oasis:
    sizes = {"latent_shape": LATENT, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 48}
    config = OasisConfig(**sizes | {"action_dim": ACTION_DIM, "max_frames": NUM_FRAMES} | settings)
    return at_work(lambda: Oasis(config))


def at_work(make: Callable[[], FrameTransformer]) -> FrameTransformer:
    """Fresh models give zero; in this one every parameter counts, and rounding is amplified as little as by trained."""
    torch.manual_seed(0)
    model = make()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            torch.nn.init.normal_(parameter, std=0.6 * fan_in**-0.5)
    return model


def small_batch(num_rows: int = 2, num_generated: int = NUM_FRAMES - 1) -> dict[str, torch.Tensor]:
    """A context, and each generated frame at several steps, all at timesteps of their own."""
    torch.manual_seed(1)
    return {
        "context": torch.randn(num_rows, NUM_FRAMES - 1, *LATENT),
        "context_timestep": 0.2 * torch.rand(num_rows, NUM_FRAMES - 1),
        "latent": torch.randn(num_rows, num_generated, NUM_STEPS, *LATENT),
        "timestep": torch.rand(num_rows, num_generated, NUM_STEPS),
        "game_action_vector": torch.randn(num_rows, NUM_FRAMES, ACTION_DIM),
    }


def cached_velocity(
    model: FrameTransformer, batch: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What a rollout computes: frame by frame, step by step, against a cache of finished frames."""
    context, context_timestep, latent, timestep, vector = batch.values()
    num_given = NUM_FRAMES - latent.shape[1]
    given = slice(0, num_given)
    cache = model.read(context[:, given], context_timestep[:, given], vector[:, given], NUM_FRAMES, dtype)
    frames = []
    for frame in range(num_given, NUM_FRAMES):
        steps = zip(latent[:, frame - num_given].unbind(1), timestep[:, frame - num_given].unbind(1), strict=True)
        frames.append(torch.stack([model.next_velocity(x, t, vector[:, frame], cache) for x, t in steps], dim=1))
        if frame < NUM_FRAMES - 1:
            now = slice(frame, frame + 1)
            model.append(context[:, now], context_timestep[:, now], vector[:, now], cache)
    return torch.stack(frames, dim=1)


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()
