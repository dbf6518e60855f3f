"""Finds the captions and items of a retrieval data set in their caches, in every view.

m captions, n items, V views. Cost: one digest a caption, one reading of every picture's or clip's
file (its content is its key), and one search in the cache's key table a view.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache import Cache
from pipeline.inputs import KEY_BYTES, ImageInput, TextInput, VideoInput, view_key
from pipeline.retrieval.data import RetrievalDataset, RetrievalSplit
from pipeline.training.samples import MissingInputs

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class LocatedPairs:
    """One split's captions and items with their samples in the two caches."""

    split: RetrievalSplit
    """Without the items that are not in the cache, if these may be skipped."""
    text: Ints
    """[m, V]; the first view is the caption as it is."""
    media: Ints
    """[n, V]."""
    keys: bytes
    """Content keys of the captions, then of the items, one after another."""

    def only(self, kept: NDArray[np.bool_]) -> Self:
        """Return the part of the items that are `kept` [n], with their captions."""
        captions = kept[self.split.item_of]
        keys = np.frombuffer(self.keys, np.uint8).reshape(-1, KEY_BYTES)
        return type(self)(
            split=self.split.only(kept),
            text=self.text[captions],
            media=self.media[kept],
            keys=keys[np.concatenate([captions, kept])].tobytes(),
        )


def locate_pairs(
    dataset: RetrievalDataset, name: str, caches: Mapping[str, Cache], *, views: int | None = 1
) -> LocatedPairs:
    """Find the captions and items of one split.

    Args:
        dataset: that has the split.
        name: of the split.
        caches: of "text" and "media".
        views: to find of each input; None for all that a cache has.

    Raises:
        DataError: there is no such split.
        MissingInputs: some inputs are not in their cache; the message counts them and shows the
            first. With `bad_media: skip` items are left out instead, with a warning.
    """
    split = dataset.split(name)
    make = VideoInput if any(t.kind == "frames" for t in caches["media"].taps) else ImageInput
    items = [make(item.path).key() for item in split.items]
    media = find_views(caches["media"], items, views)
    absent = np.flatnonzero(media[:, 0] < 0)
    if len(absent) and dataset.config.bad_media == "skip":
        lost = {split.items[number].id for number in absent}
        logger.warning("%s: %d item(s) are not in the cache and left out", name, len(lost))
        kept = [number for number, item in enumerate(split.items) if item.id not in lost]
        split, media, items = split.without(lost), media[kept], [items[i] for i in kept]
    captions = [TextInput(caption.text).key() for caption in split.captions]
    text = find_views(caches["text"], captions, views)
    _check(media, [str(item.path) for item in split.items], name, caches["media"], "item")
    _check(text, [caption.text for caption in split.captions], name, caches["text"], "caption")
    return LocatedPairs(split=split, text=text, media=media, keys=b"".join(captions + items))


def find_views(cache: Cache, keys: Sequence[bytes], views: int | None = None) -> Ints:
    """Return the samples of inputs in a cache, int64 [n, V], -1 where there is none.

    An input that was cached without views, as those of a dev split are, stands for its own views.

    Args:
        cache: to search.
        keys: content keys of the inputs.
        views: V at most; None for all the cache has.
    """
    rows = cache.row_to_sample
    stored = rows.shape[1] if rows.ndim == 2 else 1
    found = []
    for view in range(min(stored, views or stored)):
        data = b"".join(view_key(key, view) for key in keys)
        found.append(cache.find(np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)))
    samples = np.stack(found, 1)
    lacking = (samples < 0) & (samples[:, :1] >= 0)
    if lacking.any():
        count = int(lacking.any(1).sum())
        logger.info("%d of %d inputs of %s have fewer views", count, len(keys), cache.path)
    return np.where(lacking, samples[:, :1], samples)


def _check(samples: Ints, names: Sequence[Any], split: str, cache: Cache, what: str) -> None:
    missing = np.flatnonzero((samples < 0).any(1))
    if not len(missing):
        return
    shown = "; ".join(repr(names[number][:60]) for number in missing[:SHOWN])
    way = ", or leave them out with bad_media: skip" if what == "item" else ""
    raise MissingInputs(
        f"{len(missing):,} of {len(names):,} {what}s of the split {split!r} are not in the cache "
        f"{cache.path}: {shown}{' ...' if len(missing) > SHOWN else ''}. Extract a cache of these "
        f"data for this tower{way}"
    )
