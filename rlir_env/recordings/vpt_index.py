"""VPT's index files: where the recordings of a contractor set lie on the web, and which of them are on this disk.

An index is a JSON object of ``basedir``, an address, and ``relpaths``, the recordings below it. Nothing is downloaded
here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from rlir_env.recordings.recording import RecordingError

logger = logging.getLogger(__name__)

_SUFFIXES = (".mp4", ".jsonl")


@dataclass(frozen=True)
class VPTIndex:
    """One index file.

    Attributes:
        base: Address of the folder.
        names: Recordings below it, without suffix.
    """

    base: str
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> VPTIndex:
        """Read an index file; whether its paths end in ``.mp4`` or in nothing makes no difference.

        Raises:
            RecordingError: if the file is missing or not such an index.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            base, paths = content["basedir"].rstrip("/"), content["relpaths"]
            names = tuple(_without_suffix(relpath) for relpath in paths)
        except FileNotFoundError as error:
            raise RecordingError(f"{path}: missing") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordingError(f"{path}: no index of VPT recordings ({error!r})") from error
        return cls(base, names)

    def urls(self) -> list[str]:
        """Addresses of both files of every recording, to be handed to a downloader."""
        return [f"{self.base}/{name}{suffix}" for name in self.names for suffix in _SUFFIXES]

    def local(self, folder: str | Path) -> list[Path]:
        """Videos of the recordings of which both files are in a folder, laid out as on the web, flat, or in folders.

        Raises:
            RecordingError: if there is none.
        """
        found, missing = [], []
        below = {path.stem: path.parent / path.stem for path in sorted(Path(folder).rglob("*.mp4"))}
        for name in self.names:
            flat = Path(folder) / Path(name).name
            for stem in (Path(folder) / name, flat, below.get(flat.name, flat)):
                files = [stem.with_name(stem.name + suffix) for suffix in _SUFFIXES]
                if all(file.is_file() for file in files):
                    found.append(files[0])
                    break
            else:
                missing.append(name)
        found = list(dict.fromkeys(found))  # a flat file may be meant by several names
        if not found:
            raise RecordingError(f"{folder}: none of the {len(self.names)} recordings of the index is here")
        if missing:
            logger.warning("%d recordings of the index are not in %s, such as %s", len(missing), folder, missing[0])
        return found


def _without_suffix(relpath: str) -> str:
    path = relpath.strip("/")
    return next((path.removesuffix(suffix) for suffix in _SUFFIXES if path.endswith(suffix)), path)
