"""Several caches as one table: which samples, which rows, in which order on the disk.

Content that several caches hold is kept once, of the first that has it. A permuted cache is already
in random order, so shuffling the caches into each other like two decks of cards, each in its own
order, gives a random order of all samples while every cache is read once from front to back.
Memory: about 150 bytes a sample and the row ids; no activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CacheConflict
from ..format.random_streams import JOINING, stream
from ..format.spec import Bytes, Ints
from ..reading.cache import Cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Samples of several caches, numbered in order of first appearance.

    Attributes:
        caches: the sources.
        source: number of the cache of each sample, int64 [n].
        sample: its number in that cache, int64 [n].
        keys: content keys, uint8 [n, 16].
        row_to_sample: int64 [m] or [m, V].
        row_ids: m names.
        order: sample numbers in the order on the disk, int64 [n].
        samples_known: samples that an earlier cache had already.
        rows_known: rows that an earlier cache had already.
    """

    caches: tuple[Cache, ...]
    source: Ints
    sample: Ints
    keys: Bytes
    row_to_sample: Ints
    row_ids: tuple[str, ...]
    order: Ints
    samples_known: int
    rows_known: int

    @property
    def lengths(self) -> dict[str, Ints]:
        """Tokens or frames of each sample on each ragged axis, int64 [n]."""
        lengths: dict[str, Ints] = {}
        for axis in self.caches[0].lengths:
            out = lengths[axis] = np.empty(len(self.sample), np.int64)
            for number, cache in enumerate(self.caches):
                mine = self.source == number
                out[mine] = cache.lengths[axis][self.sample[mine]]
        return lengths


def alone(cache: Cache) -> Joined:
    """Return one cache as it is."""
    samples = np.arange(cache.n_samples, dtype=np.int64)
    return Joined(
        caches=(cache,),
        source=np.zeros_like(samples),
        sample=samples,
        keys=cache.keys,
        row_to_sample=cache.row_to_sample,
        row_ids=cache.row_ids,
        order=cache.packed_order,
        samples_known=0,
        rows_known=0,
    )


def join(caches: Sequence[Cache], *, seed: int) -> Joined:
    """Join caches of the same taps, shuffled into each other.

    Args:
        caches: at least one, checked to be of the same kind.
        seed: of the shuffle.

    Raises:
        CacheConflict: a row id names different contents, or a content has different lengths.
    """
    counts = np.array([cache.n_samples for cache in caches], np.int64)
    first = np.cumsum(counts) - counts  # of each cache among all samples, [k]
    keys = np.concatenate([cache.keys for cache in caches])
    place, number = _first_appearances(keys)
    source = np.repeat(np.arange(len(caches), dtype=np.int64), counts)
    sample = np.arange(len(keys), dtype=np.int64) - first[source]
    _check_lengths(caches, place[number])
    numbers = np.split(number, first[1:])
    row_to_sample, row_ids, rows_known = _join_rows(caches, numbers)
    return Joined(
        caches=tuple(caches),
        source=source[place],
        sample=sample[place],
        keys=keys[place],
        row_to_sample=row_to_sample,
        row_ids=row_ids,
        order=_join_orders(caches, numbers, source[place], seed),
        samples_known=len(keys) - len(place),
        rows_known=rows_known,
    )


def _first_appearances(keys: Bytes) -> tuple[Ints, Ints]:
    """Return the places where a key first appears, and the number of every key among those."""
    flat = np.ascontiguousarray(keys).view("S16").reshape(-1)
    _, first, which = np.unique(flat, return_index=True, return_inverse=True)
    place = np.sort(first).astype(np.int64)
    return place, np.searchsorted(place, first)[which].astype(np.int64)


def _check_lengths(caches: Sequence[Cache], first: Ints) -> None:
    """Refuse a content whose length differs from that of its first appearance."""
    for axis in caches[0].lengths:
        length = np.concatenate([cache.lengths[axis] for cache in caches])
        differ = np.flatnonzero(length != length[first])
        if len(differ):
            raise CacheConflict(
                f"{len(differ)} inputs of equal content have different numbers of {axis} (the "
                f"first: {length[first[differ[0]]]} and {length[differ[0]]}): the caches were made "
                "with different settings; extract one of them again"
            )


def _join_rows(
    caches: Sequence[Cache], numbers: Sequence[Ints]
) -> tuple[Ints, tuple[str, ...], int]:
    """Put the tables of rows under each other; a row that is already there is left out."""
    ids: list[str] = []
    tables: list[Ints] = []
    known: dict[str, Any] = {}
    dropped = 0
    for cache, number in zip(caches, numbers, strict=True):
        table = number[cache.row_to_sample]
        fresh = np.ones(len(table), np.bool_)
        for row, name in enumerate(cache.row_ids):
            if name not in known:
                continue
            if not np.array_equal(known[name], table[row]):
                raise CacheConflict(
                    f"row id {name!r} stands for one input in {cache.path} and for another in a "
                    "cache before it; rename the rows (give them other ids or another split) and "
                    "extract that cache again"
                )
            fresh[row] = False
        kept = [name for name, new in zip(cache.row_ids, fresh, strict=True) if new]
        known |= zip(kept, table[fresh], strict=True)
        ids += kept
        tables.append(table[fresh])
        dropped += int((~fresh).sum())
    return np.concatenate(tables), tuple(ids), dropped


def _join_orders(caches: Sequence[Cache], numbers: Sequence[Ints], source: Ints, seed: int) -> Ints:
    parts = []
    for k, (cache, number) in enumerate(zip(caches, numbers, strict=True)):
        mine = number[cache.packed_order]
        mine = mine[source[mine] == k]
        parts.append(mine[np.sort(np.unique(mine, return_index=True)[1])])
    deal = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    stream(JOINING, seed).shuffle(deal)
    result = np.empty(len(deal), np.int64)
    for k, part in enumerate(parts):
        result[deal == k] = part
    return result
