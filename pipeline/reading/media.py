"""Finds the files that captions speak of, below one folder and never outside it.

A name is a path within the folder, or the end of one below it; the suffix may be absent. Costs one
`stat` a name, and one walk of the folder (1 s for 100,000 files). A symbolic link is followed, as
the folder's owner has put it there.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.errors import DataError
from pipeline.reading.problems import BadRowError, first_few

IMAGES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2", ".ico",
)  # fmt: skip
VIDEOS = (
    ".mp4", ".m4v", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".flv", ".wmv", ".ts",
    ".ogv", ".3gp",
)  # fmt: skip
SUFFIXES = frozenset(IMAGES + VIDEOS)
"""What counts as an image or video where a folder is listed; a name given in full may be any."""


class MediaFolder:
    """The images or videos below `root`."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(
                f"there is no media folder {root}; give the folder of the images or videos with "
                "`media`"
            )
        self.root = root

    def find(self, name: str) -> Path:
        """Return the file called `name`.

        Raises:
            BadRowError: it leaves the folder, is not there, or fits several files.
        """
        if not name.strip():
            raise BadRowError("the media name is empty")
        if not _is_inside(name):
            raise BadRowError("the media name leaves the media folder")
        if _is_file(path := self.root / name):
            return path
        found = self._fitting(name)
        if not found:
            raise BadRowError(f"there is no such file in {self.root}")
        if len(found) > 1:
            raise BadRowError(f"several files fit ({first_few(found, 2)})")
        return self.root / found[0]

    def _fitting(self, name: str) -> list[str]:
        """Return the files whose path, or path without suffix, is `name` or ends with "/name"."""
        last = name.rpartition("/")[2]
        found = [file for file in self._by_name.get(last, ()) if file.endswith("/" + name)]
        if not found:
            stems = {file: file[: -len(Path(file).suffix)] for file in self._by_stem.get(last, ())}
            found = [file for file, stem in stems.items() if stem == name]
            found = found or [file for file, stem in stems.items() if stem.endswith("/" + name)]
        return found

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Every image and video below the folder, as paths within it, sorted."""
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            paths = (base / name for name in names if not name.startswith("."))
            found += [str(path) for path in paths if path.suffix.lower() in SUFFIXES]
        return tuple(sorted(found))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return self._index(lambda path: path.name)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return self._index(lambda path: path.stem)

    def _index(self, key: Callable[[PurePosixPath], str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            found[key(PurePosixPath(file))].append(file)
        return dict(found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a file name
        return False


def _is_inside(name: str) -> bool:
    """Whether `name` is a relative path that stays below its start."""
    parts = name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    return bool(parts[0]) and not has_drive and ".." not in parts and "\0" not in name
