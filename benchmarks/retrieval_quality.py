"""Retrieval on real pictures and clips: side networks of three seeds beside ridge regressions.

    python -m benchmarks.retrieval_quality [--sets pictures pictures-dinov2 clips] [--seeds 0 1 2]
    python -m benchmarks.retrieval_quality --search    # where CLIP_TRAINING comes from

The emoji are split 60 / 10 / 30 by concept. Settings are the defaults, chosen on train and dev of
`pictures`; for `clips` those of `CLIP_TRAINING`, chosen on their training rows. Everything is
fitted on train and dev together; the ridge regressions choose their strengths on dev first. "last"
is given each tower's last tap alone. "memory" is the closed-form base of the media without a side
network, "no memory" the side network without it. All but the ridge regressions draw from five views
of the pictures. Finished caches and runs in `--work` are used again.
Cost on two cores: extraction 3 (pictures) to 15 minutes, then 3 minutes a seed; the search takes
half an hour.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import report, reported
from pipeline.demo.assets import minilm
from pipeline.demo.dinov2 import dinov2
from pipeline.demo.emoji import efficientnet_lite0, emoji_clips, emoji_pictures
from pipeline.demo.retrieval import LITE0_TAPS, VIEWS, emoji_data
from pipeline.extract import RetrievalExtractConfig, extract
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.data import RetrievalData
from pipeline.retrieval.ridge import Layers, ridge
from pipeline.retrieval.train import train_retrieval
from pipeline.sweep import RetrievalSweepConfig, sweep

ASSETS = Path(".demo")
METRICS = ("t2m_r1", "t2m_r5", "t2m_r10", "rsum")
LAYERS: tuple[Layers, ...] = ("last", "all")
LAST_TAPS = {"text_taps": ("encoder.layer.*[-1]",)}
CLIP_TRAINING = {
    "memory_sharpness": 0.25,
    "memory_penalty": 0.15,
    "text_whitening": 0.1,
    "media_side_weight": 0.63,
    "text_side_weight": 0.28,
    "media_noise": 1.3,
}
"""What `--search` found for the clips, rounded."""
MEMORY_SPACE = {
    "memory_sharpness": "log:0.25..4",
    "memory_penalty": "log:0.1..3",
    "text_whitening": "0..0.6",
}
"""Searched first, without side networks: 48 trials, 5 folds of the training clips."""
SIDE_SPACE = {
    "media_side_weight": "0.1..1.2",
    "text_side_weight": "0.02..0.3",
    "media_noise": "0.5..3",
}
"""Searched beside the memory of `CLIP_TRAINING`: 12 trials with halving, 3 folds."""


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pictures or clips, and how the image model reads them."""

    folder: Path
    backbone: Path
    last: str
    options: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    """What its trainings change of the defaults."""


def pair_sets() -> dict[str, Any]:
    """Return what makes each set, called when it is wanted: the downloads are large."""
    small = {"pool": "mean", "image_size": "112", "views": VIEWS}
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
            training=CLIP_TRAINING,
        ),
    }


def caches(name: str, pairs: PairSet, work: Path) -> dict[str, Path]:
    """Extract both towers of a set, unless it is done; return the caches."""
    found = {}
    for tower in ("text", "media"):
        out = found[f"{tower}_cache"] = work / f"{name}-{tower}.zarr"
        own = pairs.options if tower == "media" else {}
        backbone = pairs.backbone if tower == "media" else minilm(ASSETS)
        config = RetrievalExtractConfig(
            data=pair_data(pairs), backbone=str(backbone), out=out, **own
        )
        print(extract(config).render(), flush=True)
    return found


def pair_data(pairs: PairSet) -> RetrievalData:
    """Return the data of a set, dev joined to train."""
    return emoji_data(pairs.folder, fit_on_dev=True)


def variants(last: str) -> dict[str, dict[str, Any]]:
    """Return what each trained model changes of the defaults."""
    taps = {**LAST_TAPS, "media_taps": (last,)}
    alone = {"text_side_weight": 0.0, "media_side_weight": 0.0, "epochs": 1}
    return {
        "memory, last": taps | alone,
        "memory, all": alone,
        "side network, last": taps,
        "side network, all, no memory": {"media_base": "none"},
        "side network, all": {},
    }


def measure(
    name: str, pairs: PairSet, found: dict[str, Path], seed: int, work: Path
) -> dict[str, dict[str, float]]:
    """Return the test metrics of baselines and models for one seed."""
    shared: dict[str, Any] = pairs.training | found | {"data": pair_data(pairs), "seed": seed}
    rows: dict[str, dict[str, float]] = {}
    for layers in LAYERS:
        config = RetrievalTrainConfig(**shared, out=work / f"{name}-ridge-{seed}")
        metrics = ridge(config, layers, resamples=10).evaluations["test"].metrics
        rows[f"ridge, {layers}"] = {metric: metrics[metric].value for metric in METRICS}
    for model, changes in variants(pairs.last).items():
        out = work / f"{name}-{model.replace(', ', '-').replace(' ', '-')}-{seed}"
        result = train_retrieval(RetrievalTrainConfig(**shared | changes, out=out))
        rows[model] = {metric: result.metrics["test"][metric] for metric in METRICS}
        print(name, seed, model, json.dumps(rows[model]), flush=True)
    return rows


def search_clips(work: Path) -> None:
    """Search settings for the clips by Rsum over folds of their training rows; print both tables.

    The folds alone choose.
    """
    pairs = pair_sets()["clips"]()
    shared: dict[str, Any] = {**caches("clips", pairs, work), "data": emoji_data(pairs.folder)}
    memory = {name: CLIP_TRAINING[name] for name in MEMORY_SPACE}
    alone = {"media_side_weight": 0.0, "text_side_weight": 0.0, "epochs": 1}
    searches: dict[str, dict[str, Any]] = {
        "memory": {
            "run": shared | alone,
            "space": MEMORY_SPACE,
            "trials": 48,
            "folds": 5,
            "pruner": "none",
        },
        "side": {
            "run": shared | memory,
            "space": SIDE_SPACE,
            "trials": 12,
            "generation": 6,
            "folds": 3,
            "min_epochs": 20,
        },
    }
    for name, options in searches.items():
        run = options["run"] | {"out": work / f"clips-search-{name}"}
        config = RetrievalSweepConfig.build(options | {"run": run, "refit": "none", "keep": 1})
        print(sweep(config).render(), flush=True)


def table(sets: dict[str, Any]) -> list[str]:
    """Return one line for each set and model: means and deviations over the seeds."""
    lines = [f"{'test split':<42}" + "".join(f"{m:>16}" for m in METRICS)]
    for name, seeds in sets.items():
        for model in next(iter(seeds.values())):
            cells = []
            for metric in METRICS:
                values = [rows[model][metric] for rows in seeds.values()]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
            lines.append(f"{name + ': ' + model:<42}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "retrieval-quality")
    parser.add_argument("--sets", nargs="+", choices=pair_sets(), default=["pictures"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--search", action="store_true", help="only search the clips' settings")
    options = parser.parse_args(arguments)
    if options.search:
        search_clips(options.work)
        return
    sets = reported("retrieval_quality", "sets")
    for name in options.sets:
        pairs = pair_sets()[name]()
        found = caches(name, pairs, options.work)
        sets[name] = {
            str(seed): measure(name, pairs, found, seed, options.work) for seed in options.seeds
        }
        report("retrieval_quality", {"sets": sets}, table(sets))


if __name__ == "__main__":
    main()
