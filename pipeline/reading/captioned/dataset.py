"""Images or videos with their captions, from local files: `CaptionData` -> `Dataset`.

Each media file and each caption is an input once, however many pairs it is in. Loading costs one
pass over the files, one walk of the media folder, and about 0.5 KB of memory a caption; no media
file is opened.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Dataset, Ints, as_modality
from pipeline.inputs import ImageInput, Input, TextInput
from pipeline.reading.captioned.gather import Caption, Gathered, MediaItem, gather, without_captions
from pipeline.reading.captioned.sources import media_folder, read_readings
from pipeline.reading.captioned.split import assign
from pipeline.reading.config import CaptionData
from pipeline.reading.media import MediaFolder
from pipeline.reading.problems import first_few, settle

__all__ = ["Captioned", "load_captioned"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Captioned:
    """The captions of one split as examples, m of them, each with its item, of n.

    Attributes:
        items: images or videos; every one has a caption.
        captions: the examples.
        item_of: position in `items` of each caption's item, ascending, [m].
        item_groups: what each item must stay together with: its group, or itself.
        split: its name, which the identifiers of `rows` begin with.
    """

    items: tuple[MediaItem, ...]
    captions: tuple[Caption, ...]
    item_of: Ints
    item_groups: tuple[str, ...]
    split: str

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def first_of(self) -> Ints:
        """Position of each item's first caption, [n]."""
        return np.unique(self.item_of, return_index=True)[1].astype(np.int64)

    def inputs(self, tower: str, modality: str) -> Sequence[Input]:
        """Return each caption ("text"), or each caption's item ("media")."""
        if tower == "text":
            return [TextInput(caption.text) for caption in self.captions]
        items = [as_modality(ImageInput(item.path), modality) for item in self.items]
        return [items[place] for place in self.item_of.tolist()]

    def rows(self, tower: str, modality: str) -> list[tuple[str, Input]]:
        """Return each caption ("text") or each item ("media") once, with its id: "train/12"."""
        found = self.inputs(tower, modality)
        named: Sequence[Caption | MediaItem] = self.captions
        if tower != "text":
            named, found = self.items, [found[first] for first in self.first_of.tolist()]
        return [
            (f"{self.split}/{each.id}", given) for each, given in zip(named, found, strict=True)
        ]

    @property
    def groups(self) -> list[str]:
        """Group of each caption's item."""
        return [self.item_groups[place] for place in self.item_of.tolist()]

    @property
    def strata(self) -> NDArray[Any] | None:
        """There are no classes."""
        return None

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers of captions and items."""
        return {"captions": len(self.captions), "items": len(self.items)}

    def take(self, rows: Ints) -> "Captioned":
        """Return the captions of these positions, with the items that they speak of."""
        kept, places = np.unique(self.item_of[rows], return_inverse=True)
        return Captioned(
            items=tuple(self.items[number] for number in kept),
            captions=tuple(self.captions[number] for number in rows),
            item_of=places.astype(np.int64),
            item_groups=tuple(self.item_groups[number] for number in kept),
            split=self.split,
        )

    def digest(self) -> bytes:
        """Return the captions and which item each belongs to."""
        texts = b"".join(given.key() for given in self.inputs("text", "text"))
        return texts + self.item_of.astype("<i8").tobytes()


def load_captioned(config: CaptionData) -> Dataset:
    """Read, check and split the captions `config` describes, and find their media files.

    Raises:
        DataError: a file is missing or unreadable, a column is absent, captions and identifiers do
            not match, or rows are unusable (the message names the first few and counts all).
    """
    folder = MediaFolder(media_folder(config))
    readings = read_readings(config)
    gathered = {name: gather(reading, folder) for name, reading in readings.items()}
    dropped = settle([reading.problems for reading in readings.values()], config.bad_rows)
    unused = without_captions([each for rows in gathered.values() for each in rows], folder)
    if unused:
        logger.warning(
            "%s: %d file(s) have no caption: %s", folder.root, len(unused), first_few(unused)
        )
    splits = assign(gathered, config)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    _warn_of_leaks(splits)
    return Dataset(
        splits={name: _captioned(name, rows) for name, rows in splits.items()},
        config=config,
        dropped=dropped,
        unused=unused,
    )


def _captioned(split: str, rows: list[Gathered]) -> Captioned:
    counts = [len(each.captions) for each in rows]
    return Captioned(
        items=tuple(each.item for each in rows),
        captions=tuple(caption for each in rows for caption in each.captions),
        item_of=np.repeat(np.arange(len(rows), dtype=np.int64), counts),
        item_groups=tuple(each.group for each in rows),
        split=split,
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
