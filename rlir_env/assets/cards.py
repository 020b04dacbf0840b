"""Model cards: what a shipped file is, how it was made and what it is good for, written from the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlir_env.assets.folder import MODELS, AssetFolder
from rlir_env.checkpoints import load_safetensors

_PURPOSES = {
    "tokenizer": "Turns frames into codes and back (MineWorld's VQ-VAE at preset size). Frozen in post-training.",
    "kl_tokenizer": "Turns frames into continuous latents and back (NFD's KL autoencoder at preset size). Frozen in "
    "post-training.",
    "coach": "Reads game actions from video (VPT's inverse dynamics model at preset size). It rewards; what it does "
    "not see cannot be learnt, and what it misreads can be exploited.",
    "judge": "Reads game actions from video, of the coach's architecture, trained on other maps from another seed. For "
    "final figures only: a judge that has been optimised against is no judge.",
    "mineworld": "Continues gameplay token by token under game actions (MineWorld's architecture at preset size). The "
    "base model of post-training: it has seen no reward.",
    "nfd": "Continues gameplay by denoising latents frame by frame under game actions (NFD's architecture at preset "
    "size). The base model of post-training with diffusion: it has seen no reward.",
}
_LIMITS = (
    "Trained on gameplay of one engine without monsters, at a low resolution, by an explorer rather than by people: "
    "made for studying post-training, not for use on other video."
)


def write_cards(folder: AssetFolder) -> None:
    """Write ``<name>.md`` beside every model that the manifest lists."""
    for name in MODELS:
        entry = folder.manifest.files.get(f"{name}.safetensors")
        if entry is not None:
            dtypes = _stored_dtypes(folder.path / f"{name}.safetensors")
            (folder.path / f"{name}.md").write_text(card(name, entry, dtypes), encoding="utf-8")


def card(name: str, entry: dict[str, Any], dtypes: str) -> str:
    """The card of one model, Markdown.

    Args:
        name: one of the models of a world.
        entry: of the manifest.
        dtypes: in which the weights are stored, for instance ``float16``.
    """
    figures = "".join(f"| {key} | {value:g} |\n" for key, value in entry.get("validation", {}).items())
    return f"""# {name}.safetensors

{_PURPOSES[name]}

| | |
|---|---|
| parameters | {entry["num_parameters"]:,} |
| stored | {dtypes}, {entry["bytes"] / 1e6:.2f} MB |
| trained on | map set `{entry["recordings"]}`, {entry["num_frames"]:,} frames, {entry["num_steps"]:,} steps |
| made by | `{entry["making_command"]}` |
| sha256 | `{entry["sha256"]}` |
| licence | weights {entry["licence"]["weights"]}; game data {entry["licence"]["game_data"]} |

Figures on map set `{entry["validation_recordings"]}`, which training has not seen:

| figure | value |
|---|---|
{figures}
{_LIMITS}
"""


def _stored_dtypes(path: Path) -> str:
    """Floating-point types of the weights of a file."""
    weights, _ = load_safetensors(path)
    dtypes = {str(tensor.dtype) for tensor in weights.values() if tensor.is_floating_point()}
    return ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes))
