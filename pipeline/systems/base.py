"""What a system is: towers, a side model, a task. Every stage knows this and never which one.

A system is a file: its data, its options, and how they become examples, a task and a side model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from cache import Cache
from pipeline.data import DataConfig, Dataset, Ints
from pipeline.systems.config import TrainConfig
from pipeline.systems.locate import Located
from pipeline.systems.memo import Memo
from pipeline.systems.taps import Layout, TowerTaps
from pipeline.tasks.base import Task
from unipt import Outputs, SideModel, SideTower, States

__all__ = ["Setup", "Sides", "System", "Tower"]


class Tower(NamedTuple):
    """One frozen network over one kind of input."""

    modalities: tuple[str, ...]
    """What its backbone may read: "text", "image", "video"; the first is the usual one."""
    layouts: tuple[Layout, ...] = ("tokens", "vector")
    """What a text, image or frame may be in its taps."""
    facts: tuple[str, ...] = ()
    """Taps that hold facts of the input which the model passes on, such as "spans"."""


class Sides(NamedTuple):
    """A side tower and the towers whose states it reads."""

    side: SideTower
    towers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """Everything a training reads; nothing in it changes while it runs.

    Attributes:
        system: which one.
        dataset: its examples.
        task: losses and metrics.
        caches: tower -> its cache.
        taps: tower -> the taps that are read.
        splits: name -> its examples, found in the caches.
        device: where the model is.
        memo: what has been read and fitted, for trainings that want the same.
    """

    system: "System"
    dataset: Dataset
    task: Any
    caches: Mapping[str, Cache]
    taps: Mapping[str, TowerTaps]
    splits: Mapping[str, Located]
    device: torch.device
    memo: Memo


class System(ABC):
    """Towers, a side model and a task; the methods are called in the order they stand here."""

    Data: ClassVar[type[DataConfig]]
    """Configuration of its data; the sentences of its fields are its --help."""
    Train: ClassVar[type[TrainConfig]]
    """Configuration of a training, with everything that is its own."""
    Model: ClassVar[type[SideModel]]
    """The side model that `build` makes."""
    api: ClassVar[str]
    """What its exported models answer to: a file of `pipeline/fused/api/`."""
    spread: ClassVar[bool] = False
    """Whether the examples of a batch are each other's negatives: then those that share a sample
    are kept apart, and a last batch that is not full is left out."""

    @abstractmethod
    def read(self, data: Any) -> Dataset:
        """Read the examples that a `Data` describes.

        Raises:
            DataError: files or rows are unusable.
        """

    @abstractmethod
    def towers(self, dataset: Dataset) -> Mapping[str, Tower]:
        """Return the towers that the examples have."""

    @abstractmethod
    def task(self, dataset: Dataset, config: Any | None = None) -> Task:
        """Build the task; `config`, a `Train`, gives the options of its loss.

        Raises:
            ConfigError: a metric or an option does not fit.
        """

    @abstractmethod
    def build(self, config: Any, setup: Setup) -> SideModel:
        """Build the side model with fresh weights from torch's random generator.

        Raises:
            ConfigError: options do not fit each other, the data or the caches.
        """

    @abstractmethod
    def sides(self, model: Any) -> Sequence[Sides]:
        """Return the side towers of a model, whose input statistics are set before training."""

    def fit(self, model: Any, config: Any, setup: Setup) -> None:  # noqa: B027 (most have none)
        """Set what of a fresh model is fitted in closed form, after the input statistics."""

    def finish(self, model: Any, config: Any, setup: Setup) -> tuple[SideModel, dict[str, Any]]:
        """Return what a trained model becomes, and what run.json says of it."""
        return model, {}

    def passes(self, located: Located) -> list[Mapping[str, Ints]]:
        """Return the samples of each inference pass over a split, by tower."""
        return [located.clean]

    @abstractmethod
    def features(self, towers: Mapping[str, States], taps: Mapping[str, TowerTaps]) -> Outputs:
        """Return what probes see of a batch of one pass, given the taps they may read."""

    def api_config(self, model: Any, setup: Setup) -> dict[str, Any]:
        """Return the options of `api` for a trained model, such as its class names."""
        return {}
