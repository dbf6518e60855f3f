"""Finds out what kind of data set a path is, and reads it."""

from pathlib import Path

from pipeline.errors import DataError
from pipeline.reading.config import CaptionData
from pipeline.reading.formats.captions import read_captions, read_folder
from pipeline.reading.formats.msrvtt import read_clip_list, read_msrvtt
from pipeline.reading.formats.msvd import read_msvd
from pipeline.reading.formats.precomp import find_precomp, media_root, read_precomp
from pipeline.reading.formats.rows import Readings

FOLDERS = {"msrvtt": read_msrvtt, "msvd": read_msvd}
"""Task -> what reads a folder of its own layout."""
LISTS = {"msrvtt": read_clip_list}
"""Task -> what reads a CSV of its own layout."""


def read_readings(config: CaptionData) -> Readings:
    """Return the rows by split; an explicit dev or test file replaces the folder's split.

    Raises:
        DataError: a file is missing or unreadable, or there are no training rows.
    """
    readings = _read(config.train, "train", config)
    if "train" not in readings:
        raise DataError(f"{config.train} holds no training rows; found: {', '.join(readings)}")
    for split, path in (("dev", config.dev), ("test", config.test)):
        if path is not None:
            found = _read(path, split, config)
            if split not in found and len(found) > 1:
                raise DataError(f"{path} holds no {split} rows; found: {', '.join(found)}")
            readings[split] = found.get(split) or next(iter(found.values()))
    return readings


def media_folder(config: CaptionData) -> Path:
    """Return the configured media folder, else the one that belongs to the captions."""
    if config.media is not None:
        return config.media
    if not config.train.is_dir():
        return config.train.parent
    precomp = find_precomp(config.train)
    return media_root(precomp) if precomp is not None else config.train


def _read(path: Path, split: str, config: CaptionData) -> Readings:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if not path.is_dir():
        if path.suffix == ".csv" and config.task in LISTS:
            return {split: LISTS[config.task](path, config)}
        return read_captions(path, split, config)
    if config.task in FOLDERS:
        return FOLDERS[config.task](path, config)
    if (precomp := find_precomp(path)) is not None:
        return read_precomp(precomp, config)
    return read_folder(path, config)
