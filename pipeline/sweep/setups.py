"""What trials with a classifier read, shared by all of a process, each opened once.

Trials whose data, cache and taps are equal get one `Setup`, and the loaders of one `Cache` share
its blocks in memory. The test split is left out: nothing that chooses ever sees it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cache import Cache
from pipeline.config import ConfigError
from pipeline.data import Dataset, Example, load_dataset
from pipeline.reading.splits import clusters
from pipeline.tasks import make_task
from pipeline.tasks.base import target_array
from pipeline.training.build import Setup, prepare
from pipeline.training.config import TrainConfig
from pipeline.training.samples import Located

FIELDS = {"data", "cache", "taps", "device", "token_drop"}
"""Fields of a run that `prepare` looks at."""


class Setups:
    """Setups by what they depend on; `folds` and `seed` divide the training rows."""

    def __init__(self, folds: int = 0, seed: int = 0) -> None:
        self.folds, self.seed = folds, seed
        self._datasets: dict[str, Dataset] = {}
        self._caches: dict[str, Cache] = {}
        self._setups: dict[str, Setup] = {}

    @staticmethod
    def key(config: TrainConfig, fold: int = 0) -> str:
        """Return text that is equal for trainings that may share a setup."""
        return f"{config.model_dump_json(include=FIELDS)} {fold}"

    def get(self, config: TrainConfig, fold: int = 0) -> Setup:
        """Return the setup for choosing: train and dev, or all folds but one and that one."""
        key = self.key(config, fold)
        if key not in self._setups:
            setup = self.whole(config)
            self._setups[key] = (
                fold_setup(setup, config, fold, self.folds, self.seed)
                if self.folds
                else _restricted(setup, ("train", "dev"))
            )
        return self._setups[key]

    def whole(self, config: TrainConfig) -> Setup:
        """Return the setup with every split."""
        data, cache = config.data.model_dump_json(), str(config.cache)
        if data not in self._datasets:
            self._datasets[data] = load_dataset(config.data)
        if cache not in self._caches:
            self._caches[cache] = Cache.open(config.cache)
        return prepare(config, dataset=self._datasets[data], cache=self._caches[cache])


def fold_setup(setup: Setup, config: TrainConfig, fold: int, folds: int, seed: int) -> Setup:
    """Return `setup` with the training rows but those of `fold` as train, and these as dev.

    Raises:
        ConfigError: there are fewer different inputs, or groups, than folds.
    """
    located = setup.splits["train"]
    parts = assign_folds(located.examples, folds, seed)  # [n]
    chosen = {"train": np.flatnonzero(parts != fold), "dev": np.flatnonzero(parts == fold)}
    splits = {name: _rows(located, rows) for name, rows in chosen.items()}
    dataset = dataclasses.replace(
        setup.dataset, splits={name: list(part.examples) for name, part in splits.items()}
    )
    task = make_task(
        dataset, label_smoothing=config.label_smoothing, class_weights=config.class_weights
    )
    return dataclasses.replace(setup, dataset=dataset, splits=splits, task=task)


def assign_folds(examples: Sequence[Example], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each example [n]: equal inputs or groups in one, classes spread evenly.

    Raises:
        ConfigError: there are fewer different inputs, or groups, than folds.
    """
    groups = clusters(examples)
    count = len(set(groups))
    if count < folds:
        what = "different inputs; take fewer folds"
        if examples and examples[0].group is not None:
            what = "groups of training rows; take fewer folds, or a group_column of smaller groups"
        raise ConfigError(f"{folds} folds of {count} {what}")
    targets = target_array(examples)
    if targets is None:
        raise ConfigError("cross-validation needs training rows with targets")
    classes = targets if targets.dtype == np.int64 else _bins(targets)
    parts = np.empty(len(examples), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(classes, classes, groups)):
        parts[held] = number
    return parts


def _bins(scores: NDArray[Any], count: int = 5) -> NDArray[np.int64]:
    """Return classes of scores, of about equal size, so that folds get their share of each."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right").astype(np.int64)


def _rows(located: Located, rows: NDArray[np.int64]) -> Located:
    return Located(
        examples=[located.examples[row] for row in rows.tolist()],
        samples=located.samples[rows],
        targets=None if located.targets is None else located.targets[rows],
    )


def _restricted(setup: Setup, names: Sequence[str]) -> Setup:
    """Return `setup` with some of its splits only."""
    splits = {name: part for name, part in setup.splits.items() if name in names}
    return dataclasses.replace(setup, splits=splits)
