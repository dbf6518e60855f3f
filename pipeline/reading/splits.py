"""What serves as train, dev and test: explicit files, GLUE's rule, or a seeded split.

A seeded split is stratified by class, and examples of equal text or group go to one split together,
so nothing leaks. Cost: one pass and one permutation a class.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data import DataConfig, Example, clusters
from pipeline.errors import DataError
from pipeline.reading.glue import SplitRule

logger = logging.getLogger(__name__)

LARGE_TASK_DEV = 1000
"""Training rows that serve as dev for QQP, QNLI and SST-2."""

Splits = dict[str, list[Example]]


def assign_splits(
    rows: Mapping[str, list[Example]], config: DataConfig, rule: SplitRule | None = None
) -> Splits:
    """Return the splits "train", "dev" and, where there is one, "test".

    Args:
        rows: the examples of each file or part of a folder, by its name.
        config: which files there are, and the shares and the seed of a split.
        rule: what serves as dev and test where a published task hides its test labels.

    Raises:
        DataError: a split that must not be empty is empty.
    """
    splits = _assign(dict(rows), config, rule)
    splits = {name: _renamed(name, examples) for name, examples in splits.items()}
    for name in ("train", "dev"):
        if not splits.get(name):
            raise DataError(
                f"the split {name!r} is empty ({_counts(splits)}); give a file for it, or other "
                "`fractions`"
            )
    _warn_of_leaks(splits)
    return splits


def _assign(rows: Splits, config: DataConfig, rule: SplitRule | None) -> Splits:
    train = rows["train"]
    dev = rows.get("dev") or rows.get("validation") or rows.get("validation_mismatched")
    test = rows.get("test")
    if test and (config.test is not None or _labelled(test)):
        return _with_test(train, dev, test, config)
    if dev and rule is not None and config.dev is None:
        return _by_rule(rule, rows, dev, config.split_seed)
    if dev:
        return {"train": train, "dev": dev}
    parts = split_examples(train, config.fractions, config.split_seed)
    return {name: part for name, part in zip(("train", "dev", "test"), parts, strict=True) if part}


def _by_rule(rule: SplitRule, rows: Splits, dev: list[Example], seed: int) -> Splits:
    """Apply GLUE's rule to a folder whose test labels are hidden."""
    train = rows["train"]
    if rule == "mnli":
        return {"train": train, "dev": dev, "test": rows.get("validation_matched", [])}
    if rule == "halves":
        first, second = split_examples(dev, (0.5, 0.5), seed)
        return {"train": train, "dev": first, "test": second}
    share = min(LARGE_TASK_DEV / len(train), 0.5)
    kept, held = split_examples(train, (1 - share, share), seed)
    return {"train": kept, "dev": held, "test": dev}


def _with_test(
    train: list[Example], dev: list[Example] | None, test: list[Example], config: DataConfig
) -> Splits:
    """Keep `test`; split dev off the training rows if there is none."""
    if not dev:
        share = config.fractions[1] / (config.fractions[0] + config.fractions[1])
        train, dev = split_examples(train, (1 - share, share), config.split_seed)
    return {"train": train, "dev": dev, "test": test}


def split_examples(
    examples: Sequence[Example], shares: Sequence[float], seed: int
) -> list[list[Example]]:
    """Split `examples` by `shares`, stratified by class, clusters together, in file order.

    Args:
        examples: rows with targets; float targets are not stratified.
        shares: fractions that sum to 1.
        seed: seed of the permutation.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(clusters(examples)):
        groups[cluster].append(index)
    classes: dict[object, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        target = examples[members[0]].target
        classes[target if isinstance(target, int) else None].append(members)
    random = np.random.default_rng(seed)
    chosen: list[list[int]] = [[] for _ in shares]
    for name in sorted(classes, key=str):
        for number, members in enumerate(deal(classes[name], shares, random)):
            chosen[number] += members
    return [[examples[index] for index in sorted(part)] for part in chosen]


def deal(
    groups: list[list[int]], shares: Sequence[float], random: np.random.Generator
) -> list[list[int]]:
    """Deal shuffled groups out so that the parts' sizes come closest to `shares`."""
    edges = np.cumsum(shares) * sum(map(len, groups))
    parts: list[list[int]] = [[] for _ in shares]
    count = 0
    for position in random.permutation(len(groups)):
        members = groups[position]
        middle = count + len(members) / 2
        part = min(int(np.searchsorted(edges, middle, side="right")), len(shares) - 1)
        parts[part] += members
        count += len(members)
    return parts


def _labelled(examples: list[Example] | None) -> bool:
    return bool(examples) and all(example.target is not None for example in examples or ())


def _renamed(split: str, examples: list[Example]) -> list[Example]:
    return [example._replace(id=f"{split}/{example.id.partition('/')[2]}") for example in examples]


def _counts(splits: Splits) -> str:
    return ", ".join(f"{name} {len(examples)}" for name, examples in splits.items())


def _warn_of_leaks(splits: Splits) -> None:
    train = {example.inputs for example in splits["train"]}
    groups = {example.group for example in splits["train"]} - {None}
    for name in ("dev", "test"):
        rows = splits.get(name, ())
        shared = sum(example.inputs in train for example in rows)
        if shared:
            logger.warning("%d %s example(s) are in the training rows too", shared, name)
        near = sum(example.group in groups for example in rows)
        if near:
            logger.warning("%d %s example(s) share a group with training rows", near, name)
