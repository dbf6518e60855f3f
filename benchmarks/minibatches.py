"""Shuffled minibatches ready for training, from the cache and from what people would use instead.

    python -m benchmarks.minibatches [--samples 1500] [--repeats 5] [--only ours,arrow]

The same sentences, states of 13 taps of width 768 in float16, in batches of 32: packed tokens as
one torch tensor on the host, in a new random order each epoch, with the lengths. Checksums are
checked where the format has them (ours, zarr). All files are written first and lie in the page
cache. Torch computes with one thread, which is best for all on a machine with other work. Each
alternative gets the layout and the settings that suit it, and its best number of worker processes
(tried with 0 and 2 where it has any):

- `ours, host`: the loader with all blocks in host memory, from the second epoch on.
- `ours, disk`: the loader reading every block again in each epoch; it keeps none in memory.
- `zarr`: the loader's own order, window and filling of batches, blocks read by zarr-python from the
  same store in the background, each chunk once an epoch.
- `datasets`: Hugging Face `datasets` over memory-mapped Arrow, one row a sentence with a list of
  float16; `with_format("torch")` and `DataLoader` by random index, as its manual shows.
- `arrow`: the same files without its conversion: the Arrow table of a batch's random rows, their
  values joined by Arrow and taken over without a further copy. The fastest way there is, for who
  knows Arrow's memory; nothing is checked, and a part of the taps cannot be read alone.
- `webdataset`: tar files of 100 sentences of one .npy each; files in random order, a shuffle buffer
  of 340 sentences (what 16 of our blocks hold), arrays joined to a batch.
- `pt`: one .pt file a sentence, by random index through `DataLoader`.

Sentences are stored token by token, [T, 13, 768], except ours: joining them is then one copy.
"""

import io
import statistics
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import zarr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.activations import TAPS, WIDTH, Activations
from benchmarks.common import interleaved, paired_ratio, report
from cache import Cache, Loader, Source
from cache.format.spec import Ints

BATCH = 32
WINDOW = 340
Epochs = Callable[[int], Iterator[Tensor]]
"""Batches of an epoch, each [T, taps, width] or [taps, T, width]."""


class _ZarrReader:
    """Stands in for a cache's own reader of chunks: zarr-python reads the block."""

    requests = None

    def __init__(self, cache: Cache) -> None:
        (self.stack,) = cache.geometry.stacks
        self._array: Any = zarr.open_array(cache.path / "activations" / self.stack.name, mode="r")

    def read_block(self, block: int, taps: list[int], into: list[np.ndarray[Any, Any]]) -> None:
        """Read some taps of a block into memory, as `ChunkReader` does."""
        values = self._array[block, taps[0] : taps[-1] + 1]
        for target, value in zip(into, values, strict=True):
            target[:] = value.reshape(-1).view(np.uint8)


def loader_epochs(cache: Cache, samples: Ints, tier: str, *, by_zarr: bool = False) -> Epochs:
    """Return our loader; its blocks read by zarr-python if asked."""
    options: dict[str, Any] = {"tier": tier, "threads": 1 if by_zarr else None}
    source = Source(cache=cache, samples=samples)
    loader = Loader({"it": source}, batch_size=BATCH, seed=0, **options)
    (feed,) = loader.feeds.values()
    (store,) = feed._stores
    if (store.capacity < cache.geometry.n_blocks) != (tier == "disk"):
        raise RuntimeError("so few samples are held in memory by the disk tier: take more")
    if by_zarr:  # zarr-python has threads of its own
        store._slabs[0].reader = _ZarrReader(cache)  # type: ignore[assignment]
    return lambda number: (batch.parts["it"].stacks[0] for batch in loader.epoch(number))


