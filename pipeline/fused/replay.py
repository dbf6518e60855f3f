"""Cached samples to replay: which ones, and what the trained classifier says to them.

Cost: one read of the chosen samples (64 sentences of 13 BERT-base taps: about 40 MB).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import Cache
from pipeline.fused.build import ExportError
from pipeline.inputs import KEY_BYTES, TextInput
from unipt.classifier import SideClassifier

Row = tuple[TextInput, ...]


@dataclass(frozen=True)
class Replay:
    """Examples and their cached-path logits [n, labels]."""

    rows: list[Row]
    logits: Tensor


def choose_replay(
    cache: Cache,
    classifier: SideClassifier,
    taps: Sequence[str],
    rows: Sequence[Row],
    *,
    samples: int,
    seed: int = 0,
) -> Replay:
    """Choose up to `samples` of the examples, the longest one among them, and classify them.

    Args:
        cache: the cache the classifier was trained from.
        classifier: the trained side classifier, in eval mode.
        taps: its taps, in order.
        rows: the examples' inputs; those that are not in the cache are passed over.
        samples: how many.
        seed: of the choice.

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
    longest = known[cache.lengths["tokens"][found[known]].sum(axis=1).argmax()]
    if longest not in chosen:
        chosen[-1] = longest
    logits = cached_logits(cache, classifier, taps, found[chosen])
    return Replay(rows=[unique[i] for i in chosen], logits=logits)


@torch.inference_mode()
def cached_logits(
    cache: Cache, classifier: SideClassifier, taps: Sequence[str], samples: NDArray[np.int64]
) -> Tensor:
    """Classify cached samples [n] or [n, S] on their packed values; logits [n, labels]."""
    order = samples.T.reshape(-1)  # all first sentences, then all second ones
    values = cache.read(order, taps)
    offsets = np.concatenate([[0], np.cumsum(cache.lengths["tokens"][order])])
    states = torch.stack([values[tap].float() for tap in taps])  # [n_taps, T, D]
    logits: Tensor = classifier(states, offsets=torch.from_numpy(offsets)).logits
    return logits.float()


def _find(cache: Cache, rows: Sequence[Row]) -> NDArray[np.int64]:
    keys = b"".join(item.key() for row in rows for item in row)
    table = np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
    return cache.find(table).reshape(len(rows), -1)
