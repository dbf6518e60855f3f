"""Cached samples to replay: which ones, and what the trained side network says to them.

Cost: one read of the chosen samples (64 sentences of 13 BERT-base taps: about 40 MB; a tower reads
`CHUNK` samples at a time, as maps are large).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import Cache
from pipeline.fused.build import ExportError
from pipeline.inputs import KEY_BYTES, Input
from pipeline.retrieval.inference import embed
from pipeline.retrieval.taps import TowerTaps
from unipt.classifier import SideClassifier
from unipt.towers import SideTower

Row = tuple[Input, ...]
CHUNK = 8
"""Samples of a tower whose states are in memory at a time."""


def choose_samples(
    cache: Cache, rows: Sequence[Row], *, samples: int, seed: int = 0
) -> tuple[list[Row], NDArray[np.int64]]:
    """Choose up to `samples` of the examples, the longest one among them.

    Args:
        cache: the cache that training read.
        rows: the examples' inputs; those that are not in the cache are passed over.
        samples: how many.
        seed: of the choice.

    Returns:
        The rows, and the cached samples of their inputs, int64 [n, S].

    Raises:
        ExportError: none of the examples is in the cache.
    """
    unique = list(dict.fromkeys(tuple(row) for row in rows))
    found = _find(cache, unique) if unique else np.empty((0, 1), dtype=np.int64)  # [n, S]
    known = np.flatnonzero((found >= 0).all(axis=1))
    if not len(known):
        raise ExportError(
            f"none of the run's {len(unique)} examples is in the cache {cache.path}, so the export "
            "could not be checked: point to the cache and the data the run was trained with"
        )
    chosen = np.random.default_rng(seed).permutation(known)[:samples]
    for lengths in cache.lengths.values():
        longest = known[lengths[found[known]].sum(axis=1).argmax()]
        if longest not in chosen:
            chosen[-1] = longest
    return [unique[i] for i in chosen], found[chosen]


@torch.inference_mode()
def cached_logits(
    cache: Cache, classifier: SideClassifier, taps: Sequence[str], samples: NDArray[np.int64]
) -> Tensor:
    """Classify cached samples [n] or [n, S] on their packed values; logits [n, labels]."""
    order = samples.T.reshape(-1)  # all first sentences, then all second ones
    values = cache.read(order, taps)
    states = torch.stack([values[tap].float() for tap in taps])  # [n_taps, T, D]
    counts = cache.row_counts(cache.shape_of(taps), order)  # one a text for pooled taps
    offsets = np.concatenate([[0], np.cumsum(counts)])
    logits: Tensor = classifier(states, offsets=torch.from_numpy(offsets)).logits
    return logits.float()


def cached_embeddings(
    cache: Cache, tower: SideTower, taps: Sequence[str], samples: NDArray[np.int64]
) -> Tensor:
    """Embed cached samples [n] on their packed values; embeddings [n, E]."""
    known = {tap.name: tap for tap in cache.taps}
    chosen = TowerTaps(tuple(known[tap] for tap in taps))
    return embed(
        tower, cache, chosen, samples, batch_size=CHUNK, device=torch.device("cpu")
    ).vectors


def _find(cache: Cache, rows: Sequence[Row]) -> NDArray[np.int64]:
    keys = b"".join(item.key() for row in rows for item in row)
    table = np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
    return cache.find(table).reshape(len(rows), -1)
