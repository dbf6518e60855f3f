"""The shape of a cache: every path, size and count that follows from a few numbers. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .compression import NONE, most_bytes, parse_compression
from .shard_file import CRC_BYTES, shard_size
from .spec import SCALES, TORCH_TYPES, Stack, TapSpec, group_taps, one_or_each, types_by_tap

ROOT = "zarr.json"
LEDGER = "ledger.jsonl"
COMPLETE = "COMPLETE.json"
LOCK = "writer.lock"
ACTIVATIONS = "activations"
INDEX = "index"
KEY_BYTES = 16
NO_CRC = "00000000"
MAX_COUNT = 2**48
"""No count in a manifest may be larger; shapes and sizes then stay far inside 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The numbers that fix every shape, path and file size of a cache.

    Args:
        taps: all taps, in the caller's order.
        dtype: storage type of all taps, or of each; kept as one name where they are equal.
        n_samples: samples stored, each once.
        n_rows: rows of the caller's table; several may share a sample.
        n_views: samples per row, or None if rows have one each and no view axis.
        row_id_bytes: length of all row ids in UTF-8, in bytes.
        seed: of the permutation before packing.
        block_tokens: tokens or frames of a block on each ragged axis.
        blocks_per_shard: blocks of a shard file.
        n_blocks: blocks of the cache.
        samples_per_block: rows of a block in the stacks of fixed shape.
        compression: of the chunks: "none", "zstd" or "zstd:LEVEL".
    """

    taps: tuple[TapSpec, ...]
    dtype: str | Mapping[str, str]
    n_samples: int
    n_rows: int
    n_views: int | None
    row_id_bytes: int
    seed: int
    block_tokens: dict[str, int]
    blocks_per_shard: int
    n_blocks: int
    samples_per_block: int
    compression: str = NONE
    stacks: tuple[Stack, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        least = {"n_samples": 0, "n_rows": 0, "row_id_bytes": 0, "seed": 0, "n_blocks": 0}
        values = {name: getattr(self, name) for name in least}
        least |= {"blocks_per_shard": 1, "samples_per_block": 1}
        values |= {"blocks_per_shard": self.blocks_per_shard}
        values |= {"samples_per_block": self.samples_per_block}
        for axis, size in self.block_tokens.items():
            least[f"block_tokens.{axis}"], values[f"block_tokens.{axis}"] = 1, size
        if self.n_views is not None:
            least["n_views"], values["n_views"] = 1, self.n_views
        for name, value in values.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least[name] <= value <= MAX_COUNT:
                raise ValueError(
                    f"{name} = {value!r} must be a whole number from {least[name]} to {MAX_COUNT}"
                )
        parse_compression(self.compression)
        types = types_by_tap(self.dtype, self.taps)
        object.__setattr__(self, "dtype", one_or_each(types))
        stacks = group_taps(self.taps, types)
        quantized = (stack for stack in stacks if stack.dtype == "int8")
        stacks += tuple(replace(s, name=s.name + SCALES, scales=True) for s in quantized)
        object.__setattr__(self, "stacks", stacks)
        axes = list(dict.fromkeys(tap.axis for tap in self.taps if tap.ragged))
        if axes != list(self.block_tokens):
            raise ValueError(f"the taps lie on the axes {axes}, given: {list(self.block_tokens)}")

    @property
    def n_shards(self) -> int:
        """Shard files of each stack."""
        return -(-self.n_blocks // self.blocks_per_shard)

    @property
    def types(self) -> dict[str, str]:
        """Storage type of each tap, in their order."""
        return types_by_tap(self.dtype, self.taps)

    @property
    def value_stacks(self) -> tuple[Stack, ...]:
        """The stacks that hold numbers of the taps; `stacks` also has those of their scales."""
        return tuple(stack for stack in self.stacks if not stack.scales)

    @property
    def quantized_stacks(self) -> tuple[Stack, ...]:
        """The stacks of int8 numbers."""
        return tuple(stack for stack in self.value_stacks if stack.dtype == "int8")

    def scales_of(self, stack: Stack) -> Stack | None:
        """Return the stack of the scales of int8 numbers; None for another storage type."""
        return next((s for s in self.stacks if s.name == stack.name + SCALES), None)

    def rms_name(self, stack: Stack) -> str:
        """Return the name of the index array with the RMS of each channel (int8)."""
        return f"rms_{stack.name}"

    def blocks_of(self, shard: int) -> range:
        """Blocks that lie in a shard."""
        first = shard * self.blocks_per_shard
        return range(first, min(first + self.blocks_per_shard, self.n_blocks))

    def rows(self, stack: Stack) -> int:
        """Rows of one block of a stack: tokens, frames or samples."""
        return self.block_tokens[stack.axis] if stack.ragged else self.samples_per_block

    def array_shape(self, stack: Stack) -> tuple[int, ...]:
        """Shape of a stack's array, [n_blocks, n_taps, rows, *shape]."""
        return (self.n_blocks, len(stack.taps), self.rows(stack), *stack.shape)

    def chunk_bytes(self, stack: Stack) -> int:
        """Bytes of one tap of one block, without the checksum."""
        return self.rows(stack) * stack.width * stack.itemsize

    def held_bytes(self, stack: Stack) -> int:
        """Bytes of one tap of one block in memory: numbers, and scales if there are any."""
        scales = self.scales_of(stack)
        return self.chunk_bytes(stack) + (0 if scales is None else self.chunk_bytes(scales))

    def row_bytes(self, stack: Stack) -> int:
        """Bytes that one row of one tap takes while a batch is made of it."""
        size: int = TORCH_TYPES[stack.dtype].itemsize
        scales = self.scales_of(stack)
        if scales is None:
            return stack.width * size
        return stack.width * (stack.itemsize + size) + scales.width * (2 + size)

    def entries(self, stack: Stack) -> int:
        """Chunks of a whole shard."""
        return self.blocks_per_shard * len(stack.taps)

    def shard_path(self, stack: Stack, shard: int) -> str:
        """Path of a shard file inside the cache."""
        numbers = (shard, *[0] * (2 + len(stack.shape)))
        return f"{ACTIVATIONS}/{stack.name}/{chunk_key(numbers)}"

    @property
    def level(self) -> int | None:
        """Level of the compression; None without."""
        return parse_compression(self.compression)

    def buffer_bytes(self, stack: Stack, shard: int) -> int:
        """Size of a shard file whose chunks are not compressed."""
        present = len(self.blocks_of(shard)) * len(stack.taps)
        return shard_size(present, self.entries(stack), self.chunk_bytes(stack))

    def shard_bytes(self, stack: Stack, shard: int) -> int:
        """Size of a shard file; the most it can be where chunks are compressed."""
        if self.level is None:
            return self.buffer_bytes(stack, shard)
        present = len(self.blocks_of(shard)) * len(stack.taps)
        most = most_bytes(self.chunk_bytes(stack))
        return shard_size(present, self.entries(stack), most)

    def allows(self, stack: Stack, shard: int, size: int) -> bool:
        """Return whether a shard file may have this size."""
        if self.level is None:
            return size == self.shard_bytes(stack, shard)
        present = len(self.blocks_of(shard)) * len(stack.taps)
        least = shard_size(present, self.entries(stack), 1)
        return least <= size <= self.shard_bytes(stack, shard)

    def index_arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and Zarr data type of every index array, by its name below `index/`."""
        per_sample: tuple[tuple[int, ...], str] = ((self.n_samples,), "int64")
        table: tuple[int, ...] = (
            (self.n_rows,) if self.n_views is None else (self.n_rows, self.n_views)
        )
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        arrays["keys"] = ((self.n_samples, KEY_BYTES), "uint8")
        arrays |= {"block": per_sample, "slot": per_sample}
        for axis in self.block_tokens:
            arrays |= {f"start_{axis}": per_sample, f"length_{axis}": per_sample}
        arrays["row_to_sample"] = (table, "int64")
        arrays["row_id_bytes"] = ((self.row_id_bytes,), "uint8")
        arrays["row_id_offsets"] = ((self.n_rows + 1,), "int64")
        for stack in self.quantized_stacks:
            arrays[self.rms_name(stack)] = ((len(stack.taps), stack.channels), "float32")
        return arrays

    def index_chunk(self, name: str) -> tuple[str, int]:
        """Path and size of the one chunk of an index array; size 0: no such file."""
        shape, data_type = self.index_arrays()[name]
        path = f"{INDEX}/{name}/{chunk_key([0] * len(shape))}"
        count = math.prod(shape)
        return path, count * np.dtype(data_type).itemsize + CRC_BYTES if count else 0

    def attributes(self, stack: Stack) -> dict[str, Any]:
        """Return what a reader of the array must know; for int8 where the other factors are."""
        if stack.scales:
            return {"logical_dtype": "float16", "taps": stack.tap_names}
        known: dict[str, Any] = {"logical_dtype": stack.dtype, "taps": stack.tap_names}
        scales = self.scales_of(stack)
        if scales is not None:
            known |= {
                "scales": f"{ACTIVATIONS}/{scales.name}",
                "rms": f"{INDEX}/{self.rms_name(stack)}",
                "channel_axis": 3 if len(stack.shape) == 3 else 2 + len(stack.shape),
            }
        return known

    def array_elements(self) -> int:
        """Numbers in the largest stack."""
        return max(math.prod(self.array_shape(stack)) for stack in self.stacks)

    def tap_bytes(self) -> dict[str, int]:
        """Bytes of each tap's chunks with their checksums, all shards together, uncompressed."""
        sizes = dict.fromkeys((tap.name for stack in self.stacks for tap in stack.taps), 0)
        for stack in self.stacks:
            for tap in stack.taps:
                sizes[tap.name] += self.n_blocks * (self.chunk_bytes(stack) + CRC_BYTES)
        return sizes


def chunk_key(numbers: Sequence[int]) -> str:
    """Return the path of a chunk inside its array's folder."""
    return "/".join(["c", *map(str, numbers)])
