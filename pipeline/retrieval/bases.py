"""Fits the closed-form bases of the two towers from cached features, before the training.

The text tower's base is the whitened mean of its anchor; the media tower's memory is a kernel
regression from the means of all layers, every cached view a row, to the mean base of the item's
captions.
Cost: one pass over the training inputs (`MAX_ROWS` of them at most) and one [M, M] system.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.retrieval.build import RetrievalSetup
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.features import Pooled
from pipeline.retrieval.samples import Ints, LocatedPairs
from unipt import TwoTowers
from unipt.bases import AnchorBase, KernelRows, MemoryBase

MAX_ROWS = 32_768
"""Views of training items that a memory is fitted on, at most."""


def fit_bases(
    model: TwoTowers, config: RetrievalTrainConfig, setup: RetrievalSetup, pooled: Pooled
) -> None:
    """Fit the bases that the towers have.

    Args:
        model: with towers as `build_towers` makes them.
        config: whitening, sharpness, penalty; the seed chooses rows and keys where there are too
            many.
        setup: splits, caches and taps.
        pooled: reads the features, or has them.
    """
    base = model.text.base
    if not isinstance(base, AnchorBase):
        return
    train = setup.splits["train"]
    texts = np.unique(train.text[:, 0]).astype(np.int64)
    base.fit(_anchors(setup, texts, pooled), config.text_whitening)
    memory = model.media.base
    if not isinstance(memory, MemoryBase):
        return
    random = np.random.default_rng(config.seed)
    wanted = _wanted(setup, train, base, pooled)  # [n, E]
    items, count = _items(train.media, random, at_least=len(memory.keys)), train.media.shape[1]
    keys = np.sort(random.permutation(len(items))[: len(memory.keys)])  # of the first view
    rows = _rows(setup, train.media[items], keys, pooled)
    memory.fit(
        rows,
        wanted[torch.from_numpy(items)].repeat(count, 1),
        sharpness=config.memory_sharpness,
        ridge=config.memory_penalty,
    )


def _anchors(setup: RetrievalSetup, samples: Ints, pooled: Pooled) -> Tensor:
    taps = setup.taps["text"]
    return pooled.of(setup.caches["text"], taps, samples, [taps.anchor.name])


def _features(setup: RetrievalSetup, samples: Ints, pooled: Pooled) -> Tensor:
    """Return the means of all layers in the order of `SideTower`: targets, then the anchor."""
    taps = setup.taps["media"]
    names = [*(tap.name for tap in taps.targets), taps.anchor.name]
    return pooled.of(setup.caches["media"], taps, samples, names)


def _wanted(
    setup: RetrievalSetup, located: LocatedPairs, base: AnchorBase, pooled: Pooled
) -> Tensor:
    """Return what each item should be embedded as: the mean direction of its captions, [n, E]."""
    text = F.normalize(base(_anchors(setup, located.text[:, 0], pooled)), dim=1)  # [m, E]
    total = torch.zeros(len(located.media), text.shape[1])
    total.index_add_(0, torch.from_numpy(located.split.item_of), text)
    return F.normalize(total, dim=1)


def _items(media: Ints, random: np.random.Generator, *, at_least: int) -> Ints:
    """Return the items [m] whose views, of `media` [n, V], are rows."""
    count = max(at_least, MAX_ROWS // media.shape[1])
    return np.sort(random.permutation(len(media))[:count])


def _rows(setup: RetrievalSetup, media: Ints, keys: Ints, pooled: Pooled) -> KernelRows:
    """Return the views of the items `media` [m, V] as rows, the first view of `keys` as keys."""

    def measure() -> KernelRows:
        views = [_features(setup, samples, pooled) for samples in media.T]
        return KernelRows.of(torch.cat(views), torch.from_numpy(keys))

    cache = str(setup.caches["media"].path)
    return pooled.rows((cache, setup.taps["media"].names, media.tobytes(), keys.tobytes()), measure)
