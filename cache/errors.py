# ruff: noqa: N818 - the names say what happened; each is also a builtin error
"""Everything that can go wrong with a cache: one hierarchy, each member also a builtin error.

Every message names the file or the tap concerned and the way out.
"""


class CacheError(Exception):
    """Base of all errors of this package."""


class CacheNotFound(CacheError, FileNotFoundError):
    """There is no cache at this path."""


class CacheIncomplete(CacheError, RuntimeError):
    """The cache, or the part of it that was asked for, has not been written yet."""


class CacheDamaged(CacheError, ValueError):
    """A file is missing, has the wrong size, fails its checksum, or contradicts another one."""


class CacheVersionError(CacheError, ValueError):
    """The cache was written in a format version that this program does not know."""


class CacheLocked(CacheError, BlockingIOError):
    """Another process is writing this cache."""


class InvalidLocation(CacheError, ValueError):
    """A URL names no place for a cache."""


class CacheUnreachable(CacheError, ConnectionError):
    """An object store does not answer, or refuses; the message says what may help."""


class CacheFull(CacheError, OSError):
    """The disk (or a quota or limit) has no room for the next file; finished shards are safe."""


class CacheTooLarge(CacheError, MemoryError):
    """A file of the cache does not fit into the memory that is free."""


class FingerprintMismatch(CacheError, ValueError):
    """The folder holds a cache of something else; the message lists the differences."""


class CacheConflict(CacheError, ValueError):
    """Caches that are to be one contradict each other; the message names the row."""


class ActivationOverflow(CacheError, OverflowError):
    """An activation is not finite, or not finite any more in the storage type."""


class ShardMisaligned(CacheError, ValueError):
    """Values do not fit the shard: wrong samples, wrong shape, or some are missing."""


class InvalidTap(CacheError, ValueError):
    """A tap's name, kind, axis or shape cannot be stored, or a tap is not in the cache."""