def join(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pack sentences into one tensor, with their lengths."""
    return torch.cat(parts), torch.tensor([len(part) for part in parts])


def write_arrow(made: Activations, path: Path) -> None:
    """Write a `datasets` folder, one list of float16 a sentence."""
    from datasets import Dataset as Arrow  # noqa: PLC0415
    from datasets import Features, Sequence, Value, disable_progress_bars  # noqa: PLC0415

    def rows() -> Iterator[dict[str, Any]]:
        for sample, length in enumerate(made.lengths.tolist()):
            yield {"states": made.states(sample).reshape(-1).numpy(), "length": length}

    disable_progress_bars()
    features = Features({"states": Sequence(Value("float16")), "length": Value("int64")})
    Arrow.from_generator(rows, features=features, cache_dir=str(path / "tmp")).save_to_disk(
        str(path / "arrow")
    )


def arrow_epochs(path: Path) -> Epochs:
    """Return batches of a `datasets` folder by random index."""
    from datasets import load_from_disk  # noqa: PLC0415

    data = load_from_disk(str(path / "arrow")).with_format("arrow")

    def epoch(number: int) -> Iterator[Tensor]:
        order = np.random.default_rng(number).permutation(len(data))
        for low in range(0, len(order), BATCH):
            table = data[order[low : low + BATCH].tolist()]
            states = table.column("states").combine_chunks()
            flat = states.flatten().to_numpy(zero_copy_only=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Arrow's memory is read-only
                batch = torch.from_numpy(flat)
            yield batch.view(-1, TAPS, WIDTH)

    return epoch


def datasets_epochs(path: Path, workers: int) -> Epochs:
    """Return batches of a `datasets` folder as its manual shows."""
    from datasets import load_from_disk  # noqa: PLC0415

    data = load_from_disk(str(path / "arrow")).with_format("torch")

    def collate(rows: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        return join([row["states"].view(-1, TAPS, WIDTH) for row in rows])

    def epoch(number: int) -> Iterator[Tensor]:
        return shuffled(data, collate, workers, number)

    return epoch


def shuffled(data: Any, collate: Any, workers: int, seed: int) -> Iterator[Tensor]:
    """Return one epoch of batches by random index, the values of each."""
    loading = DataLoader(
        data,
        BATCH,
        shuffle=True,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
    )
    return (values for values, _ in loading)


def write_tars(made: Activations, path: Path, each: int = 100) -> None:
    """Write WebDataset shards."""
    for low in range(0, len(made.lengths), each):
        with tarfile.open(path / f"{low // each:05}.tar", "w") as tar:
            for sample in range(low, min(low + each, len(made.lengths))):
                content = io.BytesIO()
                np.save(content, made.states(sample).numpy())
                info = tarfile.TarInfo(f"{sample:08}.npy")
                info.size = content.tell()
                content.seek(0)
                tar.addfile(info, content)


def tar_epochs(path: Path, workers: int) -> Epochs:
    """Return batches of WebDataset shards."""
    import webdataset as wds  # noqa: PLC0415

    urls = [str(file) for file in sorted(path.glob("*.tar"))]

    def collate(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        return join([torch.from_numpy(sample["npy"]) for sample in samples])

    def epoch(number: int) -> Iterator[Tensor]:
        data = wds.WebDataset(urls, shardshuffle=len(urls), seed=number, empty_check=False)
        batches = data.shuffle(WINDOW).decode().batched(BATCH, collation_fn=collate)
        loading = wds.WebLoader(batches, batch_size=None, num_workers=workers)
        return (values for values, _ in loading)

    return epoch


def write_pt(made: Activations, path: Path) -> None:
    """Write one .pt file a sentence."""
    for sample in range(len(made.lengths)):
        torch.save(made.states(sample).clone(), path / f"{sample}.pt")


class _Files(Dataset[Tensor]):
    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, sample: int) -> Tensor:
        loaded: Tensor = torch.load(self.path / f"{sample}.pt", weights_only=True)
        return loaded


def pt_epochs(path: Path, n: int, workers: int) -> Epochs:
    """Return batches of .pt files by random index."""

    def epoch(number: int) -> Iterator[Tensor]:
        return shuffled(_Files(path, n), join, workers, number)

    return epoch


def drained(epochs: Epochs, tokens: int) -> Callable[[], None]:
    """Return a run through one epoch, another each time, that counts its tokens."""
    number = iter(range(10**9))

    def run() -> None:
        seen = 0
        for values in epochs(next(number)):
            seen += values.numel() // (TAPS * WIDTH)
        if seen != tokens:
            raise RuntimeError(f"{seen} tokens came, {tokens} were expected")

    return run


def prepare(made: Activations, root: Path, only: set[str]) -> dict[str, list[Epochs]]:
    """Write every format; return its variants, of which the fastest counts."""
    n = len(made.lengths)
    cache = made.write(root / "cache")
    found: dict[str, list[Epochs]] = {}
    for tier in ("host", "disk"):
        found[f"ours, {tier}"] = [loader_epochs(cache, np.arange(n), tier)]
    if "zarr" in only:
        found["zarr"] = [loader_epochs(cache, np.arange(n), "disk", by_zarr=True)]
    if "arrow" in only:
        write_arrow(made, root)
        found["datasets"] = [datasets_epochs(root, workers) for workers in (0, 2)]
        found["arrow"] = [arrow_epochs(root)]
    if "webdataset" in only:
        write_tars(made, root)
        found["webdataset"] = [tar_epochs(root, workers) for workers in (0, 2)]
    if "pt" in only:
        (root / "pt").mkdir()
        write_pt(made, root / "pt")
        found["pt"] = [pt_epochs(root / "pt", n, workers) for workers in (0, 2)]
    return found


@click.command()
@click.option("--samples", default=1500, show_default=True, help="Sentences.")
@click.option("--repeats", default=5, show_default=True, help="Measured epochs of each kind.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; temporary files.")
@click.option("--only", default="zarr,arrow,webdataset,pt", show_default=True, help="To compare.")
def main(samples: int, repeats: int, folder: Path | None, only: str) -> None:
    """Measure an epoch of every alternative."""
    torch.set_num_threads(1)
    made = Activations(samples)
    tokens = int(made.lengths.sum())
    with tempfile.TemporaryDirectory(dir=folder) as name:
        runs = {}
        for kind, variants in prepare(made, Path(name), set(only.split(","))).items():
            tried = {str(i): drained(epochs, tokens) for i, epochs in enumerate(variants)}
            seconds = interleaved(tried, repeats=1) if len(tried) > 1 else {"0": [0.0]}
            best = min(seconds, key=lambda key: seconds[key])
            label = f"{kind}, {2 * int(best)} workers" if len(tried) > 1 else kind
            runs[label] = tried[best]
        seconds = interleaved(runs, repeats=repeats)
    lines = [
        f"{samples} sentences, {tokens:,} tokens, {made.nbytes / 1e9:.2f} GB, batches of {BATCH}; "
        f"page cache warm; medians of {repeats}",
        f"{'':24} samples/s    GB/s   host tier is   disk tier is",
    ]
    ratios = {}
    for kind, values in seconds.items():
        middle = statistics.median(values)
        ratios[kind] = {
            tier: paired_ratio(values, seconds[f"ours, {tier}"]) for tier in ("host", "disk")
        }
        lines.append(
            f"{kind:24} {samples / middle:9,.0f} {made.nbytes / middle / 1e9:7.2f} "
            f"{ratios[kind]['host']:11.1f} x {ratios[kind]['disk']:12.1f} x"
        )
    figures = {"samples": samples, "bytes": made.nbytes, "seconds": seconds, "ratios": ratios}
    report("minibatches", figures, lines)


if __name__ == "__main__":
    main()
