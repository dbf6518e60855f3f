"""One shard in memory: filled by forward passes in any order, then written whole.

Holds the exact bytes of the shard files (about 200 MB for 13 taps of width 768 in float16), so
sealing adds checksums and an index in place and nothing is copied. Cost: one pass to convert, one
to find the largest magnitude, one to copy; pieces are checksummed just before they are written.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ActivationOverflow, InvalidTap, ShardMisaligned
from ..format.compression import compress
from ..format.layout import CacheLayout
from ..format.ledger import Entry
from ..format.packing import BlockTable, Runs, find_runs
from ..format.quantize import MAX_PEAK, quantize, token_peaks
from ..format.shard_file import CRC_BYTES, pack_shard, seal_shard, tail_checksum
from ..format.spec import TORCH_TYPES, Bytes, Ints, Stack
from ..storage.direct import page_aligned
from ..storage.files import write_atomic
from ..storage.location import Location

Array = np.ndarray[Any, Any]


class ShardBuffer:
    """The samples of one shard, tap by tap, on their way to the disk.

    Args:
        layout: of the cache.
        shard: number of the shard.
        pool: buffers of finished shards, by stack name; taken for reuse.
    """

    def __init__(
        self, layout: CacheLayout, shard: int, pool: dict[str, Bytes] | None = None
    ) -> None:
        self.layout = layout
        self.shard = shard
        self.samples = layout.samples_of(shard)
        geometry = layout.geometry
        self._raw: dict[str, Bytes] = {}
        self._views: dict[str, Array] = {}
        self._place: dict[str, tuple[Stack, int]] = {}
        self._missing: dict[str, set[int]] = {}
        for stack in geometry.stacks:
            size = geometry.buffer_bytes(stack, shard)
            raw = _take(pool, stack.name, size)
            self._raw[stack.name] = raw
            self._views[stack.name] = self._view(stack, raw)
            for number, tap in enumerate(() if stack.scales else stack.taps):
                self._place[tap.name] = (stack, number)
                self._missing[tap.name] = set(self.samples.tolist())

    def _view(self, stack: Stack, raw: Bytes) -> Array:
        """Return the numbers in `raw`, [blocks, n_taps, rows, width]; checksums lie between."""
        geometry = self.layout.geometry
        blocks, taps = len(geometry.blocks_of(self.shard)), len(stack.taps)
        stride = geometry.chunk_bytes(stack) + CRC_BYTES
        dtype = np.dtype(stack.data_type)
        return np.ndarray(
            (blocks, taps, geometry.rows(stack), stack.width),
            dtype=dtype,
            buffer=raw.data,
            strides=(taps * stride, stride, stack.width * dtype.itemsize, dtype.itemsize),
        )

    def put(self, samples: Ints, values: Mapping[str, Tensor]) -> None:
        """Store activations of some samples of this shard, for some or all taps.

        Args:
            samples: int64 [b], in any order.
            values: tap to [sum of the samples' lengths, D] (packed, in the order of `samples`)
                for kind "tokens", [sum of lengths, *shape] for "frames", [b, *shape] otherwise;
                any float type, any device.

        Raises:
            ActivationOverflow: NaN or infinity, or beyond the range of the storage type.
            ShardMisaligned: samples of another shard, or a wrong shape.
            InvalidTap: the cache has no such tap.
        """
        samples = np.asarray(samples, np.int64)
        geometry, table = self.layout.geometry, self.layout.packing.table
        inside = (samples >= 0) & (samples < geometry.n_samples)
        blocks = geometry.blocks_of(self.shard)
        if not inside.all() or not np.isin(table.block[samples], blocks).all():
            raise ShardMisaligned(
                f"shard {self.shard} was given samples that lie elsewhere; {_HINT}"
            )
        places: dict[str, Runs] = {}
        for name, tensor in values.items():
            if name not in self._place:
                raise InvalidTap(f"no tap {name!r} in this cache; it has {sorted(self._place)}")
            stack, number = self._place[name]
            group = stack.axis if stack.ragged else ""
            if group not in places:
                places[group] = find_runs(*self._rows(table, samples, stack))
            runs = places[group]
            wanted = (int(runs.count.sum()), *stack.shape)
            if tuple(tensor.shape) != wanted:
                raise ShardMisaligned(
                    f"tap {name} was given {list(tensor.shape)} for {len(samples)} samples, "
                    f"expected {list(wanted)}"
                )
            for stored, array in self._convert(name, tensor, samples, stack):
                target, rows = self._views[stored.name], array.reshape(-1, stored.width)
                for block, row, start, count in zip(*(c.tolist() for c in runs), strict=True):
                    target[block, number, row : row + count] = rows[start : start + count]
            self._missing[name].difference_update(samples.tolist())

    def _rows(self, table: BlockTable, samples: Ints, stack: Stack) -> tuple[Ints, Ints]:
        first = self.layout.geometry.blocks_of(self.shard).start
        if not stack.ragged:
            return table.block[samples] - first, table.slot[samples]
        size = self.layout.geometry.block_tokens[stack.axis]
        block, row = table.rows(samples, stack.axis, size)
        return block - first, row

    def _convert(
        self, name: str, tensor: Tensor, samples: Ints, stack: Stack
    ) -> list[tuple[Stack, Array]]:
        """Return what goes into which stack: the numbers, and scales if there are any."""
        scales = self.layout.geometry.scales_of(stack)
        if scales is not None:
            codes, factors = self._quantize(name, tensor.detach(), samples, stack)
            return [(stack, codes.cpu().numpy()), (scales, factors.cpu().numpy())]
        stored = tensor.detach().to(TORCH_TYPES[stack.dtype]).cpu().contiguous()
        if stored.numel():
            low, high = torch.aminmax(stored)
            if not (math.isfinite(low) and math.isfinite(high)):
                bad = ~torch.isfinite(stored)
                raise ActivationOverflow(self._overflow(name, tensor, bad, samples, stack))
        bits = stored.view(torch.uint16) if stack.dtype == "bfloat16" else stored
        return [(stack, bits.numpy())]

    def _quantize(
        self, name: str, tensor: Tensor, samples: Ints, stack: Stack
    ) -> tuple[Tensor, Tensor]:
        rms = (self.layout.rms or {})[name].to(tensor.device)
        peaks = token_peaks(tensor, rms)
        if peaks.numel() and not float(peaks.max()) <= MAX_PEAK:
            bad = ~(peaks <= MAX_PEAK)
            raise ActivationOverflow(self._overflow(name, tensor, bad, samples, stack))
        return quantize(tensor, rms)

    def _overflow(
        self, name: str, tensor: Tensor, wrong: Tensor, samples: Ints, stack: Stack
    ) -> str:
        bad = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
        if stack.ragged:
            ends = np.cumsum(self.layout.packing.table.length[stack.axis][samples])
            sample = int(samples[np.searchsorted(ends, bad, side="right")])
        else:
            sample = int(samples[bad])
        row = tensor[bad].detach().float().cpu()
        where = f"tap {name}, {self.layout.describe(sample)}"
        if not torch.isfinite(row).all():
            return (
                f"{where}: the network itself gave NaN or infinity; check the input, or run the "
                "forward pass in float32 or bfloat16"
            )
        return (
            f"{where}: {row.abs().max():.6g} overflows {stack.dtype}; store this "
            "tap, or the whole cache, as bfloat16 or float32"
        )

    def check_full(self) -> None:
        """Raise `ShardMisaligned` if samples have not been put."""
        missing = {name: sorted(left) for name, left in self._missing.items() if left}
        if missing:
            name, left = next(iter(missing.items()))
            raise ShardMisaligned(
                f"shard {self.shard} lacks {len(left)} samples of tap {name} (first: "
                f"{self.layout.describe(left[0])}); put all of them before leaving the block"
            )

    def write(self, root: Location, config: str, *, alone: bool = True) -> Entry:
        """Seal the shard, write its files, and return the ledger entry that makes them count.

        Args:
            root: of the cache.
            config: digest of its root metadata.
            alone: no other process may be writing the same shard.

        Raises:
            ShardMisaligned: samples have not been put.
            CacheFull: no space left.
        """
        self.check_full()
        geometry, files = self.layout.geometry, {}
        for stack in geometry.stacks:
            self._clear_padding(stack)
            path = root / geometry.shard_path(stack, self.shard)
            files[stack.name] = self._write_file(path, stack, alone)
        return self.layout.entry(self.shard, files, config)

    def _write_file(self, path: Location, stack: Stack, alone: bool) -> tuple[int, str]:
        """Write a file; return its size and checksum. Compressed, it is not the buffer itself."""
        geometry, raw = self.layout.geometry, self._raw[stack.name]
        count = len(geometry.blocks_of(self.shard)) * len(stack.taps)
        entries, size = geometry.entries(stack), geometry.chunk_bytes(stack)
        end = count * (size + CRC_BYTES)
        if (level := geometry.level) is None:
            write_atomic(path, raw, alone=alone, ends=seal_shard(raw, count, entries, size))
            return len(raw), tail_checksum(raw[end:], count)
        chunks = raw[:end].reshape(count, -1)[:, :size]
        packed, crc = pack_shard((compress(chunk, level) for chunk in chunks), entries)
        write_atomic(path, packed, alone=alone)
        return len(packed), crc

    def _clear_padding(self, stack: Stack) -> None:
        """Set rows to zero that no sample has: the memory is new, or was another shard's."""
        view = self._views[stack.name]
        used = np.zeros((len(view), view.shape[2]), bool)
        used[self._rows(self.layout.packing.table, self.samples, stack)] = True
        for block, rows in zip(view, used, strict=True):
            block[:, ~rows] = 0

    def release(self) -> dict[str, Bytes]:
        """Give the memory back for another shard; the buffer is unusable afterwards."""
        self._views.clear()
        raw, self._raw = self._raw, {}
        return raw


_HINT = "ask the writer for samples_of(shard)"


def _take(pool: dict[str, Bytes] | None, name: str, size: int) -> Bytes:
    old = pool.pop(name, None) if pool else None
    if old is None or len(old) < size:
        return page_aligned(size)
    return old[:size]
