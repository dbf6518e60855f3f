"""The one way to make a cache out of others: shard by shard, in the order of the sources.

`merge` and `convert` differ in the table and the layout that they hand in.
Bytes read: the chosen taps of every source once. Memory: one shard of the new cache, 32 MiB on the
way, and for each source one block. The writer is that of an extraction, so a rewrite that was
killed goes on where it stopped, and a shard counts when its ledger line is on the disk.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError, CacheFull
from ..format.layout import CacheLayout
from ..format.spec import Ints, describe_types
from ..memory import size
from ..reading.block_store import BlockStore
from ..reading.cache import Cache, TapGroup
from ..storage.location import files_below, local_path
from ..writing.shard import ShardBuffer
from ..writing.writer import CacheWriter
from .join import Joined

Progress = Callable[[int, int], None]
BATCH_BYTES = 2**25
"""Bytes of activations on the way from a source to a shard."""


@dataclass(frozen=True, kw_only=True)
class RewriteReport:
    """What a rewrite did.

    Attributes:
        action: "merge" or "convert".
        path: the new cache.
        sources: caches it was made from.
        samples: of the new cache; `samples_known` more were in an earlier source already.
        rows: of the new cache; `rows_known` more were in an earlier source already.
        shards: of the new cache; this run wrote `shards_written`.
        nbytes: size of the new folder.
    """

    action: str
    path: Path
    sources: tuple[Path, ...]
    samples: int
    samples_known: int
    rows: int
    rows_known: int
    taps: tuple[str, ...]
    dtype: str
    shards: int
    shards_written: int
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        paths = {"path": str(self.path), "sources": [str(path) for path in self.sources]}
        return asdict(self) | paths | {"taps": list(self.taps)}

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [
            f"{self.path}: {self.samples:,} samples of {self.rows:,} rows, {len(self.taps)} taps, "
            f"{self.dtype}, {self.nbytes:,} bytes",
            f"{self.shards_written} of {self.shards} shards written",
        ]
        if self.samples_known or self.rows_known:
            lines.append(f"already there: {self.samples_known:,} samples, {self.rows_known:,} rows")
        return "\n".join(lines)


def rewrite(
    action: str,
    joined: Joined,
    layout: CacheLayout,
    out: Path,
    *,
    progress: Progress | None = None,
) -> RewriteReport:
    """Write the samples of `joined` into a new cache, or go on doing so.

    Args:
        action: name of the operation, for the report.
        joined: where each sample comes from.
        layout: of the new cache.
        out: its folder; empty, absent, or holding this very cache unfinished.
        progress: called with (shards done, shards in all).

    Raises:
        CacheFull: the disk has no room, said before the first shard.
        CacheError: `out` is a source, or holds something else.
        ActivationOverflow: a number does not fit the new type; the message names tap and row.
        CacheDamaged: a chunk of a source fails its checksum.
    """
    _check_apart(joined.caches, out)
    feeds = [_Feed(cache, layout) for cache in joined.caches]
    with CacheWriter.open(out, layout, joined.keys) as writer:
        pending = writer.pending
        _check_room(out, layout, pending)
        for done, shard in enumerate(pending):
            with writer.shard(shard) as buffer:
                for samples in _batches(layout, writer.samples_of(shard)):
                    _copy(buffer, joined, samples, feeds)
            if progress is not None:
                progress(layout.n_shards - len(pending) + done + 1, layout.n_shards)
        writer.finish()
    geometry = layout.geometry
    return RewriteReport(
        action=action,
        path=out,
        sources=tuple(local_path(cache.path, action) for cache in joined.caches),
        samples=geometry.n_samples,
        samples_known=joined.samples_known,
        rows=geometry.n_rows,
        rows_known=joined.rows_known,
        taps=tuple(tap.name for tap in geometry.taps),
        dtype=describe_types(geometry.dtype),
        shards=layout.n_shards,
        shards_written=len(pending),
        nbytes=sum(files_below(out).values()),
    )


def _check_apart(caches: Sequence[Cache], out: Path) -> None:
    target = out.resolve()
    for cache in caches:
        source = local_path(cache.path, "rewriting").resolve()
        if target == source or source in target.parents or target in source.parents:
            raise CacheError(f"{out} is, holds or lies in the source {cache.path}; give a new one")


def _shard_bytes(layout: CacheLayout, shard: int) -> int:
    geometry = layout.geometry
    return sum(geometry.shard_bytes(stack, shard) for stack in geometry.stacks)


def _check_room(out: Path, layout: CacheLayout, todo: Sequence[int]) -> None:
    needed, free = sum(_shard_bytes(layout, s) for s in todo), shutil.disk_usage(out).free
    if needed > free:
        raise CacheFull(
            f"no room for {out}: {size(needed)} are to be written, the disk has {size(free)} free. "
            "Free space or choose another disk, then run the same command again"
        )


def _batches(layout: CacheLayout, samples: Ints) -> Iterator[Ints]:
    """Split the samples of a shard into runs of about `BATCH_BYTES`."""
    nbytes = np.zeros(len(samples), np.int64)
    geometry, length = layout.geometry, layout.packing.table.length
    for stack in geometry.stacks:
        row = len(stack.taps) * stack.width * stack.itemsize
        nbytes += row * (length[stack.axis][samples] if stack.ragged else 1)
    cuts = np.flatnonzero(np.diff(np.cumsum(nbytes) // BATCH_BYTES)) + 1
    yield from (part for part in np.split(samples, cuts) if len(part))


class _Feed:
    """The chosen taps of a source; holds the block that was read last."""

    def __init__(self, cache: Cache, layout: CacheLayout) -> None:
        self.cache = cache
        names = [tap.name for tap in layout.geometry.taps]
        self.stores: list[tuple[TapGroup, BlockStore]] = [
            (group, cache.store(group.taps, capacity=1)) for group in cache.group_taps(names)
        ]


def _copy(buffer: ShardBuffer, joined: Joined, samples: Ints, feeds: Sequence[_Feed]) -> None:
    """Put `samples`, in the order on the disk, from their sources into the shard."""
    for number in np.unique(joined.source[samples]).tolist():
        mine = samples[joined.source[samples] == number]
        for group, store in feeds[number].stores:
            blocks, rows = feeds[number].cache.places(group.stack, joined.sample[mine])
            buffer.put(mine, dict(zip(group.taps, store.gather(blocks, rows), strict=True)))
