"""Keeping caches: describe, list, verify, merge, convert, clean up. Nothing runs a backbone."""
