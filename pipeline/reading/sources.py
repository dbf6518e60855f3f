"""Finds the tables of a data set: single files, GLUE folders, `datasets` folders.

A folder's splits keep their own names ("train", "validation", "validation_matched", "test", ...);
`pipeline.reading.splits` decides what serves as dev and test.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.reading.config import TextData
from pipeline.reading.glue import Columns
from pipeline.reading.tables import (
    Table,
    first_line,
    is_datasets_folder,
    read_datasets_folder,
    read_table,
)

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt")
STEMS = {
    "train": ("train", "msr_paraphrase_train"),
    "validation": ("dev", "validation", "valid"),
    "validation_matched": ("dev_matched", "validation_matched"),
    "validation_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "msr_paraphrase_test"),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}
"""Official and usual file names (without suffix) of a folder's splits."""
SAME = {"dev": "validation", "valid": "validation", "all": "train"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table and where its fields are."""

    table: Table
    columns: Columns


def read_sources(config: TextData) -> dict[str, Source]:
    """Read the tables by split name; an explicit dev or test file replaces the folder's splits.

    Raises:
        DataError: a file is missing or unreadable, or a folder holds no training rows.
    """
    sources = _read(config.train, config, only="train")
    if "train" not in sources:
        raise DataError(f"{config.train} holds no training rows; found: {', '.join(sources)}")
    for split, own in (("dev", "validation"), ("test", "test")):
        path = config.dev if split == "dev" else config.test
        if path is None:
            continue
        sources = {name: value for name, value in sources.items() if not name.startswith(own)}
        found = _read(path, config, only=split)
        sources[split] = found.get(split) or found.get(own) or next(iter(found.values()))
    return sources


def _read(path: Path, config: TextData, *, only: str) -> dict[str, Source]:
    if not path.is_dir():
        return {only: _file(path, config)}
    if is_datasets_folder(path):
        return {
            SAME.get(name, name): Source(table=table, columns=_columns(table.columns, config))
            for name, table in read_datasets_folder(path).items()
        }
    found = {
        split: _file(file, config)
        for split, stems in STEMS.items()
        if (file := _first_file(path, stems)) is not None
    }
    if not found:
        raise DataError(
            f"the folder {path} holds neither train.tsv (.csv .jsonl .parquet) nor a "
            "`datasets.save_to_disk` data set"
        )
    return found


def _first_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    files = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _file(path: Path, config: TextData) -> Source:
    header = config.header
    preset = config.preset
    if preset is not None and config.text is None and path.suffix in (".tsv", ".txt"):
        if not path.is_file():
            raise DataError(f"there is no file {path}")
        first = first_line(path, config.encoding_errors)
        named = any(c.header and c.text in first for c in preset.columns)
        header = named or all(c.header for c in preset.columns)
    table = read_table(path, header=header, encoding_errors=config.encoding_errors)
    return Source(table=table, columns=_columns(table.columns, config))


def _columns(present: tuple[str, ...], config: TextData) -> Columns:
    """Choose the columns: the configured ones, else the task's layout that fits the file."""
    if config.preset is None:
        return Columns(
            text=config.text or "text", text_pair=config.text_pair, label=config.label or "label"
        )
    layouts = config.preset.columns
    fitting = [c for c in layouts if c.text in present and (c.text_pair or c.text) in present]
    fitting = [c for c in fitting if c.label in present] or fitting or [layouts[0]]
    if config.text is None:
        chosen = fitting[0]
        return chosen if config.label is None else _relabel(chosen, config.label)
    return Columns(
        text=config.text,
        text_pair=config.text_pair,
        label=config.label or fitting[0].label,
        header=config.header,
    )


def _relabel(columns: Columns, label: str) -> Columns:
    return Columns(
        text=columns.text, text_pair=columns.text_pair, label=label, header=columns.header
    )
