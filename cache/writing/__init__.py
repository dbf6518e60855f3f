"""The one writer of a cache: shards filled in memory, written whole, resumed after a kill."""
