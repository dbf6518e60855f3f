"""Files that survive a crash: atomic writes, the writer's lock, clear errors for a full disk.

A file appears under its name only when all its bytes are on the disk: temporary name, fsync,
rename, fsync of the folder. Cost: the raw write, plus two fsyncs a file, or for a group of small
ones. In an object store each is one request.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import numpy as np

from ..errors import CacheDamaged, CacheFull, CacheLocked, CacheTooLarge
from ..format.spec import Bytes
from ..memory import available_memory
from .direct import open_new, write_all, write_as_final
from .location import Location, ObjectPath

PARTIAL = ".partial"
"""Suffix of a file that is being written; leftovers are removed when a writer resumes."""

_LARGE = 2**28
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def room_needed(path: Path) -> Iterator[None]:
    """Turn "no space left", "over quota" and "file too large" into `CacheFull` naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CacheFull(
            f"no room for {path}: {error.strerror}. Finished shards are safe: free space (or raise "
            "the limit) and run the same command again to resume"
        ) from error


def write_atomic(
    path: Location,
    data: bytes | Bytes,
    *,
    alone: bool = True,
    ends: Iterable[int] | None = None,
) -> None:
    """Put `data` under `path` whole or not at all, on the disk before the call returns.

    Args:
        path: of the file; missing folders are created.
        data: its content; page-aligned memory is written past the page cache.
        alone: no other process writes this file meanwhile; else the temporary name is unique.
        ends: how many bytes of `data` are final by now, in rising order; None for all.

    Raises:
        CacheFull: no space left; nothing remains of the attempt.
    """
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    ends = [len(array)] if ends is None else ends
    if isinstance(path, ObjectPath):
        for _ in ends:
            pass
        path.write(data)
        return
    changed = _create_folders(path.parent)
    partial = path.with_name(path.name + ("" if alone else f".{token_hex(6)}") + PARTIAL)
    with room_needed(path):
        try:
            with open_new(partial, array) as file:
                write_as_final(file.fileno(), array, ends)
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    for folder in [path.parent, *changed]:
        sync_folder(folder)


def write_group(root: Location, contents: Mapping[str, bytes]) -> None:
    """Put small files below `root`, but for those that are there, all on the disk at the end.

    They share their flushes: first all contents, then all names.
    """
    wanted = {root / name: data for name, data in contents.items() if not holds(root / name, data)}
    partials: dict[Path, Path] = {}
    changed: dict[Path, None] = {}
    try:
        for path, data in wanted.items():
            if isinstance(path, ObjectPath):
                path.write(data)
                continue
            changed |= dict.fromkeys([path.parent, *_create_folders(path.parent)])
            partials[path] = path.with_name(path.name + PARTIAL)
            with room_needed(path), partials[path].open("wb", buffering=0) as file:
                write_all(file.fileno(), data)
        for path, partial in partials.items():
            with room_needed(path), partial.open("rb") as written:
                os.fsync(written.fileno())
        for path, partial in partials.items():
            partial.replace(path)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    for folder in changed:
        sync_folder(folder)


def append_synced(path: Path, data: bytes) -> None:
    """Append `data` to `path`, on the disk before the call returns; undone if that fails."""
    with room_needed(path), path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), size)
            raise


def make_folders(path: Location) -> None:
    """Create `path` and its missing parents, durably; an object store has none."""
    if not isinstance(path, ObjectPath):
        for folder in _create_folders(path):
            sync_folder(folder)


def _create_folders(path: Path) -> list[Path]:
    """Create `path` and its missing parents; return the folders to be flushed for that."""
    if path.is_dir():
        return []
    changed = _create_folders(path.parent)
    with room_needed(path):
        path.mkdir(exist_ok=True)
    return [path.parent, *changed]


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def holds(path: Location, content: bytes) -> bool:
    """Return whether a small file has exactly this content."""
    return find_size(path) == len(content) and path.read_bytes() == content


def write_if_different(path: Location, content: bytes) -> None:
    """Write a small file unless it already has this content."""
    if not holds(path, content):
        write_atomic(path, content)


def remove(path: Location) -> None:
    """Delete a file, durably."""
    path.unlink()
    if isinstance(path, Path):
        sync_folder(path.parent)


def read_exact(path: Location, size: int) -> Bytes:
    """Read a whole file whose size is known; nothing is allocated for a wrong one.

    Raises:
        CacheDamaged: missing, or another size.
        CacheTooLarge: more than the memory there is.
    """
    found = file_size(path)
    if found != size:
        raise CacheDamaged(f"{path} holds {found} bytes instead of {size}; extract the cache again")
    if size > _LARGE and size > available_memory():
        raise CacheTooLarge(
            f"{path} holds {size} bytes, more than the memory that is free; use a larger machine, "
            "or, if the cache should be small, extract it again"
        )
    if isinstance(path, ObjectPath):
        return np.frombuffer(bytearray(path.read_bytes()), np.uint8)
    return np.fromfile(path, dtype=np.uint8)


def file_size(path: Location) -> int:
    """Return the size of a file in bytes.

    Raises:
        CacheDamaged: there is no such file.
    """
    size = find_size(path)
    if size is None:
        raise CacheDamaged(f"{path} is missing; extract again into this folder to restore it")
    return size


def find_size(path: Location) -> int | None:
    """Return the size of a file in bytes, or None if there is none."""
    if isinstance(path, ObjectPath):
        return path.size()
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock file `path`; creates and changes nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class WriterLock:
    """The right to write one cache: `flock` on an empty file, gone with the process that held it.

    Raises:
        CacheLocked: another writer holds it.
    """

    def __init__(self, path: Path) -> None:
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_file(self._fd, path):  # deleted by its last holder after it was opened here
                raise BlockingIOError
        except BlockingIOError as error:
            self.release()
            raise CacheLocked(
                f"{path.parent} is being written by another process; wait until it ends, or stop "
                "it and run again: finished shards are kept"
            ) from error

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock."""
        return self._fd is not None

    def renew(self) -> None:
        """Do nothing: this lock ends with its process only."""

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
