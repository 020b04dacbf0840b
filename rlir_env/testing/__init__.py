"""Public help for tests: the env contract as a function, and a world that is learnt in seconds."""

from rlir_env.testing.contract import check_generation_env
from rlir_env.testing.identity import (
    IDENTITY_SPEC,
    IdentityInverseDynamics,
    IdentityPrompts,
    IdentityWorld,
    identity_world,
    right_codes,
)
from rlir_env.testing.identity_tokenizers import IdentityLatents, IdentityTokenizer
from rlir_env.testing.policies import RandomTokenPolicy

__all__ = [
    "IDENTITY_SPEC",
    "IdentityInverseDynamics",
    "IdentityLatents",
    "IdentityPrompts",
    "IdentityTokenizer",
    "IdentityWorld",
    "RandomTokenPolicy",
    "check_generation_env",
    "identity_world",
    "right_codes",
]
