"""The demo: a frozen MiniLM, rated tweets, one exported classifier, and the numbers beside it.

About 125 MB of activations a thousand tweets; a few minutes on two cores.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.console import duration, progress_line
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm, sentiment
from pipeline.evaluate import EvaluateConfig, Evaluation, evaluate, render_table
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractConfig, extract
from pipeline.plan import PlanConfig, plan
from pipeline.predict import PredictConfig, predict
from pipeline.probe import probe
from pipeline.report import report
from pipeline.systems import data_config, train_config
from pipeline.train import TrainConfig, train

Echo = Callable[[str], Any]

SENTENCES = (
    "What a glorious morning, I could hug the whole world!",
    "Missed the train, lost my keys, and now it is raining.",
    "Not bad at all, I would go there again.",
)
"""Sentences of our own that the exported model labels at the end."""


class DemoConfig(Config):
    """Where the demo works."""

    out: Path = Path(".demo")
    """Folder for downloads, cache, run and model; what is there already is not done again."""
    seed: int = 0
    """Seed of the training."""
    device: str = "auto"
    """Torch device of the forward passes and the training."""


def tweets(folder: Path) -> DataConfig:
    """Return the tweets whose mean rating is beyond 0.5 either way, as two classes."""
    return data_config(
        {
            "task": "classification",
            "train": sentiment(folder) / "tweets_GroundTruth.txt",
            "header": False,
            "id": "0",
            "label": "1",
            "text": "2",
            "label_threshold": 0.0,
            "label_margin": 0.5,
            "label_names": ("negative", "positive"),
            "encoding_errors": "replace",
        }
    )


def demo(config: DemoConfig, *, echo: Echo) -> dict[str, Any]:
    """Run the whole way, telling each stage as it goes; return the paths of images and model."""
    began = time.perf_counter()
    out = config.out
    with stage(echo, "1 of 7  fetch MiniLM and the rated tweets"):
        backbone, data = minilm(out), tweets(out)
    cache, run, model = out / "tweets.zarr", out / "run", out / "model"
    source = {"backbone": str(backbone), "out": cache, "data": data, "device": config.device}
    with stage(echo, "2 of 7  plan"):
        echo(plan(PlanConfig(**source)).render())
    with stage(echo, "3 of 7  extract: the only time the backbone runs"), progress_line() as line:
        echo(extract(ExtractConfig(**source), progress=line).render())
    training = train_config(
        {"data": data, "cache": cache, "out": run, "seed": config.seed, "device": config.device}
    )
    with stage(echo, "4 of 7  train the side network from the cache"), progress_line() as line:
        echo(train(training, progress=line).render())
    with stage(echo, "5 of 7  evaluate, beside probes on the same cache"):
        rows = evaluations(training)
    with stage(echo, "6 of 7  export, and replay cached samples through the exported model"):
        echo(export(ExportConfig(run=run, out=model, force=True)).render())
    with stage(echo, "7 of 7  label new sentences with the exported model"):
        _label(model, out, echo)
    pictures = report(run)
    echo("\nTest split, 95 % bootstrap intervals:\n")
    echo(render_table(rows))
    echo(f"\nwhole demo  {duration(time.perf_counter() - began)}")
    echo(f"images      {', '.join(map(str, pictures))}")
    echo(f"model       {model}")
    return {"pictures": pictures, "model": model}


def evaluations(training: TrainConfig) -> list[Evaluation]:
    """Return how the probes and the finished run of a training do on test."""
    rows = [probe(training, layers).evaluations["test"] for layers in ("last", "all")]
    return [*rows, evaluate(EvaluateConfig(run=training.out))]


def _label(model: Path, out: Path, echo: Echo) -> None:
    source = out / "sentences.txt"
    source.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    labelled = out / "labelled.tsv"
    predict(PredictConfig(model=model, input=source, out=labelled, format="tsv", force=True))
    echo(labelled.read_text(encoding="utf-8").rstrip())


@contextmanager
def stage(echo: Echo, title: str) -> Iterator[None]:
    """Tell the title of a stage, and its time at its end."""
    echo(f"\n== {title}")
    start = time.perf_counter()
    yield
    echo(f"-- {duration(time.perf_counter() - start)}")
