"""Ranks of a retrieval, R@1/5/10, Rsum and folds.

m captions, n items (images or videos), E width. Text to media: each caption ranks all items. Media
to text: each item ranks all captions and its best own caption counts (VSE-infinity), or ranks the
items, each by its best caption (CLIP4Clip on MSVD). Ranks are 0-based; mean and median are 1-based.

Ties count against the model: whatever scores as high as the right answer stands before it. Two
scores closer than `TIE` times the product of the norms are a tie, as float32 tells them apart by
the order of summation only; so neither the block size nor the processor decides a rank.

`rank_all` costs one GEMM [m, E] x [E, n] in tiles, for both ways together, and two comparisons a
score. Beyond the embeddings it holds 3 copies of one tile (48 MiB at the default) and 24 bytes an
item or caption, so that 100,000 x 100,000 needs no 40 GB matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import PipelineError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Over = Literal["captions", "items"]

RECALLS = (1, 5, 10)
BLOCK = 2048
"""Rows and columns of one tile of scores."""
TIE = 2.0**-20
"""Scores this close, relative to the product of the norms, are a tie."""


class EmbeddingError(PipelineError, ValueError):
    """Embeddings cannot be ranked: not finite, or of shapes that do not fit."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """How many candidates stand before the right one, 0 for the best."""

    text_to_media: Ints
    """Of each caption's item among the n items, [m]."""
    media_to_text: Ints
    """Of each item's best caption among the m captions (or among the n items), [n]."""


def rank_all(
    text: Tensor,
    media: Tensor,
    item_of: Ints | Tensor,
    *,
    m2t_over: Over = "captions",
    block: int = BLOCK,
) -> Ranks:
    """Rank by inner product, both ways.

    Args:
        text: embeddings of the captions, [m, E], any floating type.
        media: embeddings of the images or videos, [n, E], on the same device.
        item_of: the item that each caption belongs to, [m]; every item has one at least.
        m2t_over: what an item ranks: "captions", its best own one counting and its other own ones
            not standing before it, or "items", each by its best caption.
        block: rows and columns of a tile; with "items" a tile holds whole items, so that it is as
            high as the item with most captions if that is more.

    Raises:
        EmbeddingError: embeddings are not finite, or the shapes do not fit.
    """
    owner = torch.as_tensor(item_of, device=text.device)
    _check(text, media, owner, block)
    owner = owner.long()
    order = torch.argsort(owner, stable=True)  # captions of one item stand together
    owner = owner[order]
    bar = _thresholds(text, media, owner, order, block)  # [m] a rival must reach it
    item_bar = torch.full((len(media),), -torch.inf, dtype=torch.float32, device=text.device)
    item_bar.scatter_reduce_(0, owner, bar, "amax")  # [n]
    before_item = torch.zeros(len(text), dtype=torch.int64, device=text.device)
    before_text = torch.zeros(len(media), dtype=torch.int64, device=text.device)
    for rows in _row_blocks(owner, block, whole_items=m2t_over == "items"):
        queries, owners = text[order[rows]].float(), owner[rows]
        for columns in _blocks(len(media), block):
            scores = queries @ media[columns].float().T  # [rows, columns]
            own = ((owners >= columns.start) & (owners < columns.stop)).nonzero().squeeze(1)
            scores[
                own, owners[own] - columns.start
            ] = -torch.inf  # an item's own captions are no rivals
            before_item[rows] += _count(scores >= bar[rows, None], 1)
            if m2t_over == "items":
                scores = _best_of_items(scores, owners)  # [items, columns]
            before_text[columns] += _count(scores >= item_bar[None, columns], 0)
    by_caption = torch.empty_like(before_item)
    by_caption[order] = before_item
    return Ranks(by_caption.cpu().numpy(), before_text.cpu().numpy())


def _check(text: Tensor, media: Tensor, owner: Tensor, block: int) -> None:
    if text.ndim != 2 or media.ndim != 2 or text.shape[1] != media.shape[1]:
        raise EmbeddingError(
            f"captions {list(text.shape)} and media {list(media.shape)} must be [m, E] and [n, E]"
        )
    if owner.shape != text.shape[:1] or owner.is_floating_point():
        raise EmbeddingError(
            f"item_of must be {len(text)} integers, one a caption, not {list(owner.shape)} of "
            f"{owner.dtype}"
        )
    if block < 1:
        raise EmbeddingError(f"block must be at least 1, not {block}")
    for name, values in (("caption", text), ("media", media)):
        rows = _blocks(len(values), block)
        bad = sum(int((~torch.isfinite(values[part]).all(1)).sum()) for part in rows)
        if bad:
            raise EmbeddingError(
                f"{bad} of {len(values)} {name} embeddings are not finite; they cannot be ranked"
            )
    if not len(text) or owner.min() < 0 or owner.max() >= len(media):
        raise EmbeddingError(f"item_of must name items 0 .. {len(media) - 1}, at least one")
    lonely = len(media) - len(torch.unique(owner))
    if lonely:
        raise EmbeddingError(f"{lonely} of {len(media)} media have no caption: nothing to rank")


def _thresholds(text: Tensor, media: Tensor, owner: Tensor, order: Tensor, block: int) -> Tensor:
    """Return each caption's score with its item less the width of a tie, [m], in sorted order."""
    parts = []
    for rows in _blocks(len(order), block):
        a, b = text[order[rows]].double(), media[owner[rows]].double()  # [block, E]
        parts.append((a * b).sum(1) - TIE * a.norm(dim=1) * b.norm(dim=1))
    return torch.cat(parts).float()


