"""Describing a cache on the disk from its metadata and its index (about 90 bytes a sample)."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..format.geometry import COMPLETE
from ..format.spec import describe_types
from ..reading.cache import Cache
from ..storage.location import Location


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What a cache holds, finished or not.

    Attributes:
        stacks: name of each array -> its shape and its taps.
        compression: of the chunks; "none" without.
        tap_bytes: bytes of each tap's activations, not compressed.
        fingerprint: what the cache was made from.
        provenance: what its maker noted: names, places, versions.
    """

    path: Location
    complete: bool
    shards: int
    shards_finished: int
    dtype: str
    compression: str
    samples: int
    rows: int
    tokens: dict[str, int]
    nbytes: int
    stacks: dict[str, Any]
    tap_bytes: dict[str, int]
    fingerprint: dict[str, Any]
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self) | {"path": str(self.path)}

    def render(self) -> str:
        """Return the summary as lines of text."""
        state = "complete" if self.complete else "INCOMPLETE: extract again to finish it"
        packed = "" if self.compression == "none" else f" ({self.compression})"
        tokens = ", ".join(f"{count:,} {axis}" for axis, count in self.tokens.items())
        widest = max(map(len, self.tap_bytes))
        return "\n".join(
            (
                f"{self.path}: {state}, {self.shards_finished} of {self.shards} shards",
                f"{self.samples:,} samples of {self.rows:,} rows{', ' + tokens if tokens else ''}, "
                f"{self.dtype}{packed}, {self.nbytes:,} bytes",
                *(
                    f"  {name:<{widest}}  {size:>16,} bytes"
                    for name, size in self.tap_bytes.items()
                ),
                *(f"  array {name}: {array['shape']}" for name, array in self.stacks.items()),
                *(f"{name}: {value}" for name, value in self.provenance.items()),
                "made from " + json.dumps(self.fingerprint, indent=1),
            )
        )


def info(path: str | Location) -> CacheInfo:
    """Summarise the cache at `path` from its metadata and index.

    Raises:
        CacheNotFound, CacheVersionError, CacheDamaged: it cannot even be opened.
    """
    cache = Cache.open(path, allow_incomplete=True)
    geometry = cache.geometry
    return CacheInfo(
        path=cache.path,
        complete=len(cache.finished) == geometry.n_shards and (cache.path / COMPLETE).is_file(),
        shards=geometry.n_shards,
        shards_finished=len(cache.finished),
        dtype=describe_types(geometry.dtype),
        compression=geometry.compression,
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
        provenance=cache.provenance,
    )
