"""Minibatches from several caches at once, in an order that depends on seed and epoch alone.

The source that would read most bytes is the primary one: its blocks come in random order and the
examples of a window of blocks are mixed (see `order`), so its disk is read block by block. The
other sources are read wherever their samples lie, which is cheap only from memory; the tier's
reason says what of them is held. The order depends neither on the tier, nor on the memory or the
speed of any thread.

Examples that share a sample of the primary source, as the captions of one image do, are kept apart:
an epoch is then several rounds over that source, as random pairs would need, and no example meets
its own sample as a negative within a round.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..format.random_streams import ORDER, stream
from ..format.spec import Ints
from ..memory import PREFETCH, MemoryPlan, Tier, plan_memory, usual_device_limit
from .order import Limits, cut_batches, rank_parts, window_order
from .sources import Feed, Part, Source


def default_threads() -> int:
    """Return how many threads read blocks: one a core, at most 4."""
    return min(4, os.cpu_count() or 1)


@contextmanager
def more_threads(threads: int) -> Iterator[Executor | None]:
    """Give threads that read blocks; none for 0."""
    if not threads:
        yield None
        return
    with ThreadPoolExecutor(threads, "cache-reader") as readers:
        yield readers


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One minibatch of b examples.

    Attributes:
        parts: what each source contributes, by its name.
        index: int64 [b], positions in the `samples` of the sources.
    """

    parts: dict[str, Part]
    index: Tensor


class Loader:
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
        spread: keep examples apart that share a sample of the primary source.
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
        primary: name of the source whose blocks give the order.

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
        self._known: _Epoch | None = None
        self.memory = self._open(tier, memory_limit, device_limit)
        self.tier, self.tier_reason = self.memory.tier, self.memory.reason
        self.memory_bytes, self.device_bytes = self.memory.nbytes, self.memory.device_bytes

    def _open(self, tier: Tier, limit: int | None, device_limit: int | None) -> MemoryPlan:
        """Choose the primary source, plan the memory of all sources, and take it."""
        asked = {name: feed.demands(self.limits) for name, feed in self.feeds.items()}
        weight = {name: sum(d.needed * d.block for d in asked[name]) for name in asked}
        self.primary = max(weight, key=lambda name: weight[name])
        primary = self.feeds[self.primary]
        if primary.segments == 1:  # other segments come from anywhere; in order two windows do
            wanted = 2 * self.window
            asked[self.primary] = [replace(d, window=wanted) for d in asked[self.primary]]
        names = sorted(asked, key=lambda name: (name != self.primary, weight[name]))
        free = usual_device_limit(self.device)
        if free is not None and device_limit is not None:
            free = device_limit
        plan = plan_memory([d for name in names for d in asked[name]], tier, limit, free)
        whole = sum(f.cache.geometry.n_blocks * f.block_bytes for f in self.feeds.values())
        shared = plan.tier != "disk" and whole <= plan.limit  # one copy for all loaders
        home = self.device if plan.tier == "device" else None
        left = list(plan.capacities)
        for name in names:
            mine = [left.pop(0) for _ in asked[name]]
            self.feeds[name].open(mine, shared=shared, home=home)
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
        return self._epoch(epoch).batches

    def _epoch(self, number: int) -> "_Epoch":
        if self._known is None or self._known.number != number:
            drawn = self._drawn(number)
            batches = self._cut(self._order(number, drawn), drawn)
            self._known = _Epoch(number, drawn, batches)
        return self._known

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
        feed = self.feeds[self.primary]
        block = feed.cache.table.block[drawn[self.primary][:, 0]]
        same = feed.samples[:, 0] if self.spread else None  # whatever view is drawn
        return window_order(block, stream(ORDER, self.seed, epoch), self.window, same)

    def epoch(self, number: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, the same for the same number.

        Args:
            number: of the epoch, from 0.
            start_batch: batches to leave out at the start, to resume in mid-epoch.

        Raises:
            CacheDamaged: a chunk fails its checksum.
        """
        epoch = self._epoch(number)
        batches = epoch.batches[start_batch:]
        ahead: deque[Future[_Made]] = deque()
        with ExitStack() as stack:
            maker = _Maker(self, epoch, batches, stack)
            if not maker.early:
                for place in range(len(batches)):
                    yield maker.finish(place)
                return
            thread = stack.enter_context(ThreadPoolExecutor(1, "cache-loader"))
            stack.callback(lambda: [future.cancel() for future in ahead])
            for place in range(len(batches)):
                ahead.append(thread.submit(maker.begin, place))
                if len(ahead) > PREFETCH:
                    yield maker.finish(place - PREFETCH, ahead.popleft().result())
            for place in range(len(batches) - len(ahead), len(batches)):
                yield maker.finish(place, ahead.popleft().result())


class _Epoch(NamedTuple):
    """An epoch as it is known before the first byte is read.

    Attributes:
        number: of the epoch.
        drawn: samples of every example, [n, S] for each source.
        batches: positions of the examples of each batch.
    """

    number: int
    drawn: dict[str, Ints]
    batches: list[Ints]


class _Made(NamedTuple):
    """Parts of a batch, and the event after which they are on the device."""

    parts: dict[str, Part]
    ready: torch.cuda.Event | None

    def take(self) -> dict[str, Part]:
        """Return the parts to a stream that may use them at once."""
        if self.ready is not None:
            stacks = [stack for part in self.parts.values() for stack in part.stacks]
            for tensor in stacks:
                current = torch.cuda.current_stream(tensor.device)
                current.wait_event(self.ready)
                tensor.record_stream(current)
        return self.parts


class _Maker:
    """Makes the batches of an epoch, on CUDA beside the stream of the training.

    Attributes:
        early: sources whose parts take work, or reading, and are made ahead by a thread; those of
            the others are at hand where they are wanted.

    Args:
        loader: whose epoch it is.
        epoch: what is known of it.
        batches: positions of the examples of each batch that is wanted.
        stack: closes the threads.
    """

    def __init__(
        self, loader: Loader, epoch: _Epoch, batches: Sequence[Ints], stack: ExitStack
    ) -> None:
        self._feeds, self._drawn, self._batches = loader.feeds, epoch.drawn, batches
        device = loader.device
        here = loader.tier == "device" or device is None or device.type == "cpu"
        self.early = [n for n, feed in loader.feeds.items() if not (here and feed.resident())]
        readers = stack.enter_context(more_threads(loader.threads - 1))  # the caller reads as well
        self._buffers = {n: f.batch_buffers(device, readers) for n, f in loader.feeds.items()}
        self._cuda: torch.cuda.Stream | None = None
        if device is not None and device.type == "cuda" and loader.tier != "device":
            self._cuda = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, place: int) -> _Made:
        """Make the early parts of a batch."""
        with torch.cuda.stream(self._cuda):
            parts = {name: self._part(name, place) for name in self.early}
        return _Made(parts, None if self._cuda is None else self._cuda.record_event())

    def finish(self, place: int, made: _Made | None = None) -> Batch:
        """Return a batch, given its early parts."""
        early = {} if made is None else made.take()
        parts = {name: early.get(name) or self._part(name, place) for name in self._feeds}
        return Batch(parts=parts, index=torch.from_numpy(self._batches[place]))

    def _part(self, name: str, place: int) -> Part:
        samples = self._drawn[name][self._batches[place]]
        return self._feeds[name].gather(samples, self._buffers[name])
