"""A store of activations: Zarr v3, written once in whole shards, read straight from the file.

Knows arrays, rows and taps; no models and no tasks. The format is described in
docs/cache-format.md.
"""

from .errors import (
    ActivationOverflow,
    CacheConflict,
    CacheDamaged,
    CacheError,
    CacheFull,
    CacheIncomplete,
    CacheLocked,
    CacheNotFound,
    CacheTooLarge,
    CacheUnreachable,
    CacheVersionError,
    FingerprintMismatch,
    InvalidLocation,
    InvalidTap,
    ShardMisaligned,
)
from .format.calibration import Calibration, calibration_samples
from .format.fingerprint import Fingerprint
from .format.layout import CacheLayout, plan_layout
from .format.spec import Kind, StorageType, TapSpec
from .loading.loader import Batch, Loader
from .loading.sources import Part, Source
from .memory import Tier, available_memory
from .reading.cache import Cache
from .reading.chunks import Verify
from .storage.location import Location, ObjectPath, parse_location
from .tools.garbage import GcReport, Leftover, gc
from .tools.info import CacheInfo, info
from .tools.listing import CacheEntry, Listing, ls
from .tools.reshape import convert, merge
from .tools.rewrite import RewriteReport
from .tools.verify import VerifyReport, verify
from .writing.shard import ShardBuffer
from .writing.writer import CacheWriter

__all__ = [
    "ActivationOverflow",
    "Batch",
    "Cache",
    "CacheConflict",
    "CacheDamaged",
    "CacheEntry",
    "CacheError",
    "CacheFull",
    "CacheIncomplete",
    "CacheInfo",
    "CacheLayout",
    "CacheLocked",
    "CacheNotFound",
    "CacheTooLarge",
    "CacheUnreachable",
    "CacheVersionError",
    "CacheWriter",
    "Calibration",
    "Fingerprint",
    "FingerprintMismatch",
    "GcReport",
    "InvalidLocation",
    "InvalidTap",
    "Kind",
    "Leftover",
    "Listing",
    "Loader",
    "Location",
    "ObjectPath",
    "Part",
    "RewriteReport",
    "ShardBuffer",
    "ShardMisaligned",
    "Source",
    "StorageType",
    "TapSpec",
    "Tier",
    "Verify",
    "VerifyReport",
    "available_memory",
    "calibration_samples",
    "convert",
    "gc",
    "info",
    "ls",
    "merge",
    "parse_location",
    "plan_layout",
    "verify",
]
