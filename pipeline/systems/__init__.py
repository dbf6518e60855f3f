"""The registry of systems: which file carries which task.

A system's file is imported when one of its tasks is asked for; adding a system is a file and a
line here.
"""

from functools import cache
from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from pipeline.config import ConfigError
from pipeline.data import DataConfig, Dataset
from pipeline.systems.base import Setup, Sides, System, Tower
from pipeline.systems.config import TrainConfig

__all__ = [
    "DEFAULT_TASK",
    "AnyData",
    "AnyTrain",
    "Setup",
    "Sides",
    "System",
    "Tower",
    "data_config",
    "load_dataset",
    "system_of",
    "tasks",
    "tasks_beside",
    "train_config",
]

DEFAULT_TASK = "classification"
SYSTEMS: dict[str, tuple[str, ...]] = {
    "texts.Texts": (
        *(DEFAULT_TASK, "regression"),
        *("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"),
    ),
    "tagging.TaggingSystem": ("tagging",),
    "images.ImagesSystem": ("image-classification",),
    "two_towers.TwoTowersSystem": ("retrieval", "flickr30k", "coco", "msrvtt", "msvd"),
}
"""File and class of each system -> its tasks."""


def tasks() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(name for names in SYSTEMS.values() for name in names)


def tasks_beside(task: str) -> tuple[str, ...]:
    """Return the tasks that the system of `task` carries, which have the same options."""
    return SYSTEMS[_place_of(task)]


def system_of(task: str) -> System:
    """Return the system that carries a task.

    Raises:
        ConfigError: there is none; the message lists the tasks.
    """
    return _loaded(_place_of(task))


def _place_of(task: str) -> str:
    place = next((place for place, names in SYSTEMS.items() if task in names), None)
    if place is None:
        raise ConfigError(f"unknown task {task!r}; known: {', '.join(tasks())}")
    return place


@cache
def _loaded(place: str) -> System:
    file, _, name = place.partition(".")
    system: System = getattr(import_module(f"{__name__}.{file}"), name)()
    return system


def data_config(values: Any) -> DataConfig:
    """Return the data that a mapping describes, of the class of its task's system.

    Raises:
        ConfigError: values are unknown, missing or unusable.
    """
    if isinstance(values, DataConfig):
        return values
    return system_of(_task_of(values)).Data.build(dict(values))


def train_config(values: Any) -> TrainConfig:
    """Return the training that a mapping describes, of the class of its task's system.

    Raises:
        ConfigError: values are unknown, missing or unusable.
    """
    if isinstance(values, TrainConfig):
        return values
    data = values.get("data", {}) if isinstance(values, dict) else {}
    task = data.task if isinstance(data, DataConfig) else _task_of(data)
    return system_of(task).Train.build(dict(values))


def load_dataset(config: DataConfig) -> Dataset:
    """Read the examples that `config` describes.

    Raises:
        DataError: files or rows are unusable.
    """
    return system_of(config.task).read(config)


def _task_of(values: Any) -> str:
    if not isinstance(values, dict):
        raise ConfigError(f"data must be a mapping of names to values, not {values!r}")
    return str(values.get("task", DEFAULT_TASK))


AnyData = Annotated[SerializeAsAny[DataConfig], BeforeValidator(data_config)]
"""A data set of any system."""
AnyTrain = Annotated[SerializeAsAny[TrainConfig], BeforeValidator(train_config)]
"""A training of any system."""
