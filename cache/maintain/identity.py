"""What a cache made from others says that it holds: the fingerprint follows the numbers.

A fingerprint is free, but three of its entries are understood where they are present: `taps` (a
mapping by tap), `dtype` (`stored`, `computed`) and `inputs` (`rows`, `unique`, `sha256` describe
the table). So the cache of some taps has the fingerprint that an extraction of those taps gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import FingerprintMismatch
from ..fingerprint import Fingerprint, table_digest
from ..reader import Cache
from ..spec import Bytes, Ints

TABLE = ("rows", "unique", "sha256")
THROUGH = "through"
"""Entry of `dtype`: storage types that rounded the numbers before the one they have now."""


def check_same_kind(caches: Sequence[Cache]) -> None:
    """Raise `FingerprintMismatch` unless all caches hold the same taps, computed alike.

    Only the table of inputs may differ.
    """
    first = _kind(caches[0])
    for other in caches[1:]:
        differences = first.diff(_kind(other), (caches[0].path.name, other.path.name))
        if differences:
            raise FingerprintMismatch(
                f"{caches[0].path} and {other.path} cannot be one cache:\n  "
                + "\n  ".join(differences)
                + "\nExtract one of them again with the settings of the other, or make them alike "
                "(export-taps, convert) where only taps or types differ"
            )


def _kind(cache: Cache) -> Fingerprint:
    mapping = cache.fingerprint.mapping
    dtype, inputs = mapping.get("dtype"), mapping.get("inputs")
    if isinstance(dtype, dict):
        mapping["dtype"] = {name: v for name, v in dtype.items() if name != THROUGH}
    if isinstance(inputs, dict):
        mapping["inputs"] = {name: v for name, v in inputs.items() if name not in TABLE}
    views = cache.geometry.n_views
    taps = {"order": [tap.to_json() for tap in cache.taps]}
    return Fingerprint(
        mapping | {"stored taps": taps, "stored type": cache.geometry.dtype, "views": views}
    )


def of_table(
    mapping: dict[str, Any], keys: Bytes, row_to_sample: Ints, row_ids: Sequence[str]
) -> dict[str, Any]:
    """Return the fingerprint for another table of inputs."""
    inputs = mapping.get("inputs")
    if not isinstance(inputs, dict) or not inputs.keys() >= set(TABLE):
        return mapping
    table = {
        "rows": len(row_ids),
        "unique": len(keys),
        "sha256": table_digest(keys, row_to_sample, row_ids),
    }
    return mapping | {"inputs": inputs | table}


def of_taps(mapping: dict[str, Any], taps: Sequence[str]) -> dict[str, Any]:
    """Return the fingerprint for some of the taps."""
    known = mapping.get("taps")
    if not isinstance(known, dict) or not known.keys() >= set(taps):
        return mapping
    return mapping | {"taps": {name: known[name] for name in taps}}


def of_type(mapping: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    """Return the fingerprint for another storage type.

    Numbers that were rounded to `source` before are not those that an extraction in `target` gives,
    and the fingerprint says so. float32, and the type they were computed in, round nothing.
    """
    dtype = _dtype(mapping)
    rounded = source not in ("float32", dtype.get("computed"), target)
    if not dtype and not rounded:
        return mapping
    changed = mapping | {"dtype": dict(dtype) | {"stored": target}}
    return rounded_by(changed, [source]) if rounded else changed


def of_rounding(mapping: dict[str, Any], caches: Sequence[Cache]) -> dict[str, Any]:
    """Return the fingerprint for the numbers of several caches of one storage type.

    Those of int8 are rounded again where the channels were calibrated differently.
    """
    types = [
        name for cache in caches for name in _dtype(cache.fingerprint.mapping).get(THROUGH, [])
    ]
    rms = caches[0].rms
    if any(not torch.equal(cache.rms[name], rms[name]) for cache in caches for name in rms):
        types.append("int8")
    return rounded_by(mapping, types)


def rounded_by(mapping: dict[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """Return the fingerprint for numbers that went through other storage types too."""
    dtype = _dtype(mapping)
    through = list(dict.fromkeys([*dtype.get(THROUGH, []), *types]))
    return mapping | {"dtype": dict(dtype) | {THROUGH: through}} if through else mapping


def _dtype(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    known = mapping.get("dtype")
    return known if isinstance(known, dict) else {}
