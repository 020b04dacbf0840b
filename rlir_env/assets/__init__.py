"""The small trained components that make everything run at once, and the prompts to run it on.

Each world has a folder here: weights, prompts, a manifest that says how every file was made and checks it, and a model
card for each. ``rlir pretrain`` makes the models anew and ``rlir ship`` puts them here. What learns is not loaded here:
the world's base model is a file, see ``rlir_agents.policy_from_assets``.
"""

from rlir_env.assets.folder import AssetFolder, asset_folder
from rlir_env.assets.manifest import Manifest
from rlir_env.assets.models import read_idm, read_tokenizer, write_model
from rlir_env.assets.prompt_files import write_prompts
from rlir_env.assets.published_world import load_published_world, published_idm, published_shapes
from rlir_env.assets.world import World, load_judge, load_world

__all__ = [
    "AssetFolder",
    "Manifest",
    "World",
    "asset_folder",
    "load_judge",
    "load_published_world",
    "load_world",
    "published_idm",
    "published_shapes",
    "read_idm",
    "read_tokenizer",
    "write_model",
    "write_prompts",
]
