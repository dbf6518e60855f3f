"""Small data files and a made-up cache whose states tell the classes apart."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import CacheWriter, Fingerprint, TapSpec
from pipeline import systems
from pipeline.inputs import TextInput, unique_inputs
from pipeline.systems.texts import TextTrainConfig

WIDTH = 8
TAPS = ("embeddings", "layer.0", "layer.1")


def write_rows(path: Path, count: int = 120, classes: Sequence[str] = ("bad", "good")) -> Path:
    """Write a TSV of sentences whose first word gives the class."""
    lines = ["text\tlabel"]
    lines += [
        f"{classes[i % len(classes)]} number {i}\t{classes[i % len(classes)]}" for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, count: int = 90) -> Path:
    """Write a CSV of sentence pairs with a score in 0 .. 4 that the first words give."""
    lines = ["a,b,score"] + [f"s{i % 5} one {i},s{i % 5} two {i},{i % 5}.0" for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def states_of(text: TextInput) -> torch.Tensor:
    """Return states [taps, L, WIDTH]: noise, with the first word's direction in one tap only."""
    words = text.text.split()
    random = np.random.default_rng(list(text.key()))
    states = 0.5 * random.normal(size=(len(TAPS), len(words) + 1, WIDTH))
    states[1] += 3.0 * np.random.default_rng(list(words[0].encode())).normal(size=WIDTH)
    return torch.from_numpy(states).half()


def build_cache(path: Path, inputs: Sequence[TextInput], *, mark: str = "a") -> Path:
    """Write the cache of `inputs` (without duplicates)."""
    rows = unique_inputs(inputs)
    states = [states_of(text) for text in rows]
    keys = np.frombuffer(b"".join(text.key() for text in rows), np.uint8).reshape(-1, 16)
    writer = CacheWriter.create(
        path,
        taps=[TapSpec(name=name, kind="tokens", shape=(WIDTH,)) for name in TAPS],
        lengths={"tokens": np.array([s.shape[1] for s in states], np.int64)},
        keys=keys,
        row_to_sample=np.arange(len(rows), dtype=np.int64),
        row_ids=[f"row/{i}" for i in range(len(rows))],
        dtype="float16",
        fingerprint=Fingerprint({"weights": mark}),
        block_tokens=64,
        blocks_per_shard=4,
    )
    for shard in list(writer.pending):
        samples = writer.samples_of(shard)
        with writer.shard(shard) as buffer:
            chosen = [states[i] for i in samples]
            buffer.put(samples, {n: torch.cat([s[t] for s in chosen]) for t, n in enumerate(TAPS)})
    writer.finish()
    return path


def cached(tmp_path: Path, data: dict[str, Any]) -> Path:
    """Write the cache of every input of `data`."""
    dataset = systems.load_dataset(systems.data_config(data))
    inputs = [
        given
        for split in dataset.splits.values()
        for tower in split.towers
        for given in split.inputs(tower, "text")
    ]
    return build_cache(tmp_path / "cache", inputs)


def settings(tmp_path: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
    """Return a small training as plain values, its data and cache written on first use."""
    file = tmp_path / "rows.tsv"
    data = {"train": str(file)}
    if not (tmp_path / "cache").exists():
        write_rows(file)
        cached(tmp_path, data)
    return {
        "data": data,
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / out),
        "epochs": 3,
        "dropout": 0.1,
        "batch_size": 16,
        "side_width": 8,
        "lr": 1e-2,
        "device": "cpu",
    } | changes


def train_config(tmp_path: Path, out: str = "run", **changes: Any) -> TextTrainConfig:
    return TextTrainConfig.build(settings(tmp_path, out, **changes))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
