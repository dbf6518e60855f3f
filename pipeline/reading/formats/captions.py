"""Any captions file: a table with a column of files and one of captions, or a JSON document.

CSV, TSV, JSONL, Parquet, a JSON list of objects, a JSON mapping of file -> caption(s), each with
one caption a row or a list of them; a folder holds `captions.*`, `metadata.*`, or `train.*` with
`dev.*` and `test.*`.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.reading.config import CaptionData
from pipeline.reading.files import NotJsonError, is_json_lines, read_json
from pipeline.reading.formats.karpathy import is_karpathy, read_karpathy
from pipeline.reading.formats.rows import CaptionRow, Reading, Readings
from pipeline.reading.tables import Table, from_records, read_table

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
STEMS = {
    "train": ("train", "captions", "metadata"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test",),
}
"""File names (without suffix) of a folder's splits."""
MEDIA = (
    "media", "image", "video", "file", "file_name", "filename", "path", "image_path", "video_path",
    "image_id", "video_id", "image_name", "clip", "id",
)  # fmt: skip
CAPTIONS = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "description", "label", "raw",
    "comment",
)  # fmt: skip
"""Column names tried in this order where none is configured."""


def read_folder(folder: Path, config: CaptionData) -> Readings:
    """Read the captions files of a folder, by split.

    Raises:
        DataError: there is none, or one is unusable.
    """
    found: Readings = {}
    for split, stems in STEMS.items():
        files = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        if path := next((file for file in files if file.is_file()), None):
            found |= read_captions(path, split, config)
    if "train" not in found:
        raise DataError(
            f"the folder {folder} holds neither captions.csv nor metadata.csv nor train.csv (.tsv "
            ".jsonl .json .parquet); name the captions file itself"
        )
    return found


def read_captions(path: Path, split: str, config: CaptionData) -> Readings:
    """Read one captions file as `split`; Karpathy JSON gives all the splits it has.

    Raises:
        DataError: the file is missing or unreadable, or a column is absent.
    """
    if path.suffix.lower() == ".json":
        try:
            document = read_json(path, config.encoding_errors)
        except NotJsonError:
            if not is_json_lines(path, config.encoding_errors):
                raise
            return {split: _rows(_table(path, config), config)}
        if is_karpathy(document):
            return read_karpathy(document, str(path))
        return {split: _rows(_document(document, path), config, noun="record")}
    return {split: _rows(_table(path, config), config)}


def _table(path: Path, config: CaptionData) -> Table:
    return read_table(path, header=config.header, encoding_errors=config.encoding_errors)


def _document(document: Any, path: Path) -> Table:
    """Return the table of a JSON list of objects or mapping of file -> caption(s)."""
    if isinstance(document, dict):
        if document.keys() & set(MEDIA) and document.keys() & set(CAPTIONS):
            document = [document]  # JSON lines of a single line
        elif all(isinstance(value, str | list) for value in document.values()):
            document = [{"media": name, "captions": text} for name, text in document.items()]
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise DataError(
            f"{path} is no captions file: a JSON document must be a list of objects, a mapping "
            'of file -> caption(s), or {"images": [{"filename", "split", "sentences"}]}'
        )
    if not document:
        raise DataError(f"{path} is empty")
    return from_records(str(path), document, list(range(1, len(document) + 1)))


def _rows(table: Table, config: CaptionData, noun: str = "line") -> Reading:
    media = _column(table, config.media_column, MEDIA, "media_column")
    captions = _column(table, config.caption_column, CAPTIONS, "caption_column")
    groups: list[Any] = [None] * len(table.rows)
    if config.group_column is not None:
        groups = _column(table, config.group_column, (), "group_column")
    reading = Reading(table.source)
    reading.problems.add(
        f"not {len(table.columns)} fields", *(f"line {number}" for number in table.ragged)
    )
    for number, item, caption, group in zip(table.numbers, media, captions, groups, strict=True):
        name = "" if item is None else str(item)
        several = list(caption) if isinstance(caption, list | tuple) else [caption]
        for text in several or [None]:
            reading.rows.append(
                CaptionRow(
                    name, name, text, f"{noun} {number}", None if group is None else str(group)
                )
            )
    return reading


def _column(table: Table, configured: str | None, known: tuple[str, ...], field: str) -> list[Any]:
    """Return the configured column's values, or those of the first known name.

    Raises:
        DataError: there is none; the message lists those there are.
    """
    names = (configured,) if configured is not None else known
    name = next((column for name in names if (column := table.find(name)) is not None), None)
    if name is None:
        wanted = repr(configured) if configured is not None else f"called {' '.join(known)}"
        raise DataError(
            f"{table.source} has no column {wanted}; it has {', '.join(table.columns)}. Name it "
            f"with `{field}` (a headerless file: `header: false` and 0-based positions)"
        )
    return table.values(name)
