"""VPT's inverse dynamics model (Baker et al. 2022), with which the paper rewards and evaluates.

The same class is the published "4x" model of 482M parameters and the small readers that ship with
this package. VPT reads 20 independent buttons and two camera bins; the paper's Eq. 3 compares slots
(Table 3), so the buttons are projected here to the slots of a
:class:`~rlir_env.game_actions.GameActionSpec`. The network is in ``vpt_network.py``.

Letters: B clips, T = F frames, S slots, C most classes of any slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlir_env.checkpoints import PublishedKind, load_plain_pickle, num_blocks, part_of, read_foreign
from rlir_env.game_actions import MINECRAFT, VPT_BUTTONS, GameActionSpec
from rlir_env.inverse_dynamics.base import GameActionReading, InverseDynamicsModel
from rlir_env.inverse_dynamics.slot_projection import CAMERA_AXES, NUM_CAMERA_BINS, SlotProjection
from rlir_env.inverse_dynamics.vpt_network import VPTNetwork
from rlir_env.resize import resize_like_opencv
from rlir_env.sizes import settle_sizes

_IMPALA_BASE_CHANNELS = (16, 32, 32)
# A fresh model reads "pressed" with probability 0.27. Without this preference "none" and "both"
# would start equally likely, and slots, in which the two are one class, could teach a button its
# own opposite.
_INITIAL_PRESSED_LOGIT = -1.0
FRAMES_PER_STRETCH = 128
"""Of a long video, read at once: VPT's ``timesteps``."""
LEAST_SHARE = 1e-3
"""Share of a class that never occurs in training data, so that its logarithm is finite."""


