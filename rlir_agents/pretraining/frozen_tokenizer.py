"""Which tokenizer a world model is pre-trained on; it is bound to it for good."""

from __future__ import annotations

from pathlib import Path

from rlir_env.assets import asset_folder, read_tokenizer
from rlir_env.tokenizers import Tokenizer


def newest_tokenizer(run_dir: str | Path, world: str = "doom", name: str = "tokenizer") -> Tokenizer:
    """The tokenizer of a finished pre-training if there is one, else the shipped one.

    Args:
        run_dir: where ``rlir pretrain model=<name>`` leaves ``model.safetensors``.
        world: name of the asset set.
        name: ``"tokenizer"``, which makes ids, or ``"kl_tokenizer"``, which makes latents.

    Raises:
        ValueError: if there is neither; it names the command.
    """
    path = Path(run_dir) / "model.safetensors"
    return read_tokenizer(path if path.is_file() else asset_folder(world).model_file(name))
