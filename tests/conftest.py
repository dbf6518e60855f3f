"""Shared by all tests: no network, and helpers such as `tiny` importable from this folder."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server."""
    import s3kit

    with s3kit.s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_server, monkeypatch) -> str:
    """URL of a new bucket, which the environment leads to."""
    import s3kit

    for name, value in s3kit.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return s3kit.new_bucket(s3_server)
