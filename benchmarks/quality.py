"""Quality on real text: side networks from MiniLM's states beside probes on the same splits.

Tweets, Amazon reviews and movie reviews come through pip (see `pipeline.demo.assets`); CoLA is
added by `--cola FOLDER`, a folder with GLUE's cola-train.tsv and cola-dev.tsv: a part of the
former serves as dev, the latter is the test split. Each candidate of `TRIED` is trained with each
seed; the one with the best mean dev metric is chosen, and only its test metric is reported: as
trained, and fitted anew on train and dev together with the same settings. Probes are treated alike:
dev chooses their strength and class weights, and they are fitted anew as well.
Extractions and runs that are finished in `--work` are used again, and tasks that were reported
stay in the report, so this can be done in parts.
Cost on one core: 20 to 60 s of training for a run on tweets, Amazon or CoLA, 70 to 130 s on movies;
about half an hour in all, of which five minutes are extraction and three are the probes.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import report, reported
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm, sentiment
from pipeline.demo.run import tweets
from pipeline.extract import ExtractConfig, extract
from pipeline.probe import Layers, probe
from pipeline.run import Run
from pipeline.systems import data_config, train_config
from pipeline.train import TrainConfig, train

ASSETS = Path(".demo")
SEEDS = (0, 1, 2)
LAYERS: tuple[Layers, ...] = ("last", "all")
CLASS_WEIGHTS = ("none", "balanced")
"""Of the probes; dev chooses."""

EARLY: dict[str, Any] = {
    "taps": ["embeddings", "encoder.layer.0[0-3]"],
    "class_weights": "balanced",
    "ema": 0.999,
    "noise": 0.3,
    "epochs": 4,
}
"""For grammar, which a sentence encoder's last layers have lost: a middle layer is the anchor."""

NOISY = EARLY | {"noise": 1.0, "dropout": 0.5, "epochs": 10}
WIDE = EARLY | {"noise": 0.6, "dropout": 0.5, "epochs": 8, "reduction": 1.0, "lr": 3e-4}
KERNEL = {"kernel_keys": 8192}

CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "kernel": KERNEL,
    "early-noisy": NOISY,
    "early-wide": WIDE,
    "early-noisy-kernel": NOISY | KERNEL,
    "early-wide-kernel": WIDE | KERNEL,
}
"""Options that differ from the defaults, by name."""

TRIED = {
    "tweets": ("defaults", "kernel"),
    "amazon": ("defaults", "kernel"),
    "movie": ("defaults", "kernel"),
    "cola": tuple(name for name in CANDIDATES if name.startswith("early")),
}
"""The candidates of each task."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The metrics of one candidate, a value a seed."""

    dev: list[float]
    test: list[float]
    epochs: list[int]
    seconds: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return values, means and standard deviations."""
        return {
            name: {"mean": statistics.mean(values), "spread": spread(values), "values": values}
            for name, values in vars(self).items()
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "quality")
    parser.add_argument("--cola", type=Path, help="folder of cola-train.tsv and cola-dev.tsv")
    parser.add_argument("--tasks", nargs="+", help="some of the tasks; all by default")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, help="instead of each candidate's own")
    parser.add_argument("--no-report", action="store_true", help="train only; write no results")
    options = parser.parse_args(arguments)
    tasks = data(options.cola)
    unknown = sorted(set(options.tasks or ()) - set(tasks))
    if unknown:
        parser.error(f"unknown tasks {unknown}; known are {list(tasks)} (cola needs --cola)")
    limits = {} if options.epochs is None else {"epochs": options.epochs}
    figures = {}
    for task in options.tasks or tasks:
        work = options.work / (task if options.epochs is None else f"{task}-{options.epochs}")
        shared = cached(task, tasks[task], options.work)
        candidates = {n: CANDIDATES[n] | limits for n in TRIED[task] if n in options.candidates}
        if not candidates:
            parser.error(f"no candidate for {task}; it has {', '.join(TRIED[task])}")
        outcomes, metric = trained(work, shared, candidates, options.seeds)
        if not options.no_report:
            probes = {layers: probed(work, shared, layers, metric) for layers in LAYERS}
            found = choice(candidates, outcomes)
            last = refitted(work, shared, found["chosen"], found["options"], options.seeds)
            figures[task] = {"metric": metric, "probes": probes, **found, "refit": last}
    if figures:
        figures = reported("quality", "tasks", seeds=options.seeds) | figures
        report("quality", {"seeds": options.seeds, "tasks": figures}, table(figures))


def data(cola: Path | None) -> dict[str, DataConfig]:
    """Return the tasks by name; CoLA only where its folder is given."""
    first = tweets(ASSETS)
    tasks = {"tweets": first}
    for name in ("amazon", "movie"):
        rated = sentiment(ASSETS) / f"{name}ReviewSnippets_GroundTruth.txt"
        tasks[name] = first.model_copy(update={"train": rated, "bad_rows": "drop"})
    if cola is not None:
        files = {"train": cola / "cola-train.tsv", "test": cola / "cola-dev.tsv"}
        tasks["cola"] = data_config({"task": "cola", **files})
    return tasks


def cached(task: str, examples: DataConfig, work: Path) -> dict[str, Any]:
    """Extract the task's sentences once; return the options that every run on it shares."""
    cache = work / f"{task}.zarr"
    backbone = str(minilm(ASSETS))
    print(extract(ExtractConfig(backbone=backbone, data=examples, out=cache)).render(), flush=True)
    return {"data": examples, "cache": cache}


