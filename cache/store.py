"""Blocks in memory: the host tier when all fit, a least-recently-used window when they do not.

A slab `[n_taps, capacity * rows, width]` in torch's memory; a minibatch is one `index_select` a
tap from it. Gathering the same samples gives the same numbers whatever the capacity. Memory:
`capacity` blocks of the chosen taps, committed page by page as they are touched.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .chunks import ChunkReader
from .geometry import Geometry
from .spec import TORCH_TYPES, Ints

_COPY_BYTES = 2**20


class BlockStore:
    """Some taps of some blocks of one stack, held in host memory; safe to share between threads.

    Args:
        reader: of the stack.
        geometry: of the cache.
        taps: positions of the taps in the stack.
        capacity: blocks held at once, at least 1.
    """

    def __init__(
        self, reader: ChunkReader, geometry: Geometry, taps: Sequence[int], capacity: int
    ) -> None:
        stack = reader.stack
        self.capacity = max(1, capacity)
        self._reader = reader
        self._taps = list(taps)
        self._rows = geometry.rows(stack)
        self._shape = stack.shape
        self._slab = torch.empty(
            (len(self._taps), self.capacity * self._rows, stack.width),
            dtype=TORCH_TYPES[geometry.dtype],
        )
        chunks = (len(self._taps), self.capacity, geometry.chunk_bytes(stack))
        self._bytes = self._slab.view(torch.uint8).view(chunks).numpy()
        self._place: OrderedDict[int, int] = OrderedDict()  # block -> place, oldest first
        self._lock = threading.Lock()
        self._free = list(range(self.capacity - 1, -1, -1))

    def gather(self, blocks: Ints, rows: Ints) -> Tensor:
        """Return rows of blocks as a new tensor, [n_taps, T, *shape].

        Args:
            blocks: block of each row, int64 [T].
            rows: position of each row in its block, int64 [T].
        """
        out = torch.empty(
            (len(self._taps), len(blocks), self._slab.shape[2]), dtype=self._slab.dtype
        )
        with self._lock:
            self._gather(blocks, rows, out)
        return out.view(len(self._taps), len(blocks), *self._shape)

    def _gather(self, blocks: Ints, rows: Ints, out: Tensor) -> None:
        needed, which, counts = np.unique(blocks, return_inverse=True, return_counts=True)
        if len(needed) <= self.capacity:
            places = np.array(self.ensure(needed), np.int64)
            index = torch.from_numpy(places[which] * self._rows + rows)
            for source, target in zip(self._slab, out, strict=True):
                torch.index_select(source, 0, index, out=target)
            return
        by_block = np.argsort(which, kind="stable")
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        for low in range(0, len(needed), self.capacity):
            part = needed[low : low + self.capacity]
            places = np.array(self.ensure(part), np.int64)
            inside = by_block[ends[low] : ends[low + len(part)]]
            index = torch.from_numpy(places[which[inside] - low] * self._rows + rows[inside])
            for source, target in zip(self._slab, out, strict=True):
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
                    self._reader.read_block(block, self._taps, list(self._bytes[:, place]))
                except BaseException:
                    self._free.append(place)
                    raise
                self._place[block] = place
        return [self._place[block] for block in wanted]


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
