import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk():
    """Flushing changes nothing that a process can see, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield
