"""Clips in containers of FFmpeg (mp4, mov, webm, mkv, avi, ...), through PyAV.

A file's packets tell every frame's time without decoding. Reading then jumps to the last key frame
before each wanted frame and decodes from there, so 12 frames of an hour cost 12 stretches between
key frames. Cost: one pass over the file (a disk's speed), and those stretches, twice the decoding
only where a jump lands too late.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .frames import VideoInfo
from .images import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["container_frames", "probe_container"]

SLACK = 0.05
"""Part of the stated duration that may be missing where a container does not count its frames."""
TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(eq=False)
class Scan:
    """The frames of a video stream as its packets tell them, in units of the time base."""

    stamps: list[int] = field(default_factory=list)
    """When each shown frame appears, ascending."""
    keys: list[int] = field(default_factory=list)
    """Those of them that decode alone, ascending."""
    hidden: int = 0
    """Packets that an edit list cuts away, or that are empty."""
    unstamped: int = 0
    """Packets that state no time."""
    last: int = 0
    """How long the last frame is shown; 0 where nothing is said."""
    problem: str = ""
    """Why reading stopped early, if it did."""


def probe_container(path: Path) -> VideoInfo:
    """Return what the first true video stream of a file holds.

    Raises:
        MediaError: no video, no frames, no times, damaged or truncated; says how much is readable.
    """
    with _opened(path) as (container, stream):
        return _describe(path, container, stream, _scan(container, stream))


def container_frames(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the frames of these ascending numbers as upright RGB.

    Raises:
        MediaError: as `probe_container`; or a frame cannot be decoded.
    """
    with _opened(path) as (container, stream):
        scan = _scan(container, stream)
    wanted = [scan.stamps[number] for number in numbers]
    before = np.searchsorted(scan.keys, wanted, side="right") - 1
    for key, group in itertools.groupby(zip(before, wanted, strict=True), lambda pair: pair[0]):
        stamps = [stamp for _, stamp in group]
        jump = scan.keys[key] if key > 0 else None
        found = list(_decode(path, stamps, jump))
        if len(found) < len(stamps) and jump is not None:  # the jump landed too late
            found = list(_decode(path, stamps, None))
        if len(found) < len(stamps):
            missing = scan.stamps.index(stamps[len(found)])
            raise MediaError(
                f"{path}: frame {missing} of {len(scan.stamps)} cannot be decoded; restore the "
                "file or leave its row out"
            )
        yield from found


def _decode(path: Path, wanted: Sequence[int], jump: int | None) -> Iterator[Image.Image]:
    """Yield the frames shown at ascending stamps, fewer where the stream does not give them."""
    with _opened(path) as (container, stream):
        if jump is not None:
            container.seek(jump, stream=stream)
        waiting, last = list(wanted), None
        for frame in container.decode(stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is None:
                continue
            while waiting and stamp > waiting[0]:
                if last is None:
                    return
                yield _upright(last)
                waiting.pop(0)
            last = None if frame.is_corrupt else frame
            if not waiting:
                return
            if last is not None and stamp == waiting[0]:
                yield _upright(last)
                waiting.pop(0)
                if not waiting:
                    return


def _upright(frame: "VideoFrame") -> Image.Image:
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    turn = TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open a file at its first true video stream; FFmpeg's errors become MediaErrors."""
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            streams = container.streams.video
            true = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
            if not true:
                raise MediaError(_no_video(path, container, covers=len(streams)))
            true[0].codec_context.thread_count = 1  # clips are decoded side by side
            yield container, true[0]
    except OSError as error:
        if not isinstance(error, av.error.FFmpegError) or isinstance(error, FileNotFoundError):
            raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from error
        raise _damaged(path, error) from error
    except av.error.FFmpegError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Any) -> MediaError:
    if path.is_file() and not path.stat().st_size:
        return MediaError(f"{path}: the file is empty; restore it or leave its row out")
    return MediaError(
        f"{path}: not a clip, or damaged or truncated ({error.strerror}); restore the file, "
        "convert it to mp4, or leave its row out"
    )


def _no_video(path: Path, container: "InputContainer", covers: int) -> str:
    kinds = sorted({stream.type for stream in container.streams})
    what = f"only {', '.join(kinds)}" if kinds else "no streams"
    what = "only sound with a cover picture" if covers else what
    return f"{path}: holds {what}, no video; leave its row out"


