"""A loader of one source with taps of one shape, as most tests of loading look at it."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache import Cache, Loader, Part, Source, Tier
from cache.format.spec import Ints


class OneBatch(NamedTuple):
    """One minibatch.

    Attributes:
        values: [n_taps, T, D] in the cache's `dtype` ([n_taps, F, *shape] for frames,
            [n_taps, S*b, *shape] for taps of fixed shape).
        offsets: int64 [S*b + 1]; segment i has the rows `offsets[i] : offsets[i + 1]`. All first
            segments come first, then all second ones.
        index: int64 [b], positions in the `samples` given to the loader.
    """

    values: Tensor
    offsets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class OneSource:
    """Iterate over samples of a cache in minibatches.

    Args:
        cache: to read.
        samples: int64 [n], or [n, S] for examples of S segments each.
        taps: names, of one shape, in the order wanted; None for all.
        batch_size: examples a batch.
        seed: of the shuffling.
        shuffle: False keeps the given order.
        tier: "device", "host", "disk", or "auto": the first that the blocks fit in.
        memory_limit: bytes of host memory to use at most; None for half of what is available.
        device_limit: bytes of the device's memory to use at most; None for half of what is free.
        drop_last: leave out a last batch that is not full.
        window: blocks mixed together.
        device: where the values of a batch go, int8 numbers as bytes; None for host memory.
        max_tokens: tokens or frames of a batch at most; see `Loader`, also for the following.
        rank, world: which of `world` equal loaders this is.
        threads: that read blocks; None for one a core, at most 4.

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
        device: torch.device | None = None,
        device_limit: int | None = None,
        max_tokens: int | None = None,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
    ) -> None:
        self.taps = tuple(tap.name for tap in cache.taps) if taps is None else tuple(taps)
        self.stack = cache.shape_of(self.taps)
        self.joint = Loader(
            {"": Source(cache=cache, samples=samples, taps=self.taps)},
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            tier=tier,
            memory_limit=memory_limit,
            drop_last=drop_last,
            window=window,
            spread=False,
            device=device,
            device_limit=device_limit,
            max_tokens=max_tokens,
            rank=rank,
            world=world,
            threads=threads,
        )
        self.tier, self.tier_reason = self.joint.tier, self.joint.tier_reason
        self.memory_bytes, self.device_bytes = self.joint.memory_bytes, self.joint.device_bytes

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.joint)

    def count(self, epoch: int) -> int:
        """Return the batches of an epoch."""
        return self.joint.count(epoch)

    def order(self, epoch: int) -> Ints:
        """Return the positions in `samples` in the order of an epoch, int64 [n]."""
        return self.joint.order(epoch)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[OneBatch]:
        """Yield the batches of an epoch, the same for the same number.

        Args:
            number: of the epoch, from 0.
            start_batch: batches to leave out at the start, to resume in mid-epoch.

        Raises:
            CacheDamaged: a chunk fails its checksum.
        """
        with closing(self.joint.epoch(number, start_batch)) as batches:
            for batch in batches:
                (part,) = batch.parts.values()
                yield OneBatch(
                    values=part.stacks[0], offsets=self._offsets(part), index=batch.index
                )

    def _offsets(self, part: Part) -> Tensor:
        if self.stack.ragged:
            return part.offsets[self.stack.axis]
        return torch.from_numpy(np.arange(part.stacks[0].shape[1] + 1, dtype=np.int64))
