"""Minibatches from a cache, in an order that depends on the seed and the epoch alone.

Shuffling: blocks in random order, the samples of a window of `window` blocks mixed. Samples were
permuted before packing, so this is as good as a full shuffle (a cache of at most `window` blocks
gets exactly that), while the disk is read block by block, once an epoch. The order does not depend
on the tier, the memory, or the speed of any thread.

Tiers: "host" keeps every block it needs in memory after its first touch, shared by the loaders of
one `Cache` object and the same taps; "disk" keeps a window of
blocks and prepares the next batches in a thread. Cost of a batch from memory: one copy of its rows.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .reader import Cache
from .spec import Ints

Tier = Literal["auto", "host", "disk"]
PREFETCH = 2
"""Batches prepared ahead in the disk tier; one more is in work and one in the caller's hands."""
ALIVE = PREFETCH + 2


class Batch(NamedTuple):
    """One minibatch.

    Attributes:
        values: [n_taps, T, D] in the storage type, in host memory ([n_taps, S*b, *shape] for taps
            of fixed shape).
        offsets: int64 [S*b + 1]; segment i has the rows `offsets[i] : offsets[i + 1]`. All first
            segments come first, then all second ones.
        index: int64 [b], positions in the `samples` given to the loader.
    """

    values: Tensor
    offsets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Loader:
    """Iterate over samples of a cache in minibatches.

    Args:
        cache: to read.
        samples: int64 [n], or [n, S] for examples of S segments each.
        taps: names, of one stack, in the order wanted; None for all.
        batch_size: examples a batch.
        seed: of the shuffling.
        shuffle: False keeps the given order.
        tier: "host", "disk", or "auto": host if the blocks fit in `memory_limit`.
        memory_limit: bytes of host memory to use at most; None for half of what is available.
        drop_last: leave out a last batch that is not full.
        window: blocks mixed together.

    Raises:
        InvalidTap: unknown taps, or taps of different shapes.
        IndexError: samples that the cache does not have.
        MemoryError: `memory_limit` is too small for the tier; the message says what it takes.
    """

    def __init__(
        self,
        cache: Cache,
        samples: Ints,
        *,
        taps: Sequence[str] | None,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        tier: Tier = "auto",
        memory_limit: int | None = None,
        drop_last: bool = False,
        window: int = 16,
    ) -> None:
        self.cache = cache
        self.samples = cache.check_samples(np.asarray(samples))
        if self.samples.ndim not in (1, 2) or (
            self.samples.ndim == 2 and not self.samples.shape[1]
        ):
            raise ValueError(f"samples must be [n] or [n, S], given {list(self.samples.shape)}")
        if batch_size < 1 or window < 1:
            raise ValueError(f"{batch_size=} and {window=} must be at least 1")
        self._segments = self.samples if self.samples.ndim == 2 else self.samples[:, None]  # [n, S]
        self.taps = tuple(tap.name for tap in cache.taps) if taps is None else tuple(taps)
        self.stack, self._numbers = cache.stack_of(self.taps)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.drop_last, self.window = drop_last, window
        limit = available_memory() // 2 if memory_limit is None else memory_limit
        self._plan_memory(tier, limit)
        whole = cache.geometry.n_blocks * self._block_bytes
        if self.tier == "host" and whole <= limit:  # one copy for training and evaluation
            self._store = cache.shared_store(self.taps)
        else:
            self._store = cache.store(self.taps, self.capacity)

    def _plan_memory(self, tier: Tier, limit: int) -> None:
        """Set `tier`, `tier_reason`, `capacity` (blocks held) and `memory_bytes` (at most used)."""
        if tier not in ("auto", "host", "disk"):
            raise ValueError(f"tier {tier!r} is not one of auto, host, disk")
        geometry = self.cache.geometry
        block = self._block_bytes = geometry.chunk_bytes(self.stack) * len(self.taps)
        needed = len(np.unique(self._blocks_touched()))
        counts = np.sort(self.cache.row_counts(self.stack, self._segments.reshape(-1)))
        rows = int(counts[-self.batch_size * self._segments.shape[1] :].sum())
        batch = rows * self.stack.width * geometry.itemsize * len(self.taps)
        host, least = needed * block + 2 * batch, block + ALIVE * batch
        fits = host <= limit
        verb = "fits in" if fits else "exceeds"
        why = f"{_size(host)} for {needed} blocks {verb} the limit of {_size(limit)}"
        self.tier = ("host" if fits else "disk") if tier == "auto" else tier
        self.tier_reason = f"{self.tier}: {why}" if tier == "auto" else f"{tier}: asked for ({why})"
        minimum = host if self.tier == "host" else least
        if minimum > limit:
            raise MemoryError(
                f"the {self.tier} tier needs {_size(minimum)}, the limit is {_size(limit)}: raise "
                "the limit, choose fewer taps or a smaller batch"
                + ("" if self.tier == "disk" else ", or take the disk tier")
            )
        self.capacity, self.memory_bytes = max(1, needed), host
        if self.tier == "disk":
            # pairs come from anywhere: keep what the limit allows; else two windows are enough
            wanted = 2 * self.window if self._segments.shape[1] == 1 else needed
            room = (limit - ALIVE * batch) // block if block else wanted
            self.capacity = max(1, min(needed, wanted, room))
            self.memory_bytes = self.capacity * block + ALIVE * batch

    def _blocks_touched(self) -> Ints:
        samples = np.unique(self._segments)
        return self.cache.places(self.stack, samples)[0]

    def __len__(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(len(self.samples), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> Ints:
        """Return the positions in `samples` in the order of an epoch, int64 [n]."""
        if not self.shuffle:
            return np.arange(len(self.samples), dtype=np.int64)
        rng = np.random.default_rng([self.seed, epoch])
        block = self.cache.table.block[self._segments[:, 0]]
        shuffled = rng.permutation(len(block))
        present, which = np.unique(block, return_inverse=True)
        turn = rng.permutation(len(present))[which] // self.window  # window of each position
        return shuffled[np.argsort(turn[shuffled], kind="stable")].astype(np.int64)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, the same for the same number.

        Args:
            number: of the epoch, from 0.
            start_batch: batches to leave out at the start, to resume in mid-epoch.

        Raises:
            CacheDamaged: a chunk fails its checksum.
        """
        order = self.order(number)
        parts = [
            order[i * self.batch_size :][: self.batch_size] for i in range(start_batch, len(self))
        ]
        if self.tier == "host":
            yield from map(self._batch, parts)
            return
        with ThreadPoolExecutor(1, "cache-loader") as thread:
            ahead: deque[Future[Batch]] = deque()
            try:
                for part in parts:
                    ahead.append(thread.submit(self._batch, part))
                    if len(ahead) > PREFETCH:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _batch(self, positions: Ints) -> Batch:
        samples = self._segments[positions].T.reshape(-1)  # [S * b], first segments first
        blocks, rows = self.cache.places(self.stack, samples)
        offsets = np.zeros(len(samples) + 1, np.int64)
        np.cumsum(self.cache.row_counts(self.stack, samples), out=offsets[1:])
        return Batch(
            values=self._store.gather(blocks, rows),
            offsets=torch.from_numpy(offsets),
            index=torch.from_numpy(positions),
        )


def available_memory() -> int:
    """Return the bytes of memory that can be used without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
