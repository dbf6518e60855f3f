"""Reading chunks from an object store: a block is one range of an object, asked for in parts.

Answers take long to begin, so many are asked for at once: each block that is wanted has a thread of
its own, and is read in parts of `PART` bytes, all of them in flight. Checksums are verified as on a
disk. A connection that breaks and a store that is busy are tried again, see `location`.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from ..errors import CacheDamaged, CacheUnreachable
from ..format.geometry import Geometry
from ..format.ledger import Entry
from ..format.shard_file import CRC_BYTES, WAY_OUT, ShardIndex
from ..format.spec import Bytes, Stack
from ..storage.location import ObjectPath
from .chunks import ChunkReader, Verify

BLOCKS = 16
"""Blocks asked for at once, at most."""
PART = 2**22
"""Bytes of a request."""


class RemoteChunkReader(ChunkReader):
    """The chunks of one stack of a cache in a store; see `ChunkReader`."""

    run_bytes = PART

    def __init__(
        self,
        root: ObjectPath,
        geometry: Geometry,
        stack: Stack,
        finished: Mapping[int, Entry],
        verify: Verify,
    ) -> None:
        super().__init__(root, geometry, stack, finished, verify)
        self.requests = _requests()
        self._store = root

    def read_block(self, block: int, taps: Sequence[int], into: Sequence[Bytes]) -> None:
        """Read some taps of a block, see `ChunkReader.read_block`.

        Raises:
            CacheUnreachable: the store does not answer.
        """
        shard = self._shard_of(block)
        path = self._store / self._geometry.shard_path(self.stack, shard)
        found = self._select(self._index_of(shard, path), block, taps)
        if self._packed:
            lengths = [size + CRC_BYTES for size in found.sizes.tolist()]
            chunks = _ranges(path, found.offsets.tolist(), lengths)
            self._unpack(block, taps, into, chunks, found)
            return
        offsets, _, crcs = found
        stride, runs = self._chunk_bytes + CRC_BYTES, [*self._runs(offsets)]
        starts = [int(offsets[run.start]) for run in runs]
        parts = _ranges(path, starts, [stride * (run.stop - run.start) for run in runs])
        for run, part in zip(runs, parts, strict=True):
            rows = part.reshape(-1, stride)
            for target, row in zip(into[run], rows, strict=True):
                np.copyto(target, row[:-CRC_BYTES])
            stored = np.ascontiguousarray(rows[:, -CRC_BYTES:]).view("<u4")[:, 0]
            self._check(block, taps[run], into[run], stored, crcs[run])

    def _index_of(self, shard: int, path: ObjectPath) -> ShardIndex:
        known = self._index.get(shard)
        if known is not None:
            return known
        length = self._tail_bytes(shard)
        size = self._file_bytes(shard)
        return self._keep_index(_ranges(path, [size - length], [length])[0], shard, path)


def _ranges(path: ObjectPath, starts: list[int], lengths: list[int]) -> list[Bytes]:
    try:
        parts = path.read_ranges(starts, lengths)
    except FileNotFoundError as error:
        raise CacheDamaged(f"{path} is missing; {WAY_OUT}") from error
    except CacheUnreachable as error:
        if "416 Range Not Satisfiable" not in str(error):  # no type of its own
            raise
        raise CacheDamaged(f"{path} ends too early; {WAY_OUT}") from error
    if [len(part) for part in parts] != lengths:
        raise CacheDamaged(f"{path} ends too early; {WAY_OUT}")
    return parts


@lru_cache
def _requests() -> ThreadPoolExecutor:
    """Threads that wait for answers, shared by all caches of the process."""
    return ThreadPoolExecutor(BLOCKS, "cache-requests")
