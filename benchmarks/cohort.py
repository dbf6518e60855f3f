"""A cohort of trials against the same trials one after another, both from the cache.

One after another: the ordinary training loop, trial by trial, on one opened cache whose blocks are
in memory already. Together: the same configurations as one cohort. No trial is stopped early; both
keep their best weights on disk, and their losses are compared. BERT-base's sizes (13 taps of 768),
random states, the lengths of real sentences. On a GPU also: cohorts of 1, 4, 16 and 64 trials.

    python -m benchmarks.cohort [--trials 16] [--widths 24,48,192] [--precision float32,bfloat16]
        [--epochs 2] [--repeats 3]
"""

import csv
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.common import interleaved, paired_ratio, report
from benchmarks.sentences import WORK, movie_sentences
from cache import CacheWriter, Fingerprint, TapSpec
from pipeline.demo.assets import minilm
from pipeline.inputs import TextInput
from pipeline.sweep.capacity import Measured, cohort_capacity, measure_cohort
from pipeline.sweep.cohort import CohortTrial, train_cohort
from pipeline.train import make_job
from pipeline.training.build import Setup, prepare
from pipeline.training.config import TrainConfig
from pipeline.training.loop import run_loop

TAPS, WIDTH, LIMIT = 13, 768, 128
COHORTS = (1, 4, 16, 64)
"""Trials of the cohorts measured on a GPU."""
SAMPLES, BATCH = 500, 100
"""Sentences in all, of which four fifths are trained on, and of a step."""


def build_data(folder: Path, samples: int) -> Path:
    """Write `samples` labelled sentences and a cache of random states for them."""
    texts = movie_sentences(samples)
    table = folder / "rows.tsv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, "excel-tab")
        rows.writerow(["text", "label"])
        rows.writerows([text.text, number % 2] for number, text in enumerate(texts))
    tokenizer = AutoTokenizer.from_pretrained(minilm(WORK))
    tokens = tokenizer([text.text for text in texts], truncation=True, max_length=LIMIT)
    write_states(folder / "cache", texts, np.array([len(ids) for ids in tokens["input_ids"]]))
    return table


def write_states(path: Path, texts: Sequence[TextInput], lengths: np.ndarray) -> None:
    """Write a cache of random states, a shard at a time."""
    names = [f"layer.{number:02d}" for number in range(TAPS)]
    writer = CacheWriter.create(
        path,
        taps=[TapSpec(name=name, kind="tokens", shape=(WIDTH,)) for name in names],
        lengths={"tokens": lengths.astype(np.int64)},
        keys=np.stack([np.frombuffer(text.key(), np.uint8) for text in texts]),
        row_to_sample=np.arange(len(texts), dtype=np.int64),
        row_ids=[f"row/{number}" for number in range(len(texts))],
        dtype="float16",
        fingerprint=Fingerprint({"states": "random"}),
    )
    generator = torch.Generator().manual_seed(0)
    for shard in list(writer.pending):
        samples = writer.samples_of(shard)
        rows = int(lengths[samples].sum())
        with writer.shard(shard) as buffer:
            states = {n: torch.randn(rows, WIDTH, generator=generator).half() for n in names}
            buffer.put(samples, states)
    writer.finish()


def configurations(folder: Path, trials: int, **options: Any) -> list[TrainConfig]:
    """Return trials of one shape that differ in all that may differ."""
    shared = {
        "data": {"train": str(folder / "rows.tsv"), "fractions": [0.8, 0.1, 0.1]},
        "cache": str(folder / "cache"),
        "batch_size": BATCH,
        "checkpoint_steps": 0,
        "order_seed": 0,
    }
    rng = np.random.default_rng(0)
    return [
        TrainConfig.build(
            shared
            | options
            | {
                "out": str(folder / f"trial{number}"),
                "seed": number,
                "lr": float(10 ** rng.uniform(-4, -3)),
                "weight_decay": float(rng.uniform(0, 0.1)),
                "dropout": float(rng.uniform(0, 0.4)),
            }
        )
        for number in range(trials)
    ]


def train_each(configs: Sequence[TrainConfig], setup: Setup) -> list[float]:
    """Train one after another; return the last losses."""
    losses = []
    for config in configs:
        with tempfile.TemporaryDirectory() as out, torch.random.fork_rng():
            own = config.model_copy(update={"out": Path(out)})
            torch.manual_seed(config.seed)
            _, job = make_job(own, setup)
            losses.append(run_loop(own, job, identity="").history[-1]["loss"])
    return losses


