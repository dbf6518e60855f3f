"""Videos from files: what they hold, and the frames of them that a model looks at.

Animated images are read by Pillow (`animated.py`), everything else by PyAV (`containers.py`),
which is optional until such a video is met. Cost: `probe_video` reads a file once and decodes one
frame; `read_frames` adds the frames chosen, 3 bytes a pixel each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image

from .animated import animated_frames, is_animated, probe_animated
from .containers import container_frames, probe_container
from .frames import VideoInfo, frame_numbers, frame_times
from .images import MediaError

__all__ = [
    "VideoInfo",
    "frame_numbers",
    "frame_times",
    "is_video",
    "iter_frames",
    "media_kind",
    "probe_video",
    "read_frames",
]

STILL = (
    *("bmp", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "pnm", "ppm", "tga", "tif"),
    "tiff",
)
MOVING = ("apng", "avif", "gif", "png", "webp")
"""Suffixes of image formats that may move; an apng always is a video."""
CONTAINERS = (
    *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv"),
    *("ts", "webm", "wmv"),
)


def probe_video(path: Path | str) -> VideoInfo:
    """Return what a video holds: its duration, and when each frame appears.

    Raises:
        MediaError: no video stream, no frames, damaged or truncated; the message names the file
            and says how much is readable.
    """
    path = Path(path)
    return probe_animated(path) if _by_pillow(path) else probe_container(path)


def read_frames(
    path: Path | str, fps: float = 1.0, max_frames: int = 12, info: VideoInfo | None = None
) -> list[Image.Image]:
    """Return the frames that are looked at (`frame_numbers`), as upright RGB.

    Args:
        path: the video.
        fps: frames a second to look at; 0 spreads `max_frames` over the video.
        max_frames: most frames.
        info: what `probe_video` said of the video, to save asking again.

    Raises:
        MediaError: as `probe_video`; or a frame cannot be decoded.
        ValueError: `fps` or `max_frames` is out of range.
    """
    return list(iter_frames(path, fps, max_frames, info))


def iter_frames(
    path: Path | str, fps: float = 1.0, max_frames: int = 12, info: VideoInfo | None = None
) -> Iterator[Image.Image]:
    """Yield what `read_frames` returns, for videos whose frames are large.

    Raises:
        MediaError: as `read_frames`.
        ValueError: as `read_frames`.
    """
    path = Path(path)
    info = info or probe_video(path)
    numbers = frame_numbers(info, fps, max_frames).tolist()
    if _by_pillow(path):
        yield from animated_frames(path, numbers)
    else:
        yield from container_frames(path, info, numbers)


def is_video(path: Path | str) -> bool:
    """Whether a file is a video, as `media_kind` says."""
    return media_kind(path) == "video"


def media_kind(path: Path | str) -> Literal["image", "video"] | None:
    """Return what a file is by its suffix; of formats that may move, by whether this one does.

    A damaged file of such a format counts as an image, whose reader then says what is wrong.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in CONTAINERS or suffix == "apng":
        return "video"
    if suffix in MOVING:
        try:
            return "video" if is_animated(path) else "image"
        except MediaError:
            return "image"
    return "image" if suffix in STILL else None


def _by_pillow(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in (*MOVING, *STILL)
