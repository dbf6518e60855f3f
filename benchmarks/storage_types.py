"""What each storage type costs on real text: bytes of the cache, and the trained network's metric.

    python -m benchmarks.storage_types [--tasks tweets amazon] [--work .demo/storage-types]

The same side network (the defaults of `train`) is trained with each seed from caches of MiniLM's
states of the same sentences: float32 as extracted, float16, bfloat16 and int8 as `cache convert`
makes them of it (the same numbers as an extraction in that type), int8 with the last tap in
float16, and float16 pooled at extraction. A difference of means is called within the spread if it
is at most the standard deviation over the seeds of float16. Each cache is deleted when its runs are
done; a row that is finished in `--work` is used again.
Cost on one core: 3 extractions of 20 to 60 s and 21 runs of 5 to 70 s a task, and at most 1.5 GB of
disk at a time (4.5 GB with `--tasks movie`).
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report
from cache import Cache, convert
from cache.format.spec import StorageType
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm, sentiment
from pipeline.demo.run import tweets
from pipeline.extract import ExtractConfig, extract
from pipeline.run import Run
from pipeline.systems import train_config
from pipeline.train import train

ASSETS = Path(".demo")
SEEDS = (0, 1, 2)
CONVERTED: tuple[StorageType, ...] = ("float16", "bfloat16", "int8")
MIXED = "int8, last tap float16"
POOLED = {"float16, pool mean": "mean", "float16, pool first (CLS)": "first"}
"""Rows of pooled caches, and their `--pool`."""
BASE = "float16"
"""The row that the others are compared with."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "storage-types")
    parser.add_argument("--tasks", nargs="+", choices=(*RATED, "tweets"), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args(arguments)
    figures = {}
    for task in options.tasks:
        rows = measured(options.work / task, data(task), options.seeds)
        figures[task] = {name: compared(row, rows[BASE]) for name, row in rows.items()}
    report("storage_types", {"seeds": options.seeds, "tasks": figures}, table(figures))


TASKS = ("tweets", "amazon")
RATED = ("amazon", "movie")


def data(task: str) -> DataConfig:
    """Return the sentences of a task."""
    first = tweets(ASSETS)
    if task == "tweets":
        return first
    rated = sentiment(ASSETS) / f"{task}ReviewSnippets_GroundTruth.txt"
    return first.model_copy(update={"train": rated, "bad_rows": "drop"})


def measured(work: Path, examples: DataConfig, seeds: Sequence[int]) -> dict[str, Row]:
    """Return bytes and metrics of every storage type, and leave no cache behind."""
    base = {"backbone": str(minilm(ASSETS)), "data": examples}
    source, target = work / "float32.zarr", work / "other.zarr"

    def extracted(**more: Any) -> Path:
        out = source if not more else target
        config = ExtractConfig.build({**base, "out": out, "store_dtype": "float32", **more})
        print(extract(config).render(), flush=True)
        return out

    def converted(dtype: StorageType, last: StorageType | None = None) -> Path:
        extracted()
        types = dict.fromkeys((tap.name for tap in Cache.open(source).taps), dtype)
        types[next(reversed(types))] = last or dtype
        print(convert(source, target, dtype=types).render(), flush=True)
        return target

    makers: dict[str, Callable[[], Path]] = {"float32": extracted}
    makers |= {name: lambda name=name: converted(name) for name in CONVERTED}  # type: ignore[misc]
    makers[MIXED] = lambda: converted("int8", "float16")
    makers |= {
        name: lambda pool=pool: extracted(store_dtype="float16", pool=pool)  # type: ignore[misc]
        for name, pool in POOLED.items()
    }
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # of a run that was stopped
    rows = {}
    for name, make in makers.items():
        rows[name] = _row(work / f"{name}.json", make, examples, seeds)
        shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(source, ignore_errors=True)
    return rows


def _row(file: Path, make: Callable[[], Path], examples: DataConfig, seeds: Sequence[int]) -> Row:
    """Make a cache and train from it with each seed, unless that was done before."""
    if file.is_file():
        known: Row = json.loads(file.read_text())
        if known["seeds"] == list(seeds):
            return known
    cache = make()
    runs = []
    for seed in seeds:
        out = file.with_name(f"{file.stem}-{seed}")
        shutil.rmtree(out, ignore_errors=True)
        config = train_config({"data": examples, "cache": cache, "out": out, "seed": seed})
        runs.append(Run.open(train(config).path))
    metric = runs[0].info["task_metrics"][0]
    values = [run.info["metrics"]["test"][metric] for run in runs]
    row = {
        "seeds": list(seeds),
        "bytes": sum(each.stat().st_size for each in cache.rglob("*") if each.is_file()),
        "examples": runs[0].info["examples"],
        "metric": metric,
        "test": values,
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
    file.write_text(json.dumps(row, indent=1))
    print(f"{file.parent.name} {file.stem}: {metric} {row['mean']:.4f} {values}", flush=True)
    return row


def compared(row: Row, base: Row) -> Row:
    """Return a row beside that of float16."""
    off = row["mean"] - base["mean"]
    return row | {
        "bytes_to_float16": row["bytes"] / base["bytes"],
        "mean_minus_float16": off,
        "within_spread": abs(off) <= base["spread"],
    }


def table(figures: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Return one line a task and storage type."""
    lines = [
        f"{'task':7} {'stored as':26} {'bytes':>13}  to float16  test metric"
        "                   to float16  within its spread"
    ]
    for task, rows in figures.items():
        for name, row in rows.items():
            test = f"{row['metric']} {row['mean']:.4f} +- {row['spread']:.4f}"
            lines.append(
                f"{task:7} {name:26} {row['bytes']:13,}  {row['bytes_to_float16']:10.3f}  "
                f"{test:28}  {row['mean_minus_float16']:+9.4f}  "
                f"{'yes' if row['within_spread'] else 'no'}"
            )
    return lines


if __name__ == "__main__":
    main()
