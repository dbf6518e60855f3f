"""Blocks in memory: the host tier when all fit, a least-recently-used window when they do not.

A slab `[n_taps, capacity * rows, width]` in torch's memory; a minibatch is one `index_select` a
tap from it. Gathering the same samples gives the same numbers whatever the capacity. Memory:
`capacity` blocks of the chosen taps, committed page by page as they are touched.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .chunks import ChunkReader
from .geometry import Geometry
from .quantize import dequantize
from .spec import TORCH_TYPES, Bytes, Ints

_COPY_BYTES = 2**20


@dataclass(frozen=True)
class Factors:
    """What turns int8 codes into numbers: the scales' reader, and the RMS of each tap [C]."""

    scales: ChunkReader
    rms: Sequence[Tensor]


class _Slab:
    """Room for `capacity` blocks of some taps of one array, [n_taps, capacity * rows, width]."""

    def __init__(
        self, reader: ChunkReader, geometry: Geometry, taps: Sequence[int], capacity: int
    ) -> None:
        stack = reader.stack
        self.reader, self.shape = reader, stack.shape
        dtype = TORCH_TYPES[geometry.dtype] if geometry.dtype != "int8" else torch.int8
        shape = (len(taps), capacity * geometry.rows(stack), stack.width)
        self.values = torch.empty(shape, dtype=torch.float16 if stack.scales else dtype)
        chunks = (len(taps), capacity, geometry.chunk_bytes(stack))
        self.chunks: Bytes = self.values.view(torch.uint8).view(chunks).numpy()

    def room(self, rows: int) -> Tensor:
        """Return an uninitialised tensor for gathered rows, [n_taps, rows, width]."""
        return torch.empty((len(self.values), rows, self.values.shape[2]), dtype=self.values.dtype)


class BlockStore:
    """Some taps of some blocks of one stack, held in host memory; safe to share between threads.

    Numbers of int8 are held as bytes and become float32 when they are gathered, on the device that
    they are gathered for.

    Args:
        reader: of the stack.
        geometry: of the cache.
        taps: positions of the taps in the stack.
        capacity: blocks held at once, at least 1.
        factors: of int8 numbers.
    """

    def __init__(
        self,
        reader: ChunkReader,
        geometry: Geometry,
        taps: Sequence[int],
        capacity: int,
        factors: Factors | None = None,
    ) -> None:
        self.capacity = max(1, capacity)
        self._taps = list(taps)
        self._rows = geometry.rows(reader.stack)
        self._factors = factors
        readers = [reader] if factors is None else [reader, factors.scales]
        self._slabs = [_Slab(each, geometry, self._taps, self.capacity) for each in readers]
        self._place: OrderedDict[int, int] = OrderedDict()  # block -> place, oldest first
        self._lock = threading.Lock()
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that it has room for."""
        return sum(slab.values.nbytes for slab in self._slabs)

    def gather(self, blocks: Ints, rows: Ints, device: torch.device | None = None) -> Tensor:
        """Return rows of blocks as a new tensor, [n_taps, T, *shape].

        Args:
            blocks: block of each row, int64 [T].
            rows: position of each row in its block, int64 [T].
            device: of the result; None for host memory.
        """
        room = [slab.room(len(blocks)) for slab in self._slabs]
        with self._lock:
            self._gather(blocks, rows, room)
        parts = [
            each.view(len(self._taps), len(blocks), *slab.shape).to(device, non_blocking=True)
            for each, slab in zip(room, self._slabs, strict=True)
        ]
        if self._factors is None:
            return parts[0]
        return _numbers(parts[0], parts[1], self._factors)

    def _gather(self, blocks: Ints, rows: Ints, room: Sequence[Tensor]) -> None:
        pairs = [
            (source, target)
            for slab, out in zip(self._slabs, room, strict=True)
            for source, target in zip(slab.values, out, strict=True)
        ]
        needed, which, counts = np.unique(blocks, return_inverse=True, return_counts=True)
        if len(needed) <= self.capacity:
            places = np.array(self.ensure(needed), np.int64)
            index = torch.from_numpy(places[which] * self._rows + rows)
            for source, target in pairs:
                torch.index_select(source, 0, index, out=target)
            return
        by_block = np.argsort(which, kind="stable")
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        for low in range(0, len(needed), self.capacity):
            part = needed[low : low + self.capacity]
            places = np.array(self.ensure(part), np.int64)
            inside = by_block[ends[low] : ends[low + len(part)]]
            index = torch.from_numpy(places[which[inside] - low] * self._rows + rows[inside])
            for source, target in pairs:
                _copy_rows(source, index, target, torch.from_numpy(inside))

    def ensure(self, blocks: Ints) -> list[int]:
        """Load the blocks that are not held, evicting the oldest others; return their places."""
        wanted = blocks.tolist()
        for block in wanted:
            if block in self._place:
                self._place.move_to_end(block)
        for block in wanted:
            if block not in self._place:
                place = self._free.pop() if self._free else self._place.popitem(last=False)[1]
                try:
                    for slab in self._slabs:
                        slab.reader.read_block(block, self._taps, list(slab.chunks[:, place]))
                except BaseException:
                    self._free.append(place)
                    raise
                self._place[block] = place
        return [self._place[block] for block in wanted]


def _numbers(codes: Tensor, scales: Tensor, factors: Factors) -> Tensor:
    """Return the float32 numbers of int8 codes [n_taps, T, *shape], tap by tap."""
    result = torch.empty(codes.shape, device=codes.device)
    for number, rms in enumerate(factors.rms):
        dequantize(codes[number], scales[number], rms.to(codes.device), out=result[number])
    return result


def _copy_rows(source: Tensor, index: Tensor, target: Tensor, into: Tensor) -> None:
    """Do `target[into] = source[index]` with at most a megabyte in between."""
    step = _COPY_BYTES // max(1, source.shape[1] * source.element_size())
    if step < 2:
        for place, row in zip(into.tolist(), index.tolist(), strict=True):
            target[place].copy_(source[row])
        return
    for low in range(0, len(index), step):
        part = slice(low, low + step)
        target.index_copy_(0, into[part], source.index_select(0, index[part]))
