"""Activations that are made again give the same gradients, and keep far less memory meanwhile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rlir_agents.world_models import NFD, MineWorld, MineWorldConfig, NFDConfig


def mineworld() -> tuple[MineWorld, Callable[[], Tensor]]:
    model = MineWorld(MineWorldConfig(20, 30, 64, 128, 6, 4, 2, 256, initializer_range=0.1))
    token = torch.randint(30, (2, 200))
    return model, lambda: model(token).float().log_softmax(-1)[..., 0].mean()


def nfd() -> tuple[NFD, Callable[[], Tensor]]:
    model = NFD(NFDConfig((4, 4, 6), 1, 64, 6, 2, intermediate_size=128, action_dim=5, max_frames=6))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    context, latent = torch.randn(2, 5, 4, 4, 6), torch.randn(2, 5, 3, 4, 4, 6)
    times, vector = torch.rand(2, 5, 3), torch.randn(2, 6, 5)
    return model, lambda: model.velocity_of_steps(context, torch.zeros(2, 5), latent, times, vector).square().mean()


def saved_bytes(loss: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The loss, and how much its graph keeps, each memory once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    return value, sum(kept.values())


@pytest.mark.parametrize("is_autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", [mineworld, nfd])
def test_gradients_are_bitwise_the_same_for_less_memory(make: Callable, is_autocast: bool) -> None:
    torch.manual_seed(0)
    model, loss = make()
    found = {}
    for is_checkpointed in (False, True):
        model.checkpoints_activations = is_checkpointed
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            value, kept = saved_bytes(loss)
        value.backward()
        found[is_checkpointed] = value, kept, {name: p.grad for name, p in model.named_parameters()}
    (value, kept, gradients), (again, kept_again, gradients_again) = found.values()
    assert torch.equal(value, again)
    assert kept_again < kept / 3
    for name, gradient in gradients.items():
        assert gradient is None or torch.equal(gradient, gradients_again[name]), name


def test_nothing_is_made_again_where_nothing_is_differentiated() -> None:
    model, loss = mineworld()
    model.checkpoints_activations = True
    with torch.no_grad():
        assert not loss().requires_grad