@dataclass(frozen=True)
class VPTConfig:
    """Sizes of the model; the defaults are the published "4x" model's.

    Attributes:
        input_size: (H, W) that frames are resized to.
        conv3d_channels: Width of the convolution over time.
        impala_channels: Width of each stage of the image encoder; every stage halves the
            resolution.
        impala_blocks: Residual blocks per stage.
        impala_outsize: Features per frame that leave the image encoder.
        hidsize: Width of the transformer.
        num_heads: Its attention heads.
        num_layers: Its blocks.
        pointwise_ratio: Width of its perceptron, in hidsizes.
        batch_norm: Batch norms instead of group norms in the image encoder, an option of VPT's code. Motion is a small
            part of what a frame shows; here every channel is brought to its own scale.
        temperature: By which the logits of the heads are divided.
    """

    input_size: tuple[int, int] = (128, 128)
    conv3d_channels: int = 128
    impala_channels: tuple[int, ...] = (256, 512, 512)
    impala_blocks: int = 2
    impala_outsize: int = 256
    hidsize: int = 4096
    num_heads: int = 32
    num_layers: int = 2
    pointwise_ratio: int = 4
    batch_norm: bool = False
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Accepts lists, as they come from JSON and YAML, and checks the sizes."""
        settle_sizes(self)
        if self.hidsize % self.num_heads:
            raise ValueError(f"hidsize {self.hidsize} must be a multiple of num_heads {self.num_heads}")

    @classmethod
    def from_published(cls, net: Mapping[str, Any], pi_head_opts: Mapping[str, Any]) -> VPTConfig:
        """Translates the keyword arguments stored in a published ``.model`` file.

        Args:
            net: ``["model"]["args"]["net"]["args"]`` of the file.
            pi_head_opts: ``["model"]["args"]["pi_head_opts"]`` of the file.

        Raises:
            ValueError: If the model uses a part of VPT's code that its IDM does not.
        """
        required = {
            "attention_mask_style": "none",
            # Any other memory size would come with a relative attention bias.
            "attention_memory_size": net["timesteps"],
            "use_pointwise_layer": True,
            "pointwise_use_activation": False,
            "recurrence_is_residual": True,
            "recurrence_type": "transformer",
            "use_pre_lstm_ln": False,
            "single_output": True,
            "only_img_input": True,
            # With batch norms VPT's code keeps the group norm behind the pool; `batch_norm` here replaces that one too.
            "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
            "impala_kwargs": {"post_pool_groups": 1},
            "conv3d_params": {"inchan": 3, "kernel_size": (5, 1, 1), "padding": (2, 0, 0)},
        }
        different = _different(net, required)
        if different:
            raise ValueError(f"not the topology of VPT's IDM: {', '.join(different)}")
        return cls(
            input_size=tuple(net["img_shape"][:2]),
            conv3d_channels=net["conv3d_params"]["outchan"],
            impala_channels=tuple(net["impala_width"] * c for c in _IMPALA_BASE_CHANNELS),
            hidsize=net["hidsize"],
            num_heads=net["attention_heads"],
            num_layers=net["n_recurrence_layers"],
            pointwise_ratio=net["pointwise_ratio"],
            temperature=float(pi_head_opts["temperature"]),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> VPTConfig:
        """Reads a published ``.model`` file, a pickle, without running anything in it.

        Raises:
            ValueError: If the file is no such pickle, or of another model.
        """
        content = load_plain_pickle(path)
        try:
            args = content["model"]["args"]
            return cls.from_published(args["net"]["args"], args["pi_head_opts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no settings of VPT's IDM: {error!r}") from error

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], **settings: Any) -> VPTConfig:
        """Sizes of the model whose weights these are, as far as they tell.

        Args:
            weights: Under their own names.
            **settings: Fields that no weight tells: ``num_heads`` and ``temperature``.
        """
        cnn, blocks = "net.img_process.cnn", "net.recurrent_layer.blocks"
        channels = tuple(
            weights[f"{cnn}.stacks.{n}.firstconv.layer.weight"].shape[0]
            for n in range(num_blocks(weights, f"{cnn}.stacks"))
        )
        hidsize = weights["net.final_ln.weight"].shape[0]
        # The dense layer reads all positions of the last stage; frames are square.
        side = math.isqrt(weights[f"{cnn}.dense.norm.weight"].shape[0] // channels[-1]) * 2 ** len(channels)
        sizes = {
            "input_size": (side, side),
            "conv3d_channels": weights["net.conv3d_layer.layer.weight"].shape[0],
            "impala_channels": channels,
            "impala_blocks": num_blocks(weights, f"{cnn}.stacks.0.blocks"),
            "impala_outsize": weights[f"{cnn}.dense.layer.weight"].shape[0],
            "hidsize": hidsize,
            "num_layers": num_blocks(weights, blocks),
            "pointwise_ratio": weights[f"{blocks}.0.mlp0.layer.weight"].shape[0] // hidsize,
        }
        return cls(**{**sizes, **settings})


_IDM_LANDMARK = "net.conv3d_layer.layer.weight"  # by which a file is known to hold one


def idm_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = ()) -> dict[str, Tensor]:
    """The IDM's part of a file, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it.

    Raises:
        ValueError: If there is no such model, or something else beside it.
    """
    return part_of(state_dict, _IDM_LANDMARK, ("net.", "pi_head."), beside)


def _different(found: Mapping[str, Any], required: Mapping[str, Any]) -> list[str]:
    """What is missing or not as required, by name and value; of inner mappings only what they require is looked at."""
    different = []
    for name, value in required.items():
        given = found.get(name)
        if isinstance(value, Mapping) and isinstance(given, Mapping):
            different += [f"{name}.{inner}" for inner in _different(given, value)]
        elif (tuple(given) if isinstance(given, list) else given) != value:
            different.append(f"{name}={given!r} instead of {value!r}")
    return different


class ActionHead(nn.Module):
    """Linear layer to ``num_parts`` independent categoricals."""

    def __init__(self, hidsize: int, num_parts: int, num_classes: int):
        """Builds a head that starts almost uniform, as VPT's."""
        super().__init__()
        self.shape = (num_parts, num_classes)
        self.linear_layer = nn.Linear(hidsize, num_parts * num_classes)
        nn.init.orthogonal_(self.linear_layer.weight, gain=0.01)
        nn.init.zeros_(self.linear_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to float32 ``[B, T, num_parts, num_classes]``."""
        return self.linear_layer(x).float().unflatten(-1, self.shape)


class VPTInverseDynamics(InverseDynamicsModel):
    """VPT's IDM with the key names of the published weights, read in slots.

    ``forward`` and ``log_probs`` return VPT's own outputs; ``slot_log_probs`` and ``infer_game_actions`` (see the base
    class) return slots. A slot of two opposed buttons takes class 1 if only the first is pressed,
    class 2 if only the second is, and class 0 for none or both. Decisions follow VPT: each button
    by itself first, then none-or-both becomes 0. This can differ from the most likely slot class:
    with P(forward) = .6 and P(back) = .45 VPT decides "forward", while none-or-both (.49) is
    likelier than forward alone (.33).
    """

    def __init__(self, config: VPTConfig, spec: GameActionSpec = MINECRAFT):
        """Builds an untrained model.

        Args:
            config: Sizes.
            spec: The slots to read. Ordered slots named pitch and yaw are the camera; a slot of two
                classes is the button of its name, one of three classes the two buttons that its
                classes 1 and 2 name.

        Raises:
            ValueError: If VPT does not read what a slot asks for.
        """
        super().__init__()
        self.config, self.spec, self.input_size = config, spec, config.input_size
        sizes = asdict(config)
        self._temperature = sizes.pop("temperature")
        self.net = VPTNetwork(**sizes)
        buttons = ActionHead(config.hidsize, len(VPT_BUTTONS), 2)
        camera = ActionHead(config.hidsize, len(CAMERA_AXES), NUM_CAMERA_BINS)
        self.pi_head = nn.ModuleDict({"buttons": buttons, "camera": camera})
        buttons.linear_layer.bias.data[1::2] = _INITIAL_PRESSED_LOGIT * config.temperature
        self._slots = SlotProjection(spec)

    @classmethod
    def from_files(cls, model: str | Path, weights: str | Path, spec: GameActionSpec = MINECRAFT) -> VPTInverseDynamics:
        """Builds and fills the published model, in float32.

        Args:
            model: ``4x_idm.model``, a pickle of settings; nothing in it is run.
            weights: ``4x_idm.weights``.
            spec: The slots to read.

        Raises:
            ValueError: If the settings are not those of VPT's IDM, or the weights do not fit them.
        """
        config = VPTConfig.from_file(model)
        return read_foreign(weights, idm_weights, lambda _: cls(config, spec)).eval()

    @torch.no_grad()
    def log_probs(self, frames: Tensor) -> dict[str, Tensor]:
        """VPT's outputs for one video of any length, as its own code gives them.

        Longer videos are read in stretches of 128 frames, the length that VPT was trained on, as its demo does; the
        frames of a stretch see only one another.

        Args:
            frames: uint8 ``[T, H, W, 3]``, RGB.

        Returns:
            ``buttons`` ``[1, T, 20, 2]`` and ``camera`` ``[1, T, 2, 11]``, float32 log-probabilities.

        Raises:
            ValueError: If the frames have another shape or type.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or len(frames) == 0:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [T, H, W, 3] of one video")
        stretches = frames.permute(0, 3, 1, 2)[None].split(FRAMES_PER_STRETCH, dim=1)
        buttons, camera = zip(*(self(stretch) for stretch in stretches), strict=True)
        return {"buttons": torch.cat(buttons, dim=1), "camera": torch.cat(camera, dim=1)}

    @torch.no_grad()
    def start_from_class_shares(self, shares: Sequence[Sequence[float]], power: float = 1.0) -> None:
        """Sets the heads' biases so that an untrained model reads the class shares of recorded play.

        Otherwise the first lesson is how rare each button is. It is learnt through the weights of all
        features at once and drowns what they know of motion, which then comes later.

        Args:
            shares: For every slot the share of each of its classes in the training data.
            power: To which the shares are raised; 0 starts with every class equally likely.

        Raises:
            ValueError: If there is not one share for each class.
        """
        pressed, bins = self._slots.head_shares(shares)
        buttons = torch.stack([1 - pressed, pressed], dim=-1)  # [20, 2]
        for name, share in (("buttons", buttons), ("camera", bins)):
            log_share = power * share.clamp_min(LEAST_SHARE).log() * self._temperature
            head = self.pi_head[name]
            assert isinstance(head, ActionHead)
            head.linear_layer.bias.copy_(log_share.flatten())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """VPT's outputs for clips, differentiable in the parameters.

        Args:
            frames: ``[B, T, 3, H, W]``, uint8, or float in [0, 1] (see :meth:`prepare`).

        Returns:
            Log-probabilities, already divided by the temperature: buttons ``[B, T, 20, 2]`` in the
            order of ``VPT_BUTTONS`` and camera ``[B, T, 2, 11]`` as (pitch, yaw), both float32.
        """
        features = self.net(self.prepare(frames))
        buttons, camera = (self.pi_head[name](features) / self._temperature for name in ("buttons", "camera"))
        return buttons.log_softmax(-1), camera.log_softmax(-1)

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames as the network takes them: float in [0, 1] of ``config.input_size``.

        Frames of another size are resized as OpenCV does with 8-bit images, for which floats are
        rounded to 8 bits first. Floats of the right size pass unchanged, so that gradients could
        flow through them.
        """
        if tuple(frames.shape[-2:]) != self.config.input_size:
            if frames.is_floating_point():
                frames = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
            frames = resize_like_opencv(frames, self.config.input_size)
        return frames if frames.is_floating_point() else frames.float() / 255

    def read_frames(self, frames: Tensor) -> GameActionReading:
        """One reading per frame of ``[B, F, 3, H, W]``; see the base class."""
        buttons, camera = self(frames)
        return GameActionReading(self._slots.log_probs(buttons, camera), self._slots.decide(buttons, camera))

    def slot_nll(self, frames: Tensor, game_action: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the true slots: the objective of pre-training, differentiable.

        Args:
            frames: ``[B, F, 3, H, W]``, uint8 or float in [0, 1].
            game_action: ``[B, F-1, S]`` classes; entry t acts between frames t and t + 1.
            log_prior: ``[S, C]``, what is known of the classes before looking. It explains its part of the labels,
                so that the model does not learn it and reads by what it sees (logit adjustment, Menon et al. 2021).

        Returns:
            ``[B, F-1, S]`` float32, in nats, not yet averaged, so that the caller can weight slots
            and classes.
        """
        log_probs = self._slots.log_probs(*self(frames))[:, :-1]
        if log_prior is not None:
            log_probs = (log_probs + log_prior).log_softmax(-1)
        return -log_probs.gather(-1, game_action.long().unsqueeze(-1)).squeeze(-1)


IDM_KIND: PublishedKind[VPTInverseDynamics] = PublishedKind(
    "VPT's inverse dynamics model",
    _IDM_LANDMARK,
    idm_weights,
    lambda weights, **sizes: VPTInverseDynamics(VPTConfig.from_weights(weights, **sizes)),
    "rlir_env.inverse_dynamics.VPTInverseDynamics.from_files('{stem}.model', '{path}')",
    untold=("num_heads", "temperature"),
)
