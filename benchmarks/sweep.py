"""A sweep of many trials, its extraction included, against official runs of one trial each.

Official: every step runs the frozen backbone on its padded batch, then the side network, and dev
needs the backbone too; a run is all its epochs of train and dev. It is measured on some steps and
extrapolated by the sentence, as are the runs beyond the first; all of ours is measured.

    python -m benchmarks.sweep bert    # BERT-base, random weights, sentences of movies: 20 min
    python -m benchmarks.sweep tweets  # MiniLM, rated tweets: 10 min

Times are those of two cores.
"""

import csv
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import report, synchronize
from benchmarks.epoch import official_epoch
from benchmarks.sentences import WORK, movie_sentences, random_bert
from benchmarks.side import token_classifier
from pipeline.backbones import TextBackbone, load_backbone
from pipeline.backbones.encoding import EncodedTexts
from pipeline.console import duration, progress_line
from pipeline.data import DataConfig
from pipeline.demo.assets import minilm
from pipeline.demo.run import tweets
from pipeline.extract import ExtractConfig, extract
from pipeline.sweep import SweepConfig, SweepResult, sweep
from pipeline.systems import data_config, load_dataset, train_config

SPACE = {
    "lr": "log:1e-4..5e-3",
    "weight_decay": "log:1e-3..0.3",
    "dropout": "0..0.5",
    "warmup": "0..0.3",
    "label_smoothing": "0..0.1",
    "schedule": "cosine,linear",
}
"""Fields of which every trial reads the same states."""


def movie_data(folder: Path, count: int) -> DataConfig:
    """Write `count` sentences of movies with made-up labels, for a backbone of random weights."""
    file = folder / "movies.tsv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, "excel-tab")
        writer.writerow(["text", "label"])
        for number, sentence in enumerate(movie_sentences(count)):
            writer.writerow([sentence.text, ("odd", "even")[number % 2]])
    return data_config({"task": "classification", "train": file})


def official_seconds(
    backbone: TextBackbone, data: DataConfig, *, side_width: int, batch_size: int, steps: int
) -> tuple[float, float]:
    """Measure the official code: seconds of a training sentence, and of a dev sentence."""
    inputs = load_dataset(data).split("train").inputs("text", backbone.modality)
    random = np.random.default_rng(0)
    whole = min(steps, len(inputs) // batch_size)
    if not whole:
        raise click.UsageError(f"{len(inputs)} training sentences make no batch of {batch_size}")
    rows = random.permutation(len(inputs))[: batch_size * whole]
    encoded = backbone.encode([inputs[row] for row in rows.tolist()])
    batches = list(np.arange(len(rows)).reshape(-1, batch_size))
    net = token_classifier(backbone.taps, side_width, backbone.device)
    labels = torch.arange(len(rows), device=backbone.device) % 2
    official_epoch(backbone, encoded, batches[:1], net, labels)
    seconds = []
    for batch in batches:
        synchronize()
        start = time.perf_counter()
        official_epoch(backbone, encoded, [batch], net, labels)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds) / batch_size, _forward(backbone, encoded, batches) / batch_size


@torch.no_grad()
def _forward(backbone: TextBackbone, encoded: EncodedTexts, batches: list[Any]) -> float:
    """Return the mean seconds of a batch through the backbone alone, as dev needs it."""
    seconds = []
    for batch in batches:
        inputs = backbone.prepare(encoded.select(batch))
        synchronize()
        start = time.perf_counter()
        backbone.model(**inputs)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds)


