"""Reads tables of examples: TSV, CSV, JSONL and Parquet files, and Hugging Face `datasets` folders.

Every row keeps its line number (row number for Parquet and `datasets`), so that a bad row can be
named. TSV is read without quoting, as GLUE writes it; CSV with standard quoting. The price: the
table is held in memory once, about 0.4 KB a row of short text.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data import EncodingErrors
from pipeline.errors import DataError
from pipeline.extras import require


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one file, by column name; a headerless file has the columns "0", "1", ..."""

    source: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    numbers: list[int]
    """Line number (1-based) of each row."""
    ragged: list[int] = field(default_factory=list)
    """Line numbers of rows left out because their number of fields is wrong."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes of integer label columns, where the file states them."""

    def find(self, column: str) -> str | None:
        """Return the name of `column`, given by name or by 0-based position; None if absent."""
        if column in self.columns:
            return column
        if column.isdecimal() and int(column) < len(self.columns):
            return self.columns[int(column)]
        return None

    def values(self, column: str) -> list[Any]:
        """Return the values of `column`, given by name or by 0-based position.

        Raises:
            DataError: there is no such column; the message lists those there are.
        """
        name = self.find(column)
        if name is None:
            raise DataError(
                f"{self.source} has no column {column!r}; it has {', '.join(self.columns)}. "
                "Name the columns with `text`, `text_pair`, `label` and `group_column` (without a "
                "header: `header: false` and 0-based positions)"
            )
        position = self.columns.index(name)
        return [row[position] for row in self.rows]


def read_table(
    path: Path,
    *,
    header: bool = True,
    encoding_errors: EncodingErrors = "strict",
) -> Table:
    """Read one file by its suffix: .tsv .txt .tab, .csv, .jsonl .json .ndjson, .parquet.

    Raises:
        DataError: the file is missing, of an unknown kind, not text, or not parseable.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".txt", ".tab"):
            return _delimited(path, _tab_lines(path, encoding_errors), header)
        if suffix == ".csv":
            return _delimited(path, _csv_lines(path, encoding_errors), header)
        if suffix in (".jsonl", ".json", ".ndjson"):
            return _json_lines(path, encoding_errors)
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    except csv.Error as error:
        raise DataError(f"{path} is not readable as CSV: {error}") from error
    if suffix == ".parquet":
        return _parquet(path)
    raise DataError(
        f"{path}: unknown kind of file {suffix!r}; known: .tsv .txt .tab .csv .jsonl .json "
        ".ndjson .parquet, or a folder (GLUE's own layout, or `datasets.save_to_disk`)"
    )


def undecodable(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the error for a file that is not UTF-8."""
    return DataError(
        f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it, or set "
        "`encoding_errors: replace` to read bad bytes as the replacement character"
    )


def from_records(source: str, records: list[dict[str, Any]], numbers: list[int]) -> Table:
    """Return the table of JSON objects; a column is any name one of them has, absent as None."""
    columns = tuple(dict.fromkeys(name for record in records for name in record))
    rows = [tuple(record.get(name) for name in columns) for record in records]
    return Table(source=source, columns=columns, rows=rows, numbers=numbers)


def first_line(path: Path, encoding_errors: EncodingErrors) -> tuple[str, ...]:
    """Return the fields of the first line of a TSV file."""
    for _, fields in _tab_lines(path, encoding_errors):
        return tuple(fields)
    return ()


def read_datasets_folder(path: Path) -> dict[str, Table]:
    """Read a `datasets.save_to_disk` folder: its splits by name, a lone split as "all".

    Raises:
        MissingExtra: the extra `datasets` is not installed.
    """
    datasets = require("datasets")
    loaded = datasets.load_from_disk(str(path))
    splits = loaded if isinstance(loaded, dict) else {"all": loaded}
    return {name: _from_dataset(f"{path}[{name}]", split) for name, split in splits.items()}


def is_datasets_folder(path: Path) -> bool:
    """Whether `path` was written by `datasets.save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _tab_lines(path: Path, errors: EncodingErrors) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", errors=errors, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if content := line.rstrip("\r\n"):
                yield number, content.split("\t")


def _csv_lines(path: Path, errors: EncodingErrors) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as lines, _long_fields():
        reader = csv.reader(lines, strict=True)
        start = 1
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimited(path: Path, lines: Iterator[tuple[int, list[str]]], header: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    ragged: list[int] = []
    columns: tuple[str, ...] | None = None
    for number, fields in lines:
        if columns is None:
            columns = tuple(fields) if header else tuple(map(str, range(len(fields))))
            if header:
                continue
        if len(fields) != len(columns):
            ragged.append(number)
            continue
        rows.append(tuple(fields))
        numbers.append(number)
    if columns is None:
        raise DataError(f"{path} is empty")
    return Table(source=str(path), columns=columns, rows=rows, numbers=numbers, ragged=ragged)


def _json_lines(path: Path, errors: EncodingErrors) -> Table:
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig", errors=errors, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path} line {number} is not a JSON object; one object a line")
            records.append(record)
            numbers.append(number)
    return from_records(str(path), records, numbers)


def _parquet(path: Path) -> Table:
    parquet = require("pyarrow.parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as Parquet: {error}") from error
    columns = tuple(table.column_names)
    rows = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    return Table(
        source=str(path), columns=columns, rows=rows, numbers=list(range(1, len(rows) + 1))
    )


def _from_dataset(source: str, split: Any) -> Table:
    columns = tuple(split.column_names)
    rows = list(zip(*(list(split[name]) for name in columns), strict=True))
    features = {  # of a list, its elements'
        name: getattr(feature, "feature", feature) for name, feature in split.features.items()
    }
    names = {
        name: tuple(feature.names)
        for name, feature in features.items()
        if hasattr(feature, "names")
    }
    return Table(
        source=source,
        columns=columns,
        rows=rows,
        numbers=list(range(1, len(rows) + 1)),
        class_names=names,
    )
