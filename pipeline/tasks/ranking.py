"""Ranking between two towers: contrastive losses, recalls both ways, ridge regression as probe.

m captions, n items (images or videos), E width of the embeddings. Cost of a judgement: the ranking
of `pipeline.tasks.ranks`, once; a resample costs two sums over the items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data import Ints
from pipeline.reading.captioned.dataset import Captioned
from pipeline.tasks.base import Moment
from pipeline.tasks.ranks import (
    Over,
    Ranks,
    folded,
    media_hits,
    rank_all,
    recalls,
    summarize,
    text_hits,
)
from pipeline.tasks.ridge import RidgeProbe, ridge_probes
from unipt import Outputs, contrastive_loss, hinge_loss

METRIC = "rsum"
Loss = Literal["infonce", "hinge"]


class Matching(NamedTuple):
    """Which pairs of a batch match though they were not drawn together."""

    ignore: Tensor | None
    """Items (rows) and captions (columns), ``[b, b]``; None leaves none out of the negatives."""


class Ranking:
    """Captions and items in one space: symmetric InfoNCE, or the triplet hinge loss.

    Args:
        loss: "infonce" or "hinge".
        margin: of the hinge: wanted distance between matching and other pairs, in cosine.
        all_negatives_epochs: of the hinge: epochs that sum over all negatives; later ones take the
            hardest, and the loss of the first of these grows from 0 (VSE-infinity's schedule).
        mask_positives: leave pairs that match too out of the negatives.
        m2t_over: what an item ranks: every caption, or each item by its best caption.
        folds: equal runs of the items whose metrics are averaged besides those of all.
    """

    metrics: tuple[str, ...] = (METRIC,)

    def __init__(
        self,
        *,
        loss: Loss = "infonce",
        margin: float = 0.2,
        all_negatives_epochs: int = 1,
        mask_positives: bool = True,
        m2t_over: Over = "captions",
        folds: int = 1,
    ) -> None:
        self.kind, self.margin, self.all_negatives_epochs = loss, margin, all_negatives_epochs
        self.mask_positives, self.m2t_over, self.folds = mask_positives, m2t_over, folds

    @property
    def facts(self) -> dict[str, Any]:
        """There are no classes."""
        return {}

    def targets(self, examples: Captioned, samples: Mapping[str, Ints]) -> "Pairs":
        """Return which captions and items are of equal content."""
        return Pairs(samples["text"], samples["media"], wanted=self.mask_positives)

    def loss(self, outputs: Outputs, targets: Matching, now: Moment) -> Tensor:
        """Return the loss of embeddings "text" and "media", [b, E] each."""
        text, media = outputs.values["text"].float(), outputs.values["media"].float()
        ignore = None if targets.ignore is None else targets.ignore.to(text.device)
        if self.kind == "infonce":
            return contrastive_loss(media, text, outputs.scalars["scale"], ignore=ignore)
        early = now.epoch < self.all_negatives_epochs
        loss = hinge_loss(
            media,
            text,
            margin=self.margin,
            negatives="all" if early else "hardest",
            ignore=ignore,
        )
        ramp = self.all_negatives_epochs and now.epoch == self.all_negatives_epochs
        return loss * (now.batch / now.batches) if ramp else loss

    def judge(self, outputs: Sequence[Outputs], examples: Captioned) -> "RankedSplit":
        """Return the judgement of the captions' and the items' embeddings, [m, E] and [n, E]."""
        text, media = outputs
        return RankedSplit(
            examples=examples,
            text=text,
            media=media,
            ranks=rank_all(
                text.values["text"].float(),
                media.values["media"].float(),
                examples.item_of,
                m2t_over=self.m2t_over,
            ),
            m2t_over=self.m2t_over,
            folds=self.folds,
        )

    def probes(
        self,
        features: Sequence[Outputs],
        examples: Captioned,
        chosen: Mapping[str, Any] | None = None,
    ) -> Iterable[RidgeProbe]:
        """Yield ridge regressions between the towers' features, of several strengths."""
        return ridge_probes(features, examples.item_of, chosen)


class Pairs:
    """The samples of each caption and of its item, [m] each."""

    def __init__(self, text: Ints, media: Ints, *, wanted: bool) -> None:
        self.text, self.media = torch.from_numpy(text), torch.from_numpy(media)
        self.wanted = wanted

    def batch(self, index: Tensor) -> Matching:
        """Return which pairs of a batch match."""
        if not self.wanted:
            return Matching(None)
        item, text = self.media[index], self.text[index]
        return Matching((item[:, None] == item) | (text[:, None] == text))


@dataclass(frozen=True, eq=False)
class RankedSplit:
    """The ranks of a split; its units are the items, each with all its captions."""

    examples: Captioned
    text: Outputs
    media: Outputs
    ranks: Ranks
    m2t_over: Over
    folds: int
    unit: str = "items"
    digits: int = 1

    def __len__(self) -> int:
        return len(self.examples.items)

    @cached_property
    def _hits(self) -> tuple[Any, Any]:
        return text_hits(self.ranks, self.examples.item_of), media_hits(self.ranks)

    def metrics(self, units: Ints | None = None) -> dict[str, float]:
        """Return Rsum and the recalls both ways, in percent.

        An item keeps its rank among all candidates: an interval speaks of other queries to the
        same collection.
        """
        texts, items = self._hits
        count = len(items)
        times = np.ones(count) if units is None else np.bincount(units, minlength=count)
        found = recalls(times @ texts, times @ items, int(times.sum()))
        return {METRIC: found[METRIC]} | found

    def extras(self) -> dict[str, float]:
        """Return median and mean ranks from 1, and every figure averaged over the folds."""
        found = {k: v for k, v in summarize(self.ranks).items() if k.endswith("_rank")}
        if self.folds > 1:
            parts = folded(
                self.text.values["text"],
                self.media.values["media"],
                self.examples.item_of,
                self.folds,
                m2t_over=self.m2t_over,
            )
            found |= {f"mean_of_{self.folds}_folds_{name}": value for name, value in parts.items()}
        return found

    def records(self) -> dict[str, Iterable[dict[str, Any]]]:
        """Return one record a caption and one an item: its rank from 1, each layer's confidence."""
        names = [item.id for item in self.examples.items]
        owners = [names[place] for place in self.examples.item_of.tolist()]
        captions = zip(
            self.examples.captions, owners, self.ranks.text_to_media.tolist(), strict=True
        )
        texts = [{"id": each.id, "item": item, "rank": rank + 1} for each, item, rank in captions]
        found = zip(names, self.ranks.media_to_text.tolist(), strict=True)
        items = [{"id": name, "rank": rank + 1} for name, rank in found]
        return {
            "predictions": _trusted(texts, self.text, "text"),
            "items": _trusted(items, self.media, "media"),
        }


def _trusted(records: list[dict[str, Any]], found: Outputs, tower: str) -> list[dict[str, Any]]:
    """Return records with the confidence of each layer, where there is one."""
    if tower not in found.confidence:
        return records
    layers = found.confidence[tower].tolist()
    return [one | {"confidence": row} for one, row in zip(records, layers, strict=True)]