def _row_blocks(owner: Tensor, block: int, *, whole_items: bool) -> Iterator[slice]:
    """Cut the sorted captions into blocks; with `whole_items` no item is in two of them."""
    if not whole_items:
        yield from _blocks(len(owner), block)
        return
    ends = torch.cumsum(torch.bincount(owner), 0).tolist()
    start = 0
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is None or following - start > block:
            yield slice(start, end)
            start = end


def _blocks(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


def _best_of_items(scores: Tensor, owners: Tensor) -> Tensor:
    """Return the best score of each item's captions, [rows, c] -> [items, c]."""
    _, positions = torch.unique_consecutive(owners, return_inverse=True)
    best = scores.new_full((int(positions[-1]) + 1, scores.shape[1]), -torch.inf)
    return best.scatter_reduce_(0, positions[:, None].expand_as(scores), scores, "amax")


def _count(mask: Tensor, axis: int) -> Tensor:
    return mask.sum(axis, dtype=torch.int32)


def summarize(ranks: Ranks) -> dict[str, float]:
    """Return R@1/5/10 in percent, median and mean rank from 1, both ways, and Rsum.

    Returns:
        t2m_r1, t2m_r5, t2m_r10, t2m_median_rank, t2m_mean_rank, the same of m2t, and rsum: the sum
        of the six recalls, 600 at best.
    """
    result: dict[str, float] = {}
    for way, values in (("t2m", ranks.text_to_media), ("m2t", ranks.media_to_text)):
        result |= {f"{way}_r{k}": 100 * float(np.mean(values < k)) for k in RECALLS}
        result[f"{way}_median_rank"] = float(np.median(values)) + 1
        result[f"{way}_mean_rank"] = float(np.mean(values)) + 1
    return _with_rsum(result)


def folded(
    text: Tensor,
    media: Tensor,
    item_of: Ints | Tensor,
    folds: int,
    *,
    m2t_over: Over = "captions",
    block: int = BLOCK,
) -> dict[str, float]:
    """Return `summarize` averaged over consecutive folds of the items: COCO 1K is 5 of 1,000.

    Each fold is a retrieval of its own, among its own items and captions.

    Args:
        text: embeddings of the captions, [m, E].
        media: embeddings of the items, [n, E].
        item_of: the item that each caption belongs to, [m].
        folds: number of folds; where n is no multiple, the first ones have one item more.
        m2t_over: as in `rank_all`.
        block: as in `rank_all`.

    Raises:
        EmbeddingError: fewer items than folds, or as in `rank_all`.
    """
    owner = torch.as_tensor(item_of, device=text.device)
    _check(text, media, owner, block)
    if not 1 <= folds <= len(media):
        raise EmbeddingError(f"{len(media)} items cannot make {folds} folds")
    results = []
    start = 0
    for part in np.array_split(np.arange(len(media)), folds):
        end = start + len(part)
        rows = ((owner >= start) & (owner < end)).nonzero().squeeze(1)
        ranks = rank_all(
            text[rows], media[start:end], owner[rows] - start, m2t_over=m2t_over, block=block
        )
        results.append(summarize(ranks))
        start = end
    return {name: float(np.mean([each[name] for each in results])) for name in results[0]}


def text_hits(ranks: Ranks, owner: Ints) -> Floats:
    """Return the hits of each item's captions, and how many these are, [n, 4]."""
    items = len(ranks.media_to_text)
    hits = [np.bincount(owner, weights=ranks.text_to_media < k, minlength=items) for k in RECALLS]
    return np.stack([*hits, np.bincount(owner, minlength=items)], 1).astype(np.float64)


def media_hits(ranks: Ranks) -> Floats:
    """Return the hits of each item, [n, 3]."""
    return np.stack([ranks.media_to_text < k for k in RECALLS], 1).astype(np.float64)


def recalls(text_hits: Any, media_hits: Any, items: int) -> dict[str, float]:
    """Return the recalls in percent and Rsum of summed hits of captions [4] and of items [3]."""
    result = {
        f"t2m_r{k}": 100 * float(hits / text_hits[-1])
        for k, hits in zip(RECALLS, text_hits, strict=False)
    }
    result |= {
        f"m2t_r{k}": 100 * float(hits / items) for k, hits in zip(RECALLS, media_hits, strict=True)
    }
    return _with_rsum(result)


def chance(item_of: Ints | Tensor, *, m2t_over: Over = "captions") -> dict[str, float]:
    """Return the expected recalls, mean ranks and Rsum of a random order of the candidates.

    An item with c of the m captions finds one of them among the first k with probability
    1 - C(m - c, k) / C(m, k), and its best one has the mean rank (m + 1) / (c + 1).

    Args:
        item_of: the item that each caption belongs to, [m].
        m2t_over: as in `rank_all`.
    """
    own = np.bincount(np.asarray(torch.as_tensor(item_of).cpu()))  # [n]
    items, captions = len(own), int(own.sum())
    result = {f"t2m_r{k}": 100 * min(k / items, 1.0) for k in RECALLS}
    result["t2m_mean_rank"] = (items + 1) / 2
    if m2t_over == "items":
        result |= {f"m2t_r{k}": result[f"t2m_r{k}"] for k in RECALLS}
        result["m2t_mean_rank"] = (items + 1) / 2
        return _with_rsum(result)
    missed = np.ones(items)
    for drawn in range(max(RECALLS)):
        left = captions - drawn
        missed *= np.clip(left - own, 0, None) / left if left > 0 else 0.0
        if drawn + 1 in RECALLS:
            result[f"m2t_r{drawn + 1}"] = 100 * float(np.mean(1 - missed))
    result["m2t_mean_rank"] = float(np.mean((captions + 1) / (own + 1)))
    return _with_rsum(result)


def _with_rsum(values: dict[str, float]) -> dict[str, float]:
    ways = ("t2m", "m2t")
    return values | {"rsum": sum(values[f"{way}_r{k}"] for way in ways for k in RECALLS)}
