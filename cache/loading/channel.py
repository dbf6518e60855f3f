"""From the disk into batches without a stop between: how one array's chunks are carried.

A chunk is read into a buffer that stays in the core's cache, checked there, and its rows are copied
to the batches they belong to; nothing else is held. Memory: arenas, each for the batches of a stage
(see `stages`), taken again as soon as nobody holds a batch of it, and a buffer of about 1 MiB for
each thread; together the blocks it may take, and the largest batch for each stage.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..format.geometry import Geometry
from ..format.packing import Runs
from ..format.spec import Bytes, Ints
from ..reading.buffers import large_pages
from ..reading.chunks import ChunkReader

STAGES = 2
"""Stages whose batches are alive at once: one is handed out while the next is filled."""
ASKED = 16
"""Blocks asked of a store that is far away at once, at most."""


class Move(NamedTuple):
    """Rows `row : end` of a chunk go to `start : stop` of a batch, bytes [n_taps, T, width]."""

    target: Bytes
    start: int
    stop: int
    row: int
    end: int


class Job(NamedTuple):
    """What a thread does at once, and for which batches."""

    work: Callable[[], None]
    users: frozenset[int]


class Arenas:
    """Memory for the batches of a stage, again and again.

    Args:
        nbytes: of one.
        keep: how many to hold on to.
    """

    def __init__(self, nbytes: int, keep: int) -> None:
        self.nbytes, self.keep = nbytes, keep
        self._free: deque[Tensor] = deque()
        self._lent: set[object] = set()

    @property
    def lent(self) -> int:
        """Arenas in which some batch is alive."""
        return len(self._lent)

    def take(self, nbytes: int) -> Tensor:
        """Return memory that is the caller's until the last view of it is gone."""
        try:
            raw = self._free.pop()
        except IndexError:
            raw = large_pages(self.nbytes)
        lent: Bytes = raw.numpy()[:nbytes]
        token = object()
        self._lent.add(token)
        weakref.finalize(lent, self._give_back, token, raw)
        return torch.from_numpy(lent)  # holds `lent`, and every view of it does

    def _give_back(self, token: object, raw: Tensor) -> None:
        if len(self._free) < self.keep:
            self._free.append(raw)
        self._lent.discard(token)


class Channel:
    """Carries some taps of one array from its blocks into batches; kept from epoch to epoch.

    Attributes:
        rows: that the batches of a stage may have.
        nbytes: of all its memory.

    Args:
        reader: of the array.
        geometry: of the cache.
        taps: positions of the taps in the stack.
        capacity: blocks whose bytes it may take, beside those of the largest batch for each stage.
        most_rows: rows of the largest batch.
        threads: that read.
    """

    def __init__(
        self,
        reader: ChunkReader,
        geometry: Geometry,
        taps: Sequence[int],
        capacity: int,
        *,
        most_rows: int,
        threads: int,
    ) -> None:
        stack = reader.stack
        self.reader = reader
        self._taps = list(taps)
        self._dtype = stack.held_as
        self._width, self._chunk_rows = stack.width, geometry.rows(stack)
        row = len(self._taps) * stack.width * self._dtype.itemsize
        held = capacity * self._chunk_rows * row
        at_once = min(reader.at_once, len(self._taps))
        buffer = at_once * geometry.chunk_bytes(stack)
        threads = threads if reader.requests is None else ASKED
        threads = max(1, min(threads, held // 4 // buffer))
        self._buffers: SimpleQueue[Bytes] = SimpleQueue()
        for _ in range(threads):
            self._buffers.put(torch.empty((at_once, buffer // at_once), dtype=torch.uint8).numpy())
        each = (held - threads * buffer) // STAGES + most_rows * row
        self.rows, self.nbytes = each // row, threads * buffer + STAGES * each
        self._arenas = Arenas(each, STAGES)

    @property
    def idle(self) -> bool:
        """Whether there is memory for another stage."""
        return self._arenas.lent < STAGES

    def open(self, counts: Sequence[int]) -> list[Tensor]:
        """Return room for batches of so many rows, [n_taps, T, width] each."""
        row = len(self._taps) * self._width * self._dtype.itemsize
        memory = self._arenas.take(sum(counts) * row)
        ends = np.cumsum([0, *counts]) * row
        return [
            memory[low:high]
            .view(self._dtype)
            .view(len(self._taps), -1 if count else 0, self._width)
            for low, high, count in zip(ends[:-1], ends[1:], counts, strict=True)
        ]

    def carry(self, block: int, taps: slice, moves: list[Move]) -> None:
        """Read taps of a block, and copy its rows to where they belong; empties `moves`."""
        buffer = self._buffers.get()
        try:
            chosen = self._taps[taps]
            into = [buffer[number % len(buffer)] for number in range(len(chosen))]

            def copy(done: slice) -> None:
                for number in range(done.start, done.stop):
                    chunk = into[number].reshape(self._chunk_rows, -1)
                    for move in moves:
                        target = move.target[taps.start + number]
                        target[move.start : move.stop] = chunk[move.row : move.end]

            self.reader.read_block(block, chosen, into, copy)
        finally:
            moves.clear()  # nothing of the batches is held once anybody knows that they are filled
            self._buffers.put(buffer)

    def jobs(self, runs: Runs, batch: Ints, rooms: dict[int, Tensor], shares: int) -> list[Job]:
        """Return what fills runs of rows of batches: for each block one job, or several.

        Args:
            runs: to fill.
            batch: of each run.
            rooms: of the batches.
            shares: into how many parts the work is best cut.
        """
        targets = {number: room.view(torch.uint8).numpy() for number, room in rooms.items()}
        order = np.argsort(runs.block, kind="stable")
        blocks, first = np.unique(runs.block[order], return_index=True)
        columns = (batch, runs.start, runs.start + runs.count, runs.row, runs.row + runs.count)
        moves = [
            Move(targets[number], *rest)
            for number, *rest in zip(*(column[order].tolist() for column in columns), strict=True)
        ]
        bounds = [*first.tolist(), len(moves)]
        parts = max(1, -(-shares // max(1, len(blocks))))
        step = -(-len(self._taps) // parts)
        jobs = []
        for block, low, high in zip(blocks.tolist(), bounds[:-1], bounds[1:], strict=True):
            users = frozenset(batch[order[low:high]].tolist())
            for tap in range(0, len(self._taps), step):
                work = partial(self.carry, block, slice(tap, tap + step), moves[low:high])
                jobs.append(Job(work, users))
        return jobs
