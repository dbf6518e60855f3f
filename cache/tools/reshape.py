"""New caches out of finished ones: joined, or with fewer taps, in another type or layout.

Each writes a new folder and leaves its sources alone; run again after a kill it goes on, and on a
finished result it does nothing. The cost is that of `rewrite`: one read of the chosen taps, one
write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InvalidTap
from ..format.calibration import Calibration, calibration_samples
from ..format.fingerprint import Fingerprint
from ..format.layout import CacheLayout, plan_layout
from ..format.spec import StorageTypes, TapSpec, types_by_tap
from ..reading.cache import Cache
from ..storage.location import local_path
from . import identity
from .join import Joined, alone, join
from .rewrite import Progress, RewriteReport, rewrite


def merge(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> RewriteReport:
    """Make one cache of several of the same backbone, taps and storage type.

    Rows come in the order of `paths`; content that several hold is stored once. On the disk the
    samples are shuffled into each other, so that minibatches are as good as those of one
    extraction.

    Args:
        paths: finished caches.
        out: folder of the new one.
        seed: of the shuffle.
        progress: called with (shards done, shards in all).

    Raises:
        FingerprintMismatch: the caches are of different kinds; the message lists how.
        CacheConflict: a row id stands for different inputs.
        CacheFull, CacheError, CacheDamaged: as they say.
    """
    caches = _open(paths)
    joined = join(caches, seed=seed)
    first = caches[0].geometry
    layout = _layout(
        joined,
        provenance=caches[0].provenance | {"assembled": f"merge of {len(caches)} caches"},
        seed=seed,
        block_tokens=_token_axes(caches[0]),
        blocks_per_shard=_kept_blocks_per_shard(caches[0], first.taps),
    )
    return rewrite("merge", joined, layout, local_path(out, "cache merge"), progress=progress)


def convert(
    path: str | Path,
    out: str | Path,
    *,
    dtype: StorageTypes | None = None,
    taps: Sequence[str] | None = None,
    compression: str | None = None,
    block_tokens: int | None = None,
    blocks_per_shard: int | None = None,
    progress: Progress | None = None,
) -> RewriteReport:
    """Copy a cache, or some taps of it, into another storage type or layout.

    Where the source had rounded the numbers already, the fingerprint of the result says through
    which types they went: it is not the cache that an extraction in `dtype` gives.

    Args:
        path: a finished cache.
        out: folder of the new one.
        dtype: storage type, of all taps or of some by their names (the others keep theirs); None
            for those of the source.
        taps: names, stored in the order of the source; None for all. The result is the cache that
            an extraction of these taps gives.
        compression: of the chunks: "none", "zstd" or "zstd:LEVEL"; None for that of the source.
        block_tokens: tokens of a block; None for those of the source.
        blocks_per_shard: blocks of a shard; None for those of the source, or anew by size.
        progress: called with (shards done, shards in all).

    Raises:
        ActivationOverflow: a number does not fit `dtype`; the message names tap and row.
        ValueError, InvalidTap, CacheFull, CacheError, CacheDamaged: as they say.
    """
    cache = Cache.open(local_path(path, "cache convert"))
    joined, chosen = alone(cache), _choose(cache, taps)
    axes = _token_axes(cache)
    layout = _layout(
        joined,
        taps=chosen,
        dtype=dtype,
        compression=compression,
        seed=cache.geometry.seed,
        provenance=cache.provenance,
        block_tokens=dict.fromkeys(axes, block_tokens) if block_tokens else axes,
        blocks_per_shard=blocks_per_shard or _kept_blocks_per_shard(cache, chosen),
    )
    return rewrite("convert", joined, layout, local_path(out, "cache convert"), progress=progress)


def _open(paths: Sequence[str | Path]) -> list[Cache]:
    folders = [local_path(path, "joining caches") for path in paths]
    if len({path.resolve() for path in folders}) < len(paths) or not paths:
        raise ValueError(f"give different caches, at least one; given: {[*map(str, paths)]}")
    caches = [Cache.open(path) for path in folders]
    identity.check_same_kind(caches)
    return caches


def _choose(cache: Cache, taps: Sequence[str] | None) -> tuple[TapSpec, ...]:
    if taps is None:
        return cache.taps
    known = [tap.name for tap in cache.taps]
    unknown = [name for name in taps if name not in known]
    if unknown or not taps:
        raise InvalidTap(f"taps {unknown} are not in {cache.path}; it has {known}")
    return tuple(tap for tap in cache.taps if tap.name in taps)


def _token_axes(cache: Cache) -> dict[str, int]:
    """Return the block sizes that a caller chose; those of frames follow from bytes."""
    tokens = {tap.axis for tap in cache.taps if tap.kind == "tokens"}
    return {axis: n for axis, n in cache.geometry.block_tokens.items() if axis in tokens}


def _kept_blocks_per_shard(cache: Cache, taps: Sequence[TapSpec]) -> int | None:
    """Return the blocks of a shard if they depend on nothing that changes, None otherwise."""
    tokens = all(tap.kind == "tokens" for tap in (*cache.taps, *taps))
    return cache.geometry.blocks_per_shard if tokens else None


def _layout(
    joined: Joined,
    *,
    provenance: Mapping[str, Any],
    seed: int,
    block_tokens: Mapping[str, int],
    blocks_per_shard: int | None,
    taps: tuple[TapSpec, ...] | None = None,
    dtype: StorageTypes | None = None,
    compression: str | None = None,
) -> CacheLayout:
    """Lay out the samples of `joined` in its order, under the fingerprint that fits."""
    first = joined.caches[0]
    taps = taps or first.taps
    stored = {tap.name: first.geometry.types[tap.name] for tap in taps}
    target: Any = stored if dtype is None else _types(dtype, stored, taps)
    mapping = first.fingerprint.mapping
    if len(joined.caches) > 1:
        mapping = identity.of_table(mapping, joined.keys, joined.row_to_sample, joined.row_ids)
        mapping = identity.of_rounding(mapping, joined.caches)
    if len(taps) < len(first.taps):
        mapping = identity.of_taps(mapping, [tap.name for tap in taps])
    if target != stored:
        mapping = identity.of_type(mapping, stored, target)
    axes = {tap.axis for tap in taps if tap.ragged}
    lengths = {axis: values for axis, values in joined.lengths.items() if axis in axes}
    layout = plan_layout(
        taps=taps,
        lengths=lengths or None,
        n_samples=len(joined.sample),
        row_to_sample=joined.row_to_sample,
        row_ids=joined.row_ids,
        dtype=target,
        fingerprint=Fingerprint(mapping),
        seed=seed,
        block_tokens={axis: size for axis, size in block_tokens.items() if axis in axes},
        blocks_per_shard=blocks_per_shard,
        provenance=provenance,
        order=joined.order,
        rms=first.rms or None,
        compression=compression or first.geometry.compression,
    )
    unknown = [
        tap for s in layout.geometry.quantized_stacks for tap in s.tap_names if tap not in first.rms
    ]
    if not unknown:
        return layout
    found = Calibration()
    found.add(first.read(joined.sample[calibration_samples(layout)], unknown))
    return replace(layout, rms=first.rms | found.rms())


def _types(
    dtype: StorageTypes, stored: Mapping[str, str], taps: Sequence[TapSpec]
) -> dict[str, str]:
    """Return the storage type of each tap of the new cache."""
    asked = types_by_tap(dtype, taps) if isinstance(dtype, str) else dict(dtype)
    unknown = sorted(asked.keys() - stored.keys())
    if unknown:
        raise InvalidTap(f"no taps {unknown} to store in another type; there are {[*stored]}")
    return dict(stored) | asked
