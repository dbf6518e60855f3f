"""Evaluates a finished run on any of its splits: every metric with a bootstrap interval.

Cost: one pass of the side classifier over the split's cached samples, and 1,000 evaluations of
each metric.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.data import Dataset, load_dataset
from pipeline.retrieval.evaluate import evaluate_retrieval
from pipeline.run import Run
from pipeline.tasks import Task, make_task
from pipeline.tasks.metrics import Interval, bootstrap, score
from pipeline.training.evaluation import EvaluateConfig, Evaluation, open_cache, render_table
from pipeline.training.files import write_json, write_lines
from pipeline.training.inference import Outputs, choose_device, run_model
from pipeline.training.samples import Located, locate

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "evaluate",
    "render_table",
    "run_outputs",
    "run_task",
    "split_metrics",
    "write_predictions",
]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a run and write `predictions_<split>.jsonl` and `evaluation_<split>.json` into it.

    A run of retrieval is evaluated by `pipeline.retrieval.evaluate`.

    Raises:
        RunError: there is no finished run.
        FingerprintMismatch: the cache is not the one the run was trained on.
        DataError: the split is missing, or not in the cache.
    """
    run = Run.open(config.run)
    if run.kind == "retrieval":
        return evaluate_retrieval(config)
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


def run_outputs(
    run: Run, dataset: Dataset, split: str, config: EvaluateConfig
) -> tuple[Located, Outputs]:
    """Return the examples of `split` and the run's outputs for them."""
    cache = open_cache(run, run.info["cache"], config.cache)
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
