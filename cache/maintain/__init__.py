"""Keeping caches: list, join, narrow, convert, clean up. Nothing here runs a backbone."""

from .garbage import GcReport, Leftover, gc
from .listing import CacheEntry, Listing, ls
from .reshape import append, convert, export_taps, merge
from .rewrite import RewriteReport

__all__ = [
    "CacheEntry",
    "GcReport",
    "Leftover",
    "Listing",
    "RewriteReport",
    "append",
    "convert",
    "export_taps",
    "gc",
    "ls",
    "merge",
]
