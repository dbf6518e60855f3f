"""What a cache made from others says that it holds: the fingerprint follows the numbers.

A fingerprint is free, but three of its entries are understood where they are present: `taps` (a
mapping by tap), `dtype` (`stored`, one type or a mapping by tap, and `computed`) and `inputs`
(`rows`, `unique`, `sha256` describe the table). So the cache of some taps has the fingerprint that
an extraction of those taps gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import FingerprintMismatch
from ..format.fingerprint import Fingerprint, table_digest
from ..format.spec import Bytes, Ints, one_or_each
from ..reading.cache import Cache

TABLE = ("rows", "unique", "sha256")
HISTORY = "rounding_history"
"""Entry of `dtype`: storage types that rounded the numbers before the one they have now; a list, or
a mapping by tap where they differ."""


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
                "(convert) where only taps or types differ"
            )


def _kind(cache: Cache) -> Fingerprint:
    mapping = cache.fingerprint.mapping
    dtype, inputs = mapping.get("dtype"), mapping.get("inputs")
    if isinstance(dtype, dict):
        mapping["dtype"] = {name: v for name, v in dtype.items() if name != HISTORY}
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
    known, dtype = mapping.get("taps"), dict(_dtype(mapping))
    if isinstance(known, dict) and known.keys() >= set(taps):
        mapping = mapping | {"taps": {name: known[name] for name in taps}}
    if isinstance(stored := dtype.get("stored"), dict):
        dtype["stored"] = one_or_each({name: stored[name] for name in taps})
    history = _history(mapping, taps)
    return _with_history(mapping | {"dtype": dtype} if dtype else mapping, history)


def of_type(
    mapping: dict[str, Any], source: Mapping[str, str], target: Mapping[str, str]
) -> dict[str, Any]:
    """Return the fingerprint for other storage types, given by tap.

    Numbers that were rounded to another type before are not those that an extraction in `target`
    gives, and the fingerprint says so. float32, and the type they were computed in, round nothing.
    """
    dtype, history = _dtype(mapping), _history(mapping, [*source])
    for name, before in source.items():
        if before not in ("float32", dtype.get("computed"), target[name]):
            history[name] = [*dict.fromkeys([*history[name], before])]
    if dtype:
        mapping = mapping | {"dtype": dict(dtype) | {"stored": one_or_each(target)}}
    return _with_history(mapping, history)


def of_rounding(mapping: dict[str, Any], caches: Sequence[Cache]) -> dict[str, Any]:
    """Return the fingerprint for the numbers of several caches of the same storage types.

    Those of int8 are rounded again where the channels were calibrated differently.
    """
    names, rms = [tap.name for tap in caches[0].taps], caches[0].rms
    before = [_history(cache.fingerprint.mapping, names) for cache in caches]
    history = {name: [each for found in before for each in found[name]] for name in names}
    if any(not torch.equal(cache.rms[name], rms[name]) for cache in caches for name in rms):
        for name in rms:
            history[name].append("int8")
    once = {name: [*dict.fromkeys(types)] for name, types in history.items()}
    return _with_history(mapping, once)


def _history(mapping: Mapping[str, Any], taps: Sequence[str]) -> dict[str, list[str]]:
    """Return the types that rounded each tap before."""
    known = _dtype(mapping).get(HISTORY, [])
    by_tap = known if isinstance(known, dict) else dict.fromkeys(taps, known)
    return {name: [*by_tap.get(name, [])] for name in taps}


def _with_history(mapping: dict[str, Any], history: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the fingerprint for numbers with this rounding history, given by tap."""
    dtype = {name: value for name, value in _dtype(mapping).items() if name != HISTORY}
    first, *others = history.values()
    if any(history.values()):
        alike = all(types == first for types in others)
        dtype[HISTORY] = first if alike else {name: t for name, t in history.items() if t}
    return mapping | {"dtype": dtype} if dtype else mapping


def _dtype(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    known = mapping.get("dtype")
    return known if isinstance(known, dict) else {}
