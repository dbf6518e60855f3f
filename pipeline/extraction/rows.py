"""Which inputs of a data set a backbone reads: those of the towers whose modality is its own.

Every split is extracted; the rows of "train" get all views. Costs a list of the inputs; no media
file is opened.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import Backbone
from pipeline.backbones.base import Modality
from pipeline.config import ConfigError
from pipeline.data import Dataset
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.table import BadMediaPolicy, Row
from pipeline.inputs import ImageInput, InputError
from pipeline.media.video import CONTAINERS
from pipeline.systems import Tower, load_dataset, system_of


class Rows(NamedTuple):
    """The inputs of an extraction, m rows of its table.

    `inputs` holds (row id, input), `augmented` [m] which rows get all `views`.
    """

    inputs: list[Row]
    augmented: NDArray[np.bool_]
    views: int
    bad_media: BadMediaPolicy


class Source(NamedTuple):
    """The data set of an extraction and the towers that its task has."""

    config: ExtractConfig
    dataset: Dataset
    towers: Mapping[str, Tower]

    @classmethod
    def of(cls, config: ExtractConfig) -> "Source":
        """Read the data set that `config` names."""
        dataset = load_dataset(config.data)
        return cls(config, dataset, system_of(config.data.task).towers(dataset))

    @property
    def usual(self) -> Modality | None:
        """What the towers read, if it is one thing: then a checkpoint of two towers is that one."""
        found = {each for tower in self.towers.values() for each in tower.modalities}
        known: tuple[Modality, ...] = get_args(Modality)
        return next(each for each in known if each in found) if len(found) == 1 else None

    @property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """What the task needs to know of its inputs, by their modality."""
        found = [(each, tower.facts) for tower in self.towers.values() for each in tower.modalities]
        return {modality: facts for modality, facts in found if facts}

    def loader(self) -> Callable[[], Backbone]:
        """Return what loads the backbone, with what the task needs to know of its inputs."""
        return self.config.loader(self.usual, self.facts)

    def rows(self, backbone: Backbone) -> Rows:
        """Return the inputs of the towers that `backbone` serves.

        Raises:
            ConfigError: no tower of the task reads what the backbone reads.
            InputError: the data set holds videos, and the backbone was loaded to read images.
        """
        modality, config = backbone.modality, self.config
        served = [name for name, each in self.towers.items() if modality in each.modalities]
        if not served:
            raise ConfigError(self._unserved(backbone))
        found = [
            (split, *row)
            for split, examples in self.dataset.splits.items()
            for tower in served
            for row in examples.rows(tower, modality)
        ]
        inputs = [(name, given) for _, name, given in found]
        _refuse_videos(inputs, backbone)
        augmented = np.array([split == "train" for split, *_ in found], dtype=np.bool_)
        policy: BadMediaPolicy = "skip" if config.data.skips_missing else "error"
        return Rows(inputs, augmented, config.views, policy)

    def _unserved(self, backbone: Backbone) -> str:
        read = ", ".join(f"{name} ({_either(t.modalities)})" for name, t in self.towers.items())
        return (
            f"{backbone.name} reads {backbone.modality}s, and no tower of the task "
            f"{self.config.data.task!r} does; its towers are: {read}. Give a backbone for one of "
            "them, or another --tower of this one"
        )


def _either(modalities: tuple[str, ...]) -> str:
    return " or ".join(f"{each}s" for each in modalities)


def _refuse_videos(inputs: list[Row], backbone: Backbone) -> None:
    images = (item.path for _, item in inputs if isinstance(item, ImageInput))
    video = next((path for path in images if path.suffix.lower()[1:] in CONTAINERS), None)
    if video is not None:
        raise InputError(
            f"{video.name} is a video, and {backbone.name} was loaded to read images: give "
            "--tower video to read videos frame by frame"
        )
