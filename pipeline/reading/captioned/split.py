"""Which items are train, dev and test where a data set does not say: a seeded split by group."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import DataError
from pipeline.reading.captioned.gather import Gathered
from pipeline.reading.config import CaptionData
from pipeline.reading.splits import deal

DEV_ITEMS = {"msrvtt": 497}
"""Task -> items that serve as dev, at most: as many as its official validation part has."""

Items = dict[str, list[Gathered]]


def assign(items: Mapping[str, list[Gathered]], config: CaptionData) -> Items:
    """Return the splits "train", "dev" and, where there is one, "test", none of them empty.

    Raises:
        DataError: there are too few groups to split.
    """
    splits = {name: rows for name, rows in items.items() if rows}
    train = splits.get("train", [])
    if "dev" not in splits:
        shares = _shares(len(train), "test" in splits, config)
        names = ("train", "dev", "test")[: len(shares)]
        parts = split_items(train, shares, config.split_seed)
        splits |= {name: part for name, part in zip(names, parts, strict=True) if part}
    missing = [name for name in ("train", "dev") if not splits.get(name)]
    if not train or missing:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items()) or "no items"
        raise DataError(
            f"the split {(missing or ['train'])[0]!r} is empty ({counts}); give a file for it, "
            "other `fractions`, or smaller groups"
        )
    return {name: splits[name] for name in ("train", "dev", "test") if name in splits}


def split_items(
    items: Sequence[Gathered], shares: Sequence[float], seed: int
) -> list[list[Gathered]]:
    """Split `items` by `shares`, groups together, each part in the given order.

    Args:
        items: pictures or clips.
        shares: fractions that sum to 1.
        seed: seed of the permutation of the groups.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(items):
        groups[each.group].append(number)
    parts = deal(list(groups.values()), shares, np.random.default_rng(seed))
    return [[items[number] for number in sorted(part)] for part in parts]


def _shares(items: int, has_test: bool, config: CaptionData) -> tuple[float, ...]:
    if config.task in DEV_ITEMS and items:
        dev = min(DEV_ITEMS[config.task] / items, config.fractions[1])
        return (
            (1 - dev, dev)
            if has_test
            else (1 - dev - config.fractions[2], dev, *config.fractions[2:])
        )
    if not has_test:
        return config.fractions
    dev = config.fractions[1] / (config.fractions[0] + config.fractions[1])
    return (1 - dev, dev)
