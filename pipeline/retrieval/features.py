"""Mean-pooled cached features: what linear baselines and closed-form bases are fitted on.

Cost: one pass over the cache for each choice of samples and taps; float32 [n, sum of widths].
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from cache import Cache, JointLoader, Source
from pipeline.retrieval.samples import Ints
from pipeline.retrieval.taps import TowerTaps, layout
from unipt import segment_mean
from unipt.bases import KernelRows

BATCH = 64


Held = TypeVar("Held", Tensor, KernelRows)
Key = tuple[object, ...]


class Pooled:
    """Remembers results of `pooled_features`, and the kernel rows made of them.

    Args:
        limit: bytes to hold at most; what was used longest ago is dropped.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.known: OrderedDict[Key, Tensor | KernelRows] = OrderedDict()

    def of(self, cache: Cache, taps: TowerTaps, samples: Ints, names: Sequence[str]) -> Tensor:
        """Return what `pooled_features` returns; it is not to be changed."""
        key = (str(cache.path), samples.astype("<i8").tobytes(), tuple(names))
        return self._held(key, lambda: pooled_features(cache, taps, samples, names))

    def rows(self, key: Key, make: Callable[[], KernelRows]) -> KernelRows:
        """Return what `make` returned for an equal `key`; it is not to be changed."""
        return self._held(("rows", *key), make)

    def _held(self, key: Key, make: Callable[[], Held]) -> Held:
        if key not in self.known:
            self.known[key] = make()
        self.known.move_to_end(key)
        found = self.known[key]
        while sum(values.nbytes for values in self.known.values()) > self.limit:
            self.known.popitem(last=False)
        return cast(Held, found)


def pooled_features(cache: Cache, taps: TowerTaps, samples: Ints, names: Sequence[str]) -> Tensor:
    """Return the mean over tokens, patches, cells and frames of each tap, concatenated.

    Args:
        cache: to read, batch by batch.
        taps: of the tower.
        samples: [n].
        names: of the taps to take; a tower of one tap names it twice, as target and anchor.

    Returns:
        float32 [n, sum of widths].
    """
    kinds = {tap.name: tap for tap in taps.taps}
    present, where = np.unique(samples, return_inverse=True)
    source = Source(cache=cache, samples=present, taps=tuple(dict.fromkeys(names)))
    loader = JointLoader({"it": source}, batch_size=BATCH, seed=0, shuffle=False)
    parts = []
    for batch in loader.epoch(0):
        part = batch.parts["it"]
        pooled = []
        for name in names:
            tap, values = kinds[name], part.states[name].float()
            if layout(tap) == "map":
                values = values.mean((2, 3))
            elif layout(tap) == "grid":
                values = values.mean(1)
            pooled.append(segment_mean(values, part.offsets[tap.axis]) if tap.ragged else values)
        parts.append(torch.cat(pooled, 1))
    return torch.cat(parts)[torch.from_numpy(where)]
