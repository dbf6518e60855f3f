"""Shard files as bytes: chunks, a table of their checksums, and Zarr's shard index.

An array of activations is `[n_blocks, n_taps, rows, *shape]`, its inner chunk one tap of one block
(compressed, if at all, and) followed by its CRC-32C, its shard a file of `blocks_per_shard` blocks:
the chunks in C order, the table of their CRC-32Cs, then the index (offset and size of every chunk,
uint64) and the CRC-32C of the index. Costs 8 bytes a chunk and 16 bytes an index entry.

The table is ours: Zarr readers follow the index and never see it. It ties a file to its ledger line
by one read at its end, so that a file in the place of another is found before it gives a number.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheDamaged
from .checksum import crc32c, with_crc
from .spec import Bytes, Ints

CRC_BYTES = 4
ENTRY_BYTES = 16
PIECE = 2**22
"""Bytes of a shard that are written at once: the disk's own speed, by direct writes."""
MISSING = 2**64 - 1
"""Offset and size of a chunk that is not there (beyond the end of the array)."""


def shard_size(n_chunks: int, n_entries: int, chunk_bytes: int) -> int:
    """Return the bytes of a shard file with `n_chunks` of `n_entries` chunks present."""
    return n_chunks * (chunk_bytes + CRC_BYTES) + tail_size(n_chunks, n_entries)


def tail_size(n_chunks: int, n_entries: int) -> int:
    """Return the bytes of a shard file behind its chunks: checksum table, index, its checksum."""
    return n_chunks * CRC_BYTES + n_entries * ENTRY_BYTES + CRC_BYTES


def seal_shard(raw: Bytes, n_chunks: int, n_entries: int, chunk_bytes: int) -> Iterator[int]:
    """Fill in the checksums and the index of a shard whose chunk bytes are in place.

    Args:
        raw: the file, `shard_size` bytes; each chunk is followed by room for its checksum.
        n_chunks: chunks present, the first ones.
        n_entries: chunks of a whole shard.
        chunk_bytes: bytes of a chunk without its checksum.

    Yields:
        How many bytes are final by now, about `PIECE` more each time; last all of them.
    """
    stride, done = chunk_bytes + CRC_BYTES, 0
    for number in range(n_chunks):
        end = number * stride + chunk_bytes
        raw[end : end + CRC_BYTES] = _crc_bytes(raw[end - chunk_bytes : end])
        if end + CRC_BYTES - done >= PIECE:
            done = end + CRC_BYTES
            yield done
    raw[n_chunks * stride :] = _encode_tail(raw, n_chunks, n_entries, stride)
    yield len(raw)


def pack_shard(chunks: Iterable[bytes], n_entries: int) -> tuple[Bytes, str]:
    """Return the file of a shard with compressed chunks, given in order, and its checksum.

    Args:
        chunks: those that are present, compressed.
        n_entries: chunks of a whole shard.
    """
    stored = [with_crc(chunk) for chunk in chunks]
    table = b"".join(chunk[-CRC_BYTES:] for chunk in stored)
    sizes = np.array([len(chunk) for chunk in stored], np.uint64)
    index = np.full((n_entries, 2), MISSING, "<u8")
    index[: len(stored), 0] = np.cumsum(sizes) - sizes
    index[: len(stored), 1] = sizes
    tail = np.frombuffer(table + with_crc(index.tobytes()), np.uint8)
    body = np.frombuffer(b"".join(stored), np.uint8)
    return np.concatenate([body, tail]), tail_checksum(tail, len(stored))


