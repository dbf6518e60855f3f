"""Texts and images or videos in one space: two towers, each with its side network (retrieval)."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.data import Dataset, Ints
from pipeline.places import Place
from pipeline.reading.captioned.dataset import load_captioned
from pipeline.reading.config import CaptionData
from pipeline.systems.base import Setup, Sides, System, Tower
from pipeline.systems.config import SAME, Schedule, TowerOptions, TrainConfig
from pipeline.systems.inference import infer
from pipeline.systems.kernel import MAX_ROWS, fit_kernel, means_of, place, samples_key
from pipeline.systems.locate import Located
from pipeline.systems.sides import InputNorm, frames_of, side_config, tap_means
from pipeline.systems.taps import TowerTaps, width
from pipeline.tasks.ranking import Ranking
from pipeline.tasks.ridge import SENTENCE
from unipt import Outputs, SideTower, States, TwoTowers
from unipt.bases import KernelDirection, WhitenedMean
from unipt.towers import TowerPooling

Recipe = Literal["default", "vse_infinity", "clip4clip"]
Pooling = Literal["gpo", "mean", "first", "last", "max", "meanmax", "attention"]
DEFAULT_EMBED = 512
DEFAULT_SIDE = {"text": 128, "media": 512}


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


class TwoTowersTrainConfig(TrainConfig):
    """How two side networks are trained from the caches of a text and an image or video tower."""

    UNSEARCHED: ClassVar[dict[str, str]] = TrainConfig.UNSEARCHED | {"recipe": SAME}
    INSTEAD: ClassVar[dict[str, str]] = {
        "text_side_width": "text_reduction",
        "media_side_width": "media_reduction",
    }

    recipe: Recipe = "default"
    """Defaults of all other options: default for small data, or a published system's."""
    data: CaptionData
    """The images or videos and their captions."""
    text_cache: Place
    """Folder or URL of the cache that holds the captions' activations."""
    media_cache: Place
    """Folder or URL of the cache that holds the images' or videos' activations."""
    text_taps: tuple[str, ...] | None = None
    """Glob patterns of the text taps, the last tap being the anchor; all by default. A single tap
    is anchor and target both: the same side network, given one layer."""
    media_taps: tuple[str, ...] | None = None
    """Glob patterns of the image or video taps, as for the texts."""

    embed_width: int | None = Field(default=None, ge=1)
    """Width of the common space, in features; by default that of a projected (vector) anchor or of
    a text base, else 512."""
    text_reduction: float | None = Field(default=None, gt=0)
    """Text backbone's width divided by the side width, instead of text_side_width."""
    text_side_width: int | None = Field(default=None, ge=1)
    """Width d of the text side network, in features; by default 128 (that of the common
    space beside a projected anchor)."""
    media_reduction: float | None = Field(default=None, gt=0)
    """Image or video backbone's width divided by the side width, instead of media_side_width."""
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
    """How the features of an image's (or frame's) patches or cells become one vector."""
    media_side: Literal["auto", "tokens"] = "auto"
    """Side network of feature maps: the ConvNet variant (auto), or the one for tokens over the
    means in the cells of the last map."""
    media_frames: Literal["mean", "sequence"] = "mean"
    """Videos: the mean of the frames' embeddings, or one sequence of all their tokens."""
    text_base: Literal["none", "mean"] = "mean"
    """With "mean" a text's embedding is the whitened mean of the last tap's tokens plus the side
    network's vector, and as wide as that tap: right for sentence encoders and little data. Beside a
    projected last tap, and with another embed_width, there is none."""
    text_side_weight: float = Field(default=0.05, ge=0)
    """Length of the side network's vector that is added to a text's base."""
    text_whitening: float = Field(default=0.25, ge=0, le=1)
    """How far a text's mean is whitened: 0 leaves it as it is, 1 makes all directions equal."""
    media_base: Literal["none", "kernel"] = "kernel"
    """With "kernel" an image's or video's embedding is a kernel regression from all its layers to
    the text base, whose keys are training rows, plus the side network's vector. Without a text base
    there is none."""
    media_side_weight: float = Field(default=0.5, ge=0)
    """Length of the side network's vector that is added to the kernel regression's."""
    kernel_keys: int = Field(default=2048, ge=1)
    """Training items that the kernel regression keeps as keys, at most."""
    kernel_gamma: float = Field(default=1.0, gt=0)
    """Inverse square of the kernel's width, in units of a feature's deviation."""
    kernel_ridge: float = Field(default=0.5, gt=0)
    """Weight of the kernel regression's ridge penalty; larger is smoother."""
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

    text_noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the text states, in standard deviations of each feature."""
    media_noise: float = Field(default=2.0, ge=0)
    """Gaussian noise on the image or video states, in standard deviations of each feature: what
    keeps a side network from learning a thousand pairs by heart; less for more data."""
    text_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each text token to be dropped in a training step."""
    media_drop: float = Field(default=0.0, ge=0, lt=1)
    """Share of a grid's patches, or of a video's frames of vectors, dropped in a training step."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the pooled vector, as a probability."""

    epochs: int = Field(default=60, ge=1)
    """Passes over the training captions, at most; the best one by dev is kept."""
    batch_size: int = Field(default=128, ge=1)
    """Captions (with their items) of one optimizer step."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW, per step."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averaged weights per step, which are then the ones kept; 0 keeps none."""

    @property
    def towers(self) -> dict[str, TowerOptions]:
        """The text tower and the media tower."""
        return {
            "text": TowerOptions(
                self.text_cache, self.text_taps, self.text_noise, self.text_drop, "text_"
            ),
            "media": TowerOptions(
                self.media_cache, self.media_taps, self.media_noise, self.media_drop, "media_"
            ),
        }

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return RECIPES.get(values.get("recipe", "default"), {}) | values

    def contradictions(self) -> list[str]:
        """Return what of the loss and the widths does not go together."""
        problems = super().contradictions()
        if self.learn_scale and self.loss == "hinge":
            problems.append("learn_scale is an option of loss infonce; the hinge has no factor")
        for tower in ("text", "media"):
            if getattr(self, f"{tower}_reduction") and getattr(self, f"{tower}_side_width"):
                problems.append(f"give {tower}_reduction or {tower}_side_width, not both")
        return problems


