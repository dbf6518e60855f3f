"""Pictures or clips with their captions, from local files: `RetrievalData` -> `RetrievalDataset`.

Each picture and each caption is an input once, however many pairs it is in. Loading costs one pass
over the files, one walk of the media folder, and about 0.5 KB of memory a caption; no picture is
opened.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs import ImageInput, Input, TextInput, VideoInput
from pipeline.reading.problems import first_few, settle
from pipeline.reading.retrieval.config import RetrievalData
from pipeline.reading.retrieval.gather import (
    Caption,
    Gathered,
    Ints,
    MediaItem,
    gather,
    without_captions,
)
from pipeline.reading.retrieval.media import MediaFolder
from pipeline.reading.retrieval.sources import media_folder, read_readings
from pipeline.reading.retrieval.split import assign
from pipeline.reading.tables import DataError

__all__ = [
    "Caption",
    "MediaItem",
    "RetrievalData",
    "RetrievalDataset",
    "RetrievalSplit",
    "load_retrieval",
]

logger = logging.getLogger(__name__)

Tower = Literal["text", "image", "video"]
_MEDIA_INPUT: dict[str, Callable[[Path], Input]] = {"image": ImageInput, "video": VideoInput}


@dataclass(frozen=True, eq=False)
class RetrievalSplit:
    """Items, captions, and which item each caption belongs to; every item has a caption."""

    items: tuple[MediaItem, ...]
    captions: tuple[Caption, ...]
    item_of: Ints
    """Position in `items` of each caption's item, ascending, [len(captions)]."""
    groups: tuple[str, ...]
    """What each item must stay together with: its group, or itself."""

    def without(self, items: Collection[str]) -> Self:
        """Return the split without the items of these identifiers and without their captions."""
        return self.only(np.array([item.id not in items for item in self.items], dtype=bool))

    def only(self, kept: NDArray[np.bool_]) -> Self:
        """Return the split with the items that are `kept` [len(items)] and their captions."""
        positions = np.cumsum(kept) - 1
        captions = np.flatnonzero(kept[self.item_of])
        items = np.flatnonzero(kept)
        return type(self)(
            items=tuple(self.items[number] for number in items),
            captions=tuple(self.captions[number] for number in captions),
            item_of=positions[self.item_of[captions]].astype(np.int64),
            groups=tuple(self.groups[number] for number in items),
        )


@dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """The splits "train", "dev" and, where there is one, "test"."""

    splits: dict[str, RetrievalSplit]
    config: RetrievalData
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason (`bad_rows: drop`)."""
    uncaptioned: tuple[str, ...] = ()
    """Files below the media folder that no caption speaks of."""

    def split(self, name: str) -> RetrievalSplit:
        """Return one split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            known = ", ".join(f"{each} ({len(s.items)})" for each, s in self.splits.items())
            raise DataError(f"there is no split {name!r}; there are: {known}")
        return self.splits[name]

    def inputs(self, tower: Tower) -> list[tuple[str, Input]]:
        """Every caption (tower "text") or every picture or clip, once, as ("train/id", input).

        Raises:
            ValueError: there is no such tower.
        """
        if tower == "text":
            return [
                (f"{name}/{caption.id}", TextInput(caption.text))
                for name, split in self.splits.items()
                for caption in split.captions
            ]
        if tower not in _MEDIA_INPUT:
            raise ValueError(f"unknown tower {tower!r}; known: text, image, video")
        make = _MEDIA_INPUT[tower]
        return [
            (f"{name}/{item.id}", make(item.path))
            for name, split in self.splits.items()
            for item in split.items
        ]


def load_retrieval(config: RetrievalData) -> RetrievalDataset:
    """Read, check and split the captions `config` describes, and find their pictures or clips.

    Raises:
        DataError: a file is missing or unreadable, a column is absent, captions and identifiers do
            not match, or rows are unusable (the message names the first few and counts all).
    """
    folder = MediaFolder(media_folder(config))
    readings = read_readings(config)
    gathered = {name: gather(reading, folder) for name, reading in readings.items()}
    dropped = settle([reading.problems for reading in readings.values()], config.bad_rows)
    uncaptioned = without_captions([each for rows in gathered.values() for each in rows], folder)
    if uncaptioned:
        logger.warning(
            "%s: %d file(s) have no caption: %s",
            folder.root, len(uncaptioned), first_few(uncaptioned),
        )  # fmt: skip
    splits = assign(gathered, config)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    _warn_of_leaks(splits)
    return RetrievalDataset(
        splits={name: _split(rows) for name, rows in splits.items()},
        config=config,
        dropped=dropped,
        uncaptioned=uncaptioned,
    )


def _split(rows: list[Gathered]) -> RetrievalSplit:
    counts = [len(each.captions) for each in rows]
    return RetrievalSplit(
        items=tuple(each.item for each in rows),
        captions=tuple(caption for each in rows for caption in each.captions),
        item_of=np.repeat(np.arange(len(rows), dtype=np.int64), counts),
        groups=tuple(each.group for each in rows),
    )


def _warn_of_leaks(splits: dict[str, list[Gathered]]) -> None:
    train = {each.item.path for each in splits["train"]}
    groups = {each.group for each in splits["train"]}
    for name in ("dev", "test"):
        shared = sum(
            each.item.path in train or each.group in groups for each in splits.get(name, ())
        )
        if shared:
            logger.warning(
                "%d %s item(s) are in the training rows too, or share a group with one",
                shared, name,
            )  # fmt: skip