def _pyav() -> Any:
    try:
        import av  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MediaError(
            "clips need PyAV, which is not installed: pip install 'unipt[video]' (animated webp, "
            "gif and png do without)"
        ) from error
    return av


def _scan(container: "InputContainer", stream: "VideoStream") -> Scan:
    """Read every packet's time, decoding none."""
    scan = Scan()
    ends: dict[int, int] = {}
    try:
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                scan.unstamped += packet.size > 0
            elif packet.is_discard or not packet.size:
                scan.hidden += 1
            elif packet.is_corrupt:
                scan.problem = "its last packet is cut short"
            else:
                ends[stamp] = packet.duration or 0
                if packet.is_keyframe:
                    scan.keys.append(stamp)
    except (OSError, ValueError, EOFError) as error:  # FFmpeg's errors subclass these
        scan.problem = str(getattr(error, "strerror", None) or error)
    scan.stamps = sorted(ends)
    scan.keys.sort()
    scan.last = ends[scan.stamps[-1]] if ends else 0
    return scan


def _describe(path: Path, container: Any, stream: "VideoStream", scan: Scan) -> VideoInfo:
    if not scan.stamps:
        raise MediaError(f"{path}: {_nothing(scan)}; restore the file or leave its row out")
    base = float(stream.time_base or 1)
    times = (np.array(scan.stamps, dtype=np.float64) - scan.stamps[0]) * base
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1 / float(stream.average_rate or 1)
    duration = float(times[-1]) + (scan.last * base or usual)
    stated = (stream.frames, _stated_duration(container, stream))
    _check_whole(path, scan, stated, duration, float(gaps.max(initial=usual)))
    notes = []
    if len(gaps) and float(np.ptp(gaps)) > max(0.1 * usual, 2 * base):
        notes.append("variable frame rate: frames by their times")
    if len(container.streams.video) > 1:
        notes.append(f"{len(container.streams.video)} video streams: the first is used")
    if scan.hidden:
        notes.append(f"edited: {scan.hidden} frames are not shown")
    first = _first(path)
    turned = round(first.rotation) % 360 in (90, 270)
    if round(first.rotation) % 360 in TURNS:
        notes.append(f"rotated by {round(first.rotation) % 360} degrees")
    size = (first.height, first.width) if turned else (first.width, first.height)
    return VideoInfo(
        duration_s=duration,
        fps=len(times) / duration,
        frames=len(times),
        width=size[0],
        height=size[1],
        times=times,
        notes=tuple(notes),
    )


def _first(path: Path) -> "VideoFrame":
    """Decode the first frame, which alone tells the rotation and whether the codec is known."""
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            return frame
    raise MediaError(f"{path}: no frame of it can be decoded; leave its row out")


def _nothing(scan: Scan) -> str:
    if scan.unstamped:
        return (
            f"its {scan.unstamped} frames state no times; put it in a container, as in "
            "`ffmpeg -i FILE -c copy FILE.mp4`"
        )
    return "its video stream holds no frames" + (f" ({scan.problem})" if scan.problem else "")


def _check_whole(
    path: Path, scan: Scan, stated: tuple[int, float], duration: float, gap: float
) -> None:
    """Refuse a file that ends before the frames, or else the seconds, that it states.

    Raises:
        MediaError: says how many frames are readable.
    """
    frames, seconds = stated
    missing = frames > len(scan.stamps) + scan.hidden
    if not frames:
        missing = seconds - duration > max(SLACK * seconds, 1.5 * gap)
    if missing or scan.problem:
        whole = f" of the {frames or round(seconds, 1)} {'frames' if frames else 's'} it states"
        whole = whole if missing else f" ({scan.problem})"
        raise MediaError(
            f"{path}: truncated: {len(scan.stamps)} frames, {duration:.1f} s, are readable{whole}; "
            "restore the file, save the readable part as a new one "
            "(`ffmpeg -i FILE -c copy NEW.mp4`), or leave its row out"
        )


def _stated_duration(container: Any, stream: "VideoStream") -> float:
    """Return the seconds that the header states for the stream, or 0."""
    tag = stream.metadata.get("DURATION", "")  # matroska: 00:01:02.500000000
    if tag.count(":") == 2:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
        return hours * 3600 + minutes * 60 + seconds
    if stream.duration is not None:
        return float(stream.duration * (stream.time_base or 0))
    alone = len(container.streams) == 1 and container.duration is not None
    return float(container.duration) / 1e6 if alone else 0.0
