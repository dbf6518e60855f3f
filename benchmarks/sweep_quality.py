"""The best trial that a sweep finds against the default configuration: chosen by dev, three seeds.

Tweets come through pip (see `pipeline.demo.assets`); `--text FOLDER` adds CoLA and STS-B from a
folder with cola-train.tsv and cola-dev.tsv, stsb-train.csv, stsb-dev.csv and stsb-test.csv (files
that are not there are left out). Each task is cached once through MiniLM and swept over `SPACE`
with halving, trials scored by the mean dev metric over the seeds. The defaults and the winner are
then trained by `train` with each seed; test is read for these alone. What is finished in `--work`
is used again, and tasks that were reported stay in the report, so this can be done in parts.

    python -m benchmarks.sweep_quality [--text FOLDER] [--trials 60]

Cost on two cores: 10 min of sweep for tweets, 30 for CoLA and STS-B each.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report, reported
from pipeline.console import progress_line
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm
from pipeline.demo.run import tweets
from pipeline.extract import ExtractConfig, extract
from pipeline.run import Run
from pipeline.sweep import SweepConfig, sweep
from pipeline.sweep.space import Params
from pipeline.systems import data_config, train_config
from pipeline.systems.config import TrainConfig
from pipeline.tasks.metrics import LOWER_IS_BETTER
from pipeline.train import train

ASSETS = Path(".demo")
SEEDS = (0, 1, 2)
SPACE: dict[str, Any] = {
    "lr": "log:1e-4..3e-3",
    "epochs": "int:3..12",
    "dropout": "0..0.6",
    "weight_decay": "log:1e-3..0.3",
    "ema": [0.0, 0.99, 0.999],
    "noise": [0.0, 0.5, 1.0],
    "reduction": [1, 2, 4],
}
"""What is searched on every task."""
GRAMMAR: dict[str, Any] = {
    "taps": [["*"], ["embeddings", "encoder.layer.0[0-3]"]],
    "class_weights": ["none", "balanced"],
}
"""More for CoLA, whose classes are uneven, and whose grammar the last layers have lost."""


def tasks(text: Path | None) -> dict[str, DataConfig]:
    """Return the tasks whose files are there."""
    found = {"tweets": tweets(ASSETS)}
    if text is not None and (text / "cola-train.tsv").is_file():
        files = {"train": text / "cola-train.tsv", "test": text / "cola-dev.tsv"}
        found["cola"] = data_config({"task": "cola", **files})
    if text is not None and (text / "stsb-train.csv").is_file():
        parts = {split: text / f"stsb-{split}.csv" for split in ("train", "dev", "test")}
        columns = {"header": False, "text": "0", "text_pair": "1", "label": "2"}
        found["stsb"] = data_config({"task": "stsb", "pair": "separate", **parts, **columns})
    return found


def scores(work: Path, base: TrainConfig, params: Params, name: str) -> dict[str, list[float]]:
    """Train a point with each seed; return the dev and the test metric of each."""
    found: dict[str, list[float]] = {"dev": [], "test": []}
    for seed in SEEDS:
        out = work / f"{name}-{seed}"
        values = base.model_dump() | params | {"out": out, "seed": seed}
        train(train_config(values))
        run = Run.open(out)
        for split, each in found.items():
            each.append(run.info["metrics"][split][run.info["task_metrics"][0]])
    return found


def searched(
    work: Path, task: str, data: DataConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Cache and sweep a task; return the scores of the defaults and of the winner."""
    source = ExtractConfig(backbone=str(minilm(ASSETS)), data=data, out=work / f"{task}.zarr")
    print(extract(source).render(), flush=True)
    base = train_config({"data": data, "cache": source.out, "out": work / task})
    space = SPACE | (GRAMMAR if task == "cola" else {})
    config = SweepConfig(
        run=base, space=space, trials=options.trials, seeds=len(SEEDS), refit="none", keep=1
    )
    with progress_line() as line:
        result = sweep(config.model_copy(update={"workers": options.workers}), progress=line)
    print(result.render(), flush=True)
    return {
        "metric": result.metric,
        "params": result.params,
        "trials": len(result.trials),
        "sweep_seconds": result.seconds,
        "defaults": scores(work, base, {}, f"{task}-defaults"),
        "winner": scores(work, base, result.params, f"{task}-winner"),
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Return a row a task: means over the seeds, and whether the winner is better on test."""
    lines = ["task     metric      defaults dev  test     winner dev  test     winner's settings"]
    for task, row in figures.items():
        means = [
            statistics.mean(row[who][split])
            for who in ("defaults", "winner")
            for split in ("dev", "test")
        ]
        sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
        verdict = "better" if sign * (means[3] - means[1]) > 0 else "not better"
        cells = "  ".join(f"{mean:8.4f}" for mean in means)
        lines.append(f"{task:8} {row['metric']:10} {cells}  {verdict}; {row['params']}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "sweep-quality")
    parser.add_argument("--text", type=Path, help="folder of the CoLA and STS-B files")
    parser.add_argument("--tasks", nargs="+", help="some of the tasks; all by default")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    known = tasks(options.text)
    unknown = sorted(set(options.tasks or ()) - set(known))
    if unknown:
        parser.error(f"unknown tasks {unknown}; known are {list(known)} (others need --text)")
    figures = reported("sweep_quality", "tasks", seeds=SEEDS, space=SPACE)
    for task in options.tasks or known:
        figures[task] = searched(options.work, task, known[task], options)
        report("sweep_quality", {"seeds": SEEDS, "space": SPACE, "tasks": figures}, table(figures))


if __name__ == "__main__":
    main()
