"""The configuration of a retrieval training, and the published recipes it can start from."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.places import Place
from pipeline.retrieval.data import RetrievalData
from pipeline.training.config import LoopConfig
from pipeline.training.schedule import Schedule

Recipe = Literal["default", "vse_infinity", "clip4clip"]
InputNorm = Literal["none", "layer", "standard"]
Pooling = Literal["gpo", "mean", "first", "last", "max", "meanmax", "attention"]


def _from_json(value: Any) -> Any:
    """Take a mapping, or JSON text of one (as the command line gives it)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'must be a mapping or a JSON mapping, such as {{"up": "linear"}}: {error}'
        ) from error


Options = Annotated[dict[str, Any], BeforeValidator(_from_json)]

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # arXiv 2011.04305 with the side networks of arXiv 2308.14316: the published code's options
    "vse_infinity": {
        "text_base": "none",
        "media_base": "none",
        "media_noise": 0.0,
        "batch_size": 112,
        "epochs": 25,
        "lr": 5e-4,
        "schedule": "step",
        "step_at": 0.6,
        "warmup": 0.0,
        "weight_decay": 1e-4,
        "clip": 2.0,
        "ema": 0.0,
        "loss": "hinge",
        "margin": 0.2,
        "all_negatives_epochs": 1,
        "mask_positives": False,
        "embed_width": 1024,
        "text_side_width": 512,
        "media_side_width": 512,
        "text_input_norm": "none",
        "media_input_norm": "none",
        "text_pooling": "gpo",
        "media_pooling": "gpo",
        "dropout": 0.0,
    },
    # arXiv 2104.08860 with the side networks of arXiv 2308.14316
    "clip4clip": {
        "text_base": "none",
        "media_base": "none",
        "media_noise": 0.0,
        "batch_size": 128,
        "epochs": 5,
        "lr": 1e-4,
        "schedule": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.2,
        "beta2": 0.98,
        "clip": 1.0,
        "ema": 0.0,
        "loss": "infonce",
        "logit_scale": 100.0,
        "learn_scale": False,
        "mask_positives": False,
        "text_input_norm": "none",
        "media_input_norm": "none",
        "text_pooling": "gpo",
        "media_pooling": "gpo",
        "dropout": 0.0,
    },
}
"""What each recipe changes of the defaults; an option that is given wins over its recipe."""


