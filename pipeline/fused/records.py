"""Texts to label, streamed: one record at a time, each with its line number.

Plain lines, TSV without quoting, CSV with standard quoting, or JSON lines. Memory: one record.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, get_args

from pipeline.errors import PipelineError

TextFormat = Literal["lines", "tsv", "csv", "jsonl"]
SUFFIXES: dict[str, TextFormat] = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl"}


class RecordError(PipelineError, ValueError):
    """The input cannot be read; the message names the line and the way out."""


class Record(NamedTuple):
    """One text (or pair) to label and the line (1-based) it begins on; None if it is empty."""

    line: int
    text: str | None
    pair: str | None = None


def read_records(
    lines: Iterable[str], layout: TextFormat, *, text: str, text_pair: str | None
) -> Iterator[Record]:
    """Yield the records of `lines`.

    Args:
        lines: of an open text file.
        layout: how a line is written.
        text: column of the text (for plain lines unused).
        text_pair: column of the second text; for plain lines, any value makes a line a pair,
            separated by a tab.

    Raises:
        RecordError: a column is absent, or a line does not have the layout.
    """
    if layout not in get_args(TextFormat):
        raise RecordError(f"unknown layout {layout!r}; known: {', '.join(get_args(TextFormat))}")
    columns = [text] if text_pair is None else [text, text_pair]
    if layout == "lines":
        rows = _plain(lines, len(columns))
    elif layout == "jsonl":
        rows = _jsonl(lines, columns)
    else:
        rows = _table(lines, layout, columns)
    for line, values in rows:
        if all(value and value.strip() for value in values):
            yield Record(line, *values)
        else:
            yield Record(line, None)


def _plain(lines: Iterable[str], wanted: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        content = line.rstrip("\r\n")
        values = [content] if wanted == 1 else content.split("\t")
        if len(values) != wanted:
            if not content.strip():
                values = [""]
            else:
                raise RecordError(
                    f"line {number} has {len(values)} field(s); a pair is two texts and a tab"
                )
        yield number, values


def _jsonl(lines: Iterable[str], columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield number, [""]
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RecordError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or any(column not in record for column in columns):
            known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise RecordError(f"line {number} lacks one of {columns}; it has: {known}")
        yield number, ["" if record[column] is None else str(record[column]) for column in columns]


def _table(
    lines: Iterable[str], layout: TextFormat, columns: list[str]
) -> Iterator[tuple[int, list[str]]]:
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if layout == "tsv" else {}
    reader = csv.reader(lines, **options)  # type: ignore[arg-type]
    header = next(reader, None)
    if header is None:
        return
    absent = [column for column in columns if column not in header]
    if absent:
        raise RecordError(f"there is no column {absent}; there are: {', '.join(header)}")
    places = [header.index(column) for column in columns]
    before = reader.line_num
    for row in reader:
        line, before = before + 1, reader.line_num
        if row and len(row) != len(header):
            raise RecordError(f"line {line} has {len(row)} fields, the header {len(header)}")
        yield line, [row[place] for place in places] if row else [""]
