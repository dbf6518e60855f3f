"""Files that are either the old or the new ones, never half: temporary name, fsync, rename."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and takes its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system allows it (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file that then replaces `path`."""
    with replacing(path) as temporary:
        write(temporary)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_with(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Replace `path` by one JSON record a line."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_with(path, lambda file: file.write_text(text, encoding="utf-8"))
