"""Starting other processes without changing this one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed_environment() -> Iterator[None]:
    """Give the environment variables back as they were.

    What starts a Dask worker sets thread counts of 1 and more in this process before, which every
    later process of ours would inherit: it would compute more slowly and sum in another order.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
