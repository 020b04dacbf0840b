"""World models as TorchRL policies, and critics: step mode for collection, sequence mode for losses."""

from rlir_agents.policies.token import TokenPolicy
from rlir_agents.policies.value import TokenValue

__all__ = ["TokenPolicy", "TokenValue"]
