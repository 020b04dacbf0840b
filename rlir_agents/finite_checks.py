"""Where a NaN came from: checks that stop a run before it reaches weights or checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from torch import nn


class NonFiniteError(RuntimeError):
    """A NaN or an infinity that would have reached the weights."""


def require_finite_losses(losses: TensorDictBase, batch: TensorDictBase, policy: nn.Module) -> None:
    """Stop at a loss that is not finite, and say what it was made of.

    Args:
        losses: what the loss returned.
        batch: the rollouts it was given.
        policy: whose parameters are looked at too.

    Raises:
        NonFiniteError: naming the loss terms, the rollout's entries and the parameters.
    """
    terms = [key for key, value in losses.items() if key.startswith("loss_") and not value.isfinite().all()]
    if terms:
        raise NonFiniteError(
            f"{', '.join(terms)} is not finite. In its input: "
            f"{_listed(_non_finite_entries(batch))}; among the policy's parameters: "
            f"{_listed(_non_finite(policy.named_parameters()))}"
        )


def require_finite_gradient(norm: torch.Tensor, *modules: nn.Module) -> None:
    """Stop at a gradient that is not finite.

    Raises:
        NonFiniteError: naming the parameters whose gradient it is.
    """
    if not norm.isfinite():
        gradients = [
            (name, parameter.grad)
            for module in modules
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        ]
        raise NonFiniteError(f"the gradient is not finite. Parameters: {_listed(_non_finite(gradients))}")


def require_finite_parameters(module: nn.Module) -> None:
    """Stop before weights that are not finite are stored over good ones.

    Raises:
        NonFiniteError: naming the parameters.
    """
    names = _non_finite(module.named_parameters())
    if names:
        raise NonFiniteError(f"after the optimiser step, not finite: {_listed(names)}")


def _non_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    return [
        f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()})"
        for name, tensor in tensors
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]


def _non_finite_entries(batch: TensorDictBase) -> list[str]:
    leaves = batch.items(include_nested=True, leaves_only=True)
    return _non_finite((".".join(k) if isinstance(k, tuple) else k, v) for k, v in leaves)


def _listed(names: list[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (", ".join(names[:at_most]) + more) if names else "none"