def damaged_chunks(raw: Bytes, n_chunks: int, n_entries: int, chunk_bytes: int | None) -> list[int]:
    """Return the numbers of the chunks that fail their checksums, -1 standing for the index.

    Args:
        raw: the file.
        n_chunks: chunks present, the first ones.
        n_entries: chunks of a whole shard.
        chunk_bytes: bytes of a chunk without its checksum; None where they are compressed.
    """
    tail = raw[len(raw) - tail_size(n_chunks, n_entries) :]
    table, entries = tail[: n_chunks * CRC_BYTES], tail[n_chunks * CRC_BYTES : -CRC_BYTES]
    index = entries.copy().view("<u8").reshape(-1, 2)
    here, ends = index[:n_chunks], [0, *np.cumsum(index[:n_chunks, 1]).tolist()]
    sound = (
        crc_of(tail[-CRC_BYTES:]) == crc32c(entries)
        and np.array_equal(here[:, 0], ends[:-1])
        and bool((index[n_chunks:] == MISSING).all() and (here[:, 1] > CRC_BYTES).all())
        and (chunk_bytes is None or bool((here[:, 1] == chunk_bytes + CRC_BYTES).all()))
        and ends[-1] == len(raw) - len(tail)
    )
    if not sound:
        return [-1]
    return [
        number
        for number, (low, high) in enumerate(pairwise(ends))
        if not np.array_equal(table[number * CRC_BYTES :][:CRC_BYTES], raw[high - CRC_BYTES : high])
        or crc32c(raw[low : high - CRC_BYTES]) != crc_of(raw[high - CRC_BYTES : high])
    ]


def tail_checksum(tail: Bytes, n_chunks: int) -> str:
    """Return the CRC-32C over the checksums in a shard file's tail: the chunks', then the index's.

    A CRC over all bytes would say nothing: over data that ends with its own CRC it is a constant.
    """
    table = tail[: n_chunks * CRC_BYTES]
    return f"{crc32c(table.tobytes() + tail[-CRC_BYTES:].tobytes()):08x}"


def _encode_tail(raw: Bytes, n_chunks: int, n_entries: int, stride: int) -> Bytes:
    chunks = raw[: n_chunks * stride].reshape(n_chunks, stride)
    table = chunks[:, stride - CRC_BYTES :].reshape(-1)
    index = np.full((n_entries, 2), MISSING, "<u8")
    index[:n_chunks, 0] = np.arange(n_chunks, dtype=np.uint64) * np.uint64(stride)
    index[:n_chunks, 1] = stride
    entries = index.reshape(-1).view(np.uint8)
    return np.concatenate([table, entries, _crc_bytes(entries)])


class ShardIndex(NamedTuple):
    """Where the chunks of a shard file begin, their bytes without and with their CRC-32Cs.

    All are [n_chunks], in file order.
    """

    offsets: Ints
    sizes: Ints
    crcs: NDArray[np.uint32]


def parse_tail(
    tail: Bytes, *, size: int, n_chunks: int, chunk_bytes: int | None, checksum: str, where: str
) -> ShardIndex:
    """Return the index of a shard file from its tail, its last `tail_size` bytes.

    Args:
        tail: of the file.
        size: of the file.
        n_chunks: chunks present.
        chunk_bytes: bytes of a chunk without its checksum; None where they are compressed.
        checksum: of the file in the ledger.
        where: names the file.

    Raises:
        CacheDamaged: checksum, chunk size or offset is wrong, or it is another shard's file.
    """
    table, entries = tail[: n_chunks * CRC_BYTES], tail[n_chunks * CRC_BYTES : -CRC_BYTES]
    if crc_of(tail[-CRC_BYTES:]) != crc32c(entries):
        raise CacheDamaged(f"the shard index of {where} fails its checksum; {WAY_OUT}")
    if tail_checksum(tail, n_chunks) != checksum:
        raise CacheDamaged(
            f"{where} is not the file that the ledger lists, or its checksum table is damaged; "
            f"{WAY_OUT}"
        )
    numbers = entries.copy().view("<u8").reshape(-1, 2)[:n_chunks]
    room = max(size - len(tail), 0)
    good = (numbers <= room).all() and (numbers[:, 1] > CRC_BYTES).all()
    offsets, strides = numbers.astype(np.int64).T
    if chunk_bytes is not None:
        good = good and (strides == chunk_bytes + CRC_BYTES).all()
    if not good or (offsets + strides > room).any():
        raise CacheDamaged(f"the shard index of {where} points outside the file; {WAY_OUT}")
    return ShardIndex(offsets, strides - CRC_BYTES, table.copy().view("<u4").astype(np.uint32))


WAY_OUT = "delete that file and extract again into the folder: only its shard is rewritten"


def crc_of(data: Bytes) -> int:
    """Return the stored checksum in 4 little-endian bytes."""
    return int.from_bytes(data.tobytes(), "little")


def _crc_bytes(data: Bytes) -> Bytes:
    return np.frombuffer(crc32c(data).to_bytes(4, "little"), np.uint8)
