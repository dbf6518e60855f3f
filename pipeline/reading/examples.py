"""Rows become examples: texts are checked, labels become class indices or scores.

Unusable rows are errors that name the file and the lines, unless `bad_rows` is "drop".
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.data import Example
from pipeline.errors import DataError
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.reading.problems import BadRowError, Problems, checked_text, settle
from pipeline.reading.sources import Source
from pipeline.reading.tables import Table

logger = logging.getLogger(__name__)


class _LeftOutError(Exception):
    """The row is left out on purpose (its value is within `label_margin`)."""


def label_names(source: Source, config: TextData) -> tuple[str, ...] | None:
    """Return the class names in order, None for regression; `source` holds the training rows.

    Raises:
        DataError: the training rows show fewer than two classes.
    """
    if config.scored:
        return None
    if config.label_names is not None:
        return config.label_names
    if config.label_threshold is not None:
        return ("negative", "positive")
    if config.preset is not None:
        return config.preset.labels
    column = source.columns.label
    if stated := source.table.class_names.get(source.table.find(column) or ""):
        return stated
    return class_names(source.table.values(column), f"{source.table.source} column {column!r}")


def class_names(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """Return the different labels among `values`, numbers first and in their order.

    Raises:
        DataError: there are fewer than two.
    """
    found = {name for value in values if (name := plain(value)) is not None}
    if len(found) < 2:
        raise DataError(
            f"{where} shows {len(found)} class(es) ({', '.join(sorted(found))}); a classification "
            "needs at least two"
        )
    return tuple(
        sorted(found, key=lambda name: (not _is_int(name), _is_int(name) and int(name), name))
    )


def class_number(value: Any, labels: Sequence[str]) -> int:
    """Return the number of a label, given by name or by number.

    Raises:
        BadRowError: it is missing or unknown.
    """
    name = plain(value)
    if name is None:
        raise BadRowError("the label is missing")
    if name in labels:
        return labels.index(name)
    if _is_int(name) and 0 <= int(name) < len(labels) and not any(map(_is_int, labels)):
        return int(name)
    raise BadRowError(f"unknown label {name!r} (known: {', '.join(labels)})")


def read_examples(
    source: Source,
    split: str,
    labels: tuple[str, ...] | None,
    config: TextData,
    *,
    may_hide: bool = False,
) -> list[Example]:
    """Turn the rows of `source` into examples named "split/number".

    Args:
        source: a table and where its fields are.
        split: first part of the examples' identifiers.
        labels: class names, None for regression.
        config: the data set's configuration.
        may_hide: whether the targets may all be absent (a test file for predictions).

    Raises:
        DataError: rows are unusable; the message names the file and the lines.
    """
    table, columns = source.table, source.columns
    texts = table.values(columns.text)
    pairs = [None] * len(texts) if columns.text_pair is None else table.values(columns.text_pair)
    values = _label_values(source, labels, may_hide)
    ids = range(len(texts)) if config.id is None else table.values(config.id)
    groups = _group_values(table, split, config)
    examples: list[Example] = []
    problems = Problems(table.source)
    problems.add(f"not {len(table.columns)} fields", *table.ragged)
    skipped = 0
    for number, name, text, pair, value, group in zip(
        table.numbers, ids, texts, pairs, values, groups, strict=True
    ):
        try:
            inputs = _inputs(text, pair, columns.text_pair is not None, config.pair)
            target = None if value is _HIDDEN else _target(value, labels, config)
            examples.append(Example(f"{split}/{name}", inputs, target, _group(group)))
        except BadRowError as reason:
            problems.add(str(reason), number)
        except _LeftOutError:
            skipped += 1
    settle([problems], config.bad_rows)
    if skipped:
        logger.info("%s: %d rows within the label margin left out", table.source, skipped)
    check_ids(table.source, examples)
    return examples


_HIDDEN = object()
_NO_GROUP = object()


def _label_values(source: Source, labels: tuple[str, ...] | None, may_hide: bool) -> list[Any]:
    """Return the label column; all `_HIDDEN` if a test file hides every label."""
    table, column = source.table, source.columns.label
    if may_hide and table.find(column) is None:
        return [_HIDDEN] * len(table.rows)
    values = table.values(column)
    if may_hide and all(hides_label(value, labels) for value in values):
        return [_HIDDEN] * len(values)
    return values


def _group_values(table: Table, split: str, config: TextData) -> list[Any]:
    """Return the group column; all `_NO_GROUP` if there is none, which other files may lack."""
    column = config.group_column
    if column is None or (split != "train" and table.find(column) is None):
        return [_NO_GROUP] * len(table.rows)
    return table.values(column)


def _group(value: Any) -> str | None:
    if value is _NO_GROUP:
        return None
    name = plain(value)
    if name is None:
        raise BadRowError("the group is missing")
    return name


def hides_label(value: Any, labels: tuple[str, ...] | None) -> bool:
    """Whether a test label is a placeholder: missing, or -1 where that is no class."""
    name = plain(value)
    return name is None or (name in ("-1", "-1.0") and (labels is None or name not in labels))


def _inputs(text: Any, pair: Any, is_pair: bool, mode: str) -> tuple[TextInput, ...]:
    first = checked_text(text, "the text")
    if not is_pair:
        return (TextInput(first),)
    second = checked_text(pair, "the second text")
    if mode == "separate":
        return TextInput(first), TextInput(second)
    return (TextInput(first, second),)


def _target(value: Any, labels: tuple[str, ...] | None, config: TextData) -> int | float:
    name = plain(value)
    if name is None:
        raise BadRowError("the label is missing")
    if labels is None:
        return _number(name)
    if config.label_threshold is not None:
        distance = _number(name) - config.label_threshold
        if config.label_margin and abs(distance) <= config.label_margin:
            raise _LeftOutError
        return int(distance > 0)
    return class_number(value, labels)


def _number(name: str) -> float:
    try:
        number = float(name)
    except ValueError:
        raise BadRowError(f"the label {name!r} is not a number") from None
    if not math.isfinite(number):
        raise BadRowError(f"the label {name!r} is not finite")
    return number


def plain(value: Any) -> str | None:
    """Return a label as text, 1.0 as "1"; None if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _is_int(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def check_ids(source: str, examples: Sequence[Example]) -> None:
    """Raise DataError if an id appears twice."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            name = example.id.partition("/")[2]
            raise DataError(f"{source}: the id {name!r} appears twice; drop `id` or correct it")
        seen.add(example.id)
