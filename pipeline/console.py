"""One line of progress on standard error: how far, how fast, how long still."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

INTERVAL = 0.2
"""Seconds between two updates on a terminal; a log gets one line every `LOG_INTERVAL`."""
LOG_INTERVAL = 15.0


class Describable(Protocol):
    """A step of progress that can say where it stands."""

    def describe(self) -> str:
        """Return one line."""


@contextmanager
def progress_line(stream: TextIO | None = None) -> Iterator[Callable[[Describable], Any]]:
    """Yield a callback that keeps one line of `stream` (standard error) up to date.

    On a terminal the line is rewritten in place and removed at the end; elsewhere a line is added
    now and then, so that a log stays readable.
    """
    out = sys.stderr if stream is None else stream
    live = out.isatty()
    last, shown = time.monotonic() - (INTERVAL if live else 0.0), 0

    def update(step: Describable) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - last < (INTERVAL if live else LOG_INTERVAL):
            return
        last, text = now, step.describe()
        if live:
            out.write("\r" + text.ljust(shown))
            shown = len(text)
        else:
            out.write(text + "\n")
        out.flush()

    try:
        yield update
    finally:
        if shown:
            out.write("\r" + " " * shown + "\r")
            out.flush()


def duration(seconds: float) -> str:
    """Return seconds as `8 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of aligned columns, a rule below the first."""
    count = max(map(len, rows))
    filled = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in filled) for column in range(count)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in filled]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
