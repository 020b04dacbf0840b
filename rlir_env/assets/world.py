"""A world: the frozen components that an environment is made of, loaded by name.

The judge is not among them. It decides whether training did what it promised (paper, section 5), so it must not be at
hand where a reward is chosen: :func:`load_judge` is a function of its own, for final tables only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from rlir_env.assets.folder import SPLITS, AssetFolder, asset_folder
from rlir_env.assets.models import IDMS, read_idm, read_model, read_tokenizer
from rlir_env.game_actions import ActionWord
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.prompts import ClipPrompts, PromptsBySplit, PromptSource
from rlir_env.tokenizers import Tokenizer


@dataclass(frozen=True)
class World:
    """Everything frozen that training needs.

    Attributes:
        tokenizer: From frames to codes and back.
        coach: The inverse dynamics model that rewards.
        prompts: By split: ``train``, ``dev``, ``test``; decoded when first asked for.
        class_frequency: Share of every class of every slot in recorded play, for the balanced rewards.
        visible_slots: Slots that pictures reveal, as the coach reads them on real clips of dev maps; None means all.
        num_word_ids: Ids of the action words.
    """

    tokenizer: Tokenizer
    coach: InverseDynamicsModel
    prompts: Mapping[str, PromptSource]
    class_frequency: list[list[float]]
    visible_slots: tuple[str, ...] | None = None
    num_word_ids: int = ActionWord.num_ids


def load_world(name: str = "doom", tokenizer: str = "tokenizer") -> World:
    """Load a shipped world, or one from a folder that ``rlir ship into=FOLDER`` has filled.

    Args:
        name: of a folder beside this file, or a path.
        tokenizer: ``"tokenizer"`` for the ids that MineWorld generates, ``"kl_tokenizer"`` for NFD's latents.

    Raises:
        ValueError: if there is no such world or tokenizer, or a file is missing or was changed.
    """
    folder = asset_folder(name)
    coder = read_tokenizer(folder.model_file(tokenizer))
    coach, facts = read_model(folder.model_file("coach"), IDMS)
    visible = folder.manifest.about.get("visible_slots")
    return World(
        tokenizer=coder,
        coach=coach,
        prompts=PromptsBySplit({split: partial(_shipped_prompts, folder, split, coder.frame_size) for split in SPLITS}),
        class_frequency=facts["class_frequency"],
        visible_slots=None if visible is None else tuple(visible),
    )


def _shipped_prompts(folder: AssetFolder, split: str, frame_size: tuple[int, int]) -> ClipPrompts:
    return ClipPrompts.from_folder(folder.prompt_files(split), frame_size)


def load_judge(name: str = "doom") -> InverseDynamicsModel:
    """Load the held-out reader of a world; never for a reward or a choice, only for final figures."""
    return read_idm(asset_folder(name).model_file("judge"))
