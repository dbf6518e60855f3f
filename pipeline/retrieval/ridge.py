"""The linear baseline of retrieval: ridge regression between mean-pooled cached features.

"last" takes each tower's last tap, "all" concatenates every tap; features are standardised on the
training rows. One regression predicts the media features of a caption, another the text features of
an item, a third the mean of the text's last tap as it is (centred only), and a candidate is ranked
by cosine with one of the predictions or by the sum of the first two; this direction and the
strengths are chosen on dev. With `fit_on_dev` the chosen one is fitted anew on train and dev.

m captions, n items, D features. Cost: features in float32, m x D and n x D; one eigendecomposition
of a [min(m, D)]^2 matrix in float64 a direction, from which every strength follows.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.retrieval.build import RetrievalSetup, prepare_retrieval
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.evaluate import RetrievalEvaluation, score_embeddings
from pipeline.retrieval.features import pooled_features
from pipeline.retrieval.metrics import rank_all, summarize
from pipeline.retrieval.taps import width
from pipeline.training.files import write_json

logger = logging.getLogger(__name__)

Layers = Literal["last", "all"]
Direction = Literal["text_to_media", "media_to_text", "media_to_sentence", "both"]
STRENGTHS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
"""Values tried of alpha, the weight of the squared coefficients beside the summed squared error."""


@dataclass(frozen=True, kw_only=True)
class RidgeResult:
    """A fitted baseline.

    Attributes:
        layers: "last" or "all".
        direction: what was predicted from what, chosen on dev.
        strengths: the chosen alpha of each regression.
        features: numbers that a caption and an item are described by.
        evaluations: metrics with intervals, by split.
    """

    layers: Layers
    direction: Direction
    strengths: dict[str, float]
    features: dict[str, int]
    evaluations: dict[str, RetrievalEvaluation]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "layers": self.layers,
            "direction": self.direction,
            "strengths": self.strengths,
            "features": self.features,
            "evaluations": {name: e.to_dict() for name, e in self.evaluations.items()},
        }

    def render(self) -> str:
        """Return a table of each split's metrics."""
        return "\n\n".join(evaluation.render() for evaluation in self.evaluations.values())


@dataclass(frozen=True, eq=False)
class _Features:
    """Standardised features of one split, float64."""

    text: Tensor
    """[m, D_text]."""
    sentence: Tensor
    """The last tap of the texts, centred, [m, D]."""
    media: Tensor
    """[n, D_media]."""
    owner: Tensor
    """[m]."""


def ridge(
    config: RetrievalTrainConfig, layers: Layers = "all", *, resamples: int = 1000
) -> RidgeResult:
    """Fit the baseline on the data and caches of `config`; write `ridge_<layers>.json` there.

    Args:
        config: data, caches, taps and out are used.
        layers: "last" for each tower's last tap, "all" for every tap.
        resamples: bootstrap resamples of an interval.

    Raises:
        DataError: the data are unusable or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ConfigError: there is no dev split to choose on.
    """
    apart = config.model_copy(update={"data": config.data.model_copy(update={"fit_on_dev": False})})
    setup = prepare_retrieval(apart)
    if "dev" not in setup.splits:
        raise ConfigError("the ridge baseline chooses on the dev split, and there is none")
    features = _features(setup, layers)
    chosen, strengths = _choose(features, config.data.m2t_over)
    if config.data.fit_on_dev:
        setup = prepare_retrieval(config)
        features = _features(setup, layers)
    models = _fit(features["train"])
    for name, alpha in strengths.items():
        models[name].choose(alpha)
    train = features["train"]
    result = RidgeResult(
        layers=layers,
        direction=chosen,
        strengths={str(name): alpha for name, alpha in strengths.items()},
        features={"text": train.text.shape[1], "media": train.media.shape[1]},
        evaluations={
            split: _evaluate(setup, split, layers, _embeddings(chosen, found, models), resamples)
            for split, found in features.items()
            if split != "train"
        },
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / f"ridge_{layers}.json", result.to_dict())
    return result


