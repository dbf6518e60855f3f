"""What a cache made from others says that it holds: the fingerprint follows the numbers.

A fingerprint is free, but three of its entries are understood where they are present: `taps` (a
mapping by tap), `dtype` (`stored`, `computed`) and `inputs` (`rows`, `unique`, `sha256` describe
the table). So the cache of some taps has the fingerprint that an extraction of those taps gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
    inputs = mapping.get("inputs")
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
    known = mapping.get("dtype")
    dtype: Mapping[str, Any] = known if isinstance(known, dict) else {}
    through = list(dtype.get(THROUGH, []))
    if source not in ("float32", dtype.get("computed"), target):
        through.append(source)
    changed = dict(dtype) | {"stored": target} | ({THROUGH: through} if through else {})
    return mapping | {"dtype": changed} if known is not None or through else mapping
