"""Evaluation: does the generated video show the game actions that it was generated under?

This makes the videos and readings of the paper's section 5. One video per prompt, from fixed seeds,
read by inverse dynamics models by name: the *coach*, which also rewards, and the *judge*, which had
no part in training (the paper has one IDM for both, which cannot show reward hacking). The same
record is made of the real continuation (`ceiling`: the reader errs too), of its reconstruction by
the tokenizer, and of controls. Nothing here learns, and nothing here is a reward; the figures are
in `rlir_env.metrics`.

Letters: N clips, F frames, C context frames, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from rlir_agents.evaluation import Evaluation
from rlir_agents.hardware import autocast
from rlir_agents.rollouts import collect
from rlir_agents.video_makers import (
    Collect,
    MakeVideos,
    Policy,
    as_uint8,
    generator,
    real_frames,
)
from rlir_env.envs import VideoGenerationEnv
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.metrics import psnr
from rlir_env.prompts import PromptSource
from rlir_env.tokenizers import Tokenizer
from rlir_env.tokenizers.base import as_unit_floats


class Evaluator:
    """Makes an `Evaluation` of whatever yields videos for a fixed set of prompts.

    It knows no paradigm: a video is what the env decodes at the end of an episode.

    Example::

        def make_env(prompts):
            return TokenGenerationEnv(
                prompts, tokenizer, NoReward(), num_prompts=32, tokens_per_step="frame"
            )

        evaluator = Evaluator(make_env, test_prompts, {"judge": judge, "coach": coach}, seed=0)
        before, ceiling = evaluator.evaluate(base_policy), evaluator.ceiling()
        print(before.f1("judge"), ceiling.f1("judge"))

    Attributes:
        prompts: the prompts, with target frames.
        env: in which policies make their videos.
        idms: the readers by name.
        seed: of the videos; the same seed gives every policy the same noise.
    """

    def __init__(
        self,
        make_env: Callable[[PromptSource], VideoGenerationEnv],
        prompts: PromptSource,
        idms: Mapping[str, InverseDynamicsModel],
        *,
        seed: int = 0,
        num_videos: int = 8,
        batch_size: int = 32,
        autocast_dtype: torch.dtype | None = None,
        collect_fn: Collect = collect,
    ) -> None:
        """Make an evaluator.

        Args:
            make_env: from prompts to an env with group size 1; its batch size is how many videos
                are made at once.
            prompts: every one of them is evaluated; they need target frames.
            idms: readers by name.
            seed: of the videos.
            num_videos: how many of the first videos the record keeps.
            batch_size: clips decoded and read at once where no env is involved.
            autocast_dtype: precision of the readers; None leaves it to them.
            collect_fn: from (env, policy, initial state) to a rollout [P, G, T].

        Raises:
            ValueError: if there are no readers, or they differ in their slots, or prompts lack
                target frames.
        """
        if len({idm.spec for idm in idms.values()}) != 1:
            raise ValueError("pass at least one reader, and readers of the same game: their slots must be equal")
        if prompts.get(torch.zeros(1, dtype=torch.long)).target_frames is None:
            raise ValueError("evaluation compares with the real continuation: use prompts with target frames")
        self.prompts, self.idms, self.seed = prompts, dict(idms), seed
        self.num_videos, self.batch_size = num_videos, batch_size
        self.autocast_dtype = autocast_dtype
        self._make_env, self._collect_fn = make_env, collect_fn
        self.env = make_env(prompts)

    def evaluate(self, policy: Policy, sibling: int = 0) -> Evaluation:
        """The policy's videos, one per prompt.

        Args:
            policy: a world model as a policy, as it is (temperature and top-p are its own).
            sibling: which of the videos of a prompt; every number has its own noise.
        """
        return self._evaluate_in(self.env, policy, sibling)

    def evaluate_under(self, prompts: PromptSource, policy: Policy) -> Evaluation:
        """Control: generate for other prompts of the same number, score against ours.

        With `ShuffledGameActions(prompts)` the model has to do worse than in `evaluate`, or it
        ignores its actions.
        """
        if prompts.num_prompts != self.prompts.num_prompts:
            raise ValueError(f"{prompts.num_prompts} other prompts for {self.prompts.num_prompts}: pass as many")
        return self._evaluate_in(self._make_env(prompts), policy)

    def ceiling(self) -> Evaluation:
        """The real continuations: what the readers read at best."""
        return self._evaluate(lambda index: real_frames(self.prompts.get(index)), self.batch_size)

    def reconstruction(self, tokenizer: Tokenizer) -> Evaluation:
        """The real continuations through the tokenizer: the best that its codes can show."""

        def reconstruct(index: Tensor) -> Tensor:
            frames = real_frames(self.prompts.get(index)).to(self.env.device)
            return tokenizer.decode(tokenizer.encode(frames))

        return self._evaluate(reconstruct, self.batch_size)

    def copy_last_frame(self) -> Evaluation:
        """Control: the last given frame, repeated. A world model has to beat it."""

        def copy(index: Tensor) -> Tensor:
            prompt = self.prompts.get(index)
            assert prompt.target_frames is not None  # checked by the constructor
            last = prompt.context_frames[:, -1:]  # [n, 1, 3, H, W]
            repeated = last.expand(-1, prompt.target_frames.shape[1], -1, -1, -1)
            return torch.cat([prompt.context_frames, repeated], dim=1)

        return self._evaluate(copy, self.batch_size)

    def _evaluate_in(self, env: VideoGenerationEnv, policy: Policy, sibling: int = 0) -> Evaluation:
        return self._evaluate(generator(env, policy, self._collect_fn, self.seed, sibling), env.batch_size[0])

    @torch.no_grad()
    def _evaluate(self, make_videos: MakeVideos, batch_size: int) -> Evaluation:
        parts = [self._read(make_videos(index), index) for index in self._batches(batch_size)]
        return _join(parts, self.num_videos)

    def _batches(self, batch_size: int) -> Iterator[Tensor]:
        """Prompt indices in order; the last batch may be smaller."""
        yield from torch.arange(self.prompts.num_prompts).split(batch_size)

    def _read(self, frames: Tensor, index: Tensor) -> Evaluation:
        prompt = self.prompts.get(index)
        target = prompt.target_frames
        assert target is not None  # checked by the constructor
        generated = frames[:, -target.shape[1] :].cpu()
        is_kept = index < self.num_videos
        return Evaluation(
            spec=next(iter(self.idms.values())).spec,
            game_action=prompt.game_action,
            inferred_game_action={name: self._infer(idm, frames) for name, idm in self.idms.items()},
            psnr=psnr(*map(as_unit_floats, (generated, target))).mean(-1),
            frames=as_uint8(frames.cpu()[is_kept]),
        )

    def _infer(self, idm: InverseDynamicsModel, frames: Tensor) -> Tensor:
        """One reading per transition (Eq. 3), long [n, F-1, S] on the CPU."""
        with autocast(self.env.device, self.autocast_dtype):
            return idm.infer_game_actions(frames.to(self.env.device), align="transition").cpu()


def _join(parts: list[Evaluation], num_videos: int) -> Evaluation:
    return Evaluation(
        spec=parts[0].spec,
        game_action=torch.cat([part.game_action for part in parts]),
        inferred_game_action={
            name: torch.cat([part.inferred_game_action[name] for part in parts])
            for name in parts[0].inferred_game_action
        },
        psnr=torch.cat([part.psnr for part in parts]),
        frames=torch.cat([part.frames for part in parts])[:num_videos],
    )
