"""Tables that are only priced: of more rows than are at hand, of fewer views, of shorter inputs.

They hold lengths, rows and names, which is all that a layout needs; nothing of them can be
computed. n samples, m rows, K views.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.table import InputTable
from pipeline.inputs import KEY_BYTES


class Lengths(NamedTuple):
    """What a layout needs of encoded inputs, for inputs that are only assumed."""

    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, samples: NDArray[np.int64] | Sequence[int]) -> "Lengths":
        """Return the inputs numbered `samples`, in that order."""
        return Lengths(self.lengths[samples], self.truncated[samples])


def assume_rows(table: InputTable, n_rows: int) -> InputTable:
    """Return a table of `n_rows` rows like those of `table`, each with an input of its own.

    Lengths, cuts and the share of rows with views repeat.
    """
    rows = table.row_to_sample.reshape(len(table.row_ids), table.views)  # [m, K]
    own = 1 + (rows != rows[:, :1]).any(1) * (table.views - 1)  # samples of a row: 1 or K
    source = np.arange(n_rows, dtype=np.int64) % len(rows)
    counts = own[source]
    view = np.minimum(np.arange(table.views), counts[:, None] - 1)  # [n_rows, K]
    numbers = (np.cumsum(counts) - counts)[:, None] + view
    like = rows[source][np.arange(table.views) < counts[:, None]]  # [n]
    width = len(str(n_rows - 1))
    return replace(
        table,
        encoded=Lengths(table.encoded.lengths[like], table.encoded.truncated[like]),
        keys=np.zeros((len(like), KEY_BYTES), dtype=np.uint8),
        row_to_sample=numbers if table.views > 1 else numbers[:, 0],
        row_ids=[f"assumed/{row:0{width}}" for row in range(n_rows)],
        files=(),
    )


def keep_views(table: InputTable, views: int) -> InputTable:
    """Return `table` with the first `views` views of each row only."""
    rows = table.row_to_sample.reshape(len(table.row_ids), table.views)[:, :views]
    used, numbers = np.unique(rows, return_inverse=True)
    numbers = numbers.reshape(rows.shape).astype(np.int64)
    lengths, truncated = table.encoded.lengths[used], table.encoded.truncated[used]
    return replace(
        table,
        encoded=Lengths(lengths, truncated),
        keys=table.keys[used],
        row_to_sample=numbers if views > 1 else numbers[:, 0],
        files=(),
    )


def cap_lengths(table: InputTable, length: int) -> InputTable:
    """Return `table` with no sample longer than `length` tokens or frames."""
    found = table.encoded.lengths
    return replace(table, encoded=Lengths(np.minimum(found, length), found > length), files=())
