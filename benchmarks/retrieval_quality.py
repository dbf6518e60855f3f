"""Retrieval on real pictures and clips: side networks of three seeds beside ridge regressions.

    python -m benchmarks.retrieval_quality [--sets pictures pictures-dinov2 clips] [--seeds 0 1 2]
    python -m benchmarks.retrieval_quality --sets clips --split 1    # other clips to test
    python -m benchmarks.retrieval_quality --search --split 1    # where CLIP_TRAINING comes from

The emoji are split 60 / 10 / 30 by concept. Settings are the defaults, chosen on train and dev of
`pictures`; for `clips` those of `CLIP_TRAINING`, chosen on the training rows of each split. All is
fitted on train and dev together; the ridge regressions choose their strengths on dev first. "last"
is given each tower's last tap alone. "kernel regression" is the closed-form base of the media
without a side network, "alone" the side network without it. All but the ridge regressions draw from
five views of the pictures. One cache holds all rows in all views, so it serves every split.
Finished caches and runs in `--work` are used again.
Cost on two cores: extraction 3 (pictures) to 15 minutes, then 3 (pictures) to 6 minutes a seed; a
search takes up to an hour.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import report, reported
from pipeline.demo.assets import minilm
from pipeline.demo.dinov2 import dinov2
from pipeline.demo.emoji import efficientnet_lite0, emoji_clips, emoji_pictures
from pipeline.demo.retrieval import LITE0_TAPS, VIEWS, emoji_data
from pipeline.extract import ExtractConfig, extract_inputs
from pipeline.extraction.rows import Source
from pipeline.probe import Layers, probe
from pipeline.sweep import SweepConfig, sweep
from pipeline.systems import train_config
from pipeline.train import train

ASSETS = Path(".demo")
METRICS = ("t2m_r1", "t2m_r5", "t2m_r10", "rsum")
LAYERS: tuple[Layers, ...] = ("last", "all")
LAST_TAPS = {"text_taps": ("encoder.layer.*[-1]",)}
ALONE = {
    "text_side_weight": 0.0,
    "media_side_weight": 0.0,
    "text_side_width": 8,
    "media_side_width": 8,
    "media_noise": 0.0,
    "epochs": 1,
}
"""The kernel regression without side networks, which count for nothing and so are kept small."""
CLIP_TRAINING = {
    0: {
        "kernel_gamma": 0.25,
        "kernel_ridge": 0.16,
        "text_whitening": 0.12,
        "media_side_weight": 0.63,
        "text_side_weight": 0.28,
        "media_noise": 1.3,
    },
    1: {
        "kernel_gamma": 0.25,
        "kernel_ridge": 0.18,
        "text_whitening": 0.07,
        "media_side_weight": 0.57,
        "text_side_weight": 0.13,
        "media_noise": 0.77,
    },
    2: {
        "kernel_gamma": 0.25,
        "kernel_ridge": 0.19,
        "text_whitening": 0.23,
        "media_side_weight": 0.63,
        "text_side_weight": 0.28,
        "media_noise": 1.3,
    },
}
"""What `--search` found for the clips of each split, rounded: for the kernel regression with these
states, for the side networks with states pooled by `mean`."""
KERNEL_SPACE = {
    "kernel_gamma": "log:0.25..4",
    "kernel_ridge": "log:0.1..3",
    "text_whitening": "0..0.6",
}
"""Searched first, without side networks: 48 trials, 5 folds of the training clips."""
SIDE_SPACE = {
    "media_side_weight": "0.1..1.2",
    "text_side_weight": "0.02..0.3",
    "media_noise": "0.5..3",
}
"""Searched beside the best kernel regression: 12 trials with halving, 3 folds."""


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pictures or clips, and how the image model reads them."""

    folder: Path
    backbone: Path
    last: str
    options: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    """What its trainings change of the defaults."""


def pair_sets(split: int = 0) -> dict[str, Any]:
    """Return what makes each set, called when it is wanted: the downloads are large."""
    small = {"pool": "first+mean+std", "image_size": "112", "views": VIEWS}
    return {
        "pictures": lambda: PairSet(
            folder=emoji_pictures(ASSETS),
            backbone=efficientnet_lite0(ASSETS),
            last="head",
            options={
                "architecture": "efficientnet_lite0",
                "taps": LITE0_TAPS,
                "pool": "mean",
                "views": VIEWS,
            },
        ),
        "pictures-dinov2": lambda: PairSet(
            folder=emoji_pictures(ASSETS),
            backbone=dinov2(ASSETS),
            last="final_norm",
            options=small,
        ),
        "clips": lambda: PairSet(
            folder=emoji_clips(ASSETS),
            backbone=dinov2(ASSETS),
            last="final_norm",
            options=small | {"tower": "video", "fps": 0.0, "max_frames": 8},
            training=CLIP_TRAINING.get(split, {}),
        ),
    }


