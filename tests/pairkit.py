"""A made-up retrieval data set: items with hidden vectors, which captions and media states show.

Item i has a hidden vector z_i. Every layout of media states holds a linear image of z_i, and every
caption's states another one, in one tap only, under noise: so towers that learn the two maps rank
unseen items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import CacheWriter, Fingerprint, TapSpec
from pipeline.inputs import ImageInput, TextInput, VideoInput, view_key
from pipeline.systems.two_towers import TwoTowersTrainConfig

HIDDEN, ITEMS, CAPTIONS = 4, 60, 2
Shapes = dict[str, tuple[int, ...]]
LAYOUTS: dict[str, tuple[str, Shapes]] = {
    "grid": ("grid", {"block.0": (5, 8), "block.1": (5, 8)}),
    "map": ("map", {"stage.0": (6, 8, 4), "stage.1": (8, 4, 4), "stage.2": (10, 2, 2)}),
    "vector": ("vector", {"block.0": (8,), "pooled": (10,)}),
    "frames_grid": ("frames", {"block.0": (5, 8), "block.1": (5, 8)}),
    "frames_map": ("frames", {"stage.0": (6, 4, 4), "stage.1": (8, 2, 2)}),
    "frames_vector": ("frames", {"block.0": (8,), "pooled": (8,)}),
    "clip": ("frames", {"block.0": (5, 8), "block.1": (5, 8), "projected": (6,)}),
}
TEXT: dict[str, Shapes] = {
    "tokens": {"layer.0": (8,), "layer.1": (8,), "layer.2": (8,)},
    "clip": {"layer.0": (8,), "layer.1": (8,), "projected": (6,)},
}


def hidden(item: int) -> np.ndarray:
    return np.random.default_rng([7, item]).normal(size=HIDDEN)


def state(
    tap: str, shape: tuple[int, ...], rows: int, item: int, key: bytes, *, shows: bool
) -> torch.Tensor:
    """States [rows, *shape] of one input: noise, and an image of z if the tap `shows` it."""
    noise = np.random.default_rng(list(key + tap.encode()))
    values = 0.4 * noise.normal(size=(rows, *shape))
    if shows:
        features = shape[0] if len(shape) == 3 else shape[-1]
        seed = list(f"{tap}{shape}".encode())
        image = np.random.default_rng(seed).normal(size=(features, HIDDEN)) @ hidden(item)
        values += image[:, None, None] if len(shape) == 3 else image
    return torch.from_numpy(values).half()


def write_cache(
    path: Path,
    taps: Sequence[TapSpec],
    inputs: Sequence[tuple[bytes, int]],
    *,
    shows: str,
    views: int = 1,
    axis: str | None = None,
    mark: str = "a",
) -> Path:
    """Write the cache of `inputs` (key, item), each in all views; only the tap `shows` tells."""
    keyed = [(view_key(key, v), item) for key, item in inputs for v in range(views)]
    rows = [1 + key[0] % 3 for key, _ in keyed]  # tokens or frames
    writer = CacheWriter.create(
        path,
        taps=taps,
        lengths=None if axis is None else {axis: np.array(rows, np.int64)},
        keys=np.frombuffer(b"".join(key for key, _ in keyed), np.uint8).reshape(-1, 16),
        row_to_sample=np.arange(len(keyed), dtype=np.int64).reshape(len(inputs), views)
        if views > 1
        else np.arange(len(keyed), dtype=np.int64),
        row_ids=[f"row/{i}" for i in range(len(inputs))],
        dtype="float16",
        fingerprint=Fingerprint({"weights": mark}),
        block_tokens=16,
        blocks_per_shard=4,
    )
    for shard in list(writer.pending):
        samples = writer.samples_of(shard)
        with writer.shard(shard) as buffer:
            values = {
                tap.name: torch.cat(
                    [
                        state(
                            tap.name, tap.shape, rows[i] if tap.ragged else 1, keyed[i][1],
                            keyed[i][0], shows=tap.name == shows,
                        )
                        for i in samples
                    ]
                )
                for tap in taps
            }  # fmt: skip
            buffer.put(samples, values)
    writer.finish()
    return path


def write_data(folder: Path, *, items: int = ITEMS, captions: int = CAPTIONS) -> Path:
    """Write the captions file and a small file for each item; return the captions file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,caption"]
    for item in range(items):
        (folder / f"{item:03}.png").write_bytes(f"picture {item}".encode())
        lines += [f"{item:03}.png,thing {item} number {n}" for n in range(captions)]
    file = folder / "captions.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_caches(
    folder: Path, layout: str = "grid", *, text: str = "tokens", items: int = ITEMS, views: int = 1,
    captions: int = CAPTIONS, shows: str | None = None,
) -> dict[str, str]:  # fmt: skip
    """Write both caches of the data in `folder`; return the paths by option."""
    kind, shapes = LAYOUTS[layout]
    make = VideoInput if kind == "frames" else ImageInput
    axis = "frames" if kind == "frames" else None
    media = [
        TapSpec(name=name, kind=kind, shape=shape, **({"axis": axis} if axis else {}))
        for name, shape in shapes.items()
    ]
    write_cache(
        folder / f"media-{layout}",
        media,
        [(make(folder / f"{item:03}.png").key(), item) for item in range(items)],
        shows=shows or media[0].name,
        views=views,
        axis=axis,
    )
    texts = [
        TapSpec(name=name, kind="vector" if name == "projected" else "tokens", shape=shape)
        for name, shape in TEXT[text].items()
    ]
    if not (folder / f"text-{text}").exists():
        keys = [
            (TextInput(f"thing {item} number {n}").key(), item)
            for item in range(items)
            for n in range(captions)
        ]
        write_cache(
            folder / f"text-{text}", texts, keys, shows="layer.1", views=views, axis="tokens"
        )
    return {
        "text_cache": str(folder / f"text-{text}"),
        "media_cache": str(folder / f"media-{layout}"),
    }


def settings(
    folder: Path, layout: str = "grid", out: str = "run", *, text: str = "tokens", **changes: Any
) -> dict[str, Any]:
    """Return a small training as plain values, its data and caches written on first use."""
    if not (folder / "captions.csv").exists():
        write_data(folder)
    caches = {
        "text_cache": str(folder / f"text-{text}"),
        "media_cache": str(folder / f"media-{layout}"),
    }
    if not (folder / f"media-{layout}").exists():
        caches = write_caches(folder, layout, text=text)
    data = {
        "task": "retrieval",
        "train": str(folder / "captions.csv"),
        "fractions": [0.6, 0.2, 0.2],
    }
    return (
        {
            "data": data,
            **caches,
            "out": str(folder / out),
            "epochs": 12,
            "batch_size": 16,
            "text_side_width": 16,
            "media_side_width": 16,
            "lr": 1e-2,
            "ema": 0.0,
            "logit_scale": 20.0,
            "media_noise": 0.0,
            "device": "cpu",
        }
        | ({} if text == "clip" else {"embed_width": 16})
        | changes
    )


def pair_config(folder: Path, layout: str = "grid", **changes: Any) -> TwoTowersTrainConfig:
    return TwoTowersTrainConfig.build(settings(folder, layout, **changes))
