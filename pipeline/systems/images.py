"""Images with a class: one image tower of any layout (patches, maps, vectors), and a head."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.data import Dataset
from pipeline.places import Place
from pipeline.reading.labelled_images import ImageData, load_images
from pipeline.systems.base import Setup, Sides, System, Tower
from pipeline.systems.config import TowerOptions, TrainConfig
from pipeline.systems.sides import InputNorm, Pooling, head_options, joined_means
from pipeline.systems.taps import TowerTaps
from pipeline.tasks.classification import Classification, class_numbers
from unipt import Outputs, SideClassifier, SideTower, States

DEFAULT_METRICS = ("accuracy", "top5_accuracy", "macro_f1")


class ImageTrainConfig(TrainConfig):
    """How a classifier of images is trained from a cache."""

    data: ImageData
    """The images and their labels."""
    cache: Place
    """Folder of the cache that holds the images' activations, or its URL."""
    taps: tuple[str, ...] | None = None
    """Glob patterns of the taps to train on, the last tap being the anchor; all by default."""
    reduction: float = Field(default=2.0, gt=0)
    """Width of the last tap divided by side width, where side_width is not given."""
    side_width: int | None = Field(default=None, ge=1)
    """Width d of the side network, in features; by default from reduction."""
    out_width: int | None = Field(default=None, ge=1)
    """Width of the side network's output, in features; by default that of the last tap."""
    input_norm: InputNorm = "standard"
    """Scaling of the states: none, per token, or by the training images' statistics."""
    pooling: Pooling = "meanmax"
    """How the features of an image's patches or cells become one vector."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout before the output layer, as a probability."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a class target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss; balanced is inverse to its count."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the cached states, in standard deviations of each feature."""
    patch_drop: float = Field(default=0.0, ge=0, lt=1)
    """Share of an image's patches dropped in a training step."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training images, at most; the best one by dev is kept."""

    @property
    def towers(self) -> dict[str, TowerOptions]:
        """One image tower."""
        return {"image": TowerOptions(self.cache, self.taps, self.noise, self.patch_drop)}


class ImagesSystem(System):
    """One side network over an image's states, and a head."""

    Data = ImageData
    Train = ImageTrainConfig
    Model = SideClassifier
    api = "image_classification"

    def read(self, data: ImageData) -> Dataset:
        """Read the images' files and labels."""
        return load_images(data)

    def towers(self, dataset: Dataset) -> Mapping[str, Tower]:
        """Return one image tower."""
        return {"image": Tower(("image",), ("grid", "map", "vector"))}

    def task(self, dataset: Dataset, config: ImageTrainConfig | None = None) -> Classification:
        """Return the classification."""
        data = dataset.config
        if not isinstance(data, ImageData):
            raise TypeError(f"{type(data).__name__} describes no labelled images")
        labels, counts = dataset.labels or (), None
        if config is not None and config.class_weights == "balanced":
            counts = np.bincount(class_numbers(dataset.split("train")), minlength=len(labels))
        return Classification(
            labels,
            metrics=data.metrics or DEFAULT_METRICS,
            label_smoothing=0.0 if config is None else config.label_smoothing,
            counts=counts,
        )

    def build(self, config: ImageTrainConfig, setup: Setup) -> SideClassifier:
        """Build the side classifier."""
        options = head_options(
            setup.taps["image"],
            preset_name="vse_text",
            side_width=config.side_width,
            reduction=config.reduction,
            out_width=config.out_width,
            input_norm=config.input_norm,
            pooling=config.pooling,
        )
        return SideClassifier(
            tower=SideTower(**options),
            segments=("image",),
            num_outputs=setup.task.num_outputs,
            dropout=config.dropout,
        )

    def sides(self, model: SideClassifier) -> Sequence[Sides]:
        """Return the side tower."""
        return [Sides(model.tower, model.segments)]

    def features(self, towers: Mapping[str, States], taps: Mapping[str, TowerTaps]) -> Outputs:
        """Return the mean of every tap, joined."""
        return joined_means(towers, taps)

    def api_config(self, model: SideClassifier, setup: Setup) -> dict[str, Any]:
        """Return the class names."""
        labels = setup.dataset.labels or ()
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
