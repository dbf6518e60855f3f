"""Opening a cache of a million samples: time and memory of its index.

    python -m benchmarks.index [--samples 1000000] [--repeats 5]

The cache is a real one, with ids and places of every sample; its activations are 2 numbers wide, as
only the index matters here. Each opening is a process of its own: the seconds are those of
`Cache.open` alone, and the memory is what the process grew by (peak resident size after opening
less that before). `and ids` also decodes the ids of all rows and looks up a thousand samples by
their content; neither is needed to train. Then a loader gives the first batch of a shuffled epoch.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import report
from cache import Cache, CacheWriter, Fingerprint, Loader, Source, TapSpec


def peak_bytes() -> int:
    """Return the largest resident size this process has had (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def write_wide(path: Path, n: int) -> None:
    """Write a cache of `n` sentences of 4 to 54 tokens, 2 numbers each."""
    rng = np.random.default_rng(0)
    tap = TapSpec(name="layer.00", kind="tokens", shape=(2,))
    with CacheWriter.create(
        path,
        taps=[tap],
        lengths={"tokens": rng.integers(4, 55, n).astype(np.int64)},
        keys=rng.integers(0, 256, (n, 16)).astype(np.uint8),
        row_to_sample=np.arange(n, dtype=np.int64),
        row_ids=[f"train/{i}" for i in range(n)],
        dtype="float16",
        fingerprint=Fingerprint({"made": "up"}),
        blocks_per_shard=4096,
    ) as writer:
        lengths = writer.layout.packing.table.length["tokens"]
        for shard in writer.pending:
            samples = writer.samples_of(shard)
            with writer.shard(shard) as buffer:
                buffer.put(samples, {tap.name: _numbers(int(lengths[samples].sum()))})
        writer.finish()


def _numbers(rows: int) -> Any:
    return torch.ones(rows, 2)


def measure(path: Path) -> dict[str, float]:
    """Open the cache, in a process that has done nothing else."""
    figures = {}
    base = peak_bytes()
    start = time.perf_counter()
    cache = Cache.open(path)
    figures["open"] = time.perf_counter() - start
    figures["bytes"] = float(peak_bytes() - base)
    start = time.perf_counter()
    source = Source(cache=cache, samples=np.arange(cache.n_samples))
    loader = Loader({"it": source}, batch_size=32, seed=0)
    epoch = loader.epoch(0)
    next(epoch)
    figures["first batch"] = time.perf_counter() - start
    epoch.close()
    start = time.perf_counter()
    if len(cache.row_ids) != cache.n_rows or (cache.find(cache.keys[:1000]) < 0).any():
        raise RuntimeError("the index is not what was written")
    figures["and ids"] = time.perf_counter() - start
    return figures


@click.command()
@click.option("--samples", default=1_000_000, show_default=True, help="Samples of the cache.")
@click.option("--repeats", default=5, show_default=True, help="Processes that open it.")
@click.option("--opened", type=click.Path(path_type=Path), hidden=True)
def main(samples: int, repeats: int, opened: Path | None) -> None:
    """Write the cache, open it again and again."""
    if opened is not None:
        print(json.dumps(measure(opened)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        write_wide(path, samples)
        index = sum(f.stat().st_size for f in (path / "index").rglob("*") if f.is_file())
        command = [sys.executable, "-m", "benchmarks.index", "--opened", str(path)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(repeats)
        ]
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    lines = [
        f"{samples:,} samples, index of {index / 1e6:.0f} MB; medians of {repeats} processes",
        f"Cache.open             {middle['open']:6.2f} s, {middle['bytes'] / 1e6:.0f} MB of memory",
        f"loader, first batch    {middle['first batch']:6.2f} s",
        f"all ids, 1000 look-ups {middle['and ids']:6.2f} s",
    ]
    report("index", {"samples": samples, "index_bytes": index, "runs": runs}, lines)


if __name__ == "__main__":
    main()
