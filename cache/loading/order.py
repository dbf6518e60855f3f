"""The order of an epoch: a function of seed and epoch alone, made for reading whole blocks. Pure.

Blocks come in random order, and the examples of a window of blocks are mixed. Samples were permuted
before packing, so this is as good as a full shuffle. Cost: a few sorts of the examples an epoch.
"""

from dataclasses import dataclass

import numpy as np

from ..format.random_streams import VIEWS, stream
from ..format.spec import Ints

_PARTS = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a batch may be: examples, and their tokens and frames if those are bounded too."""

    examples: int
    rows: int | None = None


def rank_parts(order: Ints, rows: Ints | None, world: int) -> list[Ints]:
    """Cut an order into one run for each rank.

    Without `rows` [n] of each example all are of one length, and the last n % world are left out;
    with them the runs have about equally many rows, and nothing is left out.
    """
    if rows is None:
        size = len(order) // world
        return [order[rank * size :][:size] for rank in range(world)]
    ends = np.cumsum(rows[order])
    goals = np.arange(1, world) * (int(ends[-1]) if len(ends) else 0) // world
    return np.split(order, np.searchsorted(ends, goals, side="right"))


def cut_batches(
    order: Ints, rows: Ints | None, limits: Limits, *, drop_last: bool = False
) -> list[Ints]:
    """Cut an order into batches: each takes the next examples while it stays within the limits.

    An example of more rows than the limit is a batch of its own. `drop_last` leaves out the last
    batch if it is not full; with a limit of rows, if it has room for the smallest example.
    """
    n, size, low = len(order), limits.examples, 0
    if limits.rows is None or rows is None:
        last = n - n % size if drop_last else n
        return [order[i : i + size] for i in range(0, last, size)]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows[order])])
    batches = []
    while low < n:
        high = int(np.searchsorted(ends, ends[low] + limits.rows, side="right")) - 1
        high = min(max(high, low + 1), low + size)
        batches.append(order[low:high])
        low = high
    if drop_last and batches and len(batches[-1]) < size:
        left = limits.rows - int(rows[batches[-1]].sum())
        if left >= int(rows[order].min()):
            batches.pop()
    return batches


def window_order(
    blocks: Ints, rng: np.random.Generator, window: int, spread: Ints | None = None
) -> Ints:
    """Return the positions of the examples in shuffled order, int64 [n].

    Args:
        blocks: the block that each example reads, int64 [n].
        rng: of this epoch.
        window: blocks mixed together.
        spread: int64 [n]; examples of equal number are kept apart: the epoch goes through all
            blocks in as many rounds as the most frequent number needs, and no two are in one round.
    """
    shuffled = rng.permutation(len(blocks))
    present, which = np.unique(blocks[shuffled], return_inverse=True)
    turn = rng.permutation(len(present))[which] // window  # window of each position
    if spread is None:
        return shuffled[np.argsort(turn, kind="stable")].astype(np.int64)
    rounds = _rounds(spread[shuffled], rng)
    for number in range(1, int(rounds.max(initial=0)) + 1):  # each round in an order of its own
        inside = rounds == number
        turn[inside] = rng.permutation(len(present))[which[inside]] // window
    return shuffled[np.lexsort((turn, rounds))].astype(np.int64)


def _rounds(values: Ints, rng: np.random.Generator) -> Ints:
    """Give equal values different rounds, evenly spaced from a random start, int64 [n].

    A value that comes c times in R rounds is in the rounds floor((j + u) R / c), j = 0 .. c - 1.
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    start = rng.integers(0, _PARTS, len(counts))[which]
    place = (_occurrence(which, counts) * _PARTS + start) * int(counts.max(initial=1))
    return np.asarray(place // (counts[which] * _PARTS), np.int64)


def _occurrence(which: Ints, counts: Ints) -> Ints:
    """Return how many equal numbers come before each one, int64 [n]."""
    order = np.argsort(which, kind="stable")
    before = np.empty(len(which), np.int64)
    before[order] = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return before


def draw_views(samples: Ints, seed: int, epoch: int, source: int) -> Ints:
    """Draw one sample of each row of `samples` [n, V], each equally likely, int64 [n, 1]."""
    rng = stream(VIEWS, seed, epoch, source)
    column = rng.integers(0, samples.shape[1], (len(samples), 1))
    return np.take_along_axis(samples, column, axis=1)
