"""Media files before a run: each read once for its key, its header looked at, the bad ones named.

Costs reading every file once (about 1 GB/s a thread); decoding all of them once more where skipping
is asked, because a header may be sound where the pixels are not. A file is stamped with its size
and time, so that a change during the run is noticed.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.errors import PipelineError
from pipeline.inputs import ImageInput, Input, InputError, MediaInput, TextInput
from pipeline.media.images import MediaError, inspect_image

MAX_THREADS = 8
UNREADABLE = (MediaError, PipelineError, OSError)
"""What reading a media file may raise; every one names the file."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class BadMedia(InputError):  # noqa: N818 - says it all
    """Images or videos that cannot be read; the message names the rows and files."""


class MediaChanged(PipelineError, RuntimeError):  # noqa: N818
    """A media file is not what it was when the run began."""


class Stamp(NamedTuple):
    """Size in bytes and time in nanoseconds of a file."""

    size: int
    time: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return the stamp of the file at `path`; raise `OSError` where there is none."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


class Checked(NamedTuple):
    """A media file as it was found; `problem` says why it cannot be used."""

    key: bytes = b""
    stamp: Stamp = Stamp(0, 0)
    notes: tuple[str, ...] = ()
    problem: str = ""


def threads() -> int:
    """Return how many threads read and decode media."""
    return max(1, min(MAX_THREADS, os.cpu_count() or 1))


def in_threads(work: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """Yield `work(item)` of each item, in order; what waits is dropped when the caller stops."""
    pool = ThreadPoolExecutor(threads(), "media")
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_files(inputs: Iterable[Input]) -> dict[MediaInput, Checked]:
    """Read every media file of `inputs` once: key, stamp, notes on its header, or its problem."""
    media = [item for item in dict.fromkeys(inputs) if not isinstance(item, TextInput)]
    return dict(zip(media, in_threads(_check, media), strict=True))


def count_notes(checked: Iterable[Checked]) -> dict[str, int]:
    """Return how many files have each note, most frequent first."""
    return dict(Counter(note for file in checked for note in file.notes).most_common())


def bad_media(problems: Sequence[tuple[str, str]], shown: int = 10) -> BadMedia:
    """Return the error for rows whose media cannot be read, given as (row id, problem)."""
    lines = [f"  {row}: {why}" for row, why in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  and {len(problems) - shown:,} more")
    return BadMedia(
        f"{len(problems):,} row(s) have media that cannot be read:\n"
        + "\n".join(lines)
        + "\nRepair or replace these files, or leave the rows out (--bad-media skip)"
    )


def check_unchanged(path: Path, stamp: Stamp) -> None:
    """Raise `MediaChanged` unless the file at `path` still has its `stamp`."""
    try:
        now = Stamp.of(path)
    except OSError as error:
        raise MediaChanged(f"{path} can no longer be read ({error})") from error
    if now != stamp:
        raise MediaChanged(
            f"{path} changed since the run began: {stamp.size:,} bytes then, {now.size:,} now"
        )


def _check(item: MediaInput) -> Checked:
    try:
        stamp = Stamp.of(item.path)
        if not stamp.size:
            return Checked(problem=f"{item.path} is empty (0 bytes)")
        return Checked(item.key(), stamp, _notes(item))
    except UNREADABLE as error:
        return Checked(problem=str(error))


def _notes(item: MediaInput) -> tuple[str, ...]:
    """Return what is odd about a file, from its header."""
    if isinstance(item, ImageInput):
        return inspect_image(item.path).notes
    from pipeline.media.video import probe_video  # noqa: PLC0415 - videos only

    return probe_video(item.path).notes
