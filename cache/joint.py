"""Minibatches from several caches at once, in an order that depends on seed and epoch alone.

The source that would read most bytes leads: its blocks come in random order and the examples of a
window of blocks are mixed (see `order`), so its disk is read block by block. The other sources are
read wherever their samples lie, which is cheap only from memory; the tier's reason says what of
them is held. The order depends neither on the tier, nor on the memory or the speed of any thread.

Examples that share a sample of the leading source, as the captions of one image do, are kept apart:
an epoch is then several rounds over that source, as random pairs would need, and no example meets
its own sample as a negative within a round.
"""

from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .feed import Feed, Part, Source
from .memory import PREFETCH, MemoryPlan, Tier, plan_memory
from .order import window_order
from .spec import Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class JointBatch:
    """One minibatch of b examples.

    Attributes:
        parts: what each source contributes, by its name.
        index: int64 [b], positions in the `samples` of the sources.
    """

    parts: dict[str, Part]
    index: Tensor


class JointLoader:
    """Iterate over examples whose parts lie in several caches.

    Args:
        sources: by name; each lists the samples of the same n examples.
        batch_size: examples a batch.
        seed: of the shuffling and of the drawing of views.
        shuffle: False keeps the given order.
        tier: "host", "disk", or "auto": host if the blocks of all sources fit in `memory_limit`.
        memory_limit: bytes of host memory to use at most; None for half of what is available.
        drop_last: leave out a last batch that is not full.
        window: blocks mixed together.
        spread: keep examples apart that share a sample of the leading source.
        device: where the states of a batch go, int8 numbers as bytes; None for host memory.

    Attributes:
        tier, tier_reason: what was chosen and why.
        memory_bytes: used at most, for the blocks held and the batches alive.
        lead: name of the source whose blocks give the order.

    Raises:
        InvalidTap: unknown taps.
        IndexError: samples that a cache does not have.
        ValueError: sources of different lengths, or none.
        MemoryError: `memory_limit` is too small for the tier; the message says what it takes.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        tier: Tier = "auto",
        memory_limit: int | None = None,
        drop_last: bool = False,
        window: int = 16,
        spread: bool = True,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or window < 1:
            raise ValueError(f"{batch_size=} and {window=} must be at least 1")
        self.feeds = {name: Feed(source, name) for name, source in sources.items()}
        counts = {name: len(feed.samples) for name, feed in self.feeds.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(
                f"the sources must list the samples of the same examples, given {counts}"
            )
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.drop_last, self.window, self.spread = drop_last, window, spread
        self.device = device
        self._count = next(iter(counts.values()))
        self.memory = self._open(tier, memory_limit)
        self.tier, self.tier_reason = self.memory.tier, self.memory.reason
        self.memory_bytes = self.memory.nbytes

    def _open(self, tier: Tier, limit: int | None) -> MemoryPlan:
        """Choose who leads, plan the memory of all sources, and take it."""
        asked = {name: feed.demands(self.batch_size) for name, feed in self.feeds.items()}
        weight = {name: sum(d.needed * d.block for d in asked[name]) for name in asked}
        self.lead = max(weight, key=lambda name: weight[name])
        lead = self.feeds[self.lead]
        if lead.segments == 1:  # other segments come from anywhere; in order two windows do
            asked[self.lead] = [replace(d, window=2 * self.window) for d in asked[self.lead]]
        names = sorted(asked, key=lambda name: (name != self.lead, weight[name]))
        plan = plan_memory([d for name in names for d in asked[name]], tier, limit)
        whole = sum(f.cache.geometry.n_blocks * f.block_bytes for f in self.feeds.values())
        shared = plan.tier == "host" and whole <= plan.limit  # one copy for all loaders
        left = list(plan.capacities)
        for name in names:
            self.feeds[name].open(left[: len(asked[name])], shared=shared)
            del left[: len(asked[name])]
        return plan

    def __len__(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(self._count, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> Ints:
        """Return the positions of the examples in the order of an epoch, int64 [n]."""
        return self._order(epoch, self._drawn(epoch))

    def _drawn(self, epoch: int) -> dict[str, Ints]:
        """Samples of every example in an epoch, [n, S] for each source."""
        feeds = enumerate(self.feeds.items())
        return {name: feed.drawn(self.seed, epoch, number) for number, (name, feed) in feeds}

    def _order(self, epoch: int, drawn: Mapping[str, Ints]) -> Ints:
        if not self.shuffle:
            return np.arange(self._count, dtype=np.int64)
        feed = self.feeds[self.lead]
        block = feed.cache.table.block[drawn[self.lead][:, 0]]
        same = feed.samples[:, 0] if self.spread else None  # whatever view is drawn
        return window_order(block, np.random.default_rng([self.seed, epoch]), self.window, same)

    def epoch(self, number: int, start_batch: int = 0) -> Generator[JointBatch, None, None]:
        """Yield the batches of an epoch, the same for the same number.

        Args:
            number: of the epoch, from 0.
            start_batch: batches to leave out at the start, to resume in mid-epoch.

        Raises:
            CacheDamaged: a chunk fails its checksum.
        """
        drawn = self._drawn(number)
        order, size = self._order(number, drawn), self.batch_size
        parts = [order[i * size :][:size] for i in range(start_batch, len(self))]

        def batch(positions: Ints) -> JointBatch:
            return JointBatch(
                parts={
                    name: feed.gather(drawn[name][positions], self.device)
                    for name, feed in self.feeds.items()
                },
                index=torch.from_numpy(positions),
            )

        if self.tier == "host":
            yield from map(batch, parts)
            return
        with ThreadPoolExecutor(1, "cache-loader") as thread:
            ahead: deque[Future[JointBatch]] = deque()
            try:
                for part in parts:
                    ahead.append(thread.submit(batch, part))
                    if len(ahead) > PREFETCH:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
