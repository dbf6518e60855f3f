"""Planning a cache without writing one: exact bytes, shards, and the index it will hold.

`plan_layout` is pure and takes what a plan knows before any forward pass; its `total_bytes` is the
sum of the sizes of all files of the finished folder. Cost: the packing, 0.1 s a million samples.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .blocks import BLOCK_TOKENS, block_rows, shard_blocks, slot_limit
from .compression import NONE
from .fingerprint import Fingerprint, digest
from .geometry import KEY_BYTES, NO_CRC, Geometry
from .hierarchy import build_files
from .ledger import Entry
from .manifest import MANIFEST, PROVENANCE, make_manifest
from .packing import Packing, pack_samples
from .spec import Bytes, Ints, StorageTypes, TapSpec, group_taps, types_by_tap


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheLayout:
    """A planned cache: geometry, packing, and the tables of its index.

    `row_to_sample` is [n_rows] or [n_rows, n_views]; `id_bytes` and `id_offsets` hold the row ids;
    `rms` the size of each channel of each tap, which an int8 cache needs before it is written.
    """

    geometry: Geometry
    packing: Packing
    fingerprint: Fingerprint
    provenance: Mapping[str, Any]
    row_to_sample: Ints
    id_bytes: bytes
    id_offsets: Ints
    rms: Mapping[str, Tensor] | None = None

    @property
    def n_shards(self) -> int:
        """Shards to write (files: one a stack and shard)."""
        return self.geometry.n_shards

    @property
    def tap_bytes(self) -> dict[str, int]:
        """Bytes of each tap in the finished cache."""
        return self.geometry.tap_bytes()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files of the finished folder together, exactly; at most if compressed."""
        geometry = self.geometry
        crcs = dict.fromkeys(geometry.index_arrays(), NO_CRC)
        total = sum(map(len, build_files(geometry, self.attributes(crcs)).values()))
        total += sum(geometry.index_chunk(name)[1] for name in geometry.index_arrays())
        for shard in range(self.n_shards):
            sizes = {s.name: geometry.shard_bytes(s, shard) for s in geometry.stacks}
            total += sum(sizes.values())
            files = {name: (size, NO_CRC) for name, size in sizes.items()}
            total += len(self.entry(shard, files, digest(b"")).to_line())
        return total + len(encode_complete(geometry, digest(b""), b""))

    def attributes(self, index_crcs: Mapping[str, str]) -> dict[str, Any]:
        """Return the attributes of the root, given the checksums of the index arrays."""
        manifest = make_manifest(self.geometry, self.fingerprint, index_crcs)
        return {MANIFEST: manifest, PROVENANCE: dict(self.provenance)}

    def samples_of(self, shard: int) -> Ints:
        """Return the samples of a shard in packed order."""
        low, high = self.packing.shard_bounds[shard : shard + 2]
        return self.packing.order[low:high]

    def describe(self, sample: int) -> str:
        """Return "row 'id' (sample n)" for messages: the first row that uses the sample."""
        rows = np.flatnonzero(
            (self.row_to_sample == sample).reshape(len(self.row_to_sample), -1).any(1)
        )
        if not len(rows):
            return f"sample {sample} (of no row)"
        low, high = self.id_offsets[rows[0] : rows[0] + 2]
        return f"row {self.id_bytes[low:high].decode()!r} (sample {sample})"

    def entry(self, shard: int, files: Mapping[str, tuple[int, str]], config: str) -> Entry:
        """Return the ledger entry of a shard whose files have these sizes and checksums."""
        low, high = (int(n) for n in self.packing.shard_bounds[shard : shard + 2])
        ordered = {stack.name: files[stack.name] for stack in self.geometry.stacks}
        return Entry(shard=shard, samples=(low, high), files=ordered, config=config)

    def index_values(self, keys: Bytes) -> dict[str, np.ndarray[Any, Any]]:
        """Return the content of every index array, by name."""
        table = self.packing.table
        values: dict[str, np.ndarray[Any, Any]] = {"keys": keys}
        values |= {"block": table.block, "slot": table.slot}
        for axis in self.geometry.block_tokens:
            values |= {f"start_{axis}": table.start[axis], f"length_{axis}": table.length[axis]}
        values["row_to_sample"] = self.row_to_sample
        values["row_id_bytes"] = np.frombuffer(self.id_bytes, np.uint8)
        values["row_id_offsets"] = self.id_offsets
        for stack in self.geometry.quantized_stacks:
            rows = [np.asarray((self.rms or {})[name], np.float32) for name in stack.tap_names]
            values[self.geometry.rms_name(stack)] = np.stack(rows)
        return values


def encode_complete(geometry: Geometry, config: str, ledger: bytes) -> bytes:
    """Return the record that closes a cache: its config, and the digest of the ledger."""
    record = {"config": config, "ledger": digest(ledger), "n_shards": geometry.n_shards}
    return json.dumps(record, indent=2).encode()


