"""What a cache stores: taps, the stacks they are grouped into, and the storage types.

Pure descriptions; nothing here touches a file or allocates an array.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidTap

Kind = Literal["tokens", "frames", "grid", "map", "vector"]
StorageType = Literal["float16", "bfloat16", "float32", "int8"]
StorageTypes = StorageType | Mapping[str, StorageType]
"""The storage type of all taps, or of each one by its name."""
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

TORCH_TYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.float32,
}
"""Type in which the numbers of each storage type are taken and handed out."""
ZARR_TYPES: dict[str, str] = {
    "float16": "float16",
    "bfloat16": "uint16",
    "float32": "float32",
    "int8": "int8",
}
"""Zarr data type of each storage type; bfloat16 is stored as its bits."""
SCALES = "-scales"
"""End of the name of the stack that holds the scales of int8 numbers."""

RAGGED: tuple[Kind, ...] = ("tokens", "frames")
"""Kinds that have a length of their own in each sample."""

MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class TapSpec:
    """One recorded point of a network.

    Args:
        name: letters, digits, `_`, `-` and `.`, at most 200 characters; not a way out of a folder.
        kind: "tokens" and "frames" (ragged), "grid" (fixed tokens), "map" (channels and cells) or
            "vector".
        shape: of one token, (D,), or of one frame, such as (P, D) or (C, H, W); of one sample for
            the kinds that are not ragged.
        axis: which ragged axis the tap lies on; "frames" or "tokens" if not given.
        stride: input pixels (or positions) per cell of the tap, for information.

    Raises:
        InvalidTap: a part is not storable.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    axis: str = ""
    stride: int = 1

    def __post_init__(self) -> None:
        if (
            not isinstance(self.name, str)
            or len(self.name) > MAX_NAME
            or not _NAME.fullmatch(self.name)
            or ".." in self.name
        ):
            raise InvalidTap(
                f"tap name {str(self.name)[:80]!r} is refused: use letters, digits, '_', '-' and "
                f"single '.', not starting with '.' or '-', at most {MAX_NAME} characters"
            )
        kinds = get_args(Kind)
        fixed = tuple(kind for kind in kinds if kind not in RAGGED)
        if self.kind not in kinds:
            raise InvalidTap(f"tap {self.name}: kind {self.kind!r} is not one of {kinds}")
        if self.axis == "":
            object.__setattr__(self, "axis", "frames" if self.kind == "frames" else "tokens")
        if not isinstance(self.axis, str) or not _AXIS.fullmatch(self.axis) or self.axis in fixed:
            raise InvalidTap(
                f"tap {self.name}: axis {self.axis!r} is refused; use an identifier that is none "
                f"of {fixed}"
            )
        sizes = (*self.shape, self.stride)
        if not self.shape or any(
            isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes
        ):
            raise InvalidTap(
                f"tap {self.name}: shape {self.shape} and stride {self.stride} must be whole "
                "numbers of at least 1"
            )
        if self.kind in ("tokens", "vector") and len(self.shape) != 1:
            raise InvalidTap(
                f"tap {self.name}: kind {self.kind!r} takes a shape (D,), not {self.shape}"
            )

    @property
    def ragged(self) -> bool:
        """Whether the tap has a length of its own in each sample."""
        return self.kind in RAGGED

    def to_json(self) -> dict[str, Any]:
        """Return the tap as a JSON mapping."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "axis": self.axis,
            "stride": self.stride,
        }


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Taps of equal kind, shape, axis and storage type, in one array, in tap order.

    Args:
        name: of the array.
        taps: of equal kind, shape and axis.
        dtype: their storage type.
        scales: the array holds the scales of int8 numbers, one a token, patch or cell.
    """

    name: str
    taps: tuple[TapSpec, ...]
    dtype: str = "float32"
    scales: bool = False

    @property
    def ragged(self) -> bool:
        """Whether a row of the stack is a token or a frame (else it is a sample)."""
        return self.taps[0].ragged

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: of a token, a frame, or a sample."""
        shape = self.taps[0].shape
        if not self.scales:
            return shape
        return shape[1:] if len(shape) == 3 else shape[:-1]

    @property
    def channels(self) -> int:
        """Features of a token, patch or vector, or channels of a map."""
        shape = self.taps[0].shape
        return shape[0] if len(shape) == 3 else shape[-1]

    @property
    def row_name(self) -> str:
        """What a row of the stack is: "token", "frame" or "sample"."""
        return self.taps[0].kind.removesuffix("s") if self.ragged else "sample"

    @property
    def axis(self) -> str:
        """The ragged axis of the stack (without meaning for a fixed one)."""
        return self.taps[0].axis

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)

    @property
    def tap_names(self) -> list[str]:
        """Names of the taps, in stored order."""
        return [tap.name for tap in self.taps]

    @property
    def data_type(self) -> str:
        """Zarr data type of the array."""
        return "float16" if self.scales else ZARR_TYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.data_type).itemsize

    @property
    def held_as(self) -> torch.dtype:
        """Type of the array's numbers in memory: codes and scales of int8 as they are stored."""
        if self.scales:
            return torch.float16
        return torch.int8 if self.dtype == "int8" else TORCH_TYPES[self.dtype]


