"""Which examples are read together, when batches come from the disk: the stages of an epoch. Pure.

A stage is what one window of blocks gives, or as much of that as there is room for: its blocks are
read once. A batch that straddles two windows begins in one stage and is completed in the next, so
that no block is read for it again; a stage of one such batch goes on through the next window.
Cost: a few searches a batch, made as the epoch goes on.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..format.spec import Ints


class Piece(NamedTuple):
    """Examples `low : high` of a batch."""

    batch: int
    low: int
    high: int


@dataclass
class Stage:
    """What is read together.

    Attributes:
        pieces: what it fills.
        opened: batches that begin in it, the only ones that take memory of it.
        completed: batches that are whole with it, counted from the first of the epoch.
    """

    pieces: list[Piece] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    completed: int = 0


def cut_stages(
    batches: Sequence[Ints],
    windows: Ints,
    rows: Callable[[Ints], Sequence[int]],
    room: Sequence[int],
) -> Generator[Stage, None, None]:
    """Cut an epoch into stages.

    Args:
        batches: positions of the examples of each batch.
        windows: window of each position, int64 [n].
        rows: gives how many rows some examples have in each array.
        room: rows of each array that the batches beginning in one stage may have; a batch of more
            rows is alone.
    """
    stage, window, left = Stage(), -1, list(room)
    for number, batch in enumerate(batches):
        inside = windows[batch]
        cuts = [0, *(np.flatnonzero(np.diff(inside)) + 1).tolist(), len(batch)]
        needed = rows(batch)
        for low, high in pairwise(cuts):
            if low:  # with one batch alone, the next stage would need memory beside two others
                ends = inside[low] != window and stage.opened != [number]
            else:
                full = any(n > m for n, m in zip(needed, left, strict=True))
                ends = inside[low] != window or (full and bool(stage.opened))
            if ends:
                if stage.pieces:
                    yield stage
                stage, left = Stage(completed=stage.completed), list(room)
            window = int(inside[low])
            if low == 0:
                stage.opened.append(number)
                left = [m - n for n, m in zip(needed, left, strict=True)]
            stage.pieces.append(Piece(number, low, high))
        stage.completed = number + 1
    if stage.pieces:
        yield stage
