"""Teaching an inverse dynamics model to read game actions from recorded gameplay (paper, section 3.1).

Negative log-likelihood of every slot, as in VPT, on clips that are also mirrored, recoloured and degraded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlir_agents.pretraining.augmentation import jitter, mirror
from rlir_agents.pretraining.loop import PretrainingTask
from rlir_env.inverse_dynamics import LEAST_SHARE, VPTInverseDynamics
from rlir_env.metrics.action_following import ActionFollowing
from rlir_env.recordings import FrameArchive


class InverseDynamicsTask(PretrainingTask):
    """Reads the game action of every transition of a clip.

    Args:
        module: the model.
        training, validation: recorded gameplay of disjoint maps.
        num_frames: length of a clip; the paper reads 16 frames because longer clips are read better.
        clips_per_batch: clips of a training batch.
        prior_share: which part of the classes' log-frequency the model need not learn. At 0 it reads "nothing pressed"
            wherever the picture leaves a doubt, and so does a policy that it rewards; at 1 it guesses rare classes as
            readily as frequent ones. Macro F1 is best between.
        num_validation_clips: clips of held-out maps, evenly spread.
    """

    module: VPTInverseDynamics

    def __init__(
        self,
        module: VPTInverseDynamics,
        training: FrameArchive,
        validation: FrameArchive,
        num_frames: int = 16,
        clips_per_batch: int = 16,
        prior_share: float = 0.5,
        num_validation_clips: int = 256,
    ) -> None:
        if not 0 <= prior_share <= 1:
            raise ValueError(f"prior_share={prior_share}: choose a share between 0 and 1")
        self.module = module
        shares = training.class_shares(module.spec)
        module.start_from_class_shares(shares, power=1 - prior_share)
        self._log_prior = (prior_share * _log_frequency(shares)).to(self.device)
        self._training, self._num_frames, self._clips_per_batch = training, num_frames, clips_per_batch
        self._held_out = validation.clips(validation.spread_starts(num_validation_clips, num_frames), num_frames)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per transition, summed over slots."""
        clips = self._training.sample_clips(self._clips_per_batch, self._num_frames, generator)
        frames, game_action = self.module.prepare(clips.frames.to(self.device)), clips.game_action.to(self.device)
        half = self._clips_per_batch // 2  # the clips are in random order
        mirrored = mirror(frames[:half], game_action[:half], self.module.spec)
        frames = torch.cat([mirrored[0], frames[half:]])
        game_action = torch.cat([mirrored[1], game_action[half:]])
        nll = self.module.slot_nll(jitter(frames, generator), game_action, self._log_prior)  # [B, F-1, S]
        return nll.sum(-1).mean(), {}

    def validate(self) -> dict[str, float]:
        """Macro F1 of every slot on maps that training has not seen, undegraded."""
        metric = ActionFollowing(self.module.spec)
        inferred = self.module.infer_game_actions(self._held_out.frames.to(self.device))
        metric.update(inferred.cpu(), self._held_out.game_action)
        return {name.removeprefix("action_following/"): value for name, value in metric.compute().items()}


def _log_frequency(shares: Sequence[Sequence[float]]) -> Tensor:
    """Log-shares of classes ``[S, C]``; 0 where a slot has fewer classes."""
    rows = [torch.tensor(row).clamp_min(LEAST_SHARE).log() for row in shares]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