def caches(name: str, pairs: PairSet, work: Path) -> dict[str, Path]:
    """Extract both towers of a set, unless it is done; return the caches."""
    found = {}
    for tower in ("text", "media"):
        out = found[f"{tower}_cache"] = work / f"{name}-{tower}.zarr"
        own = pairs.options if tower == "media" else {}
        backbone = pairs.backbone if tower == "media" else minilm(ASSETS)
        config = ExtractConfig(
            data=emoji_data(pairs.folder), backbone=str(backbone), out=out, **own
        )
        source = Source.of(config)
        model = source.loader()()
        rows = source.rows(model)
        print(extract_inputs(model, rows.inputs, out, views=rows.views).render(), flush=True)
    return found


def variants(last: str) -> dict[str, dict[str, Any]]:
    """Return what each trained model changes of the defaults."""
    taps = {**LAST_TAPS, "media_taps": (last,)}
    return {
        "kernel regression, last": taps | ALONE,
        "kernel regression, all": ALONE,
        "side network, last": taps,
        "side network, all, alone": {"media_base": "none"},
        "side network, all": {},
    }


def slug(*words: object) -> str:
    """Return the name of a run's folder."""
    return "-".join(map(str, words)).replace(", ", "-").replace(" ", "-")


def measure(
    name: str, pairs: PairSet, shared: dict[str, Any], seed: int, work: Path
) -> dict[str, dict[str, float]]:
    """Return the test metrics of baselines and models for one seed of the trainings."""
    shared = pairs.training | shared | {"seed": seed}
    rows: dict[str, dict[str, float]] = {}
    for layers in LAYERS:
        config = train_config(shared | {"out": work / slug(name, "ridge", seed)})
        metrics = probe(config, layers, resamples=10).evaluations["test"].metrics
        rows[f"ridge, {layers}"] = {metric: metrics[metric].value for metric in METRICS}
    for model, changes in variants(pairs.last).items():
        result = train(train_config(shared | changes | {"out": work / slug(name, model, seed)}))
        rows[model] = {metric: result.metrics["test"][metric] for metric in METRICS}
        print(name, seed, model, json.dumps(rows[model]), flush=True)
    return rows


def search_clips(split: int, work: Path) -> None:
    """Search settings for the clips by Rsum over folds of a split's training rows; print them.

    The folds alone choose.
    """
    pairs = pair_sets()["clips"]()
    data = emoji_data(pairs.folder, split_seed=split)
    run: dict[str, Any] = {**caches("clips", pairs, work), "data": data}
    searches: dict[str, dict[str, Any]] = {
        "kernel": {
            "run": ALONE,
            "space": KERNEL_SPACE,
            "trials": 48,
            "folds": 5,
            "pruner": "none",
        },
        "side": {
            "run": {},
            "space": SIDE_SPACE,
            "trials": 12,
            "generation": 6,
            "folds": 3,
            "min_epochs": 20,
        },
    }
    for name, options in searches.items():
        out = {"out": work / f"clips-search-{split}-{name}"}
        own = options | {"run": run | options["run"] | out, "refit": "none", "keep": 1}
        found = sweep(SweepConfig.build(own))
        print(found.render(), flush=True)
        run |= found.params
    print({name: value for name, value in run.items() if name in KERNEL_SPACE | SIDE_SPACE})


def table(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each set and model: means and deviations over the seeds.

    A set that was split several times has a line more, over the means of its splits.
    """
    rows = {name: _by_model(seeds.values()) for name, seeds in sets.items()}
    for name in sets:
        splits = [_means(rows[other]) for other in sets if other.partition(", split ")[0] == name]
        if len(splits) > 1:
            rows[f"{name}, {len(splits)} splits"] = _by_model(splits)
    lines = [f"{'test split':<46}" + "".join(f"{m:>16}" for m in METRICS)]
    for name, models in rows.items():
        for model, metrics in models.items():
            cells = [
                f"{statistics.mean(v):.1f} ± {statistics.stdev(v) if len(v) > 1 else 0.0:.1f}"
                for v in metrics.values()
            ]
            lines.append(f"{name + ': ' + model:<46}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def _by_model(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Turn run -> model -> metric into model -> metric -> values of the runs."""
    listed = list(runs)
    return {
        model: {metric: [run[model][metric] for run in listed] for metric in METRICS}
        for model in listed[0]
    }


def _means(models: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        model: {metric: statistics.mean(values) for metric, values in metrics.items()}
        for model, metrics in models.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "retrieval-quality")
    parser.add_argument("--sets", nargs="+", choices=pair_sets(), default=["pictures"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", type=int, default=0, help="seed of the split")
    parser.add_argument("--search", action="store_true", help="only search the clips' settings")
    options = parser.parse_args(arguments)
    if options.search:
        search_clips(options.split, options.work)
        return
    sets = reported("retrieval_quality", "sets")
    for name in options.sets:
        pairs = pair_sets(options.split)[name]()
        found = caches(name, pairs, options.work)
        data = emoji_data(pairs.folder, split_seed=options.split, fit_on_dev=True)
        own = name if options.split == 0 else f"{name}, split {options.split}"
        sets[own] = {
            str(seed): measure(own, pairs, {**found, "data": data}, seed, options.work)
            for seed in options.seeds
        }
        report("retrieval_quality", {"sets": sets}, table(sets))


if __name__ == "__main__":
    main()
