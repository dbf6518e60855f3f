"""Four systems on real labels: side networks of three seeds beside probes on the same caches.

    python -m benchmarks.labelled --data DIR [--sets wnut17 emoji cells clinc] [--seeds 3]

Entities (WNUT 2017) and intents (CLINC150) from MiniLM's states; groups of emoji and blood cells
(BCCD) from DINOv2-S at 112 pixels; see `benchmarks.labelled_sets` for what DIR holds. Each set is
cached once. Every candidate is trained with seed 0; the one with the best dev metric is chosen and
trained with the other seeds, and only its test metrics are reported, as mean and deviation. Probes
see the mean of the last tap or of all taps; dev chooses their strength. What is finished in
`--work` is used again, and sets that were reported stay, so this can be done in parts.
Cost on two cores: 2 to 10 minutes of extraction and 1 to 5 minutes a training, of a set.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report, reported
from benchmarks.labelled_sets import ASSETS, SETS, LabelledSet
from pipeline.extract import ExtractConfig, extract
from pipeline.probe import Layers, probe
from pipeline.run import Run
from pipeline.systems import data_config, train_config
from pipeline.train import train

LAYERS: tuple[Layers, ...] = ("last", "all")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the given data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of the chosen candidate")
    parser.add_argument("--epochs", type=int, help="instead of each candidate's own")
    parser.add_argument("--work", type=Path, default=ASSETS / "labelled")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    limits = {} if options.epochs is None else {"epochs": options.epochs}
    figures = reported("labelled", "sets", seeds=options.seeds)
    for name in options.sets:
        made = SETS[name](options.data, options.work)
        figures[name] = measure(options.work / name, made, options.seeds, limits)
        report("labelled", {"seeds": options.seeds, "sets": figures}, table(figures))


def measure(work: Path, made: LabelledSet, seeds: int, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Extract a set, fit its probes, choose a candidate on dev, and train it with each seed."""
    data, cache = data_config(dict(made.data)), work.with_suffix(".zarr")
    given = {"data": data, "backbone": str(made.backbone), "out": cache, **made.extraction}
    extracted = extract(ExtractConfig.build(given))
    print(extracted.render(), flush=True)
    shared = {"data": data, "cache": cache}
    runs = work.with_name(f"{work.name}-runs")
    probes = {layers: probed(shared, runs, layers, made.metrics) for layers in LAYERS}
    tried = []
    for candidate in ({**each, **limits} for each in made.candidates):
        dev = trained(shared, runs, candidate, 0).info["metrics"]["dev"][made.metrics[0]]
        tried.append({"options": candidate, "dev": dev})
        print(f"{work.name}: dev {made.metrics[0]} {dev:.4f} {shown(candidate)}", flush=True)
    chosen = max(tried, key=lambda each: each["dev"])["options"]
    found = [trained(shared, runs, chosen, seed).info for seed in range(seeds)]
    return {
        "bytes": extracted.bytes,
        "examples": found[0]["examples"],
        "probes": probes,
        "tried": tried,
        "chosen": chosen,
        "parameters": found[0]["parameters"],
        "seconds": [info["seconds"] for info in found],
        "dev": {name: over([info["metrics"]["dev"][name] for info in found])
                for name in made.metrics},
        "test": {name: over([info["metrics"]["test"][name] for info in found])
                 for name in made.metrics},
    }  # fmt: skip


def probed(
    shared: Mapping[str, Any], runs: Path, layers: Layers, metrics: Sequence[str]
) -> dict[str, Any]:
    """Return what dev chose of a probe, and its test metrics with intervals."""
    found = probe(train_config({**shared, "out": runs / "probes"}), layers)
    test = found.evaluations["test"].metrics
    return {"chosen": found.chosen, "test": {name: test[name].to_dict() for name in metrics}}


def trained(shared: Mapping[str, Any], runs: Path, candidate: Mapping[str, Any], seed: int) -> Run:
    """Train a candidate with a seed, unless that run is there, and open it."""
    out = runs / f"{shown(candidate).replace(', ', '-').replace(' ', '_')}-{seed}"
    return Run.open(train(train_config({**shared, **candidate, "out": out, "seed": seed})).path)


def shown(candidate: Mapping[str, Any]) -> str:
    """Return a candidate's options in words."""
    return ", ".join(f"{name} {value}" for name, value in candidate.items()) or "defaults"


def over(values: Sequence[float]) -> dict[str, Any]:
    """Return values, mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "spread": spread, "values": list(values)}


def table(figures: Mapping[str, Any]) -> list[str]:
    """Return one line for each set and metric, and one with the settings."""
    lines = [
        f"{'test':<20}{'probe, last':>13}{'probe, all':>12}  {'side network':<18}"
        f"{'parameters':>12}{'seconds':>9}"
    ]
    for name, found in figures.items():
        for metric, own in found["test"].items():
            last, every = (found["probes"][each]["test"][metric]["value"] for each in LAYERS)
            lines.append(
                f"{name + ' ' + metric:<20}{last:>13.3f}{every:>12.3f}  "
                f"{own['mean']:.3f} +- {own['spread']:.3f}    {found['parameters']:>12,}"
                f"{statistics.mean(found['seconds']):>9.0f}"
            )
        lines.append(f"  {shown(found['chosen'])}; {json.dumps(found['examples'])}")
    return lines


if __name__ == "__main__":
    main()