@click.command()
@click.argument("what", type=click.Choice(["bert", "tweets"]))
@click.option("--samples", default=2000, show_default=True, help="Sentences of bert.")
@click.option("--trials", default=64, show_default=True, help="Trials of the sweep.")
@click.option("--epochs", default=10, show_default=True, help="Epochs of a whole run.")
@click.option("--batch-size", default=32, show_default=True, help="Sentences of a step.")
@click.option("--side-width", default=192, show_default=True, help="Width d of the side network.")
@click.option("--steps", default=12, show_default=True, help="Official steps that are measured.")
@click.option("--device", default="auto", show_default=True, help="Torch device.")
def main(
    what: str,
    *,
    samples: int,
    trials: int,
    epochs: int,
    batch_size: int,
    side_width: int,
    steps: int,
    device: str,
) -> None:
    """Measure a sweep with halving, extraction included, against official runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if what == "bert":
            model, data = random_bert(folder / "bert"), movie_data(folder, samples)
        else:
            model, data = minilm(WORK), tweets(WORK)
        backbone = load_backbone(str(model), device=device, dtype="float32", max_length=128)
        assert isinstance(backbone, TextBackbone)
        step, forward = official_seconds(
            backbone, data, side_width=side_width, batch_size=batch_size, steps=steps
        )
        counts = {split: len(rows) for split, rows in load_dataset(data).splits.items()}
        official = epochs * (counts["train"] * step + counts["dev"] * forward)
        del backbone
        source = ExtractConfig(
            backbone=str(model), data=data, out=folder / "cache", device=device, max_length=128
        )
        start = time.perf_counter()
        with progress_line() as line:
            extract(source, progress=line)
        extraction = time.perf_counter() - start
        run = train_config(
            {
                "data": data,
                "cache": folder / "cache",
                "out": folder / "sweep",
                "epochs": epochs,
                "batch_size": batch_size,
                "side_width": side_width,
                "device": device,
            }
        )
        config = SweepConfig(run=run, space=SPACE, trials=trials, sampler="random", refit="none")
        start = time.perf_counter()
        with progress_line() as line:
            result = sweep(config.model_copy(update={"keep": 1}), progress=line)
        searching = time.perf_counter() - start
        shutil.rmtree(folder / "cache")
    figures = {
        "trials": trials,
        "epochs": epochs,
        "side_width": side_width,
        "batch_size": batch_size,
        "sentences": counts,
        "official": {
            "measured_steps": steps,
            "seconds_a_training_sentence": step,
            "seconds_a_dev_sentence": forward,
            "seconds_a_run_extrapolated": official,
        },
        "extraction_seconds": extraction,
        "sweep_seconds": searching,
        "rungs": list(result.rungs),
        "sizes": dict(result.sizes),
        "sweep_over_one_official_run": (extraction + searching) / official,
        "faster_than_official_runs": trials * official / (extraction + searching),
    }
    report(f"sweep_{what}", figures, _lines(what, figures, result))


def _lines(what: str, figures: dict[str, Any], result: SweepResult) -> list[str]:
    official = figures["official"]["seconds_a_run_extrapolated"]
    steps = figures["official"]["measured_steps"]
    trials, ours = figures["trials"], figures["extraction_seconds"] + figures["sweep_seconds"]
    trained = sum(trial["epochs"] for trial in result.trials)
    counts = ", ".join(f"{count:,} {name}" for name, count in figures["sentences"].items())
    rungs = ", ".join(f"{r['trials']} to epoch {r['stop']}" for r in result.rungs)
    read = statistics.mean(trial["bytes_read"] for trial in result.trials) / 1e6
    return [
        f"{what}: sentences {counts}; side width {figures['side_width']}, "
        f"{figures['epochs']} epochs, batch {figures['batch_size']}",
        f"one official run     {duration(official):>14}   extrapolated from {steps} measured steps",
        f"{trials} official runs    {duration(trials * official):>14}   extrapolated",
        f"extraction           {duration(figures['extraction_seconds']):>14}   measured",
        f"sweep of {trials} trials   {duration(figures['sweep_seconds']):>14}   measured; {rungs}; "
        f"{trained} epochs of {trials * figures['epochs']}; {read:,.0f} MB read a trial",
        *(str(size["reason"]) for size in result.sizes.values()),
        f"extraction and sweep against one official run: {ours / official:.2f} of its time",
        f"against {trials} official runs: {trials * official / ours:.0f} x faster",
    ]


if __name__ == "__main__":
    main()
