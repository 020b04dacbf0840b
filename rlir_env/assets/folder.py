"""Where a world's files lie, and what to do when one is missing."""

from __future__ import annotations

from pathlib import Path

from rlir_env.assets.manifest import Manifest

MODELS = ("tokenizer", "kl_tokenizer", "coach", "judge", "mineworld", "nfd")
TOKENIZER_OF = {"mineworld": "tokenizer", "nfd": "kl_tokenizer"}
"""Of each world model the tokenizer that it was trained on, and without which it is of no use."""
SPLITS = ("train", "dev", "test")
RECORDINGS_OF_SPLIT = {"train": "world_model", "dev": "dev", "test": "test"}
"""The map set that each split of prompts is cut from; prompts to train on come from the world model's own maps."""


class AssetFolder:
    """The files of one world.

    Attributes:
        path: the folder.
        manifest: what is known about them.
    """

    def __init__(self, path: str | Path) -> None:
        """Name the folder, which need not exist yet."""
        self.path = Path(path)
        self.manifest = Manifest(self.path)

    def model_file(self, name: str) -> Path:
        """The checked weights of one of the :data:`MODELS`.

        Raises:
            ValueError: naming the making command if the file is missing; if it is not the manifest's; or if there is no
                model of this name.
        """
        if name not in MODELS:
            raise ValueError(f"no model {name!r}: use one of {', '.join(MODELS)}")
        return self._checked(f"{name}.safetensors", making_commands(name))

    def prompt_files(self, split: str) -> Path:
        """The folder of one split of prompts, its files checked: the recording, and what else the manifest lists.

        Raises:
            ValueError: as :meth:`model_file`.
        """
        folder = f"prompts/{split}"
        recording = {f"{folder}/{split}{suffix}" for suffix in (".mp4", ".jsonl")}
        for name in sorted(recording.union(n for n in self.manifest.files if n.startswith(f"{folder}/"))):
            self._checked(name, making_commands(split))
        return self.path / folder

    def _checked(self, name: str, making_command: str) -> Path:
        if not (self.path / name).is_file():
            raise ValueError(f"{self.path / name} is missing; make it with `{making_command}`")
        self.manifest.check(name)
        return self.path / name


def asset_folder(world: str = "doom") -> AssetFolder:
    """The files of a shipped world, or of any folder given by its path.

    Raises:
        ValueError: if there is no such world.
    """
    shipped = Path(__file__).parent
    path = shipped / world if "/" not in world else Path(world)
    if not path.is_dir():
        known = sorted(folder.name for folder in shipped.iterdir() if (folder / "manifest.json").is_file())
        raise ValueError(f"no world {world!r}: use {', '.join(known) or 'a folder'}, or the path of a folder of assets")
    return AssetFolder(path)


def making_commands(name: str) -> str:
    """The commands that make an asset from nothing."""
    if name in SPLITS:
        recordings = RECORDINGS_OF_SPLIT[name]
        return f"rlir record doom only=[{recordings}] && rlir ship runs/recordings/{recordings} as={name}"
    model = f"idm idm={name}" if name in ("coach", "judge") else name
    return f"rlir pretrain model={model} && rlir ship runs/pretraining/{name} as={name}"
