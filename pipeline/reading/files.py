"""Whole text and JSON files, read strictly: what is not UTF-8 or says a name twice is refused."""

import json
from pathlib import Path
from typing import Any

from pipeline.data import EncodingErrors
from pipeline.errors import DataError
from pipeline.reading.tables import undecodable


class NotJsonError(DataError):
    """The file is not one JSON document."""


def read_text(path: Path, errors: EncodingErrors) -> str:
    """Return the text of `path`, without a byte order mark.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error


def read_lines(path: Path, errors: EncodingErrors) -> list[str]:
    """Return the lines of `path` without their ends; empty ones count, a last empty one does not.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    lines = read_text(path, errors).split("\n")
    return lines if lines[-1] else lines[:-1]


def read_json(path: Path, errors: EncodingErrors) -> Any:
    """Return the JSON document in `path`.

    Raises:
        NotJsonError: it does not parse.
        DataError: there is no such file, it is not UTF-8, or an object has a name twice (all but
            the last value would be lost), or it is nested too deeply.
    """
    text = read_text(path, errors)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: a JSON object has the name {twice!r} twice; correct it")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path} is no usable JSON: it is nested too deeply") from error


def is_json_lines(path: Path, errors: EncodingErrors) -> bool:
    """Whether the first line of `path` is a JSON object by itself."""
    try:
        return isinstance(json.loads(read_text(path, errors).partition("\n")[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False
