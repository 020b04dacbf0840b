"""Trajectories as token sequences: what sequence mode reads, of a policy as of a critic.

A row of a rollout is one trajectory, and its last state holds the tokens of all earlier ones; so one forward over that
sequence serves every step. Which positions are asked for is the step's own ``position``, so that TorchRL's estimators
may also call with ``next`` states, or with T + 1 of them.

Letters: N trajectories, T steps, k tokens per step, L sequence length.
"""

from __future__ import annotations

from typing import NamedTuple

from tensordict import TensorDictBase
from torch import Tensor


class Sequences(NamedTuple):
    """Trajectories of a tensordict.

    Attributes:
        token: What the last state knows, integer ``[N, L]``, -1 = not yet.
        position: Of each step's first token, long ``[N, T]``.
    """

    token: Tensor
    position: Tensor


def sequences_of(tensordict: TensorDictBase) -> Sequences:
    """Read trajectories ``[..., T]``, or a flat batch ``[B]`` as B trajectories of one step.

    Raises:
        ValueError: if the steps of a row do not belong to one trajectory.
    """
    num_steps = tensordict.batch_size[-1] if tensordict.batch_dims > 1 else 1
    token = tensordict["token"].reshape(-1, num_steps, tensordict["token"].shape[-1])
    first, last = token[:, 0], token[:, -1]
    if not ((first == last) | (first < 0)).all():
        raise ValueError(
            "a row holds steps of several videos or out of order: keep rollouts as [..., T], one trajectory a row, "
            "or pass a flat batch [B] of single steps"
        )
    return Sequences(last, tensordict["position"].reshape(-1, num_steps))


def known_prefix(token: Tensor, places: Tensor) -> Tensor:
    """Tokens ``[N, n]`` up to the last of ``places``, ready to be embedded: what is not known gets id 0.

    Nothing at ``places`` has read beyond them, so those ids have no influence.
    """
    return token[:, : int(places.max()) + 1].clamp(min=0)
