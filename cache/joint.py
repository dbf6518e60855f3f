"""Minibatches from several caches at once, in an order that depends on seed and epoch alone.

The source that would read most bytes leads: its blocks come in random order and the examples of a
window of blocks are mixed (see `order`), so its disk is read block by block. The other sources are
read wherever their samples lie, which is cheap only from memory; the tier's reason says what of
them is held. The order depends neither on the tier, nor on the memory or the speed of any thread.

Examples that share a sample of the leading source, as the captions of one image do, are kept apart:
an epoch is then several rounds over that source, as random pairs would need, and no example meets
its own sample as a negative within a round.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .feed import Feed, Part, Source
from .memory import PREFETCH, MemoryPlan, Tier, free_device_memory, plan_memory
from .order import Limits, cut_batches, rank_parts, window_order
from .spec import Ints


def default_threads() -> int:
    """Return how many threads read blocks: one a core, at most 4."""
    return min(4, os.cpu_count() or 1)


@contextmanager
def more_threads(threads: int) -> Iterator[Executor | None]:
    """Give the threads that read blocks beside the caller's own."""
    if threads == 1:
        yield None
        return
    with ThreadPoolExecutor(threads - 1, "cache-reader") as readers:
        yield readers


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
        tier: "device", "host", "disk", or "auto": the first that the blocks of all sources fit in.
        memory_limit: bytes of host memory to use at most; None for half of what is available.
        device_limit: bytes of the device's memory to use at most; None for half of what is free.
        drop_last: leave out a last batch that is not full.
        window: blocks mixed together.
        spread: keep examples apart that share a sample of the leading source.
        device: where the states of a batch go, int8 numbers as bytes; None for host memory.
        max_tokens: tokens and frames of a batch at most, over all sources; an example that has
            more is a batch of its own. None for no limit but `batch_size`.
        rank, world: which of `world` equal loaders this is. Each takes a run of the epoch's order,
            all disjoint, and they have equally many batches: what is left over, fewer than `world`
            examples (with `max_tokens`, the last batches of some), is left out of that epoch.
        threads: that read blocks; None for one a core, at most 4. The order is the same for any.

    Attributes:
        tier, tier_reason: what was chosen and why.
        memory_bytes: used at most, for the blocks held and the batches alive.
        device_bytes: the same of the device's memory.
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
        device_limit: int | None = None,
        max_tokens: int | None = None,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
    ) -> None:
        threads = default_threads() if threads is None else threads
        if min(batch_size, window, threads, 1 if max_tokens is None else max_tokens) < 1:
            raise ValueError(
                f"{batch_size=}, {window=}, {threads=} and {max_tokens=} must be at least 1"
            )
        if not 0 <= rank < world:
            raise ValueError(f"{rank=} must be from 0 to world - 1, {world=}")
        self.feeds = {name: Feed(source, name) for name, source in sources.items()}
        counts = {name: len(feed.samples) for name, feed in self.feeds.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(
                f"the sources must list the samples of the same examples, given {counts}"
            )
        if max_tokens is not None and not any(feed.ragged for feed in self.feeds.values()):
            raise ValueError("max_tokens needs taps with tokens or frames; give batch_size alone")
        self.limits = Limits(examples=batch_size, rows=max_tokens)
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.window, self.spread, self.device = window, spread, device
        self.rank, self.world, self.threads = rank, world, threads
        self._count = next(iter(counts.values()))
        self._batches: tuple[int, list[Ints]] | None = None
        self.memory = self._open(tier, memory_limit, device_limit)
        self.tier, self.tier_reason = self.memory.tier, self.memory.reason
        self.memory_bytes, self.device_bytes = self.memory.nbytes, self.memory.device_bytes

    def _open(self, tier: Tier, limit: int | None, device_limit: int | None) -> MemoryPlan:
        """Choose who leads, plan the memory of all sources, and take it."""
        asked = {name: feed.demands(self.limits) for name, feed in self.feeds.items()}
        weight = {name: sum(d.needed * d.block for d in asked[name]) for name in asked}
        self.lead = max(weight, key=lambda name: weight[name])
        lead = self.feeds[self.lead]
        if lead.segments == 1:  # other segments come from anywhere; in order two windows do
            asked[self.lead] = [replace(d, window=2 * self.window) for d in asked[self.lead]]
        names = sorted(asked, key=lambda name: (name != self.lead, weight[name]))
        free = free_device_memory(self.device)
        if free is not None:
            free = free // 2 if device_limit is None else device_limit
        plan = plan_memory([d for name in names for d in asked[name]], tier, limit, free)
        whole = sum(f.cache.geometry.n_blocks * f.block_bytes for f in self.feeds.values())
        shared = plan.tier != "disk" and whole <= plan.limit  # one copy for all loaders
        home = self.device if plan.tier == "device" else None
        left = list(plan.capacities)
        for name in names:
            self.feeds[name].open(left[: len(asked[name])], shared=shared, home=home)
            del left[: len(asked[name])]
        return plan

    def __len__(self) -> int:
        """Batches of an epoch; with `max_tokens` those of the first, others may have a few more."""
        return self.count(0)

    def count(self, epoch: int) -> int:
        """Return the batches of an epoch."""
        if self.limits.rows is not None:
            return len(self.batches(epoch))
        full, rest = divmod(self._count // self.world, self.limits.examples)
        return full + (1 if rest and not self.drop_last else 0)

    def batches(self, epoch: int) -> list[Ints]:
        """Return the positions of the examples of each batch of an epoch, in order."""
        if self._batches is None or self._batches[0] != epoch:
            drawn = self._drawn(epoch)
            self._batches = epoch, self._cut(self._order(epoch, drawn), drawn)
        return self._batches[1]

    def _cut(self, order: Ints, drawn: Mapping[str, Ints]) -> list[Ints]:
        rows = None
        if self.limits.rows is not None:
            rows = np.sum([f.rows(drawn[name]) for name, f in self.feeds.items()], axis=0)
        shares = [
            cut_batches(part, rows, self.limits, drop_last=self.drop_last)
            for part in rank_parts(order, rows, self.world)
        ]
        return shares[self.rank][: min(map(len, shares))]

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
        parts, drawn = self.batches(number)[start_batch:], self._drawn(number)
        ahead: deque[Future[_Made]] = deque()
        with ExitStack() as stack:
            readers = stack.enter_context(more_threads(self.threads))
            make = self._maker(drawn, readers)
            if self._at_hand():
                for part in parts:
                    yield make(part).batch
                return
            thread = stack.enter_context(ThreadPoolExecutor(1, "cache-loader"))
            stack.callback(lambda: [future.cancel() for future in ahead])
            for part in parts:
                ahead.append(thread.submit(make, part))
                if len(ahead) > PREFETCH:
                    yield ahead.popleft().result().take()
            while ahead:
                yield ahead.popleft().result().take()

    def _at_hand(self) -> bool:
        """Whether batches need no thread: all blocks are where the batches are wanted."""
        here = self.tier == "device" or self.device is None or self.device.type == "cpu"
        return here and all(feed.resident() for feed in self.feeds.values())

    def _maker(
        self, drawn: Mapping[str, Ints], readers: Executor | None
    ) -> Callable[[Ints], "_Made"]:
        """Return what makes the batches of an epoch, on CUDA beside the stream of the training."""
        device = self.device
        benches = {name: f.workbenches(device, readers) for name, f in self.feeds.items()}
        stream = None
        if device is not None and device.type == "cuda" and self.tier != "device":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

        def make(positions: Ints) -> _Made:
            with torch.cuda.stream(stream):
                parts = {
                    name: feed.gather(drawn[name][positions], benches[name])
                    for name, feed in self.feeds.items()
                }
            batch = JointBatch(parts=parts, index=torch.from_numpy(positions))
            return _Made(batch, None if stream is None else stream.record_event())

        return make


class _Made(NamedTuple):
    """A batch, and the event after which its states are on the device."""

    batch: JointBatch
    ready: torch.cuda.Event | None

    def take(self) -> JointBatch:
        """Return the batch to a stream that may use it at once."""
        if self.ready is not None:
            stacks = [stack for part in self.batch.parts.values() for stack in part.stacks]
            for tensor in stacks:
                current = torch.cuda.current_stream(tensor.device)
                current.wait_event(self.ready)
                tensor.record_stream(current)
        return self.batch
