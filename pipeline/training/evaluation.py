"""What every evaluation is: its configuration, its result, its table, and the caches it reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cache import Cache, FingerprintMismatch
from cache.storage.location import Location, parse_location
from pipeline.config import Config
from pipeline.places import Place
from pipeline.run import Run
from pipeline.tasks.metrics import Interval


class EvaluateConfig(Config):
    """Which run is evaluated, on what."""

    run: Path
    """Folder of the finished run."""
    split: str = "test"
    """Split to evaluate: train, dev or test."""
    cache: Place | None = None
    """Cache to read, if it has moved since the training; a retrieval has two others."""
    text_cache: Place | None = None
    """Retrieval: cache of the captions, if it has moved since the training."""
    media_cache: Place | None = None
    """Retrieval: cache of the pictures or clips, if it has moved since the training."""
    resamples: int = Field(default=1000, ge=0)
    """Bootstrap resamples of an interval."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Share of the resamples inside an interval."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resamples."""
    batch_size: int = Field(default=64, ge=1)
    """Examples of one pass."""
    device: str = "auto"
    """Torch device; auto takes CUDA, then MPS, then the CPU."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one split.

    Attributes:
        name: what was evaluated, for a table's first column.
        split: name of the split.
        examples: number of examples.
        metrics: each with its interval; empty if the labels are hidden.
        level: share of the resamples inside an interval.
        predictions: file of the predictions, if one was written.
    """

    name: str
    split: str
    examples: int
    metrics: Mapping[str, Interval]
    level: float
    predictions: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "name": self.name,
            "split": self.split,
            "examples": self.examples,
            "level": self.level,
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "predictions": None if self.predictions is None else str(self.predictions),
        }

    def render(self) -> str:
        """Return a table for the terminal."""
        return render_table([self])


def render_table(rows: list[Evaluation]) -> str:
    """Return a table of evaluations of one split, one row each, for the terminal."""
    if not rows:
        return "(nothing was evaluated)"
    head = [f"{rows[0].split} ({rows[0].examples:,} examples)", *rows[0].metrics]
    lines = [head]
    for row in rows:
        cells = [f"{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for v in row.metrics.values()]
        lines.append([row.name, *(cells or ["labels hidden: predictions only"])])
    count = max(map(len, lines))
    lines = [line + [""] * (count - len(line)) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(count)]
    shown = ["  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines]
    note = f"[..] = {rows[0].level:.0%} bootstrap interval"
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], *([note] if head[1:] else [])])


def open_cache(run: Run, recorded: Mapping[str, Any], path: Location | None = None) -> Cache:
    """Open a cache that a run was trained on, at `path` if it has moved.

    Args:
        run: for the message.
        recorded: what run.json says of the cache: path, digest and fingerprint.
        path: where it is now; None for where it was.

    Raises:
        FingerprintMismatch: it is another cache; the message shows the difference.
    """
    path = path or parse_location(recorded["path"])
    cache = Cache.open(path)
    if cache.fingerprint.digest != recorded["digest"]:
        before = type(cache.fingerprint)(recorded["fingerprint"])
        lines = "\n  ".join(before.diff(cache.fingerprint, ("trained on", "found")))
        raise FingerprintMismatch(
            f"{path} is not the cache the run {run.path} was trained on:\n  {lines}\nGive "
            "the right one, or train on this one"
        )
    return cache
