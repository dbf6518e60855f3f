"""Writing a cache, durably, against a raw write of as many bytes.

    python -m benchmarks.writing [--gigabytes 1] [--repeats 5]

- `raw`: files of the size of a shard (about 200 MB), each written under a temporary name in one
  call, flushed (`fsync`), renamed, and its folder flushed.
- `raw, direct`: the same past the page cache, as ours are where the file system allows it.
- `ours`: a whole extraction but the network: float16 states of 64 sentences at a time are checked
  for overflow and put in their places, every shard gets its CRC-32Cs and index, is written in the
  same way, and then listed in the flushed ledger; the metadata and the index of samples as well.
- `ours, overlapped`: the same with a shard being written while the next one is filled, as `extract`
  does.

Torch computes with one thread. Each repetition writes into a new folder; the one before is deleted,
which is not measured.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.activations import TAPS, WIDTH, Activations
from benchmarks.common import interleaved, paired_ratio, report
from cache.storage.direct import open_new, page_aligned, write_as_final
from cache.storage.files import sync_folder


def raw_write(root: Path, sizes: list[int], *, direct: bool) -> None:
    """Write files of these sizes, each durable before the next."""
    most = max(sizes)
    data = page_aligned(most) if direct else page_aligned(most + 1)[1:]
    data[:] = 1
    for number, size in enumerate(sizes):
        partial = root / f"{number}.partial"
        with open_new(partial, data) as file:
            write_as_final(file.fileno(), data[:size], [size])
            os.fsync(file.fileno())
        partial.replace(root / str(number))
        sync_folder(root)


def shard_sizes(made: Activations, path: Path) -> list[int]:
    """Return the bytes of every shard file."""
    with made.writer(path) as writer:
        geometry = writer.layout.geometry
        (stack,) = geometry.stacks
        return [geometry.shard_bytes(stack, shard) for shard in writer.pending]


def our_write(made: Activations, noise: Tensor, root: Path, *, overlap: bool) -> None:
    """Write a cache as an extraction does, the states of each batch of 64 being there."""
    with made.writer(root / "cache", overlap=overlap) as writer:
        for shard in writer.pending:
            samples = writer.samples_of(shard)
            with writer.shard(shard) as buffer:
                for low in range(0, len(samples), 64):
                    part = samples[low : low + 64]
                    rows = int(made.lengths[part].sum())
                    buffer.put(part, {tap.name: noise[i, :rows] for i, tap in enumerate(made.taps)})
        writer.finish()


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Size of the cache.")
@click.option("--repeats", default=5, show_default=True, help="Measured writes of each kind.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; temporary files.")
def main(gigabytes: float, repeats: int, folder: Path | None) -> None:
    """Measure every kind of writing."""
    torch.set_num_threads(1)
    made = Activations(round(gigabytes * 1e9 / (29 * TAPS * WIDTH * 2)))
    noise = torch.randn(TAPS, 64 * int(made.lengths.max()), WIDTH).half()  # [taps, tokens, width]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        sizes = shard_sizes(made, root / "plan")
        folders: Iterator[Path] = (root / str(number) for number in count())
        current: list[Path] = []

        def renew() -> None:
            for old in current:
                shutil.rmtree(old)
            current[:] = [next(folders)]
            current[0].mkdir()

        def into(write: Callable[[Path], None]) -> Callable[[], None]:
            return lambda: write(current[0])

        work = {
            "raw": into(lambda path: raw_write(path, sizes, direct=False)),
            "raw, direct": into(lambda path: raw_write(path, sizes, direct=True)),
            "ours": into(lambda path: our_write(made, noise, path, overlap=False)),
            "ours, overlapped": into(lambda path: our_write(made, noise, path, overlap=True)),
        }
        seconds = interleaved(work, repeats=repeats, before=renew)
    lines = [
        f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} shards, 13 taps of width 768, float16; "
        f"medians of {repeats}"
    ]
    ratios = {}
    for kind, values in seconds.items():
        ratios[kind] = paired_ratio(seconds["raw"], values)
        lines.append(
            f"{kind:<17} {sum(sizes) / statistics.median(values) / 1e9:6.2f} GB/s  "
            f"{ratios[kind]:5.2f} x raw"
        )
    report("writing", {"bytes": sum(sizes), "seconds": seconds, "ratios": ratios}, lines)


if __name__ == "__main__":
    main()
