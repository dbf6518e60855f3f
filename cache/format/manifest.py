"""The manifest: the few numbers that fix a cache, and what was computed; an attribute of the root.

Everything else in the metadata follows from it. Its digest, the *config*, is in every line of the
ledger and in COMPLETE, so no part of one cache is taken for a part of another.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import CacheVersionError
from .fingerprint import Fingerprint, canonical, digest
from .geometry import MAX_COUNT, Geometry
from .spec import TapSpec

FORMAT_VERSION = 3
MANIFEST = "unipt_cache"
PROVENANCE = "provenance"


def make_manifest(
    geometry: Geometry, fingerprint: Fingerprint, index_crcs: Mapping[str, str]
) -> dict[str, Any]:
    """Return the manifest of a geometry, the checksums of its index arrays and a fingerprint."""
    compression = {} if geometry.level is None else {"compression": geometry.compression}
    return {
        "version": FORMAT_VERSION,
        "dtype": geometry.dtype,
        "n_samples": geometry.n_samples,
        "n_rows": geometry.n_rows,
        "n_views": geometry.n_views,
        "row_id_bytes": geometry.row_id_bytes,
        "seed": geometry.seed,
        "block_tokens": geometry.block_tokens,
        "blocks_per_shard": geometry.blocks_per_shard,
        "n_blocks": geometry.n_blocks,
        "samples_per_block": geometry.samples_per_block,
        **compression,
        "taps": [tap.to_json() for tap in geometry.taps],
        "index_crc32c": dict(index_crcs),
        "fingerprint": fingerprint.mapping,
    }


def config_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest, whatever the order of its entries."""
    return digest(canonical(manifest).encode())


def parse_manifest(manifest: Any) -> tuple[Geometry, Fingerprint, dict[str, str]]:
    """Turn a manifest back into geometry, fingerprint and index checksums.

    Raises:
        CacheVersionError: a version this program does not know.
        ValueError, TypeError, KeyError: any other fault; the caller names the file.
    """
    if not isinstance(manifest, dict):
        raise TypeError(f"the attribute {MANIFEST} is not a mapping")
    version = manifest["version"]
    if version != FORMAT_VERSION:
        raise CacheVersionError(
            f"format version {version!r}; this program reads version {FORMAT_VERSION}: install the "
            "program version that wrote the cache, or extract again into another folder"
        )
    values = dict(manifest)
    fingerprint = Fingerprint(values.pop("fingerprint"))
    crcs = values.pop("index_crc32c")
    values.pop("version")
    taps = tuple(TapSpec(**(tap | {"shape": tuple(tap["shape"])})) for tap in values.pop("taps"))
    geometry = Geometry(taps=taps, **values)
    if crcs.keys() != geometry.index_arrays().keys():
        raise ValueError(f"index_crc32c must name {list(geometry.index_arrays())}")
    if geometry.array_elements() > MAX_COUNT:
        raise ValueError(f"the arrays would hold {geometry.array_elements()} numbers")
    if canonical(make_manifest(geometry, fingerprint, crcs)) != canonical(manifest):
        raise ValueError("it is not in the form that was written")
    return geometry, fingerprint, crcs