def group_taps(
    taps: Sequence[TapSpec], types: Mapping[str, str] | None = None
) -> tuple[Stack, ...]:
    """Group `taps` into stacks, in order of first appearance.

    They are named like `tokens-768`, and like `tokens-768-int8` where types differ.

    Args:
        taps: to group.
        types: storage type of each; None groups by shape alone, as numbers lie in a batch.

    Raises:
        InvalidTap: no tap, two of the same name, or tokens and frames on one axis.
    """
    names = [tap.name for tap in taps]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled or not names:
        raise InvalidTap(f"taps must be at least one, with different names; doubled: {doubled}")
    groups: dict[str, list[TapSpec]] = {}
    kinds: dict[str, Kind] = {}
    found = dict.fromkeys(names, "float32") if types is None else types
    mixed = len({found[name] for name in names}) > 1
    for tap in taps:
        if tap.ragged and kinds.setdefault(tap.axis, tap.kind) != tap.kind:
            raise InvalidTap(
                f"tap {tap.name} puts {tap.kind} on the axis {tap.axis!r}, which holds "
                f"{kinds[tap.axis]}; give it an axis of its own"
            )
        prefix = tap.axis if tap.ragged else tap.kind
        name = f"{prefix}-{'x'.join(map(str, tap.shape))}"
        groups.setdefault(f"{name}-{found[tap.name]}" if mixed else name, []).append(tap)
    return tuple(
        Stack(name=name, taps=tuple(group), dtype=found[group[0].name])
        for name, group in groups.items()
    )


def types_by_tap(dtype: str | Mapping[str, str], taps: Sequence[TapSpec]) -> dict[str, str]:
    """Return the storage type of each tap, in their order.

    Raises:
        ValueError: an unknown type, or a mapping that does not name exactly these taps.
    """
    names = [tap.name for tap in taps]
    found = dict.fromkeys(names, dtype) if isinstance(dtype, str) else dict(dtype)
    if found.keys() != set(names):
        raise ValueError(f"storage types are given for {sorted(found)}, the taps are {names}")
    for each in found.values():
        check_storage_type(each)
    return {name: found[name] for name in names}


def one_or_each(types: Mapping[str, str]) -> str | dict[str, str]:
    """Return the type that all taps have, or the type of each."""
    return next(iter(types.values())) if len(set(types.values())) == 1 else dict(types)


def describe_types(dtype: str | Mapping[str, str]) -> str:
    """Return storage types in words: "int8", or "float16 (4 taps), int8 (9 taps)"."""
    if isinstance(dtype, str):
        return dtype
    types = list(dtype.values())
    return ", ".join(f"{each} ({types.count(each)} taps)" for each in dict.fromkeys(types))


def common_type(types: Iterable[str]) -> torch.dtype | None:
    """Return the type in which the numbers of all these storage types are taken, if it is one."""
    found = {TORCH_TYPES[each] for each in types}
    return found.pop() if len(found) == 1 else None


def check_storage_type(dtype: str) -> None:
    """Raise `ValueError` unless `dtype` is a storage type."""
    if dtype not in TORCH_TYPES:
        raise ValueError(f"storage type {dtype!r} is not one of {sorted(TORCH_TYPES)}")
