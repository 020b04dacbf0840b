"""What TorchRL's objectives lack; everything else is named in YAML from `torchrl.objectives`."""

from rlir_agents.losses.grpo import GRPOLoss
from rlir_agents.losses.kl_to_reference import k3

__all__ = ["GRPOLoss", "k3"]
