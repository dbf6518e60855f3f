"""The linear baseline of retrieval: ridge regression between mean-pooled cached features.

"last" takes each tower's last tap, "all" concatenates every tap; features are standardised on the
training rows. One regression predicts the media features of a caption, another the text features of
an item, and a candidate is ranked by cosine with either prediction or by the sum of both; this
direction and the strengths are chosen on dev.

m captions, n items, D features. Cost: features in float32, m x D and n x D; one eigendecomposition
of a [min(m, D)]^2 matrix in float64 a direction, from which every strength follows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache import Cache, JointLoader, Source
from pipeline.config import ConfigError
from pipeline.retrieval.build import RetrievalSetup, prepare_retrieval
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.evaluate import RetrievalEvaluation, score_embeddings
from pipeline.retrieval.metrics import rank_all, summarize
from pipeline.retrieval.samples import Ints
from pipeline.retrieval.taps import TowerTaps, layout
from pipeline.training.files import write_json
from unipt import segment_mean

logger = logging.getLogger(__name__)

Layers = Literal["last", "all"]
Direction = Literal["text_to_media", "media_to_text", "both"]
STRENGTHS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
"""Values tried of alpha, the weight of the squared coefficients beside the summed squared error."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class RidgeResult:
    """A fitted baseline.

    Attributes:
        layers: "last" or "all".
        direction: what was predicted from what, chosen on dev.
        strengths: the chosen alpha of "text_to_media" and of "media_to_text".
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
    setup = prepare_retrieval(config)
    if "dev" not in setup.splits:
        raise ConfigError("the ridge baseline chooses on the dev split, and there is none")
    features = _features(setup, layers)
    train, dev = features["train"], features["dev"]
    over = setup.dataset.config.m2t_over
    to_media = _Ridge(train.text, train.media[train.owner])
    to_text = _Ridge(train.media[train.owner], train.text)
    models: dict[Direction, _Ridge] = {"text_to_media": to_media, "media_to_text": to_text}
    best: dict[Direction, tuple[float, float]] = {}
    for direction, model in models.items():
        tried = []
        for alpha in STRENGTHS:
            model.choose(alpha)
            tried.append((_rsum(_embeddings(direction, dev, to_media, to_text), dev, over), alpha))
        best[direction] = max(tried)
        model.choose(best[direction][1])
    found = {name: score for name, (score, _) in best.items()}
    found["both"] = _rsum(_embeddings("both", dev, to_media, to_text), dev, over)
    chosen = max(found, key=lambda name: found[name])
    logger.info("ridge, %s: dev rsum %s; chosen %s", layers, found, chosen)
    result = RidgeResult(
        layers=layers,
        direction=chosen,
        strengths={name: alpha for name, (_, alpha) in best.items()},
        features={"text": train.text.shape[1], "media": train.media.shape[1]},
        evaluations={
            split: _evaluate(
                setup, split, layers, _embeddings(chosen, found_in, to_media, to_text), resamples
            )
            for split, found_in in features.items()
            if split != "train"
        },
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / f"ridge_{layers}.json", result.to_dict())
    return result


def pooled_features(cache: Cache, taps: TowerTaps, samples: Ints, names: Sequence[str]) -> Tensor:
    """Return the mean over tokens, patches, cells and frames of each tap, concatenated.

    Args:
        cache: to read, batch by batch.
        taps: of the tower.
        samples: [n].
        names: of the taps to take.

    Returns:
        float32 [n, sum of widths].
    """
    kinds = {tap.name: tap for tap in taps.taps}
    present, where = np.unique(samples, return_inverse=True)
    source = Source(cache=cache, samples=present, taps=tuple(names))
    loader = JointLoader({"it": source}, batch_size=BATCH, seed=0, shuffle=False)
    parts = []
    for batch in loader.epoch(0):
        part = batch.parts["it"]
        pooled = []
        for name in names:
            tap, values = kinds[name], part.states[name].float()
            if layout(tap) == "map":
                values = values.mean((2, 3))
            elif layout(tap) == "grid":
                values = values.mean(1)
            pooled.append(segment_mean(values, part.offsets[tap.axis]) if tap.ragged else values)
        parts.append(torch.cat(pooled, 1))
    return torch.cat(parts)[torch.from_numpy(where)]


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


def _embeddings(
    direction: str, features: _Features, to_media: _Ridge, to_text: _Ridge
) -> tuple[Tensor, Tensor]:
    """Return vectors of captions [m, E] and items [n, E] whose products are the scores."""
    text, media = F.normalize(features.text, dim=1), F.normalize(features.media, dim=1)
    if direction == "text_to_media":
        return to_media.predict(features.text).float(), media.float()
    if direction == "media_to_text":
        return text.float(), to_text.predict(features.media).float()
    joined = torch.cat((to_media.predict(features.text), text), 1)
    return joined.float(), torch.cat((media, to_text.predict(features.media)), 1).float()


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
    return {
        split: _Features(
            found["text"][split],
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
