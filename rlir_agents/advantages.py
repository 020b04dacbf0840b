"""Who deserves the reward: the group-relative advantage of Eq. 1, whole or by frame.

The functions at the top are plain tensor arithmetic. The classes at the bottom put them behind the
one contract the trainer knows: a callable that takes a finished rollout and writes ``advantage``
[P, G, T, 1] into it. What is not here: PPO's advantage with a critic
(``rlir_agents/generalized_advantage.py``), and the loss.

Letters: P prompts, G group size, T steps, F frames of a video (F - 1 generated).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensordict import TensorDictBase


def group_relative(reward: torch.Tensor, *, normalize_std: bool = True, epsilon: float = 1e-6) -> torch.Tensor:
    """Compare every generation with its siblings (Eq. 1): ``(R_i - mean(R)) / std(R)``.

    The standard deviation is the sample estimate (divisor G - 1), as in the public GRPO code; Eq. 1
    leaves the divisor open, and the choice only scales the advantages by sqrt((G - 1) / G), 2 % at
    G = 24. Nothing is added to the denominator: a group whose spread does not exceed `epsilon` has
    nothing to compare and gets exactly zero.

    Args:
        reward: one number per generation, [P, G, ...]; trailing dimensions are compared separately.
        normalize_std: False leaves out the division, as Dr. GRPO does, so that prompts with a
            small spread of rewards are not blown up.
        epsilon: spread, in units of the reward, up to which siblings count as equal; above float32
            rounding of rewards of order one.

    Returns:
        Advantages of the shape of `reward`.

    Raises:
        ValueError: if a group has fewer than two members.

    Example:
        >>> group_relative(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[-1.0, 0.0, 1.0]]
    """
    if reward.ndim < 2 or reward.shape[1] < 2:
        raise ValueError(
            f"reward of shape {tuple(reward.shape)}: Eq. 1 compares siblings, "
            "so it needs [P, G, ...] with group_size at least 2"
        )
    centred = reward - reward.mean(dim=1, keepdim=True)
    spread = reward.std(dim=1, keepdim=True)
    has_spread = ~(spread <= epsilon)  # written so that a NaN reward stays NaN and stops the run
    # The inner `where` keeps 0/0 out of the branch that is thrown away.
    scale = torch.where(has_spread, spread, 1.0) if normalize_std else 1.0
    return torch.where(has_spread, centred / scale, 0.0)


def framewise_credit(frame_reward: torch.Tensor, next_frame_coeff: float = 0.5) -> torch.Tensor:
    """Reward that the tokens of each frame answer for: ``r_j + next_frame_coeff * r_{j+1}``.

    Frame j is where transition j arrives and where transition j + 1 departs, so it has a hand in
    both readings; the last frame has only its own.

    Args:
        frame_reward: reward of each transition, [P, G, F-1].
        next_frame_coeff: weight of the transition that departs from the frame.

    Returns:
        Credit per generated frame, [P, G, F-1], not yet compared within the group.

    Example:
        >>> framewise_credit(torch.tensor([[[1.0, 0.0, 1.0]]])).tolist()
        [[[1.0, 0.5, 1.0]]]
    """
    credit = frame_reward.clone()
    credit[..., :-1] += next_frame_coeff * frame_reward[..., 1:]
    return credit


def frames_to_steps(frame_values: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Repeat a value per frame for every step of that frame.

    Every frame takes equally many steps, in order, in both paradigms, so the
    two lengths say which step belongs to which frame: this is `TokenLayout.frame_of_step`.

    Args:
        frame_values: [P, G, F-1].
        num_steps: T.

    Returns:
        [P, G, T, 1].

    Raises:
        ValueError: if the steps do not fill whole frames.
    """
    num_frames = frame_values.shape[-1]
    if num_steps % num_frames:
        raise ValueError(
            f"{num_steps} steps cannot be shared out over {num_frames} generated frames: "
            "pass the rollout of whole episodes, with every step of every frame"
        )
    return frame_values.repeat_interleave(num_steps // num_frames, dim=-1).unsqueeze(-1)


class Advantage(Protocol):
    """Anything that writes ``advantage``, [P, G, T, 1] or [P, G, T, k, 1], into a finished rollout [P, G, T].

    One that also gives a critic its targets, as `GeneralizedAdvantage` does, has the attribute ``critic``.
    """

    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Write ``advantage`` and return the same rollout."""
        ...


class SequenceCredit:
    """One advantage for the whole video, as in the paper (section 3.2): A_{i,t} for all t."""

    def __init__(self, *, normalize_std: bool = True, epsilon: float = 1e-6) -> None:
        """Choose how siblings are compared.

        Args:
            normalize_std: see `group_relative`.
            epsilon: see `group_relative`.
        """
        self.normalize_std = normalize_std
        self.epsilon = epsilon

    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Read ``("next", "reward")`` [P, G, T, 1], write ``advantage`` [P, G, T, 1]."""
        reward = rollout["next", "reward"]
        advantage = group_relative(reward.sum(dim=2), normalize_std=self.normalize_std, epsilon=self.epsilon)
        return rollout.set("advantage", advantage.unsqueeze(2).expand_as(reward))


class FramewiseCredit:
    """One advantage per frame: each frame's credit is compared with the same frame of the siblings.

    The paper's section 6.1 calls the inverse reward frame-level but spreads its mean over the whole
    video; this uses the frames. It reads the breakdown that every reward reports, so it works with
    any of them.
    """

    def __init__(
        self,
        *,
        next_frame_coeff: float = 0.5,
        normalize_std: bool = True,
        epsilon: float = 1e-6,
    ) -> None:
        """Choose the credit and how siblings are compared.

        Args:
            next_frame_coeff: see `framewise_credit`.
            normalize_std: see `group_relative`.
            epsilon: see `group_relative`.
        """
        self.next_frame_coeff = next_frame_coeff
        self.normalize_std = normalize_std
        self.epsilon = epsilon

    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Read ``("next", "frame_reward")`` [P, G, T, F-1], write ``advantage`` [P, G, T, 1].

        The breakdown is zero until the terminal step, so only that step is read.
        """
        frame_reward = rollout["next", "frame_reward"][:, :, -1]
        credit = framewise_credit(frame_reward, self.next_frame_coeff)
        advantage = group_relative(credit, normalize_std=self.normalize_std, epsilon=self.epsilon)
        return rollout.set("advantage", frames_to_steps(advantage, rollout.shape[2]))


class AsymmetricCredit:
    """Any credit, with what lies below the siblings' mean counting less than what lies above.

    A squared error that is to *rise* has no end: where a finished frame is judged by flow matching
    (`FlowMatchingPolicy`), full negative advantages can drive a model off the data, as they do on the identity world.
    FPO++ (arXiv 2602.02481) bounds them for the same reason.
    """

    def __init__(self, credit: Advantage, negative_coeff: float) -> None:
        """Wrap a credit.

        Args:
            credit: writes the advantage.
            negative_coeff: what negative advantages are multiplied by; 0 learns from the better half alone, 1 changes
                nothing.

        Raises:
            ValueError: if the factor is negative.
        """
        if negative_coeff < 0:
            raise ValueError(
                f"negative_coeff={negative_coeff}: give 0 or more; below it, worse siblings would be praised"
            )
        self.credit, self.negative_coeff = credit, negative_coeff

    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, of the shape of the credit's."""
        advantage = self.credit(rollout)["advantage"]
        return rollout.set("advantage", torch.where(advantage < 0, self.negative_coeff * advantage, advantage))


class StepWeightedCredit:
    """Any credit, times a weight for each denoising step of a frame (TempFlow-GRPO, LongCat-Video).

    The clipped loss is linear in a positive factor of the advantage, so this weighs the loss of every step.
    """

    def __init__(self, credit: Advantage, weights: Sequence[float]) -> None:
        """Choose the weights.

        Args:
            credit: writes the advantage that is weighed.
            weights: one for each denoising step of a frame, N of them, positive; their mean is the scale of the loss.

        Raises:
            ValueError: if a weight is not positive.
        """
        self.credit, self.weights = credit, torch.as_tensor(weights, dtype=torch.float32)
        if not bool((self.weights > 0).all()):
            raise ValueError(f"weights={self.weights.tolist()}: give a positive number for every denoising step")

    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Write ``advantage`` [P, G, T, k, 1], for k denoising steps per env step.

        Raises:
            ValueError: if there are not as many weights as denoising steps.
        """
        self.credit(rollout)
        num_inner = rollout["action"].shape[3]
        step = rollout["denoising_step"] + torch.arange(num_inner, device=rollout["denoising_step"].device)
        if int(step.max()) + 1 != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {int(step.max()) + 1} denoising steps: give as many")
        weight = self.weights.to(step.device)[step]  # [P, G, T, k]
        return rollout.set("advantage", (rollout["advantage"] * weight).unsqueeze(-1))
