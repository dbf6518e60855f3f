"""Remembers what has been read or fitted, for trainings of one process that want the same.

A result is known by everything that it was made from, so nothing can be stale. What was used
longest ago is dropped first.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cache.memory import available_memory

T = TypeVar("T")
SHARE = 8
"""One in so many bytes of the free memory may hold remembered results."""


class Memo:
    """Results by their keys.

    Args:
        limit: bytes to hold at most; by default a share of what is free now.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = available_memory() // SHARE if limit is None else limit
        self._known: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return what `make` returned for an equal `key`; it is not to be changed.

        Args:
            key: everything that the result depends on.
            make: makes it.
            size: its bytes.
        """
        if key not in self._known:
            made = make()
            self._known[key] = made, size(made)
        self._known.move_to_end(key)
        found = self._known[key][0]
        while len(self._known) > 1 and sum(n for _, n in self._known.values()) > self.limit:
            self._known.popitem(last=False)
        return cast(T, found)
