"""A world from files of others: a checkpoint with its tokenizer, VPT's IDM, and recordings in VPT's format.

The paper rewards and evaluates with one IDM, and no second one is published; so there is no judge, and a gain by the
coach's own verdict cannot tell obeying from pleasing it. The shipped world has both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlir_env.assets.folder import SPLITS
from rlir_env.assets.world import World
from rlir_env.game_actions import MINECRAFT, ActionWord
from rlir_env.inverse_dynamics import VPTConfig, VPTInverseDynamics
from rlir_env.prompts import ClipPrompts, PromptsBySplit
from rlir_env.recordings import (
    ClipFilter,
    ClipSource,
    Recording,
    RecordingError,
    VPTHygiene,
    VPTIndex,
    list_recordings,
    split_recordings,
)
from rlir_env.recordings.clips import OnError
from rlir_env.recordings.recording import Resampling
from rlir_env.recordings.vpt_hygiene import NO_HYGIENE
from rlir_env.tokenizers import (
    KLConfig,
    KLTokenizer,
    LatentTokenizer,
    Tokenizer,
    ViTConfig,
    ViTTokenizer,
    VQConfig,
    VQTokenizer,
    load_tokenizer,
)

logger = logging.getLogger(__name__)

_SHARES = {"train": 0.9, "dev": 0.05, "test": 0.05}
_MODEL, _WEIGHTS = ".model", ".weights"

_SHAPES: dict[str, Callable[[tuple[int, int]], Tokenizer]] = {
    "tokenizer": lambda frame_size: VQTokenizer(VQConfig(frame_size)),
    "kl_tokenizer": lambda frame_size: KLTokenizer(KLConfig(frame_size)),
    "vit_tokenizer": lambda frame_size: ViTTokenizer(ViTConfig(frame_size)),
}


def load_published_world(
    weights: str | Path,
    idm: str | Path,
    data: str | Path,
    tokenizer: str = "tokenizer",
    *,
    tokenizer_weights: str | Path | None = None,
    frame_size: tuple[int, int] = (224, 384),
    num_frames: int = 16,
    num_prompts: Mapping[str, int] | None = None,
    index: str | Path | None = None,
    on_error: OnError = "skip",
    clip_filter: ClipFilter | None = None,
    action_offset: int = 0,
    clips_per_recording: int = 16,
    resampling: Resampling = "bilinear",
    hygiene: VPTHygiene = NO_HYGIENE,
) -> World:
    """The frozen components of the paper's experiment.

    Args:
        weights: A checkpoint that holds its tokenizer, as MineWorld's do and NFD's family's.
        idm: Folder of ``4x_idm.model`` and ``4x_idm.weights``, or one of the two files.
        data: Folder of recordings in VPT's format, or of folders of them; with ``train``, ``dev`` and ``test`` below
            it, or split by a hash of names.
        tokenizer: ``"tokenizer"`` for MineWorld's ids, anything else for latents.
        tokenizer_weights: A file of its own for the tokenizer, as Oasis' is; None looks for it in the checkpoint.
        frame_size: (H, W).
        num_frames: F.
        num_prompts: At most so many clips by split; by default 2,048 to train on, 256 of the others.
        index: One of VPT's index files, of which ``data`` holds recordings; None takes every recording of the folder.
        on_error: ``"skip"`` leaves broken recordings out, with a warning; ``"raise"`` stops at the first.
        clip_filter: Which windows are dropped; None for the paper's. ``ClipFilter.keep_all()`` for a validation set.
        action_offset: As in `ClipSource`.
        clips_per_recording: Of a recording at most so many, or as many as it takes for ``num_prompts``.
        resampling: How frames are resized; OpenCV's bilinear is how MineWorld's own demo does it.
        hygiene: What is mended while reading; for VPT's own recordings.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not what it should be.
    """
    for key, path in {"world": weights, "tokenizer": tokenizer_weights, "idm": idm, "data": data}.items():
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{key}={path}: there is no such file or folder")
    height, width = frame_size  # a list, where it comes from YAML
    coder = _tokenizer_of(weights, tokenizer_weights, (height, width))
    if isinstance(coder, LatentTokenizer) != (tokenizer != "tokenizer"):
        wanted = "ids (paradigm=autoregressive)" if tokenizer == "tokenizer" else "latents (paradigm=diffusion)"
        file = f"world={weights}" if tokenizer_weights is None else f"tokenizer={tokenizer_weights}"
        raise ValueError(f"{file} holds a {type(coder).__name__}, but the experiment is for {wanted}")
    videos = _recordings_by_split(data, index)
    counts = dict.fromkeys(SPLITS, 256) | {"train": 2048} | dict(num_prompts or {})
    settings: dict[str, Any] = {"clip_filter": clip_filter, "on_error": on_error, "hygiene": hygiene}
    settings |= {"resampling": resampling}
    makers = {}
    for split, paths in videos.items():
        most = max(clips_per_recording, math.ceil(counts[split] / max(1, len(paths))))
        source = ClipSource(
            paths, (height, width), num_frames, action_offset=action_offset, clips_per_recording=most, **settings
        )
        makers[split] = partial(_cut, source, counts[split], f"{data}: no {split}")
    played = _played(videos["train"], on_error, hygiene)
    return World(
        tokenizer=coder.eval().requires_grad_(False),
        coach=published_idm(idm),
        prompts=PromptsBySplit(makers),
        class_frequency=[shares.tolist() for shares in MINECRAFT.class_shares(played)],
    )


def _tokenizer_of(weights: str | Path, tokenizer_weights: str | Path | None, frame_size: tuple[int, int]) -> Tokenizer:
    if tokenizer_weights is not None:
        return load_tokenizer(tokenizer_weights, frame_size)
    try:
        return load_tokenizer(weights, frame_size)
    except ValueError as error:
        raise ValueError(f"{error}. Where it is a file of its own, as Oasis', give tokenizer=PATH") from error


def published_shapes(
    tokenizer: str = "tokenizer", *, frame_size: tuple[int, int] = (224, 384), num_frames: int = 16
) -> World:
    """The world of the paper's experiments without its files, to count what they would cost.

    Args:
        tokenizer: ``"tokenizer"`` for MineWorld's ids, ``"kl_tokenizer"`` for NFD's latents, ``"vit_tokenizer"`` for
            Oasis'.
        frame_size: (H, W).
        num_frames: F.

    Returns:
        Networks of the published shapes on the meta device, and one black clip in each split.
    """
    height, width = frame_size
    with torch.device("meta"):
        coder = _SHAPES[tokenizer]((height, width))
        coach = VPTInverseDynamics(VPTConfig())
    return World(
        tokenizer=coder.eval().requires_grad_(False),
        coach=coach.eval().requires_grad_(False),
        prompts=PromptsBySplit(dict.fromkeys(SPLITS, partial(_black_clip, (height, width), num_frames))),
        class_frequency=[[1 / num_classes] * num_classes for num_classes in MINECRAFT.num_classes],
    )


def _black_clip(frame_size: tuple[int, int], num_frames: int) -> ClipPrompts:
    slots = torch.tensor(MINECRAFT.none_classes).expand(1, num_frames - 1, -1)
    words = torch.zeros(1, num_frames - 1, ActionWord.word_length, dtype=torch.long)
    return ClipPrompts(torch.zeros(1, num_frames, 3, *frame_size, dtype=torch.uint8), slots, words)


def _played(videos: Sequence[Path], on_error: OnError, hygiene: VPTHygiene) -> np.ndarray:
    """Slots of every line of recordings, long ``[N, S]``."""
    tracks = [np.zeros((0, MINECRAFT.num_slots), int)]
    for video in videos:
        try:
            tracks.append(Recording(video, hygiene).actions().slots)
        except RecordingError as error:
            if on_error == "raise":
                raise
            logger.warning("left out: %s", error)
    return np.concatenate(tracks)


def _recordings_by_split(folder: str | Path, index: str | Path | None) -> dict[str, list[Path]]:
    """The subfolders ``train``, ``dev`` and ``test``, or else parts of the recordings by a hash of their names."""
    if index is not None:
        return split_recordings(VPTIndex.read(index).local(folder), _SHARES)
    parts = {split: Path(folder) / split for split in SPLITS}
    missing = [split for split, part in parts.items() if not part.is_dir()]
    if not missing:
        return {split: list_recordings(part) for split, part in parts.items()}
    if len(missing) < len(parts):  # what is set aside for a test must not be trained on
        raise ValueError(f"data={folder} has some of {', '.join(SPLITS)}, but no {' and no '.join(missing)}: give all")
    return split_recordings(list_recordings(folder), _SHARES)


def _cut(source: ClipSource, num_prompts: int, nothing: str) -> ClipPrompts:
    if not source.paths:
        raise ValueError(f"{nothing} recording: by a hash of their names none falls to it; give more, or three folders")
    clips = list(islice(source.iterate(shuffle_seed=0), num_prompts))
    if not clips:
        found = f"{len(source.paths)} recordings: {source.report.to_text()}"
        raise ValueError(f"{nothing} clip of {source.num_frames} frames in {found}")
    return ClipPrompts.from_clips(clips)


def published_idm(idm: str | Path) -> VPTInverseDynamics:
    """VPT's IDM from its two files, frozen.

    Args:
        idm: Folder of the two, or one of them.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if they are not what they should be.
    """
    path = Path(idm)
    if path.is_dir():
        stems = sorted(file for file in path.glob(f"*{_WEIGHTS}"))
        if len(stems) != 1:
            raise ValueError(f"{path} holds {len(stems)} files *{_WEIGHTS}: name the one that is meant")
        path = stems[0]
    stem = str(path).removesuffix(_MODEL).removesuffix(_WEIGHTS)
    model, weights = Path(stem + _MODEL), Path(stem + _WEIGHTS)
    for file in (model, weights):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; VPT publishes a {_MODEL} and a {_WEIGHTS} file")
    return VPTInverseDynamics.from_files(model, weights).requires_grad_(False)