def trained(
    work: Path,
    shared: Mapping[str, Any],
    candidates: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
) -> tuple[dict[str, Outcome], str]:
    """Return the outcome of every candidate, and the metric's name."""
    outcomes: dict[str, Outcome] = {}
    metric = ""
    for name, chosen in candidates.items():
        runs = [
            finished(train_config({**shared, **chosen, "out": work / f"{name}-{s}", "seed": s}))
            for s in seeds
        ]
        metric = runs[0].info["task_metrics"][0]
        outcomes[name] = Outcome(
            dev=[run.info["metrics"]["dev"][metric] for run in runs],
            test=[run.info["metrics"]["test"][metric] for run in runs],
            epochs=[run.info["best_epoch"] for run in runs],
            seconds=[run.info["seconds"] for run in runs],
        )
        dev = outcomes[name].dev
        print(f"{work.name} {name}: dev {metric} {statistics.mean(dev):.4f} {dev}", flush=True)
    return outcomes, metric


def choice(
    candidates: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """Return the candidate of the best mean dev metric, and the dev metric of the others."""
    best = max(outcomes, key=lambda name: statistics.mean(outcomes[name].dev))
    return {
        "chosen": best,
        "options": dict(candidates[best]),
        "side_network": outcomes[best].to_dict(),
        "tried": {
            name: {"options": dict(candidates[name]), "dev": outcome.to_dict()["dev"]}
            for name, outcome in outcomes.items()
        },
    }


def refitted(
    work: Path,
    shared: Mapping[str, Any],
    name: str,
    chosen: Mapping[str, Any],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Fit the chosen candidate on train and dev together, for all its epochs; return test."""
    data = shared["data"].model_copy(update={"fit_on_dev": True})
    changed = {**shared, **chosen, "data": data}
    if "kernel_keys" in chosen:  # counts as dev chose
        before = [Run.open(work / f"{name}-{s}").info["kernel_weight"] for s in seeds]
        changed["kernel_weight"] = statistics.mean(before)
    runs = [
        finished(train_config({**changed, "out": work / f"{name}-refit-{s}", "seed": s}))
        for s in seeds
    ]
    values = [run.info["metrics"]["test"][run.info["task_metrics"][0]] for run in runs]
    return {"mean": statistics.mean(values), "spread": spread(values), "values": values}


def probed(work: Path, shared: Mapping[str, Any], layers: Layers, metric: str) -> dict[str, Any]:
    """Return the probe whose class weights are better on dev, and the same fitted on dev too."""

    def config(weights: str, *, fit_on_dev: bool) -> TrainConfig:
        data = shared["data"].model_copy(update={"fit_on_dev": fit_on_dev})
        out = work / f"probe-{weights}{'-refit' if fit_on_dev else ''}"
        return train_config({**shared, "data": data, "class_weights": weights, "out": out})

    results = {name: probe(config(name, fit_on_dev=False), layers) for name in CLASS_WEIGHTS}
    best = max(results, key=lambda name: results[name].evaluations["dev"].metrics[metric].value)
    refit = probe(config(best, fit_on_dev=True), layers)
    return {
        "class_weights": best,
        "chosen": results[best].chosen,
        "evaluations": results[best].to_dict()["evaluations"],
        "refit": refit.to_dict()["evaluations"],
    }


def finished(config: TrainConfig) -> Run:
    """Train, unless the run is there, and open it."""
    return Run.open(train(config).path)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(figures: Mapping[str, Any]) -> list[str]:
    """Return two lines a task: test metrics as trained on train, and fitted on train and dev."""
    lines = [
        "task    metric    fitted on      last layer  all layers  side network     "
        "dev              candidate"
    ]
    for task, found in figures.items():
        metric, side = found["metric"], found["side_network"]
        dev = f"{side['dev']['mean']:.3f} +- {side['dev']['spread']:.3f}"
        fits = {"train": ("evaluations", side["test"]), "train and dev": ("refit", found["refit"])}
        for fitted_on, (key, own) in fits.items():
            probes = [found["probes"][layers][key]["test"]["metrics"][metric] for layers in LAYERS]
            lines.append(
                f"{task:7} {metric:9} {fitted_on:13}"
                + "".join(f"{interval['value']:12.3f}" for interval in probes)
                + f"  {own['mean']:.3f} +- {own['spread']:.3f}   {dev:15}  "
                f"{found['chosen']} of {len(found['tried'])}"
            )
    return lines


if __name__ == "__main__":
    main()
