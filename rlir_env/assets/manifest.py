"""The manifest of an asset folder: for every file its checksum and how it came to be.

Nobody has to believe a binary file: the making command makes it anew, the checksum says whether it is the one that was
measured, and the model cards are written from the same entries.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

NAME = "manifest.json"


class Manifest:
    """What is known about the files of a folder.

    Attributes:
        folder: of the files.
        about: facts about the whole world, such as ``visible_slots``.
        files: by path below the folder: ``sha256``, ``bytes``, ``making_command``, ``recordings`` (the map set it was
            made from), ``validation`` (figures), ``licence`` and what else was recorded.
    """

    def __init__(self, folder: Path) -> None:
        """Read the manifest of a folder; empty if there is none yet."""
        self.folder = folder
        self.about: dict[str, Any] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self._read()

    def add(self, name: str, **facts: Any) -> None:
        """Enter a file, with its checksum and size as they are now, and store the manifest."""
        path = self.folder / name
        entry = {"sha256": sha256(path), "bytes": path.stat().st_size, **facts}
        with self._newest():
            self.files[name] = entry

    def state(self, **facts: Any) -> None:
        """Enter facts about the whole world, and store the manifest."""
        with self._newest():
            self.about |= facts

    def check(self, name: str) -> None:
        """Compare a file with its entry.

        Raises:
            ValueError: if it has no entry or another content.
        """
        if name not in self.files:
            raise ValueError(f"{self.folder / NAME} has no entry for {name}; enter it with `rlir ship`")
        if sha256(self.folder / name) != self.files[name]["sha256"]:
            raise ValueError(
                f"{self.folder / name} is not the file of the manifest: check it out again, or make it anew with "
                f"`{self.files[name]['making_command']}`"
            )

    def _read(self) -> None:
        path = self.folder / NAME
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            self.about, self.files = content["about"], content["files"]

    @contextmanager
    def _newest(self) -> Iterator[None]:
        """Change what is on disk now: others may have entered files since this was read."""
        name = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        with FileLock(Path(tempfile.gettempdir()) / f"rlir-{name}.lock"):  # not beside the files, which are shipped
            self._read()
            yield
            content = {"about": self.about, "files": dict(sorted(self.files.items()))}
            part = self.folder / f".{NAME}.{os.getpid()}.part"
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.replace(self.folder / NAME)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
