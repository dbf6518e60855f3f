"""What an extraction says: where it stands, and what it did."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from cache.storage.location import Location
from pipeline.console import duration

_SHOWN = 5


class Progress(NamedTuple):
    """How far an extraction is: tokens and shards of this run, tokens a second, seconds left.

    What counts as a token is the `unit`: tokens of texts, frames of videos, images.
    """

    tokens: int
    total_tokens: int
    shard: int
    n_shards: int
    rate: float
    eta: float
    unit: str = "tokens"

    def describe(self) -> str:
        """Return one line: share done, shard, tokens a second, time left."""
        return (
            f"{self.tokens / max(1, self.total_tokens):4.0%}  shard {self.shard + 1} of "
            f"{self.n_shards}  {describe_rate(self.rate, self.unit)}  {duration(self.eta)} left"
        )


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Counts what a run has done and tells a callback.

    Args:
        total: tokens of the run.
        n_shards: shards of the run.
        unit: what is counted.
        callback: told after each step.
    """

    def __init__(
        self, total: int, n_shards: int, unit: str, callback: ProgressCallback | None
    ) -> None:
        self.total, self.n_shards, self.unit = total, n_shards, unit
        self.done, self.shards = 0, 0
        self._callback = callback
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    def add(self, tokens: int, shards: int = 0) -> None:
        """Count tokens, and shards, that are done."""
        self.done += tokens
        self.shards += shards
        if self._callback is not None:
            rate = self.done / self.seconds
            eta = (self.total - self.done) / rate if rate else 0.0
            shard = min(self.shards, self.n_shards - 1)
            self._callback(
                Progress(self.done, self.total, shard, self.n_shards, rate, eta, self.unit)
            )


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        path: the cache.
        rows: rows of the table; `samples` of them are unique, every view counted.
        tokens: tokens (frames, images: see `unit`) stored, without duplicates and padding.
        truncated: unique inputs that were cut; `truncation` says which, or is None.
        shards: shards of the cache; `shards_written` of them by this run.
        bytes: size of the finished folder.
        seconds: of the forward passes and the writing, in this run.
        tokens_per_second: valid tokens of this run a second; 0 if nothing was left to do.
        unit: what `tokens` counts: "tokens", "frames" or "images".
        views: versions of each training input.
        notes: what is odd about how many media files, such as {"16-bit": 3}.
        skipped: row id -> why it was left out, of media that cannot be read.
    """

    path: Location
    rows: int
    samples: int
    tokens: int
    truncated: int
    truncation: str | None
    taps: tuple[str, ...]
    shards: int
    shards_written: int
    bytes: int
    seconds: float
    tokens_per_second: float
    fingerprint: str
    unit: str = "tokens"
    views: int = 1
    notes: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"path": str(self.path), "taps": list(self.taps)}

    def render(self) -> str:
        """Return the report as lines of text."""
        views = f" in {self.views} views" if self.views > 1 else ""
        speed = describe_rate(self.tokens_per_second, self.unit)
        lines = [
            f"{self.path}: {self.samples:,} unique inputs of {self.rows:,} rows{views}, "
            f"{self.tokens:,} {self.unit} x {len(self.taps)} taps, {self.bytes:,} bytes",
            f"{self.shards_written} of {self.shards} shards computed in {self.seconds:.1f} s"
            + (f" ({speed})" if self.shards_written else ""),
        ]
        if self.truncation:
            lines.append(self.truncation)
        return "\n".join(lines + describe_media(self.notes, self.skipped))


def describe_rate(rate: float, unit: str) -> str:
    """Return a speed, such as `1,200 tokens/s` or `0.42 images/s`."""
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"


def describe_media(notes: Mapping[str, int], skipped: Mapping[str, str]) -> list[str]:
    """Return a line on odd media files and some on the rows that were left out; [] if none."""
    lines = []
    if notes:
        lines.append(
            "odd media files, all used: "
            + ", ".join(f"{count:,} {note}" for note, count in notes.items())
        )
    if skipped:
        lines.append(f"{len(skipped):,} row(s) left out, whose media cannot be read:")
        lines += [f"  {row}: {why}" for row, why in list(skipped.items())[:_SHOWN]]
        if len(skipped) > _SHOWN:
            lines.append(f"  and {len(skipped) - _SHOWN:,} more")
    return lines
