"""Animated images as videos: webp, gif, apng, avif, read by Pillow.

Cost: times come from the headers where the format has them (webp), else from a walk over the
frames. Frames are decoded in order up to the last one wanted: Pillow cannot jump.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .frames import VideoInfo
from .images import opened, to_rgb

__all__ = ["animated_frames", "is_animated", "probe_animated"]

STILL_MS = 100.0
"""How long a frame of no stated duration is shown, in milliseconds, as browsers do."""


def is_animated(path: Path) -> bool:
    """Whether an image has more than one frame.

    Raises:
        MediaError: it cannot be read.
    """
    with opened(path) as image:
        return bool(getattr(image, "is_animated", False))


def probe_animated(path: Path) -> VideoInfo:
    """Return what an animated image holds; a still one is a video of one frame.

    Raises:
        MediaError: it cannot be read.
    """
    with opened(path) as image:
        width, height = image.size
        shown = _webp_durations(path) if image.format == "WEBP" else []
        shown = shown if len(shown) == getattr(image, "n_frames", 1) else list(_durations(image))
    notes = ("a still image: one frame",) if len(shown) == 1 else ()
    if any(value <= 0 for value in shown) and len(shown) > 1:
        notes = (*notes, f"frames of no stated duration: {STILL_MS:g} ms each")
    lengths = np.array([value if value > 0 else STILL_MS for value in shown]) / 1000
    ends = np.cumsum(lengths)
    return VideoInfo(
        duration_s=float(ends[-1]),
        fps=float(len(shown) / ends[-1]),
        frames=len(shown),
        width=width,
        height=height,
        times=np.concatenate([[0.0], ends[:-1]]),
        notes=notes,
    )


def animated_frames(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the frames of these ascending numbers as RGB, transparency over white.

    Raises:
        MediaError: the file is damaged before the last of them.
    """
    with opened(path) as image:
        for number in numbers:
            if number:
                image.seek(number)
            yield to_rgb(image)[0]


def _durations(image: Image.Image) -> Iterator[float]:
    """Yield how long each frame is shown, in milliseconds; 0 where nothing is said."""
    for number in range(getattr(image, "n_frames", 1)):
        if number:
            image.seek(number)
        image.load()  # some formats know a frame's duration only then
        yield float(image.info.get("duration", 0) or 0)


def _webp_durations(path: Path) -> list[float]:
    """Read the durations, in milliseconds, from a webp file's frame headers (RIFF, "ANMF")."""
    data, found, at = path.read_bytes(), [], 12
    while at + 24 <= len(data):
        tag, size = struct.unpack_from("<4sI", data, at)
        if tag == b"ANMF":  # x, y, width, height, duration: 24 bits each
            found.append(float(int.from_bytes(data[at + 20 : at + 23], "little")))
        at += 8 + size + size % 2
    return found
