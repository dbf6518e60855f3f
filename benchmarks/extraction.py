"""Extraction against the bare forward pass on the same batches, and its memory over 10 x the input.

    python -m benchmarks.extraction [--samples 4000] [--repeats 2] [--device auto]

An extraction's time is all of it: tokenising, fingerprint, forward passes, writing to the disk with
fsync. The bare side has the forward passes alone. Only an extraction of several shards overlaps
writing with computing, so the defaults give three shards and more.
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.common import interleaved, paired_ratio, report
from benchmarks.sentences import WORK, movie_sentences, random_bert
from pipeline.backbones import load_backbone
from pipeline.demo.assets import minilm
from pipeline.extract import extract_inputs
from pipeline.extraction.fill import shard_batches
from pipeline.extraction.table import build_table


def throughput(model: Path, samples: int, repeats: int, device: str) -> dict[str, object]:
    """Time extraction and the bare forward pass in turn; return seconds and their ratio."""
    backbone = load_backbone(str(model), device=device, max_length=128)
    rows = [(str(number), text) for number, text in enumerate(movie_sentences(samples))]
    table = build_table(backbone, rows)
    layout = table.layout(backbone, dtype="float16", seed=0, block_tokens=640)
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def bare() -> None:
            for _, batch in shard_batches(backbone, layout, table, None):
                backbone.run(backbone.prepare(table.encoded.select(batch)))

        def extraction() -> None:
            extract_inputs(backbone, rows, Path(folder) / f"cache-{next(numbers)}")

        seconds = interleaved({"bare": bare, "extraction": extraction}, repeats=repeats)
    return {
        "samples": samples,
        "tokens": int(table.encoded.lengths.sum()),
        "bytes": layout.total_bytes,
        "seconds": seconds,
        "ratio": paired_ratio(seconds["bare"], seconds["extraction"]),
    }


def peak_memory(samples: int) -> int:
    """Return the peak resident bytes of a process that extracts `samples` sentences."""
    code = f"from benchmarks.extraction import measure_peak; measure_peak({samples})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def measure_peak(samples: int) -> None:
    """Extract `samples` sentences with MiniLM and print the process's peak resident bytes."""
    backbone = load_backbone(str(minilm(WORK)), device="cpu", max_length=128)
    rows = [(str(number), text) for number, text in enumerate(movie_sentences(samples))]
    with tempfile.TemporaryDirectory() as folder:
        extract_inputs(backbone, rows, Path(folder) / "cache")
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def line(name: str, figures: dict[str, object]) -> str:
    """Format one throughput measurement."""
    seconds = figures["seconds"]
    assert isinstance(seconds, dict)
    bare, extraction = (statistics.median(seconds[key]) for key in ("bare", "extraction"))
    return (
        f"{name}: bare forward {bare:.2f} s, extraction to disk {extraction:.2f} s, throughput "
        f"{figures['ratio']:.2f} of the bare forward's ({figures['tokens']:,} tokens, "
        f"{figures['bytes']:,} bytes)"
    )


@click.command()
@click.option("--samples", default=4000, show_default=True, help="Sentences (MiniLM).")
@click.option("--large-samples", default=1000, show_default=True, help="Sentences (BERT-base).")
@click.option("--memory-samples", default=1000, show_default=True, help="Sentences; and 10 x more.")
@click.option("--repeats", default=2, show_default=True, help="Measured repetitions of each kind.")
@click.option("--device", default="auto", show_default=True, help="Torch device.")
def main(samples: int, large_samples: int, memory_samples: int, repeats: int, device: str) -> None:
    """Measure throughput on MiniLM and BERT-base (random weights), and memory on MiniLM."""
    small = throughput(minilm(WORK), samples, repeats, device)
    with tempfile.TemporaryDirectory() as folder:
        large = throughput(random_bert(Path(folder)), large_samples, repeats, device)
    few, many = peak_memory(memory_samples), peak_memory(10 * memory_samples)
    lines = [
        line("MiniLM, real weights", small),
        line("BERT-base, random weights", large),
        f"peak resident memory: {few / 2**20:,.0f} MiB for {memory_samples:,} sentences, "
        f"{many / 2**20:,.0f} MiB for {10 * memory_samples:,}: {many / few:.2f} x",
    ]
    memory = {"samples": memory_samples, "bytes": few, "bytes_at_10x": many}
    report("extraction", {"minilm": small, "bert_base": large, "memory": memory}, lines)


if __name__ == "__main__":
    main()