def plan_layout(
    *,
    taps: Sequence[TapSpec],
    lengths: Mapping[str, Ints] | None,
    n_samples: int,
    row_to_sample: Ints,
    row_ids: Sequence[str],
    dtype: StorageTypes,
    fingerprint: Fingerprint,
    seed: int = 0,
    block_tokens: int | Mapping[str, int] = BLOCK_TOKENS,
    blocks_per_shard: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    order: Ints | None = None,
    rms: Mapping[str, Tensor] | None = None,
    compression: str = NONE,
) -> CacheLayout:
    """Lay a cache out; see `CacheWriter.create` for the other arguments.

    Args:
        order: sample numbers in the order of packing; None for a permutation by `seed`.

    Raises:
        ValueError: arguments that contradict each other, all of them named.
        InvalidTap: taps without a name of their own.
    """
    group_taps(taps)  # refuses what cannot be stored
    types = types_by_tap(dtype, taps)
    stacks = group_taps(taps, types)
    axes = list(dict.fromkeys(tap.axis for tap in taps if tap.ragged))
    tables = {axis: np.asarray(values) for axis, values in (lengths or {}).items()}
    rows = np.asarray(row_to_sample)
    _check_tables(tables, axes, n_samples, rows, row_ids)
    sizes = block_rows(stacks, tables, block_tokens)
    if min([1 if blocks_per_shard is None else blocks_per_shard, *sizes.values()]) < 1:
        raise ValueError(f"{blocks_per_shard=} and {block_tokens=} must be at least 1")
    slots = slot_limit(stacks, sizes, n_samples)
    if blocks_per_shard is None:
        blocks_per_shard = shard_blocks(stacks, tables, sizes, slots)
    packing = pack_samples(
        tables,
        n_samples=n_samples,
        block_tokens=sizes,
        blocks_per_shard=blocks_per_shard,
        slot_limit=slots,
        seed=seed,
        order=order,
    )
    encoded = [row_id.encode("utf-8") for row_id in row_ids]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(part) for part in encoded], out=offsets[1:])
    geometry = Geometry(
        taps=tuple(taps),
        dtype=types,
        n_samples=n_samples,
        n_rows=len(rows),
        n_views=None if rows.ndim == 1 else rows.shape[1],
        row_id_bytes=int(offsets[-1]),
        seed=seed,
        block_tokens=sizes,
        blocks_per_shard=packing.blocks_per_shard,
        n_blocks=packing.n_blocks,
        samples_per_block=packing.max_slots if axes else slots,
        compression=compression,
    )
    return CacheLayout(
        geometry=geometry,
        packing=packing,
        fingerprint=fingerprint,
        provenance=dict(provenance or {}),
        row_to_sample=rows.astype(np.int64),
        id_bytes=b"".join(encoded),
        id_offsets=offsets,
        rms=rms,
    )


def check_keys(keys: Bytes) -> Bytes:
    """Return content keys as [n_samples, 16] contiguous bytes, or raise `ValueError`."""
    keys = np.ascontiguousarray(keys)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(
            f"content keys must be uint8 [n, {KEY_BYTES}], given {keys.dtype} {list(keys.shape)}"
        )
    return keys


def _check_tables(
    lengths: Mapping[str, Ints], axes: list[str], n_samples: int, rows: Ints, row_ids: Sequence[str]
) -> None:
    problems = []
    if sorted(lengths) != sorted(axes):
        problems.append(
            f"lengths are given for axes {sorted(lengths)}, the taps have {sorted(axes)}"
        )
    for axis, values in lengths.items():
        if values.shape != (n_samples,) or (n_samples and values.dtype.kind not in "iu"):
            problems.append(
                f"lengths of {axis!r} are {values.dtype} {list(values.shape)}, not int64 "
                f"[{n_samples}]"
            )
        elif n_samples and values.min() < 0:
            problems.append(f"lengths of {axis!r} go down to {values.min()}")
    if rows.ndim not in (1, 2) or (rows.size and rows.dtype.kind not in "iu"):
        problems.append(
            f"row_to_sample is {rows.dtype} with {rows.ndim} axes, not int64 with 1 or 2"
        )
    elif rows.size and not 0 <= rows.min() <= rows.max() < n_samples:
        problems.append(
            f"row_to_sample names samples {rows.min()} to {rows.max()}; there are {n_samples}"
        )
    if rows.shape[:1] != (len(row_ids),):
        problems.append(f"{len(row_ids)} row ids for a table {list(rows.shape)}")
    odd = [row_id for row_id in row_ids if not _is_text(row_id)]
    if odd:
        problems.append(f"{len(odd)} row ids are not Unicode text, such as {odd[0]!r}")
    if problems:
        raise ValueError("cannot lay this cache out: " + "; ".join(problems))


def _is_text(row_id: str) -> bool:
    try:
        row_id.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
