"""A small made-up cache to test with: exact numbers in every storage type, written in any order."""

import hashlib
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import CacheLayout, CacheWriter, Fingerprint, TapSpec, plan_layout


def token_taps(count: int = 3, width: int = 4, axis: str = "tokens") -> list[TapSpec]:
    return [
        TapSpec(name=f"{axis}.layer.{i}", kind="tokens", shape=(width,), axis=axis)
        for i in range(count)
    ]


def frame_taps() -> list[TapSpec]:
    """Clips seen by two kinds of network: taps of three shapes on one axis."""
    shapes = {
        "clip.grid": (3, 2),
        "clip.map": (2, 2, 3),
        "clip.grid.last": (3, 2),
        "clip.cls": (4,),
    }
    return [TapSpec(name=name, kind="frames", shape=shape) for name, shape in shapes.items()]


@dataclass
class Sample:
    """Arguments of a writer, and the numbers that belong in the cache."""

    lengths: Sequence[int] = (3, 1, 7, 2, 9, 4, 4, 5, 1, 6, 2, 8)
    taps: list[TapSpec] = field(default_factory=token_taps)
    dtype: str = "float16"
    block_tokens: int | dict[str, int] = 10
    blocks_per_shard: int = 2
    seed: int = 3
    fingerprint: dict[str, Any] = field(default_factory=lambda: {"weights": {"digest": "ab12"}})

    @property
    def n(self) -> int:
        return len(self.lengths)

    def axis_lengths(self, axis: str) -> np.ndarray:
        base = np.array(self.lengths, np.int64)
        return base if axis in ("tokens", "encoder") else base[::-1].copy() // 2

    @property
    def plan_kwargs(self) -> dict[str, Any]:
        axes = {tap.axis for tap in self.taps if tap.ragged}
        return {
            "taps": self.taps,
            "lengths": {axis: self.axis_lengths(axis) for axis in axes} or None,
            "row_to_sample": np.arange(self.n, dtype=np.int64)[::-1].copy(),
            "row_ids": [f"train/{i} · Zürich 例" for i in range(self.n)],
            "dtype": self.dtype,
            "fingerprint": Fingerprint(self.fingerprint),
            "seed": self.seed,
            "block_tokens": self.block_tokens,
            "blocks_per_shard": self.blocks_per_shard,
        }

    @property
    def keys(self) -> np.ndarray:
        digests = [hashlib.md5(str(i).encode()).digest() for i in range(self.n)]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(self.n, 16)

    def values(self, tap: TapSpec, samples: Sequence[int]) -> Tensor:
        """Small whole numbers, exact in every storage type, different for every place."""
        number = self.taps.index(tap)
        parts = []
        for sample in samples:
            rows = int(self.axis_lengths(tap.axis)[sample]) if tap.ragged else 1
            count = rows * int(np.prod(tap.shape))
            part = (torch.arange(count) * 7 + int(sample) * 13 + number * 31) % 255 - 127
            parts.append(part.float().view(rows, *tap.shape))
        return torch.cat(parts) if parts else torch.empty(0, *tap.shape)

    def layout(self) -> CacheLayout:
        return plan_layout(n_samples=self.n, **self.plan_kwargs)

    def writer(self, path: Path, **extra: Any) -> CacheWriter:
        return CacheWriter.create(path, keys=self.keys, **(self.plan_kwargs | extra))

    def fill(self, writer: CacheWriter, shard: int, batch: int = 2) -> None:
        samples = writer.samples_of(shard)[::-1]
        with writer.shard(shard) as buffer:
            for low in range(0, len(samples), batch):
                part = samples[low : low + batch]
                buffer.put(part, {tap.name: self.values(tap, part) for tap in self.taps})

    def write(self, path: Path, **extra: Any) -> Path:
        with self.writer(path, **extra) as writer:
            for shard in writer.pending:
                self.fill(writer, shard)
            writer.finish()
        return path


LONG = {
    "tokens": Sample(lengths=tuple(range(1, 41))),
    "frames": Sample(
        lengths=tuple(range(1, 41)), taps=frame_taps(), block_tokens={"frames": 5}, dtype="bfloat16"
    ),
}
"""Caches of many shards, to be interrupted."""


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder, by relative path."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


class Killed(BaseException):
    """What a cut-off raises: no handler of errors may catch it."""


def cut_off_at(patch, count):
    """Raise at the count-th step that changes the disk, and at all later ones."""
    calls = 0

    def wrap(function):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls >= count:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    for owner, names in ((os, ("fsync", "write", "link", "ftruncate")), (shutil, ("copyfile",))):
        for name in names:
            patch.setattr(owner, name, wrap(getattr(owner, name)))
    for name in ("replace", "unlink", "rmdir"):
        patch.setattr(Path, name, wrap(getattr(Path, name)))


class Counted:
    """Bytes of tensors of `torch.empty` and of bytes of `numpy.empty` that are still alive."""

    def __init__(self, patch):
        self.now = self.peak = 0
        self._lock = threading.Lock()
        make, make_array = torch.empty, np.empty

        def empty(*args, **kwargs):
            return self.watch(make(*args, **kwargs))

        def empty_array(shape, *args, **kwargs):
            array = make_array(shape, *args, **kwargs)
            return self.watch(array) if args == (np.uint8,) and isinstance(shape, int) else array

        patch.setattr(torch, "empty", empty)
        patch.setattr(np, "empty", empty_array)

    def watch(self, made):
        self.add(made.nbytes)
        weakref.finalize(made, self.add, -made.nbytes)
        return made

    def add(self, count):
        with self._lock:
            self.now += count
            self.peak = max(self.peak, self.now)
