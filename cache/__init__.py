"""A store of activations: Zarr v3, written once in whole shards, read straight from the file.

Knows arrays, rows and taps; no models and no tasks. The format is described in
docs/cache-format.md.
"""

from .calibration import Calibration, calibration_samples
from .chunks import Verify
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
from .feed import Part, Source
from .fingerprint import Fingerprint
from .info import CacheInfo, info
from .joint import JointBatch, JointLoader
from .layout import CacheLayout, plan_layout
from .loader import Batch, Loader
from .location import Location, ObjectPath, parse_location
from .maintain import (
    CacheEntry,
    GcReport,
    Leftover,
    Listing,
    RewriteReport,
    append,
    convert,
    export_taps,
    gc,
    ls,
    merge,
)
from .memory import Tier, available_memory
from .reader import Cache
from .shard import ShardBuffer
from .spec import Kind, StorageType, TapSpec
from .verify import VerifyReport, verify
from .writer import CacheWriter

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
    "JointBatch",
    "JointLoader",
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
    "append",
    "available_memory",
    "calibration_samples",
    "convert",
    "export_taps",
    "gc",
    "info",
    "ls",
    "merge",
    "parse_location",
    "plan_layout",
    "verify",
]
