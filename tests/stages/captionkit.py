"""What the tests of captioned data share: loading by plain values, empty media, flat pairs."""

from pathlib import Path
from typing import Any

from pipeline.data import Dataset
from pipeline.reading.captioned.dataset import Captioned
from pipeline.systems import data_config, load_dataset


def load(**values: Any) -> Dataset:
    return load_dataset(data_config({"task": "retrieval"} | values))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def sizes(data: Dataset) -> dict[str, int]:
    """Return the number of items of each split."""
    return {name: len(data.split(name).items) for name in data.splits}


def pairs(split: Captioned) -> list[tuple[str, str]]:
    """Return (item, text) of every caption."""
    return [
        (split.items[owner].id, caption.text)
        for owner, caption in zip(split.item_of, split.captions, strict=True)
    ]
