"""How many zeros a cache of ConvNet maps holds, and what compressing them would bring.

    python -m benchmarks.zeros [--samples 24] [--repeats 5] [--cache CACHE]

Without `--cache`, emoji pictures go through ResNeXt-101 32x8d at 512 pixels with random weights,
and through EfficientNet-Lite0 with real ones. Half of such a picture is one colour, so photographs
may hold other zeros. Maps after a ReLU are partly zero, so that a compressor may pay where it does
not for the states of transformers. Each tap of some samples is written through zarr and read back,
in memory and on one core, in the chunks and with the checksum of the cache: as it is, with zstd,
and with lz4 after bit-shuffling. Rates count the uncompressed bytes; no disk takes part, so that a
codec pays where its rate out exceeds what the disk gains by the fewer bytes.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from benchmarks.common import interleaved, report
from benchmarks.generated import captions_file, random_resnext
from benchmarks.sentences import WORK
from cache import Cache
from pipeline.demo.emoji import efficientnet_lite0, emoji_pictures
from pipeline.demo.retrieval import LITE0_TAPS
from pipeline.extract import ExtractConfig, extract

Array = np.ndarray[Any, Any]

CODECS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "zstd": lambda: [ZstdCodec(level=3)],
    "lz4 + bitshuffle": lambda: [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")],
}
ONE_CORE = {"threading.max_workers": 1, "async.concurrency": 1}


@dataclass(frozen=True, kw_only=True)
class CodecFigures:
    """What one codec makes of a tap: share of the bytes kept, GB/s of the numbers in and out."""

    share: float
    write_gb_s: float
    read_gb_s: float


@dataclass(frozen=True, kw_only=True)
class TapFigures:
    """One tap: share of its numbers that are zero, bytes measured, and the codecs by name."""

    shape: tuple[int, ...]
    zeros: float
    nbytes: int
    codecs: dict[str, CodecFigures]


def measure_tap(cache: Cache, tap: str, samples: Array, *, repeats: int) -> TapFigures:
    """Compress and restore a tap of some samples.

    Raises:
        ValueError: the samples have no rows of this tap.
        RuntimeError: a codec changed a number.
    """
    stack, _ = cache.stack_of([tap])
    values = cache.read(samples, [tap])[tap]  # [rows, *shape]
    if not len(values):
        raise ValueError(f"{len(samples)} samples of {cache.path} have no row of {tap}")
    bits = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
    numbers = bits.numpy()
    chunk = (min(cache.geometry.rows(stack), len(numbers)), *stack.shape)
    arrays = {}
    stores: dict[str, dict[str, Buffer]] = {name: {} for name in CODECS}
    for name, codecs in CODECS.items():
        arrays[name] = zarr.create_array(
            MemoryStore(stores[name]),
            shape=numbers.shape,
            chunks=chunk,
            dtype=numbers.dtype,
            filters=None,
            compressors=[*codecs(), Crc32cCodec()],
        )

    def writing(array: Any) -> Callable[[], None]:
        return lambda: array.__setitem__(Ellipsis, numbers)

    def reading(array: Any) -> Callable[[], object]:
        return lambda: array[...]

    with zarr.config.set(ONE_CORE | {"array.write_empty_chunks": True}):
        written = interleaved({n: writing(a) for n, a in arrays.items()}, repeats=repeats)
        read = interleaved({n: reading(a) for n, a in arrays.items()}, repeats=repeats)
        changed = [
            n for n, a in arrays.items() if np.asarray(a[...]).tobytes() != numbers.tobytes()
        ]
    if changed:
        raise RuntimeError(f"{tap}: numbers changed under {', '.join(changed)}")
    return TapFigures(
        shape=stack.shape,
        zeros=float((values == 0).float().mean()),
        nbytes=numbers.nbytes,
        codecs={
            name: CodecFigures(
                share=_stored(stores[name]) / numbers.nbytes,
                write_gb_s=numbers.nbytes / statistics.median(written[name]) / 1e9,
                read_gb_s=numbers.nbytes / statistics.median(read[name]) / 1e9,
            )
            for name in CODECS
        },
    )


def _stored(store: dict[str, Buffer]) -> int:
    """Bytes of the chunks in a store."""
    return sum(len(value) for key, value in store.items() if not key.endswith("zarr.json"))


def render(figures: dict[str, TapFigures]) -> list[str]:
    """Return a table, one line a tap and codec."""
    width = max(map(len, figures))
    lines = [f"{'tap':<{width}}  zeros  {'codec':<16}  bytes kept  GB/s in  GB/s out"]
    for tap, found in figures.items():
        for number, (name, codec) in enumerate(found.codecs.items()):
            head = f"{tap:<{width}} {found.zeros:6.1%}" if not number else " " * (width + 7)
            lines.append(
                f"{head}  {name:<16}  {codec.share:10.1%}  {codec.write_gb_s:7.2f}"
                f"  {codec.read_gb_s:8.2f}"
            )
    kept = {
        name: sum(found.codecs[name].share * found.nbytes for found in figures.values())
        for name in CODECS
    }
    whole = sum(found.nbytes for found in figures.values())
    lines += [f"{name}: {count / whole:.1%} of all bytes" for name, count in kept.items()]
    return lines


def extracted(folder: Path, samples: int) -> Iterator[tuple[str, Path]]:
    """Cache the maps of some emoji pictures by two ConvNets; yield what each is, and its cache."""
    shown = sorted(emoji_pictures(WORK).rglob("*.webp"))
    chosen = [shown[place] for place in np.linspace(0, len(shown) - 1, samples).astype(int)]
    media = [Path(shutil.copy(picture, folder)) for picture in chosen]
    data = {"task": "retrieval", "train": captions_file(media, (9.3, 4.0), samples)}
    nets: dict[str, dict[str, Any]] = {
        "ResNeXt-101 32x8d, 512 px, random weights": {
            "backbone": str(random_resnext(folder / "resnext101.pth")),
            "architecture": "resnext101_32x8d",
            "image_size": "512",
        },
        "EfficientNet-Lite0, real weights": {
            "backbone": str(efficientnet_lite0(WORK)),
            "architecture": "efficientnet_lite0",
            "taps": LITE0_TAPS,
        },
    }
    for number, (name, options) in enumerate(nets.items()):
        own = options | {"tower": "image", "data": data, "out": folder / f"{number}.zarr"}
        extract(ExtractConfig.build(own))
        yield name, folder / f"{number}.zarr"


@click.command()
@click.option("--samples", default=24, show_default=True, help="Samples measured.")
@click.option("--repeats", default=5, show_default=True, help="Measured repetitions.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice of samples.")
@click.option("--cache", "path", type=click.Path(exists=True, path_type=Path), help="Only this.")
def main(samples: int, repeats: int, seed: int, path: Path | None) -> None:
    """Measure every tap of the caches."""
    sets, lines = {}, [f"one core, in memory; rates of uncompressed numbers, medians of {repeats}"]
    with tempfile.TemporaryDirectory() as name:
        given = extracted(Path(name), samples) if path is None else [(path.name, path)]
        for net, place in given:
            cache = Cache.open(place)
            chosen = np.random.default_rng(seed).permutation(cache.n_samples)[:samples]
            figures = {
                tap.name: measure_tap(cache, tap.name, chosen, repeats=repeats)
                for tap in cache.taps
            }
            lines += [f"{net}: {len(chosen)} samples, {cache.geometry.dtype}", *render(figures)]
            taps = {tap: asdict(found) for tap, found in figures.items()}
            sets[net] = {"samples": len(chosen), "taps": taps}
    report("zeros", {"sets": sets}, lines)


if __name__ == "__main__":
    main()
