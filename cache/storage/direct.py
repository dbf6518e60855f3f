"""Writing large files past the page cache.

Through the page cache a byte written is copied, and its page found and marked; on a virtual machine
that can cost a core more than the disk does (`benchmarks.writing` prints both), and what is read
often makes room for what is written once. A direct write hands the memory itself to the disk, and
costs next to no time of a core. It wants memory and sizes of whole pages; the end of a file and
file systems without direct writes go the usual way.
"""

import errno
import fcntl
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import numpy as np

from ..format.spec import Bytes

PAGE = 4096
"""Bytes that memory, place and size of a direct write are multiples of."""
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


def page_aligned(size: int) -> Bytes:
    """Return uninitialised memory, uint8 [size], that begins with a page."""
    raw = np.empty(size + PAGE, np.uint8)
    first = -raw.ctypes.data % PAGE
    return raw[first : first + size]


def open_new(path: Path, data: Bytes) -> FileIO:
    """Open `path` for writing, emptied; for direct writes if `data` and the file system allow."""
    if _DIRECT and not data.ctypes.data % PAGE:
        try:
            return FileIO(
                path, "w", opener=lambda name, flags: os.open(name, flags | _DIRECT, 0o666)
            )
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
    return FileIO(path, "w")


def write_as_final(fd: int, data: Bytes, ends: Iterable[int]) -> None:
    """Write `data` while its bytes become final.

    Args:
        fd: of an empty file, from `open_new`.
        data: its content.
        ends: how many bytes are final by now; the last time all.
    """
    done = 0
    for end in ends:
        whole = end - end % PAGE
        write_all(fd, data[done:whole])
        done = max(done, whole)
    _leave_direct(fd)
    write_all(fd, data[done:])


def write_all(fd: int, data: bytes | Bytes) -> None:
    """Write all of `data`, through the page cache where the disk refuses it directly."""
    view = memoryview(data) if isinstance(data, bytes) else data.data
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _leave_direct(fd):
                raise


def _leave_direct(fd: int) -> bool:
    """Write through the page cache from now on; return whether that is a change."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & _DIRECT:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~_DIRECT)
    return True
