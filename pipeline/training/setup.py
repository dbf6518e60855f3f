"""What a training needs before its first step: data, caches, taps, examples, task, device, folds.

Each thing is read once by all trainings that share a `Memo`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from cache import Cache, Loader, Location, Source
from pipeline.config import ConfigError
from pipeline.data import Dataset, Ints
from pipeline.systems import Setup, Tower, system_of
from pipeline.systems.config import TowerOptions, TrainConfig
from pipeline.systems.inference import choose_device
from pipeline.systems.locate import Located, locate, modality_of
from pipeline.systems.memo import Memo
from pipeline.systems.taps import TowerTaps, select

__all__ = [
    "fold_setup",
    "identity",
    "loader_options",
    "make_loader",
    "prepare",
    "with_splits",
]


def prepare(config: TrainConfig, memo: Memo | None = None) -> Setup:
    """Read the data, open the caches and find every example in them.

    Args:
        config: of the training.
        memo: what other trainings of this process have read.

    Raises:
        DataError: the data are unusable, or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ConfigError: the options do not fit the data or the caches.
    """
    memo = memo or Memo()
    system, options = system_of(config.data.task), config.towers
    data = config.data.model_dump_json()
    dataset = memo.get(("data", data), lambda: system.read(config.data), _no_bytes)

    def opened(path: Location) -> Cache:
        return memo.get(("cache", str(path)), lambda: Cache.open(path), _no_bytes)

    caches = {name: opened(each.cache) for name, each in options.items()}
    towers = system.towers(dataset)
    taps = {
        name: select(caches[name], each.taps, f"{each.prefix}taps", towers[name].facts)
        for name, each in options.items()
    }
    for name, each in options.items():
        _check_tower(towers[name], each, taps[name], caches[name])
    if config.max_tokens is not None and not any(each.axis for each in taps.values()):
        raise ConfigError(
            "max_tokens bounds the tokens of a batch, and the caches hold states of fixed shape; "
            "leave it out and set batch_size, or extract without --pool"
        )
    return Setup(
        system=system,
        dataset=dataset,
        task=system.task(dataset, config),
        caches=caches,
        taps=taps,
        splits=_located(config, dataset, caches, towers, memo),
        device=choose_device(config.device),
        memo=memo,
    )


def _located(
    config: TrainConfig,
    dataset: Dataset,
    caches: Mapping[str, Cache],
    towers: Mapping[str, Tower],
    memo: Memo,
) -> dict[str, Located]:
    modalities = {
        name: modality_of(cache, towers[name].modalities[0]) for name, cache in caches.items()
    }
    places = tuple(str(cache.path) for cache in caches.values())
    data = config.data.model_dump_json()

    def find(split: str) -> Located:
        views = config.views if split == "train" else 1
        return memo.get(
            ("located", data, split, places, views),
            lambda: locate(dataset, split, caches, modalities, views=views),
            _no_bytes,
        )

    return {split: find(split) for split in dataset.splits}


def _check_tower(tower: Tower, options: TowerOptions, taps: TowerTaps, cache: Cache) -> None:
    """Refuse a cache of another kind of input, and drops where there is nothing to drop."""
    modality = modality_of(cache, tower.modalities[0])
    if taps.layout not in tower.layouts or modality not in tower.modalities:
        raise ConfigError(
            f"{options.cache} holds {taps.anchor.kind} taps, and this tower reads "
            f"{' or '.join(tower.modalities)} ({', '.join(tower.layouts)}); did two caches change "
            "places?"
        )
    if options.drop and taps.layout != "grid" and taps.axis is None:
        raise ConfigError(
            f"tokens, patches and frames can be dropped, and {options.cache} holds one "
            f"{taps.layout} an input; leave the drop at 0, or extract without --pool"
        )
    if options.drop and taps.layout == "map":
        raise ConfigError("maps have no patches to drop; leave the drop at 0")


def _no_bytes(_: object) -> int:
    return 0


def make_loader(config: TrainConfig, setup: Setup) -> Loader:
    """Return the shuffled loader of the training examples."""
    return Loader(**loader_options(config, setup))


def loader_options(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """Return what the loader of the training examples is made of.

    Trainings for which all of it is equal want the same batches, however else they differ.
    """
    located = setup.splits["train"]
    sources = {
        tower: Source(
            cache=setup.caches[tower],
            samples=found if found.shape[1] > 1 else found[:, 0],
            taps=[tap.name for tap in setup.taps[tower].read],
            views=found.shape[1] > 1,
        )
        for tower, found in located.samples.items()
    }
    return {
        "sources": sources,
        "batch_size": config.batch_size,
        "max_tokens": config.max_tokens,
        "seed": config.batch_seed,
        "tier": config.tier,
        "device": setup.device,
        "spread": setup.system.spread,
        "drop_last": setup.system.spread and len(located) > config.batch_size,
    }


def identity(config: TrainConfig, setup: Setup) -> str:
    """Return what must be equal for a training to be continued, as JSON text."""
    return json.dumps(
        {
            "config": config.model_dump(mode="json", exclude={"out", *config.caches()}),
            "caches": {name: cache.fingerprint.digest for name, cache in setup.caches.items()},
            "taps": {name: taps.names for name, taps in setup.taps.items()},
            "examples": {name: located.digest for name, located in setup.splits.items()},
        },
        sort_keys=True,
    )


def with_splits(setup: Setup, config: TrainConfig, splits: Mapping[str, Located]) -> Setup:
    """Return `setup` with other splits, and the task that their training examples make."""
    examples = {name: located.examples for name, located in splits.items()}
    dataset = dataclasses.replace(setup.dataset, splits=examples)
    task = setup.system.task(dataset, config)
    return dataclasses.replace(setup, dataset=dataset, splits=dict(splits), task=task)


def fold_setup(setup: Setup, config: TrainConfig, fold: int, folds: int, seed: int) -> Setup:
    """Return `setup` with the training examples but those of `fold` as train, and these as dev.

    Raises:
        ConfigError: there are fewer groups than folds, or no targets.
    """
    located = setup.splits["train"]

    def divide() -> dict[str, Located]:
        parts = assign_folds(located, folds, seed)  # [n]
        chosen = {"train": np.flatnonzero(parts != fold), "dev": np.flatnonzero(parts == fold)}
        return {name: located.take(rows) for name, rows in chosen.items()}

    places = tuple(str(cache.path) for cache in setup.caches.values())
    data = config.data.model_dump_json()
    key = ("fold", data, places, config.views, fold, folds, seed)
    return with_splits(setup, config, setup.memo.get(key, divide, _no_bytes))


def assign_folds(located: Located, folds: int, seed: int) -> Ints:
    """Return the fold of each example [n]: equal inputs or groups in one, classes spread evenly.

    Raises:
        ConfigError: there are fewer different inputs, or groups, than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold  # noqa: PLC0415 (slow)

    examples = located.examples
    groups, strata = examples.groups, examples.strata
    count = len(set(groups))
    if count < folds:
        raise ConfigError(
            f"{folds} folds of {count} groups of training examples (equal inputs are one group); "
            "take fewer folds, or a group_column of smaller groups"
        )
    kind = GroupKFold if strata is None else StratifiedGroupKFold
    parts = np.empty(len(examples), np.int64)
    splitter = kind(folds, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(parts, strata, groups)):
        parts[held] = number
    return parts
