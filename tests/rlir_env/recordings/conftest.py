"""Tiny recordings, written by the writer itself."""

import numpy as np
import pytest

from rlir_env.game_actions import env_action_to_event
from rlir_env.recordings import write_recording


def _gray(level):
    return np.full((48, 64, 3), level, np.uint8)


def _event(is_gui=False, camera=(0, 0), **buttons):
    return {**env_action_to_event({"camera": camera, **buttons}), "isGuiOpen": is_gui}


@pytest.fixture(scope="session")
def gray():
    """Makes a 48x64 frame of one gray, which H.264 stores within a level or two."""
    return _gray


@pytest.fixture(scope="session")
def event():
    """Makes a line as the recorder writes it."""
    return _event


def _damage(video):
    data = bytearray(video.read_bytes())
    media = data.index(b"mdat") + 4
    size = int.from_bytes(data[media - 8 : media - 4], "big") - 8
    data[media + size // 2 : media + size] = bytes(size - size // 2)
    video.write_bytes(data)


@pytest.fixture(scope="session")
def damage():
    """Zeroes a video from the middle of the pictures on; the index at its end stays whole, so it decodes half-way."""
    return _damage


@pytest.fixture
def record(tmp_path):
    """Writes a recording of gray frames (20 of them, 10 levels apart) and returns its path."""

    def write(name="a", levels=range(0, 200, 10), events=None, fps=20):
        levels = list(levels)
        path = tmp_path / f"{name}.mp4"
        events = events or [_event(forward=1)] * len(levels)
        write_recording(path, [_gray(level) for level in levels], events, fps)
        return path

    return write
