"""The demo of two towers: emoji images, their captions, one exported model, a search by text.

Frozen MiniLM reads 1,394 captions and frozen EfficientNet-Lite0 as many images, once; two side
networks of 5 M parameters learn from the caches which belong together. A few minutes on two cores.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.console import duration, progress_line
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm
from pipeline.demo.emoji import CAPTIONS, efficientnet_lite0, emoji_pictures
from pipeline.demo.run import Echo, evaluations, stage
from pipeline.evaluate import render_table
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractConfig, extract
from pipeline.index import IndexConfig, build_index
from pipeline.plan import PlanConfig, plan
from pipeline.report import report
from pipeline.search import SearchConfig, search
from pipeline.systems import data_config, train_config
from pipeline.train import train

QUERIES = ("something sweet to eat", "it is cold outside", "a vehicle on rails")
"""Texts of our own that the exported model searches the images for."""
LITE0_TAPS = ("block.*", "head")
"""Every block of EfficientNet-Lite0, and the convolution before its classifier."""

VIEWS = 5
"""Versions of each training image: the clean one, and four random crops and flips."""


class RetrievalDemoConfig(Config):
    """Where the demo works."""

    out: Path = Path(".demo")
    """Folder for downloads, caches, run and model; what is there already is not done again."""
    seed: int = 0
    """Seed of the training."""
    device: str = "auto"
    """Torch device of the forward passes and the training."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The frozen models, the data, and the folders of their caches."""

    text: dict[str, Any]
    media: dict[str, Any]


def emoji_data(folder: Path, *, split_seed: int = 0, fit_on_dev: bool = False) -> DataConfig:
    """Return the emoji images and captions of `folder`, 60 / 10 / 30 split by concept."""
    return data_config(
        {
            "task": "retrieval",
            "train": folder / CAPTIONS,
            "group_column": "concept",
            "fractions": (0.6, 0.1, 0.3),
            "split_seed": split_seed,
            "fit_on_dev": fit_on_dev,
        }
    )


def picture_sources(folder: Path, data: DataConfig, device: str = "auto") -> Sources:
    """Return what is extracted of the images (every block's mean over its cells), of captions."""
    shared = {"data": data, "device": device}
    return Sources(
        text=shared | {"backbone": str(minilm(folder)), "out": folder / "captions.zarr"},
        media=shared
        | {
            "backbone": str(efficientnet_lite0(folder)),
            "architecture": "efficientnet_lite0",
            "taps": LITE0_TAPS,
            "pool": "mean",
            "views": VIEWS,
            "out": folder / "pictures.zarr",
        },
    )


def retrieval_demo(config: RetrievalDemoConfig, *, echo: Echo) -> dict[str, Any]:
    """Run the whole way, telling each stage as it goes; return the paths of sheets and model."""
    began = time.perf_counter()
    out = config.out
    with stage(echo, "1 of 7  fetch MiniLM, EfficientNet-Lite0, images and captions"):
        data = emoji_data(emoji_pictures(out))
        sources = picture_sources(out, data, config.device)
    with stage(echo, "2 of 7  plan"):
        echo(plan(PlanConfig(**sources.media)).render())
    with stage(echo, "3 of 7  extract: the only time the backbones run"), progress_line() as line:
        for source in (sources.text, sources.media):
            echo(extract(ExtractConfig(**source), progress=line).render())
    training = train_config(
        {
            "data": data,
            "text_cache": sources.text["out"],
            "media_cache": sources.media["out"],
            "out": out / "retrieval-run",
            "seed": config.seed,
            "device": config.device,
        }
    )
    with stage(echo, "4 of 7  train two side networks from the caches"), progress_line() as line:
        echo(train(training, progress=line).render())
    with stage(echo, "5 of 7  evaluate, beside ridge regressions on the same caches"):
        echo(render_table(evaluations(training)))
    model = out / "retrieval-model"
    with stage(echo, "6 of 7  export, and replay cached samples through the exported model"):
        echo(export(ExportConfig(run=training.out, out=model, force=True)).render())
    with stage(echo, "7 of 7  index the images and search them by text"):
        sheets = _search(model, data.train.parent, out, config.device, echo)
    pictures = report(training.out)
    echo(f"\nwhole demo  {duration(time.perf_counter() - began)}")
    echo(f"images      {', '.join(map(str, (*sheets, *pictures)))}")
    echo(f"model       {model}")
    return {"sheets": sheets, "pictures": pictures, "model": model}


def _search(model: Path, media: Path, out: Path, device: str, echo: Echo) -> list[Path]:
    index = out / "retrieval-index"
    with progress_line() as line:
        wanted = IndexConfig(model=model, media=media, out=index, device=device)
        echo(build_index(wanted, progress=line).render())
    sheets = []
    for query in QUERIES:
        sheet = out / f"{query.replace(' ', '-')}.png"
        found = search(SearchConfig(index=index, query=query, k=12, sheet=sheet, device=device))
        echo(found.render())
        sheets.append(sheet)
    return sheets