class _Ridge:
    """Ridge regression for every strength from one eigendecomposition.

    Args:
        inputs: centred, [m, D].
        outputs: centred, [m, D'].
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.dual = inputs, len(inputs) < inputs.shape[1]
        gram = inputs @ inputs.T if self.dual else inputs.T @ inputs
        self.values, self.vectors = torch.linalg.eigh(gram)
        self.rotated = self.vectors.T @ (outputs if self.dual else inputs.T @ outputs)
        self.weights = torch.empty(0)

    def choose(self, alpha: float) -> None:
        """Set the strength."""
        scale = 1.0 / (self.values.clamp_min(0.0) + alpha)
        solved = self.vectors @ (scale[:, None] * self.rotated)
        self.weights = self.inputs.T @ solved if self.dual else solved  # [D, D']

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the prediction for inputs [k, D], scaled to length 1, [k, D']."""
        return F.normalize(inputs @ self.weights, dim=1)


def _fit(train: _Features) -> dict[Direction, _Ridge]:
    """Return the regressions of each single direction, their strengths still to be chosen."""
    media = train.media[train.owner]
    return {
        "text_to_media": _Ridge(train.text, media),
        "media_to_text": _Ridge(media, train.text),
        "media_to_sentence": _Ridge(media, train.sentence),
    }


def _choose(
    features: dict[str, _Features], over: Literal["captions", "items"]
) -> tuple[Direction, dict[Direction, float]]:
    """Return the direction and the strengths that are best on dev."""
    models, dev = _fit(features["train"]), features["dev"]
    found: dict[Direction, float] = {}
    strengths: dict[Direction, float] = {}
    for direction, model in models.items():
        tried = []
        for alpha in STRENGTHS:
            model.choose(alpha)
            tried.append((_rsum(_embeddings(direction, dev, models), dev, over), alpha))
        found[direction], strengths[direction] = max(tried)
        model.choose(strengths[direction])
    found["both"] = _rsum(_embeddings("both", dev, models), dev, over)
    chosen = max(found, key=lambda name: found[name])
    logger.info("ridge: dev rsum %s; chosen %s", found, chosen)
    return chosen, strengths


def _embeddings(
    direction: Direction, features: _Features, models: dict[Direction, _Ridge]
) -> tuple[Tensor, Tensor]:
    """Return vectors of captions [m, E] and items [n, E] whose products are the scores."""
    text, media = F.normalize(features.text, dim=1), F.normalize(features.media, dim=1)
    if direction == "text_to_media":
        return models[direction].predict(features.text).float(), media.float()
    if direction == "media_to_text":
        return text.float(), models[direction].predict(features.media).float()
    if direction == "media_to_sentence":
        sentence = F.normalize(features.sentence, dim=1)
        return sentence.float(), models[direction].predict(features.media).float()
    joined = torch.cat((models["text_to_media"].predict(features.text), text), 1)
    wanted = torch.cat((media, models["media_to_text"].predict(features.media)), 1)
    return joined.float(), wanted.float()


def _rsum(
    embeddings: tuple[Tensor, Tensor], features: _Features, over: Literal["captions", "items"]
) -> float:
    return summarize(rank_all(*embeddings, features.owner, m2t_over=over))["rsum"]


def _features(setup: RetrievalSetup, layers: Layers) -> dict[str, _Features]:
    """Return the features of every split, standardised by the training rows."""
    found: dict[str, dict[str, Tensor]] = {}
    for tower, cache in setup.caches.items():
        taps = setup.taps[tower]
        names = taps.names[-1:] if layers == "last" else taps.names
        raw = {
            split: pooled_features(
                cache, taps, (located.text if tower == "text" else located.media)[:, 0], names
            ).double()
            for split, located in setup.splits.items()
        }
        mean, scale = raw["train"].mean(0), raw["train"].std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        found[tower] = {split: (values - mean) / scale for split, values in raw.items()}
        if tower == "text":
            last = width(taps.anchor)
            found["sentence"] = {split: (values - mean)[:, -last:] for split, values in raw.items()}
    return {
        split: _Features(
            found["text"][split],
            found["sentence"][split],
            found["media"][split],
            torch.from_numpy(located.split.item_of),
        )
        for split, located in setup.splits.items()
    }


def _evaluate(
    setup: RetrievalSetup,
    split: str,
    layers: Layers,
    embeddings: tuple[Tensor, Tensor],
    resamples: int,
) -> RetrievalEvaluation:
    located, data = setup.splits[split], setup.dataset.config
    ranks = rank_all(*embeddings, located.split.item_of, m2t_over=data.m2t_over)
    return score_embeddings(
        *embeddings,
        located,
        ranks,
        name=f"ridge, {layers} layer{'s' if layers == 'all' else ''}",
        split=split,
        data=data,
        resamples=resamples,
    )
