"""Scores a split: one inference, one judgement, one bootstrap, for whatever system.

Cost: one pass of the side model over the split's cached samples, and `resamples` evaluations of
the metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.console import table
from pipeline.systems import Setup
from pipeline.systems.inference import run_passes
from pipeline.tasks.base import Judged
from pipeline.tasks.metrics import Interval, bootstrap
from pipeline.training.files import write_lines

__all__ = ["Evaluation", "evaluated", "judge_split", "render_table", "write_records"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one split.

    Attributes:
        name: what was evaluated, for a table's first column.
        split: name of the split.
        examples: number of units that a resample draws.
        unit: what these are, in the plural.
        digits: after the point, of the metrics shown.
        metrics: each with its interval; empty if the labels are hidden.
        extras: figures of the whole split without interval.
        level: share of the resamples inside an interval.
        predictions: file of the predictions, if one was written.
    """

    name: str
    split: str
    examples: int
    unit: str = "examples"
    digits: int = 3
    metrics: Mapping[str, Interval]
    extras: Mapping[str, float] = field(default_factory=dict)
    level: float
    predictions: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "name": self.name,
            "split": self.split,
            "examples": self.examples,
            "unit": self.unit,
            "digits": self.digits,
            "level": self.level,
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "extras": dict(self.extras),
            "predictions": None if self.predictions is None else str(self.predictions),
        }

    def render(self) -> str:
        """Return a table for the terminal."""
        return render_table([self])


def judge_split(setup: Setup, model: nn.Module, split: str, *, batch_size: int) -> Judged:
    """Return the judgement of a model's outputs for a split."""
    located = setup.splits[split]
    outputs = run_passes(model, setup, located, batch_size=batch_size)
    judged: Judged = setup.task.judge(outputs, located.examples)
    return judged


def evaluated(
    judged: Judged,
    *,
    name: str,
    split: str,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    predictions: Path | None = None,
) -> Evaluation:
    """Return every metric of a judgement with its bootstrap interval."""
    metrics = bootstrap([judged], resamples=resamples, level=level, seed=seed)
    return Evaluation(
        name=name,
        split=split,
        examples=len(judged),
        unit=judged.unit,
        digits=judged.digits,
        metrics=metrics,
        extras=judged.extras() if metrics else {},
        level=level,
        predictions=predictions,
    )


def write_records(folder: Path, split: str, judged: Judged) -> Path:
    """Write the records of a judgement, a file for each kind; return that of the predictions."""
    for name, records in judged.records().items():
        write_lines(folder / f"{name}_{split}.jsonl", records)
    return folder / f"predictions_{split}.jsonl"


def render_table(rows: Sequence[Evaluation]) -> str:
    """Return a table of evaluations of one split, one row each, for the terminal."""
    if not rows:
        return "(nothing was evaluated)"
    first = rows[0]
    names = list(first.metrics)
    lines = [[f"{first.split} ({first.examples:,} {first.unit})", *names]]
    for row in rows:
        cells = [_cell(row.metrics[name], row.digits) for name in names]
        lines.append([row.name, *(cells or ["labels hidden: predictions only"])])
    shown = table(lines)
    if names:
        shown.append(f"[..] = {first.level:.0%} bootstrap interval over {first.unit}")
    if len(rows) == 1 and first.extras:
        shown.append(", ".join(f"{name} {value:g}" for name, value in first.extras.items()))
    return "\n".join(shown)


def _cell(found: Interval, digits: int) -> str:
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
