"""A diffusion world model that makes a whole frame in one env step, by a solver of the ODE: how evaluation generates.

The paper evaluates with 18 steps of DPM-Solver++ (section 5). Nothing is sampled on the way, so there is nothing to
learn from; the policy that learns is `DenoisingPolicy`.

Letters: B rows, T env steps, F frames; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from rlir_agents.hardware import autocast
from rlir_agents.policies.latent_sequence import check_fit, common_place
from rlir_agents.world_models import ActionEncoder, FrameReader, LatentSampler, LatentWorldModel, NFDGroups
from rlir_env.layout import LatentLayout


class SolverPolicy(TensorDictModuleBase):
    """The world model is the agent, and its action a finished frame; the solver's own steps are no env steps.

    Made for an env whose frames take one step from noise to data: ``timesteps=(1.0, 0.0)``.

    Attributes:
        world_model: Holds all parameters.
        layout: Of the videos.
        sampler: The solver.
        action_encoder: From game actions to vectors.
    """

    def __init__(
        self,
        world_model: LatentWorldModel,
        layout: LatentLayout,
        sampler: LatentSampler,
        *,
        action_encoder: ActionEncoder | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a world model.

        Args:
            world_model: Of the layout's latents, for at least its frames.
            layout: That of the env, of one denoising step a frame.
            sampler: The solver, with a grid of its own, and the context noise that the model was trained with.
            action_encoder: As in `DenoisingPolicy`.
            autocast_dtype: Precision of the network; None leaves it to the weights and to the caller.

        Raises:
            ValueError: if layout, model and encoder do not fit.
        """
        super().__init__()
        action_encoder = NFDGroups() if action_encoder is None else action_encoder
        check_fit(world_model, layout, action_encoder)
        if layout.num_denoising_steps != 1:
            raise ValueError(
                f"the env takes {layout.num_denoising_steps} denoising steps a frame, a solver takes its own: make the "
                "env with timesteps=(1.0, 0.0)"
            )
        self.in_keys = ["latent", "frame_index", "denoising_step", "game_action", "prompt_seed"]
        self.out_keys = ["action"]
        self.world_model, self.layout, self.sampler = world_model, layout, sampler
        self.action_encoder = action_encoder
        self.autocast_dtype = autocast_dtype
        self._reader = FrameReader(sampler.context_timestep, autocast_dtype)

    @property
    def num_steps(self) -> int:
        """T, env steps of a whole video: one a frame."""
        return self.layout.num_steps(1)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Make the next frame: write ``action`` float32 ``[B, 1, c, h, w]``.

        Raises:
            ValueError: if the tensordict is not a flat batch, or its rows stand at different frames.
        """
        frame, _ = common_place(tensordict)
        latent = tensordict["latent"]
        vector = self.action_encoder.of_frames(tensordict["game_action"])
        with autocast(latent.device, self.autocast_dtype):
            seed = tensordict["prompt_seed"].squeeze(-1)
            cache = self._reader.read(self.world_model, latent[:, :frame], vector, seed)
            action = self.sampler.sample_frame(self.world_model, vector[:, frame], latent[:, frame], cache)
        return tensordict.set("action", action[:, None])

    @torch.no_grad()
    def generate(self, tensordict: TensorDictBase) -> TensorDict:
        """Make whole videos, those that ``forward`` would make frame by frame.

        Args:
            tensordict: A freshly reset state ``[B]``.

        Returns:
            ``action`` ``[B, T, 1, c, h, w]``.

        Raises:
            ValueError: if a video has begun already.
        """
        if common_place(tensordict) != (1, 0):
            raise ValueError("generate makes whole videos: pass a state that the env has just reset")
        frames, seed = tensordict["latent"][:, :1], tensordict["prompt_seed"].squeeze(-1)
        vector = self.action_encoder.of_frames(tensordict["game_action"])
        with autocast(frames.device, self.autocast_dtype):
            frames = self.sampler.sample(self.world_model, frames, vector, seed, self.autocast_dtype)
        return TensorDict({"action": frames[:, 1:, None]}, batch_size=[len(frames), self.num_steps])
