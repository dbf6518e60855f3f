"""Unusable rows, gathered first and reported together: by reason, the first few named, all counted.

`bad_rows` decides what follows: an error that names them, or rows left out with a logged sentence.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import DataError

logger = logging.getLogger(__name__)

SHOWN = 5
"""Places named for each reason; the rest is counted."""

BadRows = Literal["error", "drop"]


class BadRowError(Exception):
    """The row is unusable; the message is the reason."""


@dataclass
class Problems:
    """The unusable rows of one source: reason -> the places it was met at."""

    source: str
    noun: str = "line "
    """What stands before the places of a reason."""
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, *places: object) -> None:
        """Note `places` (line numbers, or names) as unusable for `reason`."""
        if places:
            self.places.setdefault(reason, []).extend(map(str, places))

    @property
    def counts(self) -> dict[str, int]:
        """Rows by reason."""
        return {reason: len(places) for reason, places in self.places.items()}

    def __str__(self) -> str:
        reasons = "; ".join(
            f"{reason}: {self.noun}{first_few(places)}" for reason, places in self.places.items()
        )
        return f"{self.source}: {sum(self.counts.values())} unusable row(s): {reasons}"


def checked_text(value: object, what: str = "the text") -> str:
    """Return `value` as text.

    Raises:
        BadRowError: it is missing, a list or a mapping, or holds nothing but white space; `what`
            names it.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadRowError(f"{what} is missing")
    if isinstance(value, dict | list | tuple):
        kind = "mapping" if isinstance(value, dict) else "list"
        raise BadRowError(
            f"{what} is a {kind}, not a text: join its parts, or name the column of a text"
        )
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        raise BadRowError(f"{what} is empty")
    return text


def first_few(names: Sequence[object], shown: int = SHOWN) -> str:
    """Return the first `shown` names, and how many more there are."""
    text = ", ".join(map(str, names[:shown]))
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def settle(problems: Iterable[Problems], bad_rows: BadRows) -> dict[str, int]:
    """Refuse the unusable rows, or leave them out with a logged sentence.

    Returns:
        The rows left out, by reason.

    Raises:
        DataError: `bad_rows` is "error" and there are some; every source is named.
    """
    found = [each for each in problems if each.places]
    if found and bad_rows == "error":
        raise DataError(
            "\n".join(map(str, found)) + ". Correct them, or set `bad_rows: drop` to leave them out"
        )
    dropped: dict[str, int] = {}
    for each in found:
        logger.warning("%s (left out)", each)
        for reason, count in each.counts.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return dropped
