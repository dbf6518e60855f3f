# mypy: allow-untyped-calls
"""Taps as lazy Dask arrays, for analysis: every valid row once, no padding, checksums verified.

A chunk is one tap of one shard (about 16 MiB), read block by block where it is computed; the graph
holds numbers, and the cache is opened once a process. Not for training: a loader is 1.5-3 times as
fast and shuffles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ..format.fingerprint import Fingerprint
from ..format.geometry import Geometry
from ..format.packing import BlockTable, expand
from ..format.spec import Ints, Stack

if TYPE_CHECKING:
    import dask.array


class Readable(Protocol):
    """What is needed of a `Cache`, which makes these arrays and so cannot be imported here."""

    geometry: Geometry
    fingerprint: Fingerprint
    table: BlockTable

    def group_taps(self, taps: Sequence[str]) -> Sequence[Any]:
        """Return the taps by shape."""

    def store(self, taps: Sequence[str], capacity: int) -> Any:
        """Return a store of blocks."""


@dataclass(frozen=True, eq=False)
class _Shards:
    """Reads the valid rows of one tap, shard by shard.

    Args:
        cache: opened again where this is unpickled.
        tap: name.
        counts: valid rows of each block, int64 [n_blocks].
    """

    cache: Readable
    tap: str
    counts: Ints

    def __call__(self, block_id: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return the rows of shard `block_id[0]`, [rows, *shape]."""
        blocks = self.cache.geometry.blocks_of(block_id[0])
        counts = self.counts[blocks.start : blocks.stop]
        rows = expand(np.zeros(len(counts), np.int64), counts)
        store = self.cache.store([self.tap], capacity=1)
        values = store.gather(np.repeat(np.array(blocks, np.int64), counts), rows)[0]
        low = values.dtype == torch.bfloat16
        found: np.ndarray[Any, Any] = values.float().numpy() if low else values.numpy()
        return found


def lazy_arrays(cache: Readable, taps: Sequence[str]) -> "dict[str, dask.array.Array]":
    """Return each tap as an array [rows, *shape], in the order on the disk.

    Numbers are float16 or float32, as stored; bfloat16 and int8 come as float32.

    Raises:
        InvalidTap: an unknown tap, or none.
    """
    import dask.array as da  # noqa: PLC0415 - half a second that training does not need

    arrays: dict[str, da.Array] = {}
    for group in cache.group_taps(taps):
        counts, shape = _valid_rows(cache, group.stack), group.stack.shape
        dtype = np.dtype("float16" if group.stack.dtype == "float16" else "float32")
        starts = np.arange(0, len(counts), cache.geometry.blocks_per_shard)
        rows = np.add.reduceat(counts, starts) if len(starts) else np.zeros(1, np.int64)
        chunks = (tuple(rows.tolist()), *((size,) for size in shape))
        for tap in group.taps:
            if not len(starts):
                arrays[tap] = da.zeros((0, *shape), dtype=dtype)
                continue
            arrays[tap] = da.map_blocks(
                _Shards(cache, tap, counts),
                name=f"cache-{cache.fingerprint.digest}-{tap}",
                chunks=chunks,
                dtype=dtype,
                meta=np.empty((0,) * len(chunks), dtype),
            )
    return {tap: arrays[tap] for tap in taps}


def _valid_rows(cache: Readable, stack: Stack) -> Ints:
    """Return how many rows of each block hold something, the first ones, int64 [n_blocks]."""
    table, blocks = cache.table, cache.geometry.n_blocks
    if not stack.ragged:
        return np.bincount(table.block, minlength=blocks).astype(np.int64)
    size = cache.geometry.block_tokens[stack.axis]
    counts, length = np.zeros(blocks, np.int64), table.length[stack.axis]
    long = length > size  # has whole blocks to itself
    np.add.at(counts, table.block[~long], length[~long])
    for block, tokens in zip(table.block[long].tolist(), length[long].tolist(), strict=True):
        last, rest = divmod(tokens - 1, size)
        counts[block : block + last] = size
        counts[block + last] = rest + 1
    return counts
