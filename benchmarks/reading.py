"""Reading blocks from the disk, checked, against a memory map of the same numbers.

    python -m benchmarks.reading [--gigabytes 2] [--repeats 7]

Every alternative goes through all blocks ([13, 640, 768] float16, 12.8 MB) in one random order and
puts each into the same reused memory:

- `memmap`: `numpy.memmap` of one .npy `[blocks, 13, 640, 768]`, opened anew each pass, copied.
- `ours`: what the loader does to fetch a block, straight from the shard file into the memory of its
  store, the CRC-32C of every chunk checked, by as many threads as the loader takes.
- `1 thread`, `unchecked`, `4 taps`: the same with one thread, with verify="never", with four taps.

Warm: the files lie in the page cache. Cold: before each pass the files are dropped from it with
`posix_fadvise(DONTNEED)`, after an fsync; what a hypervisor keeps of its disk is out of reach, for
all alike. Ratios are medians of neighbouring pairs.
"""

import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.activations import TAPS, WIDTH, Activations, forget
from benchmarks.common import interleaved, paired_ratio, report
from cache import Cache
from cache.format.spec import Ints
from cache.loading.loader import default_threads, more_threads
from cache.reading.buffers import BatchBuffers

Run = Callable[[], None]


def memmap_pass(path: Path, order: Ints) -> Run:
    """Return a pass over the blocks of a .npy file."""
    into = torch.empty(np.load(path, mmap_mode="r").shape[1:], dtype=torch.float16).numpy()

    def run() -> None:
        blocks = np.load(path, mmap_mode="r")
        for block in order:
            np.copyto(into, blocks[block])

    return run


def cache_pass(cache: Cache, order: Ints, taps: int, readers: Executor | None) -> Run:
    """Return a pass over the blocks of a cache, into a store of one block."""
    names = [tap.name for tap in cache.taps]
    chosen = names if taps == len(names) else names[:: len(names) // (taps - 1)]
    store = cache.store(chosen, capacity=1)
    bench = BatchBuffers(readers=readers)

    def run() -> None:
        for block in order:
            store.ensure(np.array([block]), bench)

    return run


def write_npy(cache: Cache, path: Path) -> None:
    """Write all blocks of a cache as one array."""
    (stack,) = cache.geometry.stacks
    shape = cache.geometry.array_shape(stack)
    array = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for block in range(len(array)):
        into = list(array[block].view(np.uint8).reshape(shape[1], -1))
        cache.read_block(stack, block, range(shape[1]), into)
    array.flush()


@click.command()
@click.option("--gigabytes", default=2.0, show_default=True, help="Size of the cache.")
@click.option("--repeats", default=7, show_default=True, help="Measured passes of each kind.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; temporary files.")
def main(gigabytes: float, repeats: int, folder: Path | None) -> None:
    """Measure every alternative, warm and cold."""
    made = Activations(round(gigabytes * 1e9 / (29 * TAPS * WIDTH * 2)))
    threads = default_threads()
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        more_threads(threads - 1) as readers,
    ):
        root = Path(name)
        cache = made.write(root / "cache")
        write_npy(cache, root / "blocks.npy")
        trusted = Cache.open(root / "cache", verify="never")
        order = np.random.default_rng(1).permutation(cache.geometry.n_blocks)
        runs: dict[str, Run] = {
            "memmap": memmap_pass(root / "blocks.npy", order),
            "ours": cache_pass(cache, order, TAPS, readers),
            "1 thread": cache_pass(cache, order, TAPS, None),
            "unchecked": cache_pass(trusted, order, TAPS, readers),
            "4 taps": cache_pass(cache, order, 4, readers),
        }
        warm = interleaved(runs, repeats=repeats)
        slow = {key: runs[key] for key in ("memmap", "ours", "4 taps")}
        cold = interleaved(slow, repeats=repeats, before=lambda: forget(root))
    (stack,) = cache.geometry.stacks
    whole = cache.geometry.n_blocks * TAPS * cache.geometry.chunk_bytes(stack)
    figures: dict[str, Any] = {"bytes": whole, "threads": threads, "warm": warm, "cold": cold}
    lines = [
        f"{len(order)} blocks of {whole / len(order) / 1e6:.1f} MB in random order, float16, "
        f"{threads} reading threads; medians of {repeats}"
    ]
    for state, seconds in {"warm": warm, "cold": cold}.items():
        for key, values in seconds.items():
            size = whole * 4 / TAPS if key == "4 taps" else whole
            ratio = paired_ratio(seconds["memmap"], values)
            figures[f"{state} {key} / memmap"] = ratio
            lines.append(
                f"{state}  {key:<9} {size / statistics.median(values) / 1e9:6.2f} GB/s   "
                f"{ratio:5.2f} x the blocks a second of memmap"
            )
        few = paired_ratio(seconds["ours"], seconds["4 taps"])
        figures[f"{state} 4 taps / ours"] = few
        lines.append(f"{state}  4 of 13 taps: {TAPS / 4:.2f} x fewer bytes, {few:.2f} x samples/s")
    report("reading", figures, lines)


if __name__ == "__main__":
    main()
