"""Rows become items with captions: files are found, empty and duplicate rows reported.

Costs one `stat` an item, and one walk of the media folder to name the media without captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.formats.rows import CaptionRow, Reading
from pipeline.reading.media import MediaFolder
from pipeline.reading.problems import BadRowError, Problems, checked_text

Ints = NDArray[np.int64]


class MediaItem(NamedTuple):
    """An image or video: its identifier, unique in its split, and its file."""

    id: str
    path: Path


class Caption(NamedTuple):
    """A caption: its identifier, "item#0", "item#1", ..., and its text."""

    id: str
    text: str


@dataclass
class Gathered:
    """An image or video with its captions and the group it must stay with."""

    item: MediaItem
    group: str
    captions: list[Caption] = field(default_factory=list)


class _Gatherer:
    def __init__(self, folder: MediaFolder, problems: Problems) -> None:
        self.folder = folder
        self.problems = problems
        self.found: dict[str, Gathered | None] = {}
        self.by_path: dict[Path, str] = {}
        self.counts: dict[str, int] = {}

    def add(self, row: CaptionRow) -> None:
        number = self.counts.get(row.item, 0)
        self.counts[row.item] = number + 1
        place = f"{row.item!r} ({row.place})"
        try:
            if not row.item.strip():
                raise BadRowError("the media name is missing")
            if row.item not in self.found:
                self.found[row.item] = None
                self.found[row.item] = self._open(row)
            gathered = self.found[row.item]
            if gathered is None:
                return  # reported with its first row
            if row.group is not None and row.group != gathered.group:
                raise BadRowError("an item's rows name several groups")
            if isinstance(row.caption, dict | list | tuple):
                raise BadRowError("the caption is not a text")
            text = checked_text(row.caption, "the caption")
        except BadRowError as reason:
            self.problems.add(str(reason), place)
            return
        gathered.captions.append(Caption(f"{row.item}#{number}", text))

    def _open(self, row: CaptionRow) -> Gathered:
        path = self.folder.find(row.file)
        other = self.by_path.setdefault(path, row.item)
        if other != row.item:
            raise BadRowError(f"the id is a second name of the file of {other!r}")
        return Gathered(MediaItem(row.item, path), row.item if row.group is None else row.group)


def gather(reading: Reading, folder: MediaFolder) -> list[Gathered]:
    """Return the items of one split in order of first appearance, with at least one caption each.

    What is unusable is added to the problems of `reading`.
    """
    gatherer = _Gatherer(folder, reading.problems)
    for row in reading.rows:
        gatherer.add(row)
    return [each for each in gatherer.found.values() if each is not None and each.captions]


def without_captions(items: Sequence[Gathered], folder: MediaFolder) -> tuple[str, ...]:
    """Return the files below the media folder that no caption speaks of."""
    named = {each.item.path.relative_to(folder.root).as_posix() for each in items}
    return tuple(file for file in folder.files if file not in named)
