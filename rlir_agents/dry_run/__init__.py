"""What an iteration of training would cost, counted before anybody rents a GPU."""

from rlir_agents.dry_run.estimate import DEVICES, Device, Estimate
from rlir_agents.dry_run.meter import Count, Meter, hollow
from rlir_agents.dry_run.phases import Batch, Phase, policy_phases, reward_phase
from rlir_agents.dry_run.table import estimate_table

__all__ = [
    "DEVICES",
    "Batch",
    "Count",
    "Device",
    "Estimate",
    "Meter",
    "Phase",
    "estimate_table",
    "hollow",
    "policy_phases",
    "reward_phase",
]
