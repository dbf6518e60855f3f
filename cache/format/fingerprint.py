"""The identity of a cache: what was computed, from what, by what; never where or when.

A fingerprint is a nested JSON mapping. Its digest is taken over a canonical form, so the order of
the keys and the machine do not matter. Cost: one JSON dump and one BLAKE2b pass, microseconds.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ABSENT = "(absent)"


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: bytes) -> str:
    """Return the 128-bit BLAKE2b digest of `data` in hexadecimal (32 characters)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def table_digest(
    keys: NDArray[np.uint8], row_to_sample: NDArray[np.int64], row_ids: Sequence[str]
) -> str:
    """Return the SHA-256 of a table of inputs: content keys, samples of the rows, row ids."""
    digest = hashlib.sha256(keys.tobytes())
    digest.update(row_to_sample.astype("<i8").tobytes())
    digest.update("\n".join(row_ids).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Fingerprint:
    """A nested mapping of JSON values that identifies what a cache holds.

    Args:
        mapping: names to strings, finite numbers, booleans, None, lists and mappings of these.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is not finite.
    """

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self._text = canonical(dict(mapping))

    @property
    def mapping(self) -> dict[str, Any]:
        """A fresh copy of the mapping."""
        value: dict[str, Any] = json.loads(self._text)
        return value

    @property
    def digest(self) -> str:
        """The 128-bit digest, in hexadecimal."""
        return digest(self._text.encode())

    def diff(self, other: "Fingerprint", names: tuple[str, str] = ("cached", "now")) -> list[str]:
        """Return one readable line per value that differs, `names` being self and other."""
        mine, theirs = _flatten(self.mapping), _flatten(other.mapping)
        return [
            f"{path}: {names[0]} {mine.get(path, ABSENT)}, {names[1]} {theirs.get(path, ABSENT)}"
            for path in sorted(mine.keys() | theirs.keys())
            if mine.get(path, ABSENT) != theirs.get(path, ABSENT)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Fingerprint({self._text})"


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Map dotted paths to the JSON text of the leaves; an empty mapping or list is a leaf."""
    if isinstance(value, dict) and value:
        items = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {path: json.dumps(value, sort_keys=True)}
    flat: dict[str, str] = {}
    for name, item in items:
        flat |= _flatten(item, f"{path}.{name}" if path else name)
    return flat
