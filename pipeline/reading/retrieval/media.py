"""Finds the files that captions speak of, below one folder and never outside it.

A name is a path within the folder, the same without suffix, or a bare file name or stem anywhere
below it. Costs one `stat` a name; names that are not paths cost one walk of the folder (1 s for
100,000 files), and a symbolic link is followed, as the folder's owner has put it there.
"""

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.reading.problems import BadRowError, first_few
from pipeline.reading.tables import DataError

IMAGES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2", ".ico",
)  # fmt: skip
VIDEOS = (
    ".mp4", ".m4v", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".flv", ".wmv", ".ts",
    ".ogv", ".3gp",
)  # fmt: skip
SUFFIXES = frozenset(IMAGES + VIDEOS)
"""What counts as a picture or clip where a folder is listed; a name given in full may be any."""


class MediaFolder:
    """The pictures or clips below `root`."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(
                f"there is no media folder {root}; give the folder of the pictures or clips with "
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
        if (path := self.root / name).is_file():
            return path
        for index in self._indices:
            if found := index.get(name):
                if len(found) > 1:
                    raise BadRowError(f"several files fit ({first_few(found, 2)})")
                return self.root / found[0]
        raise BadRowError(f"there is no such file in {self.root}")

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Every picture and clip below the folder, as paths within it, sorted."""
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            paths = (base / name for name in names if not name.startswith("."))
            found += [str(path) for path in paths if path.suffix.lower() in SUFFIXES]
        return tuple(sorted(found))

    @cached_property
    def _indices(self) -> tuple[dict[str, list[str]], ...]:
        """The files by path without suffix, by bare name, and by stem."""
        paths: dict[str, list[str]] = defaultdict(list)
        names: dict[str, list[str]] = defaultdict(list)
        stems: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            path = PurePosixPath(file)
            paths[str(path.with_suffix(""))].append(file)
            names[path.name].append(file)
            stems[path.stem].append(file)
        return dict(paths), dict(names), dict(stems)


def _is_inside(name: str) -> bool:
    """Whether `name` is a relative path that stays below its start."""
    parts = name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    return bool(parts[0]) and not has_drive and ".." not in parts and "\0" not in name
