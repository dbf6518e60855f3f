"""Probes: scikit-learn models on mean-pooled cached features, what a side network must beat.

"last" takes the last tap, "all" concatenates every tap. A logistic regression (classification) or
ridge regression on standardised features; its strength is chosen on dev. With `fit_on_dev` the
chosen one is fitted anew on train and dev. Memory: n examples x taps x width in float32, pooled
batch by batch; the states themselves are never held.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cache import Cache, Loader
from pipeline.config import ConfigError
from pipeline.evaluate import Evaluation
from pipeline.tasks.metrics import Interval, better, bootstrap, score
from pipeline.training.build import Setup, prepare
from pipeline.training.config import TrainConfig
from pipeline.training.files import write_json
from unipt import segment_mean

logger = logging.getLogger(__name__)

Layers = Literal["last", "all"]
Features = NDArray[np.float32]
STRENGTHS = {
    "classification": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "regression": (1e5, 1e4, 1e3, 1e2, 1e1),
}
"""Values tried: C of the logistic regression, alpha of the ridge regression; strongest first."""
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A fitted probe.

    Attributes:
        layers: "last" or "all".
        strength: the chosen C or alpha.
        features: numbers an example is described by.
        evaluations: metrics with intervals, by split.
    """

    layers: Layers
    strength: float
    features: int
    evaluations: dict[str, Evaluation]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "layers": self.layers,
            "strength": self.strength,
            "features": self.features,
            "evaluations": {name: e.to_dict() for name, e in self.evaluations.items()},
        }

    def render(self) -> str:
        """Return a table of each split's metrics."""
        return "\n\n".join(evaluation.render() for evaluation in self.evaluations.values())


def probe(config: TrainConfig, layers: Layers = "all", *, resamples: int = 1000) -> ProbeResult:
    """Train a probe on the data and cache of `config`; write `probe_<layers>.json` into its out.

    Args:
        config: data, cache, taps, class weights, seed and out are used.
        layers: "last" for the last tap, "all" for every tap.
        resamples: bootstrap resamples of an interval.

    Raises:
        DataError: the data are unusable or not in the cache.
        CacheError: the cache is missing, incomplete or damaged.
    """
    apart = config.model_copy(update={"data": config.data.model_copy(update={"fit_on_dev": False})})
    setup = prepare(apart)
    taps = setup.tap_names[-1:] if layers == "last" else setup.tap_names
    features = {
        split: pooled_features(setup.cache, located.samples, taps)
        for split, located in setup.splits.items()
    }
    strength, model = _choose(config, setup, features)
    if config.data.fit_on_dev:
        train, dev = features["train"], features.pop("dev")
        features["train"] = np.concatenate([train, dev])  # the order in which `prepare` joins them
        setup = prepare(config)
        model = _fit(config, setup, features["train"], strength)
    evaluations = {
        split: _evaluate(setup, split, layers, model.predict(features[split]), resamples)
        for split in setup.splits
        if split != "train" and setup.splits[split].targets is not None
    }
    result = ProbeResult(
        layers=layers,
        strength=strength,
        features=features["train"].shape[1],
        evaluations=evaluations,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / f"probe_{layers}.json", result.to_dict())
    return result


def pooled_features(cache: Cache, samples: NDArray[np.int64], taps: Sequence[str]) -> Features:
    """Return the mean over tokens of each tap, concatenated.

    Args:
        cache: to read, batch by batch.
        samples: [n], or [n, 2] for pairs, which give (u, v, |u - v|, u * v).
        taps: names, of one width D.

    Returns:
        [n, taps * D], or [n, 4 * taps * D] for pairs.
    """
    loader = Loader(cache, samples, taps=taps, batch_size=BATCH, seed=0, shuffle=False)
    parts = []
    for batch in loader.epoch(0):
        pooled = torch.cat(
            [segment_mean(states.float(), batch.offsets) for states in batch.values], dim=1
        )  # [S * b, taps * D]
        if samples.ndim == 2:
            u, v = pooled.chunk(2)
            pooled = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
        parts.append(pooled.numpy())
    return np.concatenate(parts)


def _choose(config: TrainConfig, setup: Setup, features: dict[str, Features]) -> tuple[float, Any]:
    """Fit one model for each strength on train; return the one that is best on dev."""
    kind, metric = setup.task.kind, setup.task.metrics[0]
    dev = _targets(setup, "dev")
    best: tuple[float, float, Any] | None = None
    for strength in STRENGTHS[kind]:
        model = _fit(config, setup, features["train"], strength)
        value = score(kind, (metric,), dev, model.predict(features["dev"]))[metric]
        logger.info("probe strength %g: dev %s %.4f", strength, metric, value)
        if best is None or better(metric, value, best[1]):
            best = strength, value, model
    assert best is not None  # there is at least one strength
    return best[0], best[2]


def _fit(config: TrainConfig, setup: Setup, features: Features, strength: float) -> Any:
    """Fit a model on standardised features and the targets of train."""
    model: Any = Ridge(alpha=strength)
    if setup.task.kind == "classification":
        weights = "balanced" if config.class_weights == "balanced" else None
        model = LogisticRegression(C=strength, max_iter=500, class_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), model).fit(features, _targets(setup, "train"))


def _targets(setup: Setup, split: str) -> NDArray[Any]:
    targets = setup.splits[split].targets
    if targets is None:
        raise ConfigError(f"a probe needs targets on train and dev, and {split} has none")
    return targets


def _evaluate(
    setup: Setup, split: str, layers: Layers, predictions: NDArray[Any], resamples: int
) -> Evaluation:
    targets = setup.splits[split].targets
    metrics: dict[str, Interval] = {}
    if targets is not None:
        kind, names = setup.task.kind, setup.task.metrics
        metrics = bootstrap(kind, names, targets, predictions, resamples=resamples)
    return Evaluation(
        name=f"probe, {layers} layer{'s' if layers == 'all' else ''}",
        split=split,
        examples=len(setup.splits[split].examples),
        metrics=metrics,
        level=0.95,
        predictions=None,
    )
