"""Direct writes: the same bytes as through the page cache, whatever the file system allows."""

import errno
import fcntl
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.format.spec import Bytes
from cache.storage import direct
from cache.storage.direct import PAGE, open_new, page_aligned, write_all, write_as_final

SIZES = st.integers(0, 5 * PAGE)


def numbers(size: int) -> Bytes:
    """Return page-aligned bytes, no two pages of which are alike."""
    data = page_aligned(size)
    data[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return data


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & direct._DIRECT)


def begins_direct(folder: Path, data: Bytes) -> bool:
    """Write `data`, check what is on the disk, and return whether its first write was direct."""
    with open_new(folder / "file", data) as file:
        first = is_direct(file.fileno())
        write_as_final(file.fileno(), data, [PAGE, len(data)])
    assert (folder / "file").read_bytes() == data.tobytes()
    return first


@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE + 5])
def test_memory_begins_with_a_page(size: int) -> None:
    data = page_aligned(size)
    assert data.shape == (size,)
    assert data.ctypes.data % PAGE == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(SIZES, min_size=1).map(sorted))
def test_bytes_are_written_as_they_become_final(ends: list[int], tmp_path: Path) -> None:
    """A byte is filled in only when it is announced as final, and so never written before."""
    wanted, data = numbers(ends[-1]), page_aligned(ends[-1])

    def fill() -> Iterator[int]:
        for low, high in pairwise([0, *ends]):
            data[low:high] = wanted[low:high]
            yield high

    with open_new(tmp_path / "file", data) as file:
        write_as_final(file.fileno(), data, fill())
    assert (tmp_path / "file").read_bytes() == wanted.tobytes()


def test_aligned_memory_is_written_past_the_page_cache(tmp_path: Path) -> None:
    data = numbers(3 * PAGE + 100)
    with open_new(tmp_path / "file", data) as file:
        if not is_direct(file.fileno()):
            pytest.skip("this file system, or system, has no direct writes")
        write_as_final(file.fileno(), data, [len(data)])
        assert not is_direct(file.fileno())  # the end is no whole page
    assert (tmp_path / "file").read_bytes() == data.tobytes()


def test_other_memory_goes_through_the_page_cache(tmp_path: Path) -> None:
    assert not begins_direct(tmp_path, numbers(2 * PAGE)[1:])


def test_file_systems_may_refuse_to_open_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & direct._DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        return opened(name, flags, mode)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert not begins_direct(tmp_path, numbers(2 * PAGE))


def test_disks_of_larger_sectors_refuse_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: memoryview) -> int:
        if is_direct(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return written(fd, data)

    written = os.write
    monkeypatch.setattr(os, "write", refuse)
    begins_direct(tmp_path, numbers(2 * PAGE))


def test_an_invalid_write_that_was_not_direct_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: memoryview) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "write", refuse)
    with (
        open_new(tmp_path / "file", numbers(PAGE)[1:]) as file,
        pytest.raises(OSError, match="nvalid"),
    ):
        write_all(file.fileno(), b"x")


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_new(tmp_path / "none" / "file", numbers(PAGE))
