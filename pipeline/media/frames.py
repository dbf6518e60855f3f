"""Which frames of a video are looked at: one every so often, then evenly down to a bound.

The choice is made from the frames' times alone, before any is decoded, so that the number of
frames is known early and a frame is never given twice. Cost: a binary search a frame.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["VideoInfo", "frame_numbers", "frame_times"]

TOLERANCE = 1e-6
"""Of a frame's time against a tick, in ticks: containers round times."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What a video holds."""

    duration_s: float
    """From the first frame's appearance to the last one's end, in seconds."""
    fps: float
    """Frames a second, on average."""
    frames: int
    """Frames in the video."""
    width: int
    """Width as shown, after the rotation, in pixels; 0 when only decoding tells."""
    height: int
    """Height as shown, after the rotation, in pixels; 0 when only decoding tells."""
    times: NDArray[np.float64]
    """When each frame appears, ascending from 0, in seconds: [frames]."""
    notes: tuple[str, ...]
    """What is unusual about it: a variable frame rate, several video streams."""
    stamps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """`times` as the container writes them, in its own unit; empty for animated images."""
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """The stamps of frames that decode alone, ascending; empty for animated images."""


def frame_times(info: VideoInfo, fps: float = 1.0, max_frames: int = 12) -> NDArray[np.float64]:
    """Return when the frames that are looked at appear, ascending, in seconds.

    Args:
        info: the video.
        fps: frames a second to look at; 0 spreads `max_frames` over the video.
        max_frames: most frames.

    Raises:
        ValueError: `fps` is negative or not finite, or `max_frames` is below 1.
    """
    return info.times[frame_numbers(info, fps, max_frames)]


def frame_numbers(info: VideoInfo, fps: float = 1.0, max_frames: int = 12) -> NDArray[np.int64]:
    """Return the numbers of the frames that are looked at, ascending, each once.

    The frames shown at 0, 1 / fps, 2 / fps, ... seconds; of more than `max_frames` an even choice
    that has the first and the last (CLIP4Clip, section 4.2: 1 fps, 12 frames). With `fps` 0, the
    frames shown in the middle of `max_frames` equal parts of the video; or all, if there are no
    more.

    Args:
        info: the video.
        fps: frames a second to look at; 0 spreads `max_frames` over the video.
        max_frames: most frames.

    Raises:
        ValueError: `fps` is negative or not finite, or `max_frames` is below 1.
    """
    if not (0 <= fps < np.inf) or max_frames < 1:
        raise ValueError(
            f"fps={fps}, max_frames={max_frames}: give fps of at least 0 (0: evenly over the "
            "video) and at least 1 frame"
        )
    if fps == 0:
        if info.frames <= max_frames:
            return np.arange(info.frames, dtype=np.int64)
        middles = (np.arange(max_frames) + 0.5) * (info.duration_s / max_frames)
        return np.unique(np.searchsorted(info.times, middles, side="right") - 1)
    # a frame is shown at the tick k / fps if one falls between its appearance and the next one's
    ends = np.append(info.times[1:], info.duration_s)
    first_tick = np.ceil(info.times * fps - TOLERANCE)
    chosen = np.flatnonzero(first_tick < ends * fps - TOLERANCE)
    if not len(chosen):
        chosen = np.zeros(1, dtype=np.int64)
    if len(chosen) <= max_frames:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, num=max_frames, dtype=np.int64)]