class TwoTowersSystem(System):
    """Two side towers and a contrastive loss."""

    Data = CaptionData
    Train = TwoTowersTrainConfig
    Model = TwoTowers
    api = "retrieval"
    spread = True

    def read(self, data: CaptionData) -> Dataset:
        """Read the captions and find their media files."""
        return load_captioned(data)

    def towers(self, dataset: Dataset) -> Mapping[str, Tower]:
        """Return the text tower and the media tower."""
        media = Tower(("image", "video"), ("grid", "map", "vector"))
        return {"text": Tower(("text",)), "media": media}

    def task(self, dataset: Dataset, config: TwoTowersTrainConfig | None = None) -> Ranking:
        """Return the ranking, by the data set's protocol."""
        data = dataset.config
        if not isinstance(data, CaptionData):
            raise TypeError(f"{type(data).__name__} describes no captions")
        names = ("loss", "margin", "all_negatives_epochs", "mask_positives")
        options = {} if config is None else {name: getattr(config, name) for name in names}
        return Ranking(m2t_over=data.m2t_over, folds=data.folds, **options)

    def build(self, config: TwoTowersTrainConfig, setup: Setup) -> TwoTowers:
        """Build the two towers."""
        anchors = [width(taps.anchor) for taps in setup.taps.values() if taps.vector_anchor]
        bases = _bases(config, setup)
        own = width(setup.taps["text"].anchor) if bases else DEFAULT_EMBED
        embed = config.embed_width or (anchors[0] if anchors else own)
        try:
            return TwoTowers(
                text=_tower(config, setup.taps["text"], "text", embed, bases.get("text", {})),
                media=_tower(config, setup.taps["media"], "media", embed, bases.get("media", {})),
                logit_scale=config.logit_scale,
                learn_scale=config.learn_scale,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the towers cannot be built: {error}") from error

    def sides(self, model: TwoTowers) -> Sequence[Sides]:
        """Return both side towers."""
        return [Sides(model.text, ("text",)), Sides(model.media, ("media",))]

    def fit(self, model: TwoTowers, config: TwoTowersTrainConfig, setup: Setup) -> None:
        """Fit the bases that the towers have."""
        base = model.text.base
        if not isinstance(base, WhitenedMean):
            return
        train = setup.splits["train"]
        texts = np.unique(train.samples["text"][:, 0]).astype(np.int64)
        base.fit(_anchors(setup, texts), config.text_whitening)
        if isinstance(model.media.base, KernelDirection):
            _fit_kernel(model.media.base, model, config, setup)

    def passes(self, located: Located) -> list[Mapping[str, Ints]]:
        """Return the captions, then the items."""
        clean = located.clean
        firsts = located.examples.first_of
        return [{"text": clean["text"]}, {"media": clean["media"][firsts]}]

    def api_config(self, model: TwoTowers, setup: Setup) -> dict[str, Any]:
        """Return the width of the embeddings."""
        return {"width": model.text.out_width}

    def features(self, towers: Mapping[str, States], taps: Mapping[str, TowerTaps]) -> Outputs:
        """Return the means of a tower's taps; of the texts also those of the last tap alone."""
        found = {name: tap_means(each, taps[name]) for name, each in towers.items()}
        if "text" in found:
            found[SENTENCE] = found["text"][:, -width(taps["text"].anchor) :]
        return Outputs(found)


def _bases(config: TwoTowersTrainConfig, setup: Setup) -> dict[str, dict[str, Any]]:
    """Return the towers' base options, none where the anchors or the width speak against them."""
    text = setup.taps["text"]
    projected = any(taps.vector_anchor for taps in setup.taps.values())
    fits = config.embed_width in (None, width(text.anchor))
    if config.text_base == "none" or text.layout != "tokens" or projected or not fits:
        return {}
    found: dict[str, dict[str, Any]] = {
        "text": {"base": "mean", "side_weight": config.text_side_weight}
    }
    if config.media_base == "kernel":
        items = len(np.unique(setup.splits["train"].samples["media"][:, 0]))
        found["media"] = {
            "base": "kernel",
            "side_weight": config.media_side_weight,
            "kernel_keys": min(config.kernel_keys, items),
        }
    return found


def _tower(
    config: TwoTowersTrainConfig, taps: TowerTaps, tower: str, embed: int, base: dict[str, Any]
) -> SideTower:
    chosen: TowerPooling = getattr(config, f"{tower}_pooling")
    pooling: TowerPooling = "none" if taps.vector_anchor else chosen
    doubled = pooling == "meanmax" and not config.head
    given, reduction = (getattr(config, f"{tower}_{x}") for x in ("side_width", "reduction"))
    if reduction:
        given = max(1, round(width(taps.anchor) / reduction))
    frames = frames_of(taps, sequence=config.media_frames == "sequence")
    return SideTower(
        side=side_config(
            taps,
            side_width=given or (embed if taps.vector_anchor else DEFAULT_SIDE[tower]),
            out_width=embed // 2 if doubled else embed,
            tokens="vse_text",
            input_norm=getattr(config, f"{tower}_input_norm"),
            maps_as_tokens=config.media_side == "tokens",
            options=getattr(config, f"{tower}_options"),
        ),
        taps=taps.names,
        axis=taps.axis,
        pooling=pooling,
        frames=frames,
        position="last" if tower == "text" else "first",
        head_width=embed if config.head else 0,
        dropout=config.dropout,
        **base,
    )


def _anchors(setup: Setup, samples: Ints) -> torch.Tensor:
    """Return the means of the text anchors, [n, D]."""
    anchor = TowerTaps(setup.taps["text"].taps[-1:])

    def make() -> torch.Tensor:
        return infer(
            lambda towers: Outputs({"means": tap_means(towers["text"], anchor)}),
            {"text": samples},
            setup.caches,
            {"text": anchor},
            batch_size=64,
            device=torch.device("cpu"),
        ).values["means"]

    key = ("anchors", *place(setup, "text"), samples_key(samples))
    return setup.memo.get(key, make, lambda found: found.nbytes)


def _fit_kernel(
    kernel: KernelDirection, model: TwoTowers, config: TwoTowersTrainConfig, setup: Setup
) -> None:
    """Fit the kernel regression from an item's layers to the mean base of its captions."""
    train = setup.splits["train"]
    media = train.samples["media"][train.examples.first_of]  # [n, V]
    random = np.random.default_rng(config.seed)
    count = max(len(kernel.keys), MAX_ROWS // media.shape[1])
    items = np.sort(random.permutation(len(media))[:count])
    keys = np.sort(random.permutation(len(items))[: len(kernel.keys)])  # of the first view
    wanted = _wanted(model, setup)[torch.from_numpy(items)]
    rows = media[items]
    fit_kernel(
        kernel,
        setup,
        lambda: torch.cat([means_of(setup, model.media, "media", view) for view in rows.T]),
        keys,
        wanted.repeat(media.shape[1], 1),
        key=(*place(setup, "media"), samples_key(rows)),
        gamma=config.kernel_gamma,
        ridge=config.kernel_ridge,
    )


def _wanted(model: TwoTowers, setup: Setup) -> torch.Tensor:
    """Return what each item should be embedded as: the mean direction of its captions, [n, E]."""
    train = setup.splits["train"]
    if model.text.base is None:
        raise ValueError("without a text base there is nothing to map items to")
    text = F.normalize(model.text.base(_anchors(setup, train.samples["text"][:, 0])), dim=1)
    total = torch.zeros(len(train.examples.items), text.shape[1])
    total.index_add_(0, torch.from_numpy(train.examples.item_of), text)
    return F.normalize(total, dim=1)
