"""Finds a split's examples in the caches of their towers, by what they say, in every view.

n examples, V views. Cost: one BLAKE2b digest a text, one reading of a media file (its content is
its key), and one search in the cache's key table a view.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import Cache
from pipeline.data import Dataset, Ints
from pipeline.errors import DataError
from pipeline.inputs import KEY_BYTES, Input, TextInput, describe, view_key

__all__ = ["Located", "MissingInputs", "find_views", "locate", "modality_of"]

logger = logging.getLogger(__name__)

SHOWN = 3


class MissingInputs(DataError, LookupError):  # noqa: N818 (reads as what is wrong)
    """Inputs of the data set are not in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """One split's examples with their samples in the caches.

    Attributes:
        examples: n of them, without those that are not in a cache, if these may be left out.
        samples: tower -> int64 [n, V]; the first view is the input as it is.
        keys: tower -> content key of each example's input, uint8 [n, 16].
    """

    examples: Any
    samples: Mapping[str, Ints]
    keys: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def clean(self) -> dict[str, Ints]:
        """Sample of each example as it is, tower -> [n]."""
        return {tower: found[:, 0] for tower, found in self.samples.items()}

    def take(self, rows: Ints) -> "Located":
        """Return the examples of these positions, ascending."""
        return Located(
            examples=self.examples.take(rows),
            samples={tower: found[rows] for tower, found in self.samples.items()},
            keys={tower: found[rows] for tower, found in self.keys.items()},
        )

    @cached_property
    def digest(self) -> str:
        """What is equal for equal inputs and targets in equal order."""
        digest = hashlib.blake2b(self.examples.digest(), digest_size=16)
        for tower in sorted(self.keys):
            digest.update(self.keys[tower].tobytes())
        return digest.hexdigest()


def locate(
    dataset: Dataset, name: str, caches: Mapping[str, Cache], modalities: Mapping[str, str],
    *, views: int | None = 1,
) -> Located:  # fmt: skip
    """Find the examples of one split.

    Args:
        dataset: that has the split.
        name: of the split.
        caches: of each tower.
        modalities: what each tower's backbone reads.
        views: to find of each input; None for all that a cache has.

    Raises:
        DataError: there is no such split.
        MissingInputs: some inputs are not in their cache; the message counts them and shows the
            first. Where the data set says so, examples whose media file is not in its cache are
            left out with a warning instead, unless none would be left.
    """
    examples = dataset.split(name)
    inputs = {tower: examples.inputs(tower, modalities[tower]) for tower in caches}
    keys = {tower: _keys(given) for tower, given in inputs.items()}
    samples = {tower: find_views(cache, keys[tower], views) for tower, cache in caches.items()}
    found = Located(examples=examples, samples=samples, keys=keys)
    rows = np.flatnonzero(~_lacks_media(samples, inputs))
    if dataset.config.skips_missing and 0 < len(rows) < len(found):
        count = len(found) - len(rows)
        logger.warning("%s: files of %d example(s) are not in the cache; left out", name, count)
        found = found.take(rows)
        inputs = {tower: [given[row] for row in rows.tolist()] for tower, given in inputs.items()}
    for tower, each in found.samples.items():
        _check(each, inputs[tower], name, caches[tower], dataset)
    return found


def _lacks_media(
    samples: Mapping[str, Ints], inputs: Mapping[str, Sequence[Input]]
) -> NDArray[np.bool_]:
    """Return whether a media file of each example is not in its cache, [n]."""
    lost = [
        (samples[tower] < 0).any(1) & np.array([not isinstance(one, TextInput) for one in given])
        for tower, given in inputs.items()
    ]
    found: NDArray[np.bool_] = np.any(lost, axis=0)
    return found


def modality_of(cache: Cache, usual: str) -> str:
    """Return what the backbone of a cache reads: video if it has frames, else the `usual` one."""
    return "video" if any(tap.kind == "frames" for tap in cache.taps) else usual


def find_views(cache: Cache, keys: Any, views: int | None = None) -> Ints:
    """Return the samples of inputs in a cache, int64 [n, V], -1 where there is none.

    An input that was cached without views, as those of a dev split are, stands for its own views.

    Args:
        cache: to search.
        keys: content keys of the inputs, uint8 [n, 16].
        views: V at most; None for all the cache has.
    """
    rows = cache.row_to_sample
    stored = rows.shape[1] if rows.ndim == 2 else 1
    found = [cache.find(keys)]
    for view in range(1, min(stored, views or stored)):
        data = b"".join(view_key(key.tobytes(), view) for key in keys)
        found.append(cache.find(np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)))
    samples = np.stack(found, 1)
    lacking = (samples < 0) & (samples[:, :1] >= 0)
    if lacking.any():
        count = int(lacking.any(1).sum())
        logger.info("%d of %d inputs of %s have fewer views", count, len(keys), cache.path)
    return np.where(lacking, samples[:, :1], samples)


def _keys(inputs: Sequence[Input]) -> Any:
    """Return the keys of inputs, uint8 [n, 16]; a file that is named again is read once."""
    known: dict[Input, bytes] = {}
    for given in inputs:
        if given not in known:
            known[given] = given.key()
    data = b"".join(known[given] for given in inputs)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)


def _check(
    samples: Ints, inputs: Sequence[Input], split: str, cache: Cache, dataset: Dataset
) -> None:
    lost = list(dict.fromkeys(inputs[n] for n in np.flatnonzero((samples < 0).any(1)).tolist()))
    if not lost:
        return
    shown = "; ".join(describe(given) for given in lost[:SHOWN])
    config = dataset.config
    file = {"dev": config.dev, "test": config.test}.get(split) or config.train
    skips = "bad_media" in type(config).model_fields and not isinstance(lost[0], TextInput)
    way = ", or leave them out with bad_media: skip" if skips else ""
    raise MissingInputs(
        f"{len(lost):,} of {len(set(inputs)):,} inputs of the split {split!r} are not in the cache "
        f"{cache.path}: {shown}{' ...' if len(lost) > SHOWN else ''}. Extract a cache with {file} "
        f"among its data (the same columns and options), or train on data it holds{way}"
    )
