"""Files that are complete or absent: written aside, made durable, then renamed over the old ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file so that a reader, or the next run after a crash, finds the old or the new one, never a part.

    Yields:
        Where to write. After the block it becomes ``path``, whose folder is made if it is missing; if the block fails,
        ``path`` stays as it was and nothing is left behind.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp(), "figures", "one.txt")
        >>> with replacing(path) as unfinished:
        ...     _ = unfinished.write_text("1")
        >>> path.read_text()
        '1'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")  # two processes may write the same file
    try:
        yield unfinished
        os.chmod(unfinished, 0o666 & ~_UMASK)  # some writers make files that only their owner can read
        sync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, UTF-8, so that it is complete or as it was."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
