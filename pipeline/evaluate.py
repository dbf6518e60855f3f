"""Evaluates a finished run on any of its splits: every metric with a bootstrap interval.

Cost: one pass of the side classifier over the split's cached samples, and 1,000 evaluations of
each metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cache import Cache, FingerprintMismatch
from pipeline.config import Config, ConfigError
from pipeline.data import Dataset, load_dataset
from pipeline.run import Run
from pipeline.tasks import Task, make_task
from pipeline.tasks.metrics import Interval, bootstrap, score
from pipeline.training.files import write_json, write_lines
from pipeline.training.inference import Outputs, choose_device, run_model
from pipeline.training.samples import Located, locate


class EvaluateConfig(Config):
    """Which run is evaluated, on what."""

    run: Path
    """Folder of the finished run."""
    split: str = "test"
    """Split to evaluate: train, dev or test."""
    cache: Path | None = None
    """Cache to read, if it has moved since the training."""
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


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a run and write `predictions_<split>.jsonl` and `evaluation_<split>.json` into it.

    Raises:
        RunError: there is no finished run.
        FingerprintMismatch: the cache is not the one the run was trained on.
        DataError: the split is missing, or not in the cache.
    """
    run = Run.open(config.run)
    dataset = load_dataset(run.data)
    task = run_task(run, dataset)
    located, outputs = run_outputs(run, dataset, config.split, config)
    metrics: dict[str, Interval] = {}
    if located.targets is not None:
        metrics = bootstrap(
            task.kind,
            task.metrics,
            located.targets,
            task.decode(outputs.logits),
            resamples=config.resamples,
            level=config.level,
            seed=config.seed,
        )
    result = Evaluation(
        name="side network",
        split=config.split,
        examples=len(located.examples),
        metrics=metrics,
        level=config.level,
        predictions=write_predictions(run.path, config.split, task, located, outputs),
    )
    write_json(run.path / f"evaluation_{config.split}.json", result.to_dict())
    return result


def run_task(run: Run, dataset: Dataset) -> Task:
    """Return the run's task over `dataset`, with the class names it was trained with.

    Raises:
        ValueError: the files now give other class names.
    """
    task = make_task(dataset)
    if task.labels != run.labels:
        raise ConfigError(
            f"the run was trained on the classes {run.labels}, its files now give {task.labels}; "
            "restore the files"
        )
    return task


def open_cache(run: Run, path: Path | None = None) -> Cache:
    """Open the cache of `run`, at `path` if it has moved.

    Raises:
        FingerprintMismatch: it is another cache; the message shows the difference.
    """
    cache = Cache.open(path or run.cache_path)
    if cache.fingerprint.digest != run.info["cache"]["digest"]:
        before = type(cache.fingerprint)(run.info["cache"]["fingerprint"])
        lines = "\n  ".join(before.diff(cache.fingerprint, ("trained on", "found")))
        raise FingerprintMismatch(
            f"{path or run.cache_path} is not the cache the run {run.path} was trained on:\n  "
            f"{lines}\nGive the right one with `cache`, or train on this one"
        )
    return cache


def run_outputs(
    run: Run, dataset: Dataset, split: str, config: EvaluateConfig
) -> tuple[Located, Outputs]:
    """Return the examples of `split` and the run's outputs for them."""
    cache = open_cache(run, config.cache)
    located = locate(dataset, cache, split)
    device = choose_device(config.device)
    outputs = run_model(
        run.classifier().to(device),
        cache,
        located.samples,
        taps=run.taps,
        batch_size=config.batch_size,
        device=device,
    )
    return located, outputs


def split_metrics(
    task: Task, outputs: NDArray[np.float32], targets: NDArray[Any] | None
) -> dict[str, float]:
    """Return the task's metrics of outputs [n, C] in the target's units against targets [n]."""
    if targets is None:
        raise ValueError("a split without targets cannot be scored")
    return score(task.kind, task.metrics, targets, task.decode(outputs))


def write_predictions(
    folder: Path, split: str, task: Task, located: Located, outputs: Outputs
) -> Path:
    """Write one record an example: id, target (if known), prediction, confidence of each layer."""
    path = folder / f"predictions_{split}.jsonl"
    records = []
    described = task.describe(outputs.logits)
    for example, prediction, trust in zip(
        located.examples, described, outputs.confidence.tolist(), strict=True
    ):
        target: Any = example.target
        if target is not None and task.labels is not None:
            target = task.labels[int(target)]
        records.append({"id": example.id, "target": target, **prediction, "confidence": trust})
    write_lines(path, records)
    return path
