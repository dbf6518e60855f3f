"""The batches of one epoch from the disk, filled by threads a window of blocks ahead.

Stages (see `stages`) are begun in order, each as soon as there is memory for it: the next one is
filled while batches of the present one are handed out. Whoever takes a batch waits for its own
blocks alone, and is told their errors. Numbers and order depend on no thread. Memory: that of its
channels (see `channel`); each chunk is read once an epoch.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..format.packing import Runs, find_runs
from ..format.spec import Ints, Stack
from ..reading.buffers import SHARES
from .channel import Channel, Job
from .stages import Stage, cut_stages

if TYPE_CHECKING:
    from ..reading.cache import Cache


class Lane(NamedTuple):
    """How one stack's rows come: the channels of its numbers and, for int8, of their scales."""

    stack: Stack
    channels: Sequence[Channel]


class Stream:
    """One source of an epoch; to be closed.

    Args:
        cache: of the source.
        lanes: of its stacks.
        batches: positions of the examples of each batch.
        samples: of the examples, int64 [n].
        windows: window of blocks of the examples, int64 [n].
        readers: threads that read.
    """

    def __init__(
        self,
        cache: "Cache",
        lanes: Sequence[Lane],
        batches: Sequence[Ints],
        *,
        samples: Ints,
        windows: Ints,
        readers: Executor,
    ) -> None:
        self._cache, self._lanes, self._readers = cache, lanes, readers
        self._batches, self._samples = batches, samples
        room = [min(channel.rows for channel in lane.channels) for lane in lanes]
        self._stages = cut_stages(batches, windows, self._rows, room)
        self._next: Stage | None = next(self._stages, None)
        self._completed = 0  # batches whose last stage has begun
        self._rooms: dict[int, list[list[Tensor]]] = {}  # of begun batches: by lane and channel
        self._running: list[tuple[Future[None], frozenset[int]]] = []

    def take(self, number: int) -> list[list[Tensor]]:
        """Return a batch's rows as they are stored, [n_taps, T, width] by lane and channel.

        Args:
            number: of the batch; each once, in order.

        Raises:
            CacheDamaged: a chunk that it reads fails its checksum.
        """
        while self._next is not None and self._completed <= number:
            self._begin(self._next)
        while self._next is not None and self._has_room():
            self._begin(self._next)
        for future, users in self._running:
            if number in users:
                future.result()
        self._running = [each for each in self._running if max(each[1]) > number]
        return self._rooms.pop(number)

    def close(self) -> None:
        """Drop what is not handed out; all threads are done with it."""
        wait([future for future, _ in self._running if not future.cancel()])
        self._running.clear()
        self._rooms.clear()
        self._stages.close()

    def _rows(self, batch: Ints) -> list[int]:
        samples = self._samples[batch]
        return [int(self._cache.row_counts(lane.stack, samples).sum()) for lane in self._lanes]

    def _has_room(self) -> bool:
        """Whether a stage can begin in memory that no batch needs any more."""
        return all(channel.idle for lane in self._lanes for channel in lane.channels)

    def _begin(self, stage: Stage) -> None:
        """Take the memory of a stage and let the threads fill it."""
        counts = [self._rows(self._batches[number]) for number in stage.opened]
        self._rooms |= {number: [] for number in stage.opened}
        for which, lane in enumerate(self._lanes):
            rooms = [channel.open([c[which] for c in counts]) for channel in lane.channels]
            for number, *mine in zip(stage.opened, *rooms, strict=True):
                self._rooms[number].append(mine)
        for which, lane in enumerate(self._lanes):
            runs, batch = self._runs(stage, lane.stack)
            filled = {piece.batch for piece in stage.pieces}
            for place, channel in enumerate(lane.channels):
                into = {number: self._rooms[number][which][place] for number in filled}
                self._submit(channel, channel.jobs(runs, batch, into, SHARES))
        self._completed = stage.completed
        self._next = next(self._stages, None)

    def _submit(self, channel: Channel, jobs: Sequence[Job]) -> None:
        readers = channel.reader.requests or self._readers
        self._running += [(readers.submit(job.work), job.users) for job in jobs]

    def _runs(self, stage: Stage, stack: Stack) -> tuple[Runs, Ints]:
        """Return the runs of rows that a stage fills, and the batch of each."""
        found, batch = [], []
        for piece in stage.pieces:
            samples = self._samples[self._batches[piece.batch]]
            before = int(self._cache.row_counts(stack, samples[: piece.low]).sum())
            places = self._cache.places(stack, samples[piece.low : piece.high])
            runs = find_runs(*places)
            found.append(runs._replace(start=runs.start + before))
            batch.append(np.full(len(runs.row), piece.batch, np.int64))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        return Runs(*columns), np.concatenate(batch)
