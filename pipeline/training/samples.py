"""Finds the examples of a data set in a cache, by what they say.

Cost: one BLAKE2b digest an input and one search in the cache's key table, about 2 us an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import Cache, TapSpec
from pipeline.config import ConfigError
from pipeline.data import DataError, Dataset, Example
from pipeline.inputs import KEY_BYTES
from pipeline.selection import select_names
from pipeline.tasks.base import target_array

SHOWN = 3


class MissingInputs(DataError, LookupError):  # noqa: N818 (reads as what is wrong)
    """Inputs of the data set are not in the cache."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """One split's examples with their sample numbers in a cache."""

    examples: Sequence[Example]
    samples: NDArray[np.int64]
    """[n], or [n, 2] for pairs encoded separately."""
    targets: NDArray[Any] | None
    """[n], None where the labels are hidden."""


def locate(dataset: Dataset, cache: Cache, split: str) -> Located:
    """Find the examples of `split` in `cache`.

    Raises:
        MissingInputs: some are not there; the message counts them and shows the first.
        DataError: there is no such split.
    """
    examples = dataset.examples(split)
    inputs = [text for example in examples for text in example.inputs]
    data = b"".join(text.key() for text in inputs)
    keys = np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)
    samples = cache.find(keys)
    missing = np.flatnonzero(samples < 0)
    if len(missing):
        shown = "; ".join(repr(inputs[i].text[:60]) for i in missing[:SHOWN])
        config = dataset.config
        file = {"dev": config.dev, "test": config.test}.get(split) or config.train
        raise MissingInputs(
            f"{len(missing):,} of {len(inputs):,} inputs of the split {split!r} are not in the "
            f"cache: {shown}{' ...' if len(missing) > SHOWN else ''}. Extract a cache with "
            f"{file} among its data (the same columns and `pair`), or train on data it holds"
        )
    if dataset.segments == 2:
        samples = samples.reshape(-1, 2)
    return Located(examples=examples, samples=samples, targets=target_array(examples))


def select_taps(cache: Cache, patterns: Sequence[str] | None) -> tuple[TapSpec, ...]:
    """Choose token taps by patterns, see `select_names`, in the cache's order; the anchor last.

    In a cache without tokens these are its vectors, each a text of one token.

    Raises:
        ValueError: a pattern matches nothing, fewer than two taps are left, or widths differ.
    """
    tokens = [tap for tap in cache.taps if tap.kind == "tokens"]
    known = tokens or [tap for tap in cache.taps if tap.kind == "vector"]
    names = [tap.name for tap in known]
    wanted, lost = (names, ()) if patterns is None else select_names(names, patterns)
    if lost:
        raise ConfigError(f"the tap pattern {lost[0]!r} matches none of {', '.join(names)}")
    chosen = tuple(tap for tap in known if tap.name in wanted)
    if len(chosen) < 2:
        raise ConfigError(
            f"a side network needs at least two taps (targets and anchor); chosen: "
            f"{', '.join(tap.name for tap in chosen) or 'none'} of {', '.join(names)}"
        )
    if len({tap.shape for tap in chosen}) > 1:
        widths = ", ".join(f"{tap.name} {tap.shape[0]}" for tap in chosen)
        raise ConfigError(f"the chosen taps differ in width ({widths}); choose taps of one width")
    return chosen