def train_together(configs: Sequence[TrainConfig], setup: Setup) -> list[float]:
    """Train as one cohort; return the last losses."""
    trials = [CohortTrial(number=n, config=config) for n, config in enumerate(configs)]
    with tempfile.TemporaryDirectory() as out:
        outcomes = train_cohort(trials, setup, configs[0].epochs)
        for outcome in outcomes:
            outcome.state.save(Path(out) / f"{outcome.number}.safetensors")
    return [outcome.history[-1]["loss"] for outcome in outcomes]


def compare(configs: Sequence[TrainConfig], repeats: int) -> dict[str, Any]:
    """Time both ways in turn."""
    setup, losses = prepare(configs[0]), {}

    def each() -> None:
        losses["each"] = train_each(configs, setup)

    def together() -> None:
        losses["together"] = train_together(configs, setup)

    seconds = interleaved({"each": each, "together": together}, repeats=repeats)
    gaps = [abs(a - b) / a for a, b in zip(losses["each"], losses["together"], strict=True)]
    return {
        "side_width": configs[0].side_width,
        "precision": configs[0].precision,
        "trials": len(configs),
        "seconds": seconds,
        "ratio": paired_ratio(seconds["each"], seconds["together"]),
        "largest_loss_difference": max(gaps),
        "mean_loss": statistics.fmean(losses["together"]),
    }


def describe(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    each, together = (statistics.median(row["seconds"][kind]) for kind in ("each", "together"))
    return (
        f"d {row['side_width']:4d}  {row['precision']:9s} {row['trials']:3d} trials: one by one "
        f"{each:7.2f} s  together {together:7.2f} s  ratio {row['ratio']:5.2f} x  largest relative "
        f"difference of losses {row['largest_loss_difference']:.1e}  "
        f"mean loss {row['mean_loss']:.4f}"
    )


def gpu_rates(config: TrainConfig, setup: Setup) -> Iterator[Measured]:
    """Measure a step of cohorts of growing size, until memory is out."""
    for trials in COHORTS:
        try:
            yield measure_cohort(config, setup, trials)
        except torch.cuda.OutOfMemoryError:
            return


def gpu_lines(rows: Sequence[Measured]) -> list[str]:
    """Return the table of what a GPU does."""
    return [
        f"{row.trials:3d} trials: {row.examples / row.share:12,.0f} samples x trials/s  "
        f"{row.device_bytes / 2**30:6.2f} GiB  {rows[0].share / row.share:5.1f} x one at a time"
        for row in rows
    ]


@click.command()
@click.option("--trials", default=16, show_default=True, help="Trials of the cohort.")
@click.option("--widths", default="24,48,192", show_default=True, help="Side widths d.")
@click.option(
    "--precision", default="float32,bfloat16", show_default=True, help="Types of the arithmetic."
)
@click.option("--epochs", default=2, show_default=True, help="Epochs of each trial.")
@click.option("--repeats", default=3, show_default=True, help="Measured pairs of each width.")
def main(trials: int, widths: str, precision: str, epochs: int, repeats: int) -> None:
    """Measure trials one by one and together, and cohorts of several sizes on a GPU."""
    rows, gpu, lines = [], {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_data(folder, SAMPLES)
        for width in map(int, widths.split(",")):
            for kind in precision.split(","):
                configs = configurations(
                    folder, trials, side_width=width, precision=kind, epochs=epochs
                )
                rows.append(compare(configs, repeats))
                lines.append(describe(rows[-1]))
                setup = prepare(configs[0])
                if setup.device.type == "cuda":
                    measured = list(gpu_rates(configs[0], setup))
                    gpu[f"{width} {kind}"] = [dataclasses.asdict(row) for row in measured]
                    lines += gpu_lines(measured)
        lines.append(cohort_capacity(configs[0], setup, wanted=trials)[1])
    if not gpu:
        lines.append("no GPU here: cohorts of 1, 4, 16, 64 are measured where there is one")
    report("cohort", {"samples": SAMPLES, "epochs": epochs, "rows": rows, "gpu": gpu}, lines)


if __name__ == "__main__":
    main()
