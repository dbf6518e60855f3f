"""Texts with a class or a score: one tower, or two that read a pair's sentences with one net."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.data import Dataset
from pipeline.places import Place
from pipeline.reading.config import TextData
from pipeline.reading.texts import load_texts
from pipeline.systems.base import Setup, Sides, System, Tower
from pipeline.systems.config import TowerOptions, TrainConfig
from pipeline.systems.kernel import add_kernel
from pipeline.systems.sides import Pooling, head_options, joined_means
from pipeline.tasks.classification import Classification, class_numbers
from pipeline.tasks.regression import Regression, scores_of
from unipt import Outputs, SideClassifier, SideModel, SideTower, States

Preset = Literal["text", "vse_text", "clip_vil"]
"""Presets of `unipt` that take the states of one text encoder."""
NOT_SCORED = (
    "cannot be searched: trials are scored without their memory, which is fitted once they are "
    "trained"
)


class TextTrainConfig(TrainConfig):
    """How one side network is trained from a cache of texts."""

    UNSEARCHED: ClassVar[dict[str, str]] = TrainConfig.UNSEARCHED | dict.fromkeys(
        ("memory_keys", "memory_weight", "memory_sharpness", "memory_penalty"), NOT_SCORED
    )
    INSTEAD: ClassVar[dict[str, str]] = {"side_width": "reduction"}

    data: TextData
    """The examples and their targets."""
    cache: Place
    """Folder of the cache that holds the inputs' activations, or its URL (s3://bucket/name)."""
    taps: tuple[str, ...] | None = None
    """Glob patterns of the taps to train on, the last tap being the anchor; all by default. A
    single tap is anchor and target both: the same side network, given one layer."""
    preset: Preset = "text"
    """Variant of the side network for tokens."""
    reduction: float = Field(default=2.0, gt=0)
    """Backbone width divided by side width, where side_width is not given."""
    side_width: int | None = Field(default=None, ge=1)
    """Width d of the side network, in features; by default from reduction."""
    out_width: int | None = Field(default=None, ge=1)
    """Width of the side network's output, in features; by default the backbone's."""
    input_norm: Literal["none", "layer", "standard"] | None = None
    """Scaling of the states: none, per token, or by the training rows' statistics; by default the
    preset's."""
    pooling: Pooling = "meanmax"
    """How token features become one vector."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout before the output layer, as a probability."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a class target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss; balanced is inverse to its count."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the cached states, in standard deviations of each feature."""
    token_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each token to be dropped in a training step."""
    memory_keys: int = Field(default=0, ge=0)
    """Training rows that a kernel regression keeps, whose outputs are added to the trained side
    network's; 0 for none."""
    memory_weight: float | None = Field(default=None, ge=0)
    """Weight of the memory's outputs, the network's having 1; by default dev's loss decides."""
    memory_sharpness: float = Field(default=0.25, gt=0)
    """Inverse square of the width of the memory's kernel, in units of a feature's deviation."""
    memory_penalty: float = Field(default=0.1, gt=0)
    """Weight of the memory's ridge penalty; larger is smoother."""

    @property
    def towers(self) -> dict[str, TowerOptions]:
        """One tower, or two of one cache for pairs whose sentences are encoded separately."""
        own = TowerOptions(self.cache, self.taps, self.noise, self.token_drop)
        names = ("first", "second") if self.data.separate else ("text",)
        return dict.fromkeys(names, own)

    def contradictions(self) -> list[str]:
        """Return what of the task, the memory and the splits does not go together."""
        problems = super().contradictions()
        smooths = self.label_smoothing or self.class_weights != "none"
        if self.data.scored and smooths:
            problems.append("label_smoothing and class_weights are options of classification")
        if self.data.fit_on_dev and self.memory_keys and self.memory_weight is None:
            problems.append(
                "fit_on_dev leaves no dev split to weigh the memory by; give memory_weight, for "
                "example what run.json says of a run that had one"
            )
        return problems


class Texts(System):
    """One side network and a head that classifies or scores."""

    Data = TextData
    Train = TextTrainConfig
    Model = SideClassifier
    api = "sequence_classification"

    def read(self, data: TextData) -> Dataset:
        """Read the examples."""
        return load_texts(data)

    def towers(self, dataset: Dataset) -> Mapping[str, Tower]:
        """Return one text tower, or two for pairs encoded separately."""
        return dict.fromkeys(dataset.split("train").towers, Tower(("text",)))

    def task(
        self, dataset: Dataset, config: TextTrainConfig | None = None
    ) -> Classification | Regression:
        """Return the classification or the regression that the data ask for."""
        data = dataset.config
        if not isinstance(data, TextData):
            raise TypeError(f"{type(data).__name__} describes no labelled texts")
        metrics = data.metrics or (data.preset.metrics if data.preset else None)
        train = dataset.split("train")
        if dataset.labels is None:
            known = train.targets is not None
            return Regression(scores_of(train).tolist() if known else (), metrics=metrics)
        counts = None
        if config is not None and config.class_weights == "balanced":
            counts = np.bincount(class_numbers(train), minlength=len(dataset.labels))
        smoothing = 0.0 if config is None else config.label_smoothing
        return Classification(
            dataset.labels, metrics=metrics, label_smoothing=smoothing, counts=counts
        )

    def build(self, config: TextTrainConfig, setup: Setup) -> SideClassifier:
        """Build the side classifier."""
        segments = tuple(setup.taps)
        options = head_options(
            setup.taps[segments[0]],
            preset_name=config.preset,
            side_width=config.side_width,
            reduction=config.reduction,
            out_width=config.out_width,
            input_norm=config.input_norm,
            pooling=config.pooling,
        )
        return SideClassifier(
            tower=SideTower(**options),
            segments=segments,
            num_outputs=setup.task.num_outputs,
            dropout=config.dropout,
            units=isinstance(setup.task, Regression),
        )

    def sides(self, model: SideClassifier) -> Sequence[Sides]:
        """Return the side tower, which reads both sentences of a pair."""
        return [Sides(model.tower, model.segments)]

    def fit(self, model: SideClassifier, config: Any, setup: Setup) -> None:
        """Give a regression's outputs the units of the training targets."""
        if isinstance(setup.task, Regression):
            model.scale.fill_(setup.task.deviation)
            model.shift.fill_(setup.task.mean)

    def finish(
        self, model: SideClassifier, config: TextTrainConfig, setup: Setup
    ) -> tuple[SideModel, dict[str, Any]]:
        """Add the kernel regression that the configuration asks for."""
        if not config.memory_keys:
            return model, {"memory_weight": None}
        whole, weight = add_kernel(
            model,
            setup,
            keys=config.memory_keys,
            weight=config.memory_weight,
            gamma=config.memory_sharpness,
            ridge=config.memory_penalty,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        return whole, {"memory_weight": weight}

    def features(self, towers: Mapping[str, States], taps: Mapping[str, Any]) -> Outputs:
        """Return the mean of every tap, joined; of a pair the two compared."""
        return joined_means(towers, taps)

    def api_config(self, model: SideClassifier, setup: Setup) -> dict[str, Any]:
        """Return the class names (a regression has one, "score") and how texts are given."""
        labels = setup.dataset.labels
        names = labels or ("score",)
        first = setup.dataset.split("train").examples[0].inputs[0]
        return {
            "segments": list(model.segments),
            "pairs": first.pair is not None,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "single_label_classification" if labels else "regression",
        }
