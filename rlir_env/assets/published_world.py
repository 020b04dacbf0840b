"""A world from files of others: a checkpoint with its tokenizer, VPT's IDM, and recordings in VPT's format.

The paper rewards and evaluates with one IDM, and no second one is published; so :func:`published_judge` is the coach
again, and a gain by its verdict cannot tell obeying from pleasing it. The shipped world has two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rlir_env.assets.folder import SPLITS
from rlir_env.assets.world import World
from rlir_env.checkpoints import load_foreign, load_strict
from rlir_env.game_actions import MINECRAFT
from rlir_env.inverse_dynamics import VPTInverseDynamics
from rlir_env.prompts import ClipPrompts, PromptSource
from rlir_env.recordings import ClipFilter, ClipSource, Recording, VPTHygiene, list_recordings, split_recordings
from rlir_env.tokenizers import KLTokenizer, Tokenizer, VQConfig, VQTokenizer
from rlir_env.tokenizers.vq import vq_weights

_SHARES = {"train": 0.9, "dev": 0.05, "test": 0.05}
_MODEL, _WEIGHTS = ".model", ".weights"


class RecordedPrompts(Mapping[str, PromptSource]):
    """Prompts cut from recordings, by split, each when it is first asked for.

    Splits are the subfolders ``train``, ``dev`` and ``test``, or else parts of the recordings by a hash of their names.
    """

    def __init__(
        self,
        folder: str | Path,
        frame_size: tuple[int, int],
        num_frames: int,
        num_prompts: Mapping[str, int],
        hygiene: VPTHygiene,
    ) -> None:
        """Find the recordings.

        Args:
            folder: Of recordings.
            frame_size: (H, W) of the tokenizer.
            num_frames: F.
            num_prompts: At most so many of each split; they are held in memory.
            hygiene: What is mended while reading.

        Raises:
            RecordingError: if there are none.
        """
        parts = {split: Path(folder) / split for split in SPLITS}
        if all(part.is_dir() for part in parts.values()):
            self.videos = {split: list_recordings(part) for split, part in parts.items()}
        else:
            self.videos = split_recordings(list_recordings(folder), _SHARES)
        self._folder, self._frame_size, self._num_frames = folder, frame_size, num_frames
        self._num_prompts, self._hygiene = num_prompts, hygiene
        self._cut: dict[str, ClipPrompts] = {}

    def __getitem__(self, split: str) -> PromptSource:
        """The prompts of a split.

        Raises:
            ValueError: if no clip of its recordings passes the filter.
        """
        videos = self.videos[split]
        if split not in self._cut:
            source = ClipSource(
                videos, self._frame_size, self._num_frames, clip_filter=ClipFilter(), hygiene=self._hygiene
            )
            clips = list(islice(source.iterate(shuffle_seed=0), self._num_prompts[split]))
            if not clips:
                found = f"{len(videos)} recordings: {source.report.to_text()}"
                raise ValueError(f"{self._folder}: no {split} clip of {self._num_frames} frames in {found}")
            self._cut[split] = ClipPrompts(
                torch.stack([clip.frames for clip in clips]),
                torch.stack([clip.game_action for clip in clips]),
                torch.stack([clip.game_action_word for clip in clips]),
            )
        return self._cut[split]

    def __iter__(self) -> Iterator[str]:
        """Names of the splits."""
        return iter(SPLITS)

    def __len__(self) -> int:
        """How many splits there are."""
        return len(SPLITS)

    def class_frequency(self) -> list[list[float]]:
        """Share of every class of every slot in the recordings to train on."""
        tracks = [Recording(video, self._hygiene).actions().slots for video in self.videos["train"]]
        slots = np.concatenate(tracks) if tracks else np.zeros((0, MINECRAFT.num_slots), int)
        counts = (np.bincount(slots[:, i], minlength=n) for i, n in enumerate(MINECRAFT.num_classes))
        return [(count / max(1, len(slots))).tolist() for count in counts]


def load_published_world(
    weights: str | Path,
    idm: str | Path,
    data: str | Path,
    tokenizer: str = "tokenizer",
    *,
    frame_size: tuple[int, int] = (224, 384),
    num_frames: int = 16,
    num_prompts: Mapping[str, int] | None = None,
    hygiene: VPTHygiene | None = None,
) -> World:
    """The frozen components of the paper's experiment.

    Args:
        weights: A checkpoint that holds its tokenizer, as MineWorld's do and NFD's family's.
        idm: Folder of ``4x_idm.model`` and ``4x_idm.weights``, or one of the two files.
        data: Folder of recordings in VPT's format.
        tokenizer: ``"tokenizer"`` for MineWorld's ids, ``"kl_tokenizer"`` for latents.
        frame_size: (H, W).
        num_frames: F.
        num_prompts: At most so many clips by split; by default 2,048 to train on, 256 of the others.
        hygiene: What is mended while reading VPT's recordings; None mends nothing.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not what it should be.
    """
    coder: Tokenizer
    height, width = frame_size  # a list, where it comes from YAML
    if tokenizer == "kl_tokenizer":
        coder = KLTokenizer.from_pretrained(weights, (height, width))
    else:
        found = vq_weights(load_foreign(weights))
        with torch.device("meta"):
            coder = VQTokenizer(VQConfig.from_weights(found, frame_size=(height, width)))
        load_strict(coder, found)
    counts = dict.fromkeys(SPLITS, 256) | {"train": 2048} | dict(num_prompts or {})
    prompts = RecordedPrompts(data, (height, width), num_frames, counts, hygiene or VPTHygiene())
    return World(
        tokenizer=coder.eval().requires_grad_(False),
        coach=published_judge(idm),
        prompts=prompts,
        class_frequency=prompts.class_frequency(),
    )


def published_judge(idm: str | Path) -> VPTInverseDynamics:
    """VPT's IDM from its two files, frozen.

    Args:
        idm: Folder of the two, or one of them.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if they are not what they should be.
    """
    path = Path(idm)
    if path.is_dir():
        stems = sorted(file.with_suffix("") for file in path.glob(f"*{_WEIGHTS}"))
        if len(stems) != 1:
            raise ValueError(f"{path} holds {len(stems)} files *{_WEIGHTS}: name the one that is meant")
        path = stems[0]
    model, weights = path.with_suffix(_MODEL), path.with_suffix(_WEIGHTS)
    for file in (model, weights):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; VPT publishes a {_MODEL} and a {_WEIGHTS} file")
    return VPTInverseDynamics.from_files(model, weights).requires_grad_(False)
