"""Shared by all tests: no network, and helpers such as `tiny` importable from this folder."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
