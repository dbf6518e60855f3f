"""The ledger: which shards are finished, one checked line each, flushed before it counts.

A missing shard reads as zeros in Zarr, so only the ledger says what has been written. A line holds
the shard, its range of packed positions, bytes and CRC-32C of each of its files, the digest of the
configuration, and a CRC-32C of the line itself. Cost: about 200 bytes and one fsync a shard.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from .checksum import crc32c

_SEAL = ',"crc":"'


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished shard: `files` maps the stack's name to (bytes, CRC-32C in hexadecimal)."""

    shard: int
    samples: tuple[int, int]
    files: dict[str, tuple[int, str]]
    config: str

    def to_line(self) -> bytes:
        """Return the line, sealed by its checksum."""
        body = json.dumps(
            {
                "shard": self.shard,
                "samples": self.samples,
                "files": self.files,
                "config": self.config,
            },
            separators=(",", ":"),
        )[:-1]
        return f'{body}{_SEAL}{crc32c(body.encode()):08x}"}}\n'.encode()


def parse_line(line: bytes) -> Entry | None:
    """Return the entry of a line with its newline, or None if it is torn or altered."""
    body, seal, crc = line.partition(_SEAL.encode())
    if not seal or crc != f'{crc32c(body):08x}"}}\n'.encode():
        return None
    try:
        values = json.loads(line)
        files = {name: (int(size), str(crc)) for name, (size, crc) in values["files"].items()}
        low, high = values["samples"]
        return Entry(
            shard=int(values["shard"]),
            samples=(int(low), int(high)),
            files=files,
            config=str(values["config"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def encode_ledger(entries: Iterable[Entry]) -> bytes:
    """Return the final ledger: one line a shard, in order."""
    return b"".join(entry.to_line() for entry in sorted(entries, key=lambda e: e.shard))
