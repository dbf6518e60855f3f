"""Retrieval on real pictures and clips: side networks of three seeds beside ridge regressions.

    python -m benchmarks.retrieval_quality [--sets pictures pictures-dinov2 clips] [--seeds 0 1 2]

The emoji are split 60 / 10 / 30 by concept; settings are the defaults, chosen on the dev split of
`pictures`. "last" is the same side network given each tower's last tap alone; both side networks
draw from five views of the training pictures, which a ridge regression does not. Finished caches
and runs in `--work` are used again.
Cost on two cores: extraction 3 (pictures) to 15 minutes, then 2 minutes a seed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, report
from pipeline.demo.assets import minilm
from pipeline.demo.dinov2 import dinov2
from pipeline.demo.emoji import efficientnet_lite0, emoji_clips, emoji_pictures
from pipeline.demo.retrieval import LITE0_TAPS, VIEWS, emoji_data
from pipeline.extract import RetrievalExtractConfig, extract
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.ridge import Layers, ridge
from pipeline.retrieval.train import train_retrieval

ASSETS = Path(".demo")
METRICS = ("t2m_r1", "t2m_r5", "t2m_r10", "rsum")
LAYERS: tuple[Layers, ...] = ("last", "all")
LAST_TAPS = {"text_taps": ("encoder.layer.*[-1]",)}


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pictures or clips, and how the image model reads them."""

    folder: Path
    backbone: Path
    last: str
    options: dict[str, Any]


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
        ),
    }


def caches(name: str, pairs: PairSet, work: Path) -> dict[str, Path]:
    """Extract both towers of a set, unless it is done; return the caches."""
    found = {}
    for tower in ("text", "media"):
        out = found[f"{tower}_cache"] = work / f"{name}-{tower}.zarr"
        own = pairs.options if tower == "media" else {}
        backbone = pairs.backbone if tower == "media" else minilm(ASSETS)
        data = emoji_data(pairs.folder)
        config = RetrievalExtractConfig(data=data, backbone=str(backbone), out=out, **own)
        print(extract(config).render(), flush=True)
    return found


def measure(
    name: str, pairs: PairSet, found: dict[str, Path], seed: int, work: Path
) -> dict[str, Any]:
    """Return dev and test metrics of both baselines and both side networks for one split."""
    shared: dict[str, Any] = {
        **found,
        "data": emoji_data(pairs.folder),
        "seed": seed,
    }
    rows: dict[str, Any] = {}
    for layers in LAYERS:
        config = RetrievalTrainConfig(**shared, out=work / f"{name}-ridge-{seed}")
        evaluations = ridge(config, layers, resamples=10).evaluations
        rows[f"ridge, {layers}"] = {
            split: {metric: evaluations[split].metrics[metric].value for metric in METRICS}
            for split in ("dev", "test")
        }
        taps = {**LAST_TAPS, "media_taps": (pairs.last,)} if layers == "last" else {}
        run = RetrievalTrainConfig(**shared, **taps, out=work / f"{name}-side-{layers}-{seed}")
        result = train_retrieval(run)
        rows[f"side network, {layers}"] = {
            split: {metric: result.metrics[split][metric] for metric in METRICS}
            for split in ("dev", "test")
        }
        print(name, seed, layers, json.dumps(rows), flush=True)
    return rows


def table(sets: dict[str, Any]) -> list[str]:
    """Return one line for each set and model: means and deviations over the seeds."""
    lines = [f"{'test split':<42}" + "".join(f"{m:>16}" for m in METRICS)]
    for name, seeds in sets.items():
        for model in next(iter(seeds.values())):
            cells = []
            for metric in METRICS:
                values = [rows[model]["test"][metric] for rows in seeds.values()]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
            lines.append(f"{name + ': ' + model:<42}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ASSETS / "retrieval-quality")
    parser.add_argument("--sets", nargs="+", choices=pair_sets(), default=["pictures"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args(arguments)
    earlier = RESULTS / "retrieval_quality.json"
    sets: dict[str, Any] = json.loads(earlier.read_text())["sets"] if earlier.exists() else {}
    for name in options.sets:
        pairs = pair_sets()[name]()
        found = caches(name, pairs, options.work)
        sets[name] = {
            str(seed): measure(name, pairs, found, seed, options.work) for seed in options.seeds
        }
        report("retrieval_quality", {"sets": sets}, table(sets))


if __name__ == "__main__":
    main()
