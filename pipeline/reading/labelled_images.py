"""Labelled images: a folder of class folders, or a table of files and labels.

Cost: one walk of the folder and about 0.5 KB an image; no image is opened.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.data import DataConfig, Dataset, Example, Labelled
from pipeline.errors import DataError
from pipeline.inputs import ImageInput
from pipeline.reading.config import Column
from pipeline.reading.examples import check_ids, class_names, class_number, hides_label, plain
from pipeline.reading.media import MediaFolder
from pipeline.reading.problems import BadRowError, Problems, first_few, settle
from pipeline.reading.splits import assign_splits
from pipeline.reading.tables import Table, read_table

__all__ = ["ImageData", "load_images"]

logger = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split -> names of the folders that are it, where these hold class folders."""
FILES = ("image", "file", "file_name", "filename", "path", "image_path")
"""Column names tried in this order where none is configured."""


class ImageData(DataConfig):
    """Which images with which labels, where they are, and how they are split."""

    task: Literal["image-classification"] = "image-classification"
    """image-classification: one label an image."""
    train: Path
    """Folder with a folder for each class (or with such folders below train, dev and test), or a
    table of files and labels (.csv .tsv .jsonl .parquet)."""
    media: Path | None = None
    """Folder that the files of tables lie in; the default is each table's own."""
    image_column: Column | None = None
    """Column of the file, by name or 0-based position; the default is the first known name: image
    file file_name filename path image_path."""
    label_column: Column = "label"
    """Column of the label, by name or 0-based position."""
    group_column: Column | None = None
    """Column of a group (a patient, a scene) whose images stay in one split and in one fold."""
    label_names: tuple[str, ...] | None = None
    """Class names in order; by default the sorted labels of the training images."""
    bad_media: Literal["error", "skip"] = "error"
    """What to do with images that cannot be decoded."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report, the first one choosing the best epoch; by default accuracy,
    top5_accuracy and macro_f1."""

    def contradictions(self) -> list[str]:
        """Return what of the labels and the shares does not go together."""
        problems = super().contradictions()
        if self.label_names is not None and len(set(self.label_names)) != len(self.label_names):
            problems.append(f"label_names has duplicates: {', '.join(self.label_names)}")
        return problems

    @property
    def skips_missing(self) -> bool:
        """Whether images that are not in the cache are left out."""
        return self.bad_media == "skip"


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """Files and labels, and the folder that the files lie in."""

    table: Table
    root: Path
    image: Column
    label: Column
    id: Column | None = None

    @cached_property
    def folder(self) -> MediaFolder:
        return MediaFolder(self.root)


def load_images(config: ImageData) -> Dataset:
    """Read, label and split the images `config` describes.

    Raises:
        DataError: a file or folder is missing or unreadable, there are fewer than two classes, or
            rows are unusable (the message names the first few and counts all).
    """
    listed = _sources(config)
    train = listed["train"]
    labels = config.label_names or class_names(
        train.table.values(train.label), f"{train.table.source} {train.label!r}"
    )
    problems = {split: Problems(each.table.source) for split, each in listed.items()}
    rows = {
        split: _examples(each, split, config, labels, problems[split])
        for split, each in listed.items()
    }
    dropped = settle(problems.values(), config.bad_rows)
    splits = assign_splits(rows, config)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    made = {name: Labelled(examples, ("image",)) for name, examples in splits.items()}
    return Dataset(splits=made, config=config, labels=labels, dropped=dropped)


def _sources(config: ImageData) -> dict[str, _Listed]:
    found = _parts(config.train) if config.train.is_dir() else {}
    if not found:
        found = {"train": _source(config.train, config)}
    for split, path in (("dev", config.dev), ("test", config.test)):
        if path is not None:
            found[split] = _source(path, config)
    if "train" not in found:
        raise DataError(
            f"{config.train} has folders of classes for {', '.join(found)}, and none called train"
        )
    return found


def _parts(folder: Path) -> dict[str, _Listed]:
    """Read the folders of a folder that are splits; a class may be called "train" as well."""
    found = {}
    for split, names in SPLITS.items():
        part = next((folder / name for name in names if _has_folders(folder / name)), None)
        if part is not None:
            found[split] = _classes(part)
    return found


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        each.is_dir() and not each.name.startswith(".") for each in folder.iterdir()
    )


def _source(path: Path, config: ImageData) -> _Listed:
    if path.is_dir():
        return _classes(path)
    table = read_table(path, header=config.header, encoding_errors=config.encoding_errors)
    names = FILES if config.image_column is None else (config.image_column,)
    image = next((each for each in names if table.find(each) is not None), None)
    if image is None:
        raise DataError(
            f"{table.source} has no column of images ({', '.join(names)}); it has "
            f"{', '.join(table.columns)}. Name it with `image_column`"
        )
    root = config.media or path.parent
    return _Listed(table=table, root=root, image=image, label=config.label_column)


def _classes(folder: Path) -> _Listed:
    """Read a folder with a folder for each class, as a table of files and labels."""
    files = MediaFolder(folder).files
    rows = [(file, file.partition("/")[0]) for file in files if "/" in file]
    if not rows:
        raise DataError(
            f"{folder} holds no class folders with images; an image of the class cat is "
            f"{folder / 'cat' / 'one.jpg'}"
        )
    if loose := [file for file in files if "/" not in file]:
        logger.warning(
            "%s: %d file(s) lie in no class folder: %s", folder, len(loose), first_few(loose)
        )
    numbers = list(range(1, len(rows) + 1))
    table = Table(source=str(folder), columns=("image", "label"), rows=list(rows), numbers=numbers)
    return _Listed(table=table, root=folder, image="image", label="label", id="image")


def _examples(
    listed: _Listed, split: str, config: ImageData, labels: Sequence[str], problems: Problems
) -> list[Example]:
    """Return the usable rows; a test file may hide all labels."""
    table = listed.table
    problems.add(f"not {len(table.columns)} fields", *table.ragged)
    files, size = table.values(listed.image), len(table.rows)
    ids = range(size) if listed.id is None else table.values(listed.id)
    targets = _labels(listed, split, labels)
    groups = _groups(table, split, config)
    examples = []
    for number, name, file, value, group in zip(
        table.numbers, ids, files, targets, groups, strict=True
    ):
        try:
            path = listed.folder.find(plain(file) or "")
            target = None if value is HIDDEN else class_number(value, labels)
            own = None if group is NO_GROUP else plain(group)
            if own is None and group is not NO_GROUP:
                raise BadRowError("the group is missing")
            examples.append(Example(f"{split}/{name}", (ImageInput(path),), target, own))
        except BadRowError as reason:
            problems.add(str(reason), number)
    check_ids(table.source, examples)
    return examples


HIDDEN, NO_GROUP = object(), object()


def _labels(listed: _Listed, split: str, labels: Sequence[str]) -> list[Any]:
    table, may_hide = listed.table, split == "test"
    if may_hide and table.find(listed.label) is None:
        return [HIDDEN] * len(table.rows)
    values = table.values(listed.label)
    hidden = may_hide and all(hides_label(value, tuple(labels)) for value in values)
    return [HIDDEN] * len(values) if hidden else values


def _groups(table: Table, split: str, config: ImageData) -> list[Any]:
    """Return the group column, which files other than the training file may lack."""
    column = config.group_column
    if column is None or (split != "train" and table.find(column) is None):
        return [NO_GROUP] * len(table.rows)
    return table.values(column)
