"""Checking and describing a cache on the disk.

`verify` reads every byte once (the speed of the disk); `info` reads the metadata and the index.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"problems": list(self.problems), "ok": self.ok}

    def render(self) -> str:
        """Return the report as lines of text."""
        read = f"{self.files:,} files, {self.chunks:,} chunks, {self.nbytes:,} bytes read"
        if self.ok:
            return f"{read}: every checksum agrees"
        return "\n".join(
            (
                f"{read}: {len(self.problems)} file(s) are damaged",
                *self.problems,
                "Remove the damaged files and extract again: only they are computed anew.",
            )
        )


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


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What a cache holds, finished or not.

    Attributes:
        stacks: name of each array -> its shape and its taps.
        tap_bytes: bytes of each tap's activations on disk.
        fingerprint: what the cache was made from.
        origin: what its maker noted: names, places, versions.
    """

    path: Path
    complete: bool
    shards: int
    shards_finished: int
    dtype: str
    samples: int
    rows: int
    tokens: dict[str, int]
    nbytes: int
    stacks: dict[str, Any]
    tap_bytes: dict[str, int]
    fingerprint: dict[str, Any]
    origin: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self) | {"path": str(self.path)}

    def render(self) -> str:
        """Return the summary as lines of text."""
        state = "complete" if self.complete else "INCOMPLETE: extract again to finish it"
        tokens = ", ".join(f"{count:,} {axis}" for axis, count in self.tokens.items())
        widest = max(map(len, self.tap_bytes))
        return "\n".join(
            (
                f"{self.path}: {state}, {self.shards_finished} of {self.shards} shards",
                f"{self.samples:,} samples of {self.rows:,} rows{', ' + tokens if tokens else ''}, "
                f"{self.dtype}, {self.nbytes:,} bytes",
                *(
                    f"  {name:<{widest}}  {size:>16,} bytes"
                    for name, size in self.tap_bytes.items()
                ),
                *(f"  array {name}: {array['shape']}" for name, array in self.stacks.items()),
                *(f"{name}: {value}" for name, value in self.origin.items()),
                "made from " + json.dumps(self.fingerprint, indent=1),
            )
        )


def info(path: str | Path) -> CacheInfo:
    """Summarise the cache at `path` from its metadata and index.

    Raises:
        CacheNotFound, CacheVersionError, CacheDamaged: it cannot even be opened.
    """
    cache = Cache.open(path, allow_incomplete=True)
    geometry = cache.geometry
    return CacheInfo(
        path=cache.path,
        complete=len(cache.finished) == geometry.n_shards
        and (cache.path / "COMPLETE.json").is_file(),
        shards=geometry.n_shards,
        shards_finished=len(cache.finished),
        dtype=geometry.dtype,
        samples=cache.n_samples,
        rows=cache.n_rows,
        tokens={axis: int(length.sum()) for axis, length in cache.lengths.items()},
        nbytes=cache.nbytes,
        stacks={
            stack.name: {"shape": list(geometry.array_shape(stack)), "taps": stack.tap_names}
            for stack in geometry.stacks
        },
        tap_bytes=geometry.tap_bytes(),
        fingerprint=cache.fingerprint.mapping,
        origin=cache.origin,
    )
