"""Checking and describing a cache on the disk.

`verify` reads every byte once (the speed of the disk); `info` reads the metadata and the index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import read_exact
from .manifest import inspect_shard, read_finished, read_manifest
from .reader import Cache


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; each problem names its file."""

    files: int
    chunks: int
    nbytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.problems


def verify(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every shard file of a finished cache and compare all checksums.

    Args:
        path: of the cache.
        progress: called with (files done, files in all).

    Raises:
        CacheNotFound, CacheVersionError, CacheIncomplete, CacheDamaged: it cannot even be opened.
    """
    cache = Cache.open(path)
    found = read_manifest(cache.path)
    entries = read_finished(found, allow_incomplete=False)
    geometry = cache.geometry
    problems, files, chunks, nbytes = [], 0, 0, 0
    total = len(entries) * len(geometry.stacks)
    for shard, entry in sorted(entries.items()):
        for stack in geometry.stacks:
            file = cache.path / geometry.shard_path(stack, shard)
            size, crc = entry.files[stack.name]
            bad = inspect_shard(geometry, stack, shard, read_exact(file, size), crc)
            if bad:
                more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
                problems.append(f"{file} is damaged: {', '.join(bad[:5])}{more}")
            files, nbytes = files + 1, nbytes + size
            chunks += len(geometry.blocks_of(shard)) * len(stack.taps)
            if progress is not None:
                progress(files, total)
    return VerifyReport(files=files, chunks=chunks, nbytes=nbytes, problems=tuple(problems))


def info(path: str | Path) -> dict[str, Any]:
    """Return a summary of a cache, finished or not, as a JSON mapping."""
    cache = Cache.open(path, allow_incomplete=True)
    geometry = cache.geometry
    return {
        "path": str(cache.path),
        "complete": len(cache.finished) == geometry.n_shards
        and (cache.path / "COMPLETE.json").is_file(),
        "shards": {"finished": len(cache.finished), "all": geometry.n_shards},
        "dtype": geometry.dtype,
        "samples": cache.n_samples,
        "rows": cache.n_rows,
        "tokens": {axis: int(length.sum()) for axis, length in cache.lengths.items()},
        "nbytes": cache.nbytes,
        "stacks": {
            stack.name: {"shape": list(geometry.array_shape(stack)), "taps": stack.tap_names}
            for stack in geometry.stacks
        },
        "tap_bytes": geometry.tap_bytes(),
        "fingerprint": cache.fingerprint.mapping,
    }