class RetrievalTrainConfig(LoopConfig):
    """How two side networks are trained from the caches of a text and an image or video tower."""

    recipe: Recipe = "default"
    """Defaults of all other options: default for small data, or a published system's."""
    data: RetrievalData
    """The pictures or clips and their captions."""
    text_cache: Place
    """Folder or URL of the cache that holds the captions' activations."""
    media_cache: Place
    """Folder or URL of the cache that holds the pictures' or clips' activations."""
    text_taps: tuple[str, ...] | None = None
    """Glob patterns of the text taps, the last tap being the anchor; all by default. A single tap
    is anchor and target both: the same side network, given one layer."""
    media_taps: tuple[str, ...] | None = None
    """Glob patterns of the image or video taps, as for the texts."""

    embed_width: int | None = Field(default=None, ge=1)
    """Width of the common space, in features; by default that of a projected (vector) anchor or of
    a text base, else 512."""
    text_side_width: int | None = Field(default=None, ge=1)
    """Width d of the text side network, in features; by default 128 (that of the common
    space beside a projected anchor)."""
    media_side_width: int | None = Field(default=None, ge=1)
    """Width d of the image or video side network, in features; by default 512 (that of the common
    space beside a projected anchor)."""
    text_input_norm: InputNorm = "standard"
    """Scaling of the text states: none, per token, or by the training rows' statistics. Beside a
    projected anchor it is none."""
    media_input_norm: InputNorm = "standard"
    """Scaling of the image or video states; the ConvNet side network knows none and standard."""
    text_pooling: Pooling = "mean"
    """How the features of a text's tokens become one vector."""
    media_pooling: Pooling = "mean"
    """How the features of a picture's (or frame's) patches or cells become one vector."""
    media_side: Literal["auto", "tokens"] = "auto"
    """Side network of feature maps: the ConvNet variant (auto), or the one for tokens over the
    means in the cells of the last map."""
    media_frames: Literal["mean", "sequence"] = "mean"
    """Clips: the mean of the frames' embeddings, or one sequence of all their tokens."""
    text_base: Literal["none", "anchor"] = "anchor"
    """anchor: a text's embedding is the mean of its anchor's tokens, centred and partly whitened,
    plus the side network's vector, and as wide as the anchor: right for sentence encoders and
    little data. Beside a projected anchor, and with another embed_width, there is none."""
    text_side_weight: float = Field(default=0.05, ge=0)
    """Length of the side network's vector that is added to a text's base."""
    text_whitening: float = Field(default=0.25, ge=0, le=1)
    """How far the text base is whitened: 0 leaves it as it is, 1 makes all directions equal."""
    media_base: Literal["none", "memory"] = "memory"
    """memory: a picture's or clip's embedding is a kernel regression from all its layers to the
    text base, remembered as training rows, plus the side network's vector. Without a text base
    there is none."""
    media_side_weight: float = Field(default=0.5, ge=0)
    """Length of the side network's vector that is added to the memory's."""
    memory_keys: int = Field(default=2048, ge=1)
    """Training items that the memory keeps, at most."""
    memory_sharpness: float = Field(default=1.0, gt=0)
    """Inverse square of the width of the memory's kernel, in units of a feature's deviation."""
    memory_penalty: float = Field(default=0.5, gt=0)
    """Weight of the memory's ridge penalty; larger is smoother."""
    head: bool = False
    """Add a LayerNorm and a linear map after the pooling of both towers."""
    text_options: Options = Field(default_factory=dict)
    """Other options of the text side network, by name (see `unipt.SideNetwork`)."""
    media_options: Options = Field(default_factory=dict)
    """Other options of the image or video side network, by name."""

    loss: Literal["infonce", "hinge"] = "infonce"
    """Symmetric InfoNCE, or the triplet hinge loss."""
    logit_scale: float = Field(default=10.0, gt=0)
    """InfoNCE: factor of the cosines (inverse temperature), the start value if it is learnt."""
    learn_scale: bool = False
    """InfoNCE: learn the factor, up to 100."""
    margin: float = Field(default=0.2, ge=0)
    """Hinge: wanted distance between matching and other pairs, in cosine."""
    all_negatives_epochs: int = Field(default=1, ge=0)
    """Hinge: epochs that sum over all negatives; later ones take the hardest, and the first of
    these raises the loss from 0."""
    mask_positives: bool = True
    """Leave pairs out of the negatives that match too: other captions of the same item in a batch,
    equal captions."""

    views: int | None = Field(default=None, ge=1)
    """Cached views of each input to draw from; 1 takes the inputs as they are; by default all that
    the caches have."""
    text_noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the text states, in standard deviations of each feature."""
    media_noise: float = Field(default=2.0, ge=0)
    """Gaussian noise on the image or video states, in standard deviations of each feature: what
    keeps a side network from learning a thousand pairs by heart; less for more data."""
    text_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each text token to be dropped in a training step."""
    media_drop: float = Field(default=0.0, ge=0, lt=1)
    """Share of a grid's patches, or of a clip's frames of vectors, dropped in a training step."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the pooled vector, as a probability."""

    epochs: int = Field(default=60, ge=1)
    """Passes over the training captions, at most; the best one by dev is kept."""
    batch_size: int = Field(default=128, ge=1)
    """Captions (with their items) of one optimizer step."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW, per step."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averaged weights per step, which are then the ones kept; 0 keeps none."""

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return RECIPES.get(values.get("recipe", "default"), {}) | values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.learn_scale and self.loss == "hinge":
            raise ValueError("learn_scale is an option of loss infonce; the hinge has no factor")
        return self
