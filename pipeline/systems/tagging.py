"""Tagged words: one text tower, and a head that tags each token (entities, parts of speech)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from pipeline.data import Dataset
from pipeline.places import Place
from pipeline.reading.tagged import TagData, has_entities, load_tagged
from pipeline.systems.base import Setup, Sides, System, Tower
from pipeline.systems.config import TowerOptions, TrainConfig
from pipeline.systems.sides import InputNorm, head_options
from pipeline.systems.taps import TowerTaps
from pipeline.tasks.linear import FEATURES
from pipeline.tasks.tagging import Tagging
from unipt import Outputs, SideTower, States
from unipt.tagger import SideTagger
from unipt.words import WordPooling


class TagTrainConfig(TrainConfig):
    """How a tagger is trained from a cache of token states."""

    data: TagData
    """The sentences and their tags."""
    cache: Place
    """Folder of the cache that holds the sentences' activations, or its URL."""
    taps: tuple[str, ...] | None = None
    """Glob patterns of the taps to train on, the last tap being the anchor; all by default."""
    preset: Literal["text", "vse_text", "clip_vil"] = "text"
    """Variant of the side network."""
    reduction: float = Field(default=2.0, gt=0)
    """Backbone width divided by side width, where side_width is not given."""
    side_width: int | None = Field(default=None, ge=1)
    """Width d of the side network, in features; by default from reduction."""
    out_width: int | None = Field(default=None, ge=1)
    """Width of the side network's output, in features; by default the backbone's."""
    input_norm: InputNorm | None = None
    """Scaling of the states: none, per token, or by the training rows' statistics; by default the
    preset's."""
    word_pooling: WordPooling = "first"
    """Which tokens speak for a word: its first one, or the mean of all."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout before the output layer, as a probability."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a tag's target that is spread over all tags."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the cached states, in standard deviations of each feature."""
    token_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each token to be dropped in a training step."""

    @property
    def towers(self) -> dict[str, TowerOptions]:
        """One text tower."""
        return {"text": TowerOptions(self.cache, self.taps, self.noise, self.token_drop)}


class TaggingSystem(System):
    """One side network and a head on its token features."""

    Data = TagData
    Train = TagTrainConfig
    Model = SideTagger
    api = "token_classification"

    def read(self, data: TagData) -> Dataset:
        """Read the sentences."""
        return load_tagged(data)

    def towers(self, dataset: Dataset) -> Mapping[str, Tower]:
        """Return one text tower, with the character spans of its tokens."""
        return {"text": Tower(("text",), ("tokens",), ("spans",))}

    def task(self, dataset: Dataset, config: TagTrainConfig | None = None) -> Tagging:
        """Return the tagging."""
        data, labels = _data(dataset), dataset.labels or ()
        options: dict[str, Any] = {}
        if config is not None:
            options = {"pooling": config.word_pooling, "label_smoothing": config.label_smoothing}
        return Tagging(labels, entities=has_entities(labels, data), metrics=data.metrics, **options)

    def build(self, config: TagTrainConfig, setup: Setup) -> SideTagger:
        """Build the tagger."""
        options = head_options(
            setup.taps["text"],
            preset_name=config.preset,
            side_width=config.side_width,
            reduction=config.reduction,
            out_width=config.out_width,
            input_norm=config.input_norm,
            pooling="mean",
        )
        return SideTagger(
            tower=SideTower(**options),
            name="text",
            num_outputs=setup.task.num_outputs,
            dropout=config.dropout,
        )

    def sides(self, model: SideTagger) -> Sequence[Sides]:
        """Return the side tower."""
        return [Sides(model.tower, ("text",))]

    def features(self, towers: Mapping[str, States], taps: Mapping[str, TowerTaps]) -> Outputs:
        """Return the states of all taps of each token, joined, with the spans."""
        given, own = towers["text"], taps["text"]
        values = {
            FEATURES: torch.cat([given.states[name].float() for name in own.names], 1),
            "spans": given.states["spans"],
        }
        return Outputs(values, dict.fromkeys(values, given.offsets[own.axis or ""]))

    def api_config(self, model: SideTagger, setup: Setup) -> dict[str, Any]:
        """Return the tags, which tokens speak for a word, and the windows of a long text."""
        labels, data = setup.dataset.labels or (), _data(setup.dataset)
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
            "word_pooling": setup.task.pooling,
            "max_words": data.max_words,
            "overlap": data.overlap,
        }


def _data(dataset: Dataset) -> TagData:
    if not isinstance(dataset.config, TagData):
        raise TypeError(f"{type(dataset.config).__name__} describes no tagged words")
    return dataset.config
