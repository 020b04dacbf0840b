"""Frames to a data URI that a browser plays: H.264, or animated WebP where `av` is missing."""

from __future__ import annotations

import base64
import importlib.util
import io

import numpy as np
from PIL import Image

FRAMES_PER_SECOND = 4  # a recording runs at 20 or so; slowed, so that a reader can follow the keys


def encode_mp4(frames: np.ndarray, frames_per_second: int = FRAMES_PER_SECOND) -> bytes:
    """Encode as H.264 in mp4, the one video format that every browser plays.

    Args:
        frames: uint8 [F, H, W, 3]; H and W even.
        frames_per_second: playing speed.

    Raises:
        ImportError: if the extra `video` (PyAV) is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("writing mp4 needs PyAV: pip install 'rlir[video]'") from error
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"  # the only chroma format that all browsers decode
        stream.options = {"crf": "20", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_webp(frames: np.ndarray, frames_per_second: int = FRAMES_PER_SECOND) -> bytes:
    """Encode uint8 [F, H, W, 3] as an animated WebP: larger than mp4, but needs Pillow only."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
        quality=80,
    )
    return buffer.getvalue()


def embed_video(frames: np.ndarray, alt: str, frames_per_second: int = FRAMES_PER_SECOND) -> str:
    """An HTML element that plays the frames in a loop and holds them itself.

    Args:
        frames: uint8 [F, H, W, 3]; H and W even.
        alt: what the video shows, for those who cannot see it; plain text without quotes or angle
            brackets.
        frames_per_second: playing speed.
    """
    if importlib.util.find_spec("av") is None:
        source = _data_uri("image/webp", encode_webp(frames, frames_per_second))
        return f'<img alt="{alt}" src="{source}">'
    source = _data_uri("video/mp4", encode_mp4(frames, frames_per_second))
    attributes = "controls autoplay loop muted playsinline"
    return f'<video {attributes} aria-label="{alt}" src="{source}"></video>'


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"
