"""Blocks in memory: all of them if they fit, a least-recently-used window if they do not.

A slab `[n_taps, capacity * rows, width]` in torch's memory, on the host or a device; a minibatch is
made by copying runs of rows from it. Gathering the same samples gives the same numbers whatever the
capacity. Memory: `capacity` blocks of the chosen taps, on the host committed page by page as they
are touched; for a device also `STAGED` blocks on the host, which its blocks pass through.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..format.geometry import Geometry
from ..format.packing import Runs, find_runs
from ..format.quantize import dequantize
from ..format.spec import Bytes, Ints
from ..memory import STAGED
from .buffers import SHARES, BatchBuffers, large_pages
from .chunks import ChunkReader

_NOTHING: Bytes = np.empty(0, np.uint8)
LEAST = 2**21
"""Bytes of a block that are worth a thread to read them."""
SHARE = 2**23
"""Bytes of a batch that are worth a thread to copy them."""


@dataclass(frozen=True)
class Factors:
    """What turns int8 codes into numbers: the scales' reader, and the RMS of each tap [C]."""

    scales: ChunkReader
    rms: Sequence[Tensor]


class _Slab:
    """Room for `capacity` blocks of some taps of one array, [n_taps, capacity * rows, width].

    On a device, chunks come by way of a few blocks of host memory, pinned for CUDA.
    """

    def __init__(
        self,
        reader: ChunkReader,
        geometry: Geometry,
        taps: Sequence[int],
        capacity: int,
        home: torch.device | None,
    ) -> None:
        stack = reader.stack
        self.reader, self.shape = reader, stack.shape
        self._rows, self._home = geometry.rows(stack), home
        dtype = stack.held_as
        shape = (len(taps), capacity * self._rows, stack.width)
        if home is None:
            self.values = large_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
        else:
            self.values = torch.empty(shape, dtype=dtype, device=home)
        self._entry = self.values
        self._host: Bytes = self.values.view(torch.uint8).numpy() if home is None else _NOTHING
        if home is not None:
            staged = min(capacity, STAGED)
            pinned = home.type == "cuda"
            shape = (len(taps), staged * self._rows, stack.width)
            self._entry = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        chunks = (len(taps), -1, geometry.chunk_bytes(stack))
        self._chunks: Bytes = self._entry.view(torch.uint8).view(chunks).numpy()

    def targets(self, place: int, taps: slice) -> list[Bytes]:
        """Return where the chunks of a block are to be read."""
        return list(self._chunks[taps, place])

    def settle(self, places: Sequence[int]) -> None:
        """Move the blocks that were read to their places on the device."""
        for number, place in enumerate(places if self._home is not None else ()):
            into = slice(place * self._rows, (place + 1) * self._rows)
            read = slice(number * self._rows, (number + 1) * self._rows)
            for held, entry in zip(self.values, self._entry, strict=True):
                held[into].copy_(entry[read])  # contiguous: straight from pinned memory

    def copy_rows(self, first: Ints, runs: Runs, out: Tensor) -> None:
        """Copy runs that begin at the rows `first` of the slab into a batch [n_taps, T, width].

        On the host by numpy: it copies a run of all taps at once, as fast as memory allows, while
        threads of torch would wait for each other on a busy machine.
        """
        if self._home is not None:
            index = torch.from_numpy(np.repeat(first, runs.count) + _within(runs)).to(self._home)
            if len(index) == out.shape[1]:  # runs are in the order of the batch
                torch.index_select(self.values, 1, index, out=out)
                return
            into = torch.from_numpy(np.repeat(runs.start, runs.count) + _within(runs))
            out.index_copy_(1, into.to(self._home), self.values.index_select(1, index))
            return
        source, target = self._host, out.view(torch.uint8).numpy()
        columns = (first.tolist(), runs.start.tolist(), runs.count.tolist())
        for low, start, count in zip(*columns, strict=True):
            target[:, start : start + count] = source[:, low : low + count]

    def room(self, rows: int, buffers: BatchBuffers) -> Tensor:
        """Return an uninitialised tensor for gathered rows, [n_taps, rows, width]."""
        shape = (len(self.values), rows, self.values.shape[2])
        if self._home is not None:
            return torch.empty(shape, dtype=self.values.dtype, device=self._home)
        return buffers.room(shape, self.values.dtype)


