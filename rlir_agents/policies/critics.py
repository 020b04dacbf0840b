"""What ``configs/algorithm/ppo.yaml`` names: a critic for algorithms that need one; the paper's GRPO does not."""

from __future__ import annotations

from typing import Protocol

from tensordict.nn import TensorDictModuleBase


class HasCritic(Protocol):
    """A policy that knows what a critic of its own architecture looks like."""

    def make_critic(self) -> TensorDictModuleBase:
        """A critic that learns apart from the policy."""


def critic_like(policy: HasCritic) -> TensorDictModuleBase:
    """A critic of the policy's own architecture."""
    return policy.make_critic()
