"""Whether a disk can hold a cache: what is free, what is written already."""

import shutil
import sys

from cache.storage.location import Location, ObjectPath, files_below
from pipeline.errors import PipelineError


class NotEnoughDisk(PipelineError, OSError):  # noqa: N818 - says it all
    """The disk cannot hold the cache that was asked for."""


def check_disk(path: Location, total_bytes: int) -> None:
    """Raise `NotEnoughDisk` unless the disk of `path` can take what is not yet written there."""
    if isinstance(path, ObjectPath):
        return
    missing, free = max(0, total_bytes - written_bytes(path)), free_bytes(path)
    if missing > free:
        raise NotEnoughDisk(
            f"the cache needs {missing:,} more bytes at {path}, the disk has {free:,} free. Record "
            "fewer taps (--taps), shorten texts (--max-length) or videos (--max-frames), shrink "
            "images (--image-size), choose another disk, or use --force to start anyway"
        )


def free_bytes(path: Location) -> int:
    """Return the free bytes of the disk that `path` is, or would be, on; a store has no end."""
    if isinstance(path, ObjectPath):
        return sys.maxsize
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def written_bytes(path: Location) -> int:
    """Return the bytes of all files below `path`; 0 if it does not exist."""
    return sum(files_below(path).values())
