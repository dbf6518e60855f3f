"""Random numbers for every purpose: streams of their own, though the seeds be equal.

Without the purpose a cache packed and read with one seed would be read in the very order of its
blocks, and views drawn by the numbers that shuffle.
"""

import numpy as np

PACKING, ORDER, VIEWS, JOINING = 1, 2, 3, 4
"""Purposes: places on the disk, order of an epoch, drawn views, order of a merged cache."""


def stream(purpose: int, *seeds: int) -> np.random.Generator:
    """Return the random numbers of a purpose, a function of it and of `seeds` alone."""
    return np.random.default_rng([purpose, *seeds])
