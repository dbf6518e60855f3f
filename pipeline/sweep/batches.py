"""Which trainings can share each read of the caches: those whose loaders would be the same.

All that a loader is made of is compared, sample numbers included, so no list of fields can go
stale. Cost: a digest of the sample numbers, 8 bytes an example, view and tower.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cache import Cache
from pipeline.data import Ints
from pipeline.systems import Setup
from pipeline.systems.config import TrainConfig
from pipeline.training.setup import loader_options

__all__ = ["batches_key", "epoch_bytes"]


def batches_key(config: TrainConfig, setup: Setup) -> str:
    """Return text that is equal for trainings that want the same batches in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(loader_options(config, setup)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """Yield what tells a value from any other, as bytes."""
    yield type(value).__name__.encode()
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield name.encode()
            yield from _parts(value[name])
    elif dataclasses.is_dataclass(value):
        yield from _parts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Cache):
        yield f"{value.path} {value.fingerprint.digest}".encode()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, str | int | float | torch.device):
        yield str(value).encode()
    else:
        raise TypeError(f"a loader is made of a {type(value).__name__}, which cannot be compared")


def epoch_bytes(setup: Setup) -> tuple[int, int]:
    """Return the bytes that the loaders deliver in an epoch of training, and of dev after it.

    Of dev every different example is read once.
    """
    train = _bytes(setup, setup.splits["train"].clean)
    passes = setup.system.passes(setup.splits["dev"])
    return train, sum(_bytes(setup, _distinct(samples)) for samples in passes)


def _distinct(samples: Mapping[str, Ints]) -> dict[str, Ints]:
    rows = np.unique(np.stack(list(samples.values()), 1), axis=0)  # [n, towers]
    return dict(zip(samples, rows.T, strict=True))


def _bytes(setup: Setup, samples: Mapping[str, Ints]) -> int:
    total = 0
    for tower, rows in samples.items():
        cache = setup.caches[tower]
        for group in cache.group_taps([tap.name for tap in setup.taps[tower].read]):
            size = cache.geometry.row_bytes(group.stack) * len(group.taps)
            total += size * int(cache.row_counts(group.stack, rows).sum())
    return total