class BlockStore:
    """Some taps of some blocks of one stack, held in memory; safe to share between threads.

    Numbers of int8 are held as bytes and become float32 when they are gathered, on the device that
    they are gathered for.

    Args:
        reader: of the stack.
        geometry: of the cache.
        taps: positions of the taps in the stack.
        capacity: blocks held at once, at least 1.
        factors: of int8 numbers.
        home: device that holds the blocks; None for host memory.
    """

    def __init__(
        self,
        reader: ChunkReader,
        geometry: Geometry,
        taps: Sequence[int],
        capacity: int,
        *,
        factors: Factors | None = None,
        home: torch.device | None = None,
    ) -> None:
        self.capacity = max(1, capacity)
        self._taps = list(taps)
        self._rows = geometry.rows(reader.stack)
        self._factors = factors
        self._home = home
        readers = [reader] if factors is None else [reader, factors.scales]
        self._slabs = [_Slab(each, geometry, self._taps, self.capacity, home) for each in readers]
        self._place: OrderedDict[int, int] = OrderedDict()  # block -> place, oldest first
        self._block_bytes = self.nbytes // self.capacity
        self._lock = threading.Lock()
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that it has room for."""
        return sum(slab.values.nbytes for slab in self._slabs)

    def holds(self, blocks: Ints) -> bool:
        """Whether all of `blocks` are in memory."""
        with self._lock:
            return all(block in self._place for block in blocks.tolist())

    def gather(self, blocks: Ints, rows: Ints, buffers: BatchBuffers | None = None) -> Tensor:
        """Return rows of blocks as a new tensor, [n_taps, T, *shape].

        Args:
            blocks: block of each row, int64 [T].
            rows: position of each row in its block, int64 [T].
            buffers: what the tensor is made with; None for plain host memory.
        """
        buffers = BatchBuffers() if buffers is None else buffers
        return finish(self.parts(blocks, rows, buffers), self._factors, buffers)

    def parts(self, blocks: Ints, rows: Ints, buffers: BatchBuffers) -> list[Tensor]:
        """Return rows as they are held: numbers, or codes and scales; see `gather`."""
        room = [slab.room(len(blocks), buffers) for slab in self._slabs]
        with self._lock:
            self._gather(find_runs(blocks, rows), room, buffers)
        return [
            each.view(len(self._taps), len(blocks), *slab.shape).to(
                buffers.device, non_blocking=True
            )
            for each, slab in zip(room, self._slabs, strict=True)
        ]

    def _gather(self, runs: Runs, room: Sequence[Tensor], buffers: BatchBuffers) -> None:
        """Copy runs of rows, those of at most `capacity` blocks at a time."""
        needed = np.unique(runs.block)
        for low in range(0, len(needed), self.capacity):
            part = needed[low : low + self.capacity]
            places = np.array(self.ensure(part, buffers), np.int64)
            inside = (runs.block >= part[0]) & (runs.block <= part[-1])
            chosen = runs.cut(inside)
            first = places[np.searchsorted(part, chosen.block)] * self._rows + chosen.row
            jobs = [
                partial(slab.copy_rows, first[share], chosen.cut(share), out)
                for slab, out in zip(self._slabs, room, strict=True)
                for share in self._shares(chosen, out, buffers)
            ]
            buffers.run(jobs)

    def _shares(self, runs: Runs, out: Tensor, buffers: BatchBuffers) -> list[slice]:
        """Cut runs into shares for several threads, if there is enough to copy."""
        parts = 1 if self._home is not None else min(buffers.shares, 1 + out.nbytes // SHARE)
        step = max(1, -(-len(runs.row) // parts))
        return [slice(low, low + step) for low in range(0, len(runs.row), step)]

    def ensure(self, blocks: Ints, buffers: BatchBuffers | None = None) -> list[int]:
        """Load the blocks that are not held, evicting the oldest others; return their places."""
        buffers = BatchBuffers() if buffers is None else buffers
        wanted = blocks.tolist()
        for block in wanted:
            if block in self._place:
                self._place.move_to_end(block)
        missing = [block for block in wanted if block not in self._place]
        step = len(missing) if self._home is None else STAGED
        for low in range(0, len(missing), max(1, step)):
            self._load(missing[low : low + step], buffers)
        return [self._place[block] for block in wanted]

    def _load(self, blocks: Sequence[int], buffers: BatchBuffers) -> None:
        """Read blocks, all at once: several threads share them out, chunk by chunk if need be."""
        places = [
            self._free.pop() if self._free else self._place.popitem(last=False)[1] for _ in blocks
        ]
        entries = places if self._home is None else range(len(places))
        requests = self._slabs[0].reader.requests
        shares = buffers.shares if requests is None else SHARES
        parts = max(1, -(-shares // (len(blocks) * len(self._slabs))))
        if requests is None:  # a thread costs more than it gives for a chunk or two
            parts = min(parts, max(1, self._block_bytes // LEAST))
        step = -(-len(self._taps) // parts)
        jobs = [
            partial(slab.reader.read_block, block, self._taps[part], slab.targets(entry, part))
            for block, entry in zip(blocks, entries, strict=True)
            for slab in self._slabs
            for part in (slice(low, low + step) for low in range(0, len(self._taps), step))
        ]
        try:
            buffers.run(jobs, requests)
            for slab in self._slabs:
                slab.settle(places)
        except BaseException:
            self._free += places
            raise
        self._place.update(zip(blocks, places, strict=True))


def finish(parts: Sequence[Tensor], factors: Factors | None, buffers: BatchBuffers) -> Tensor:
    """Return the numbers of a batch: as they are, or new ones of codes and scales."""
    if factors is None:
        return parts[0]
    numbers = buffers.floats(tuple(parts[0].shape))
    write_numbers(numbers.unbind(), parts, factors)
    return numbers


def write_numbers(into: Sequence[Tensor], parts: Sequence[Tensor], factors: Factors | None) -> None:
    """Write numbers, or codes and scales, as float32 into tensors [T, *shape], one a tap."""
    for number, target in enumerate(into):
        if factors is None:
            target.copy_(parts[0][number])
            continue
        rms = factors.rms[number].to(target.device)
        dequantize(parts[0][number], parts[1][number], rms, out=target)


def _within(runs: Runs) -> Ints:
    """Return the place of every row in its run, int64 [T]."""
    ends = np.cumsum(runs.count)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - runs.count, runs.count)
