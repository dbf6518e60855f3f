"""What trials of a retrieval read, shared by all of a process: data, caches and folds.

Files are read, and inputs found in the caches, once for all trials of equal data, caches and views;
what is fitted before a training is fitted once for all that want the same. The test split is left
out: nothing that chooses ever sees it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.config import ConfigError
from pipeline.retrieval.build import RetrievalSetup, prepare_retrieval
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.fits import Fits

READ = {"data", "text_cache", "media_cache", "views"}
"""Fields that say what is read."""
FIELDS = READ | {"text_taps", "media_taps", "text_drop", "media_drop", "device"}
"""Fields of a run that `prepare_retrieval` looks at."""


class PairSetups:
    """Setups by what they depend on; `folds` and `seed` divide the training items."""

    def __init__(self, folds: int = 0, seed: int = 0) -> None:
        self.folds, self.seed = folds, seed
        self.fits = Fits()
        self._read: dict[str, RetrievalSetup] = {}
        self._whole: dict[str, RetrievalSetup] = {}

    def get(self, config: RetrievalTrainConfig, fold: int = 0) -> RetrievalSetup:
        """Return the setup for choosing: train and dev, or all folds but one and that one.

        Raises:
            ConfigError: there are fewer groups than folds.
        """
        whole = self.whole(config)
        if self.folds:
            return fold_setup(whole, fold, self.folds, self.seed)
        chosen = {name: part for name, part in whole.splits.items() if name != "test"}
        return dataclasses.replace(whole, splits=chosen)

    def whole(self, config: RetrievalTrainConfig) -> RetrievalSetup:
        """Return the setup with every split."""
        key = config.model_dump_json(include=FIELDS)
        if key not in self._whole:
            read = config.model_dump_json(include=READ)
            setup = prepare_retrieval(config, known=self._read.get(read))
            self._read.setdefault(read, setup)
            self._whole[key] = setup
        return self._whole[key]


def fold_setup(setup: RetrievalSetup, fold: int, folds: int, seed: int) -> RetrievalSetup:
    """Return `setup` with the training items but those of `fold` as train, and these as dev.

    Raises:
        ConfigError: there are fewer groups than folds.
    """
    located = setup.splits["train"]
    parts = assign_item_folds(located.split.groups, folds, seed)  # [n]
    splits = {"train": located.only(parts != fold), "dev": located.only(parts == fold)}
    return dataclasses.replace(setup, splits=splits)


def assign_item_folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each item [n]: the items of a group (a concept) in one fold.

    Raises:
        ConfigError: there are fewer groups than folds.
    """
    count = len(set(groups))
    if count < folds:
        raise ConfigError(
            f"{folds} folds of {count} groups of training items; take fewer folds, or a "
            "group_column of smaller groups"
        )
    parts = np.empty(len(groups), np.int64)
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(parts, groups=groups)):
        parts[held] = number
    return parts
