"""Videos in containers of FFmpeg (mp4, mov, webm, mkv, avi, ...), through PyAV.

A file's packets tell every frame's time without decoding. Reading then jumps to the last key frame
before each wanted frame and decodes from there, so 12 frames of an hour cost 12 stretches between
key frames. Cost: one pass over the file (a disk's speed) and those stretches; where a jump lands
too late, all from the start.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .frames import VideoInfo
from .images import MediaError

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
    """What the packets of a video stream tell, in units of its time base."""

    ends: dict[int, int] = field(default_factory=dict)
    """When each shown frame appears -> how long it is shown, 0 where nothing is said."""
    keys: list[int] = field(default_factory=list)
    """Those that decode alone."""
    packets: int = 0
    """All packets that state a time, also of frames that are not shown."""
    hidden: int = 0
    """Packets that an edit list cuts away, or that are empty."""
    unstamped: int = 0
    """Packets that state no time."""
    problem: str = ""
    """Why reading stopped early, if it did."""


def probe_container(path: Path) -> VideoInfo:
    """Return what the first true video stream of a file holds.

    Raises:
        MediaError: no video, no frames, no times, damaged or truncated; says how much is readable.
    """
    with _opened(path) as (container, stream):
        return _describe(path, container, stream, _scan(container, stream))


def container_frames(path: Path, info: VideoInfo, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the frames of these ascending numbers as upright RGB.

    Raises:
        MediaError: the file cannot be read, or a frame not be decoded.
    """
    wanted = info.stamps[list(numbers)]
    before = np.searchsorted(info.keys, wanted, side="right") - 1
    for key in np.unique(before):
        stamps = wanted[before == key].tolist()
        jump = int(info.keys[key]) if key > 0 else None
        found = list(_decode(path, stamps, jump))
        if len(found) < len(stamps) and jump is not None:  # the jump landed too late
            found = list(_decode(path, stamps, None))
        if len(found) < len(stamps):
            missing = int(np.searchsorted(info.stamps, stamps[len(found)]))
            raise MediaError(
                f"{path}: frame {missing} of {info.frames} cannot be decoded; restore the file or "
                "leave its row out"
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


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    turn = TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file at its first true video stream; FFmpeg's errors become MediaErrors."""
    av = _pyav()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            streams = container.streams.video
            true = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
            if not true:
                raise MediaError(_no_video(path, container, covers=len(streams)))
            if true[0].codec_context is None:
                raise MediaError(
                    f"{path}: damaged or truncated, or in a codec that this FFmpeg does not know; "
                    "restore the file, convert it to mp4, or leave its row out"
                )
            true[0].codec_context.thread_count = 1  # videos are decoded side by side
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
        f"{path}: not a video, or damaged or truncated ({error.strerror}); restore the file, "
        "convert it to mp4, or leave its row out"
    )


def _no_video(path: Path, container: Any, covers: int) -> str:
    kinds = sorted({stream.type for stream in container.streams})
    what = f"only {', '.join(kinds)}" if kinds else "no streams"
    what = "only sound with a cover image" if covers else what
    return f"{path}: holds {what}, no video; leave its row out"


def _pyav() -> Any:
    try:
        import av  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MediaError(
            "videos need PyAV, which is not installed: pip install 'unipt[video]' (animated webp, "
            "gif and png do without)"
        ) from error
    return av


def _scan(container: Any, stream: Any) -> Scan:
    """Read every packet's time, decoding none."""
    scan = Scan()
    try:
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                scan.unstamped += packet.size > 0
                continue
            scan.packets += 1
            if packet.is_corrupt:
                scan.problem = "the last is cut short"
            elif packet.is_discard or not packet.size:
                scan.hidden += 1
            else:
                scan.ends[stamp] = packet.duration or 0
                scan.keys += [stamp] * packet.is_keyframe
    except (OSError, ValueError, EOFError) as error:  # FFmpeg's errors subclass these
        scan.problem = str(getattr(error, "strerror", None) or error)
    return scan


def _describe(path: Path, container: Any, stream: Any, scan: Scan) -> VideoInfo:
    if not scan.ends:
        raise MediaError(f"{path}: {_nothing(scan)}; restore the file or leave its row out")
    stamps = np.array(sorted(scan.ends), dtype=np.int64)
    base = float(stream.time_base or 1)
    times = (stamps - stamps[0]) * base
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1 / float(stream.average_rate or 1)
    duration = float(times[-1]) + (scan.ends[int(stamps[-1])] * base or usual)
    _check_whole(
        path,
        scan,
        frames=stream.frames if "mov" in container.format.name else 0,  # others only estimate
        seconds=_stated_duration(container, stream),
        read=duration + max(0.0, float(stamps[0]) * base),  # some state the end, not the length
        slack=1.5 * float(gaps.max(initial=usual)),
    )
    first = _first(path)
    turn = round(first.rotation) % 360
    notes = [f"rotated by {turn} degrees"] * (turn in TURNS)
    if len(gaps) and float(np.ptp(gaps)) > max(0.1 * usual, 2 * base):
        notes.append("variable frame rate: frames by their times")
    if len(container.streams.video) > 1:
        notes.append(f"{len(container.streams.video)} video streams: the first is used")
    if scan.hidden:
        notes.append(f"edited: {scan.hidden} frames are not shown")
    return VideoInfo(
        duration_s=duration,
        fps=len(times) / duration,
        frames=len(times),
        width=first.height if turn in (90, 270) else first.width,
        height=first.width if turn in (90, 270) else first.height,
        times=times,
        notes=tuple(notes),
        stamps=stamps,
        keys=np.unique(np.array(scan.keys, dtype=np.int64)),
    )


def _first(path: Path) -> Any:
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
    path: Path, scan: Scan, *, frames: int, seconds: float, read: float, slack: float
) -> None:
    """Refuse a file that ends before the frames, or else the seconds, that it states.

    Raises:
        MediaError: says how many frames are readable.
    """
    stated = f"{frames} frames" if frames else f"{seconds:.1f} s"
    missing = frames > scan.packets
    if not frames:
        missing = seconds - read > max(SLACK * seconds, slack)
    if missing or scan.problem:
        raise MediaError(
            f"{path}: truncated: {len(scan.ends)} frames, {read:.1f} s, are readable"
            f"{f' of the {stated} it states' if missing else f' ({scan.problem})'}; "
            "restore the file, save the readable part as a new one "
            "(`ffmpeg -i FILE -c copy NEW.mp4`), or leave its row out"
        )


def _stated_duration(container: Any, stream: Any) -> float:
    """Return the seconds that the header states for the stream, or 0."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:  # matroska: 00:01:02.500000000
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if stream.duration is not None:
        return float(stream.duration * (stream.time_base or 0))
    alone = len(container.streams) == 1 and container.duration is not None
    return float(container.duration) / 1e6 if alone else 0.0
