"""CRC-32C, the checksum of everything in a cache."""

from google_crc32c import value as _crc32c

from .spec import Bytes


def crc32c(data: bytes | Bytes) -> int:
    """Return the CRC-32C of contiguous bytes."""
    value: int = _crc32c(data)
    return value


def with_crc(data: bytes) -> bytes:
    """Return `data` followed by its CRC-32C, little-endian: Zarr's `crc32c` codec."""
    return data + crc32c(data).to_bytes(4, "little")
