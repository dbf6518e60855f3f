"""Compressed chunks: Zarr v3's `zstd` codec between the bytes and their CRC-32C.

Not the default: float16 states of transformers shrink by a tenth and are read at a fraction of the
speed. Maps after a ReLU are partly zero and shrink more (`benchmarks/zeros.py` measures a cache's).
A frame says how many bytes it holds; that is compared before anything is decompressed.
"""

import re

from .spec import Bytes

NONE = "none"
_LEVEL = 3
_MAGIC = bytes.fromhex("28b52ffd")
_ZSTD = re.compile(r"zstd(?::([1-9]|1\d|2[0-2]))?")


def parse_compression(text: str) -> int | None:
    """Return the level of "zstd" or "zstd:LEVEL" (1 to 22), None for "none".

    Raises:
        ValueError: it is neither.
    """
    found = _ZSTD.fullmatch(text) if isinstance(text, str) else None
    if found is None and text != NONE:
        raise ValueError(
            f"compression is 'none', 'zstd' or 'zstd:LEVEL' with a level from 1 to 22, not {text!r}"
        )
    return None if found is None else int(found[1] or _LEVEL)


def compress(data: Bytes, level: int) -> bytes:
    """Return one Zstandard frame of contiguous bytes."""
    from numcodecs.zstd import compress as zstd  # type: ignore[import-untyped]  # noqa: PLC0415

    frame: bytes = zstd(data, level)
    return frame


def most_bytes(count: int) -> int:
    """Return the bytes that a frame of `count` bytes takes at most (ZSTD_COMPRESSBOUND)."""
    return count + (count >> 8) + (max(0, 2**17 - count) >> 11)


def decompress(frame: bytes | Bytes, into: Bytes) -> None:
    """Decompress a frame into an array of exactly its bytes.

    Raises:
        ValueError: it is no frame of so many bytes.
    """
    from numcodecs.zstd import decompress as unzstd  # noqa: PLC0415

    held = frame_bytes(bytes(frame[:18]))
    if held != len(into):
        raise ValueError(f"a compressed chunk of {held} bytes instead of {len(into)}")
    try:
        unzstd(frame, into)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def frame_bytes(header: bytes) -> int | None:
    """Return the bytes that a frame (RFC 8878) says it holds; None if it does not say.

    Args:
        header: the frame's first 18 bytes, or all of it.
    """
    if len(header) < 6 or header[:4] != _MAGIC:
        return None
    flags = header[4]
    single = flags >> 5 & 1
    size = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not size or len(header) < at + size:
        return None
    return int.from_bytes(header[at : at + size], "little") + (256 if size == 2 else 0)
