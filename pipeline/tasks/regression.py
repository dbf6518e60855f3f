"""Regression to one score: squared error in units of the training targets' deviation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.data import Ints, Labelled
from pipeline.tasks.base import Moment, PerExample, described
from pipeline.tasks.classification import Classes
from pipeline.tasks.linear import LinearProbe
from pipeline.tasks.metrics import REGRESSION, check_metrics
from unipt import Outputs

DEFAULT_METRICS = ("pearson", "spearman", "mse", "mae")
STRENGTHS = (1e5, 1e4, 1e3, 1e2, 1e1)
"""Values tried of alpha, the strength of a probe's penalty; strongest first."""


class Regression:
    """Mean squared error of outputs in the target's units, over the training targets' variance.

    Args:
        scores: targets of the training examples, for their mean and deviation.
        metrics: what to report; None takes Pearson, Spearman, MSE and MAE.

    Raises:
        ConfigError: an unknown metric.
    """

    num_outputs = 1

    def __init__(self, scores: Sequence[float], *, metrics: Sequence[str] | None = None) -> None:
        self.metrics = tuple(metrics or DEFAULT_METRICS)
        check_metrics(self.metrics, REGRESSION)
        values = np.asarray(scores, np.float64)
        self.mean = float(values.mean()) if len(values) else 0.0
        self.deviation = (float(values.std()) if len(values) else 0.0) or 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """There are no classes."""
        return {"labels": None}

    def targets(self, examples: Labelled, samples: Mapping[str, Ints]) -> Classes:
        """Return the score of each example."""
        return Classes(torch.from_numpy(scores_of(examples)))

    def loss(self, outputs: Outputs, targets: Tensor, now: Moment) -> Tensor:
        """Return the mean squared error of outputs [b, 1] against scores [b]."""
        found = outputs.values["logits"].float().squeeze(1)
        wanted = (targets - self.mean) / self.deviation
        return F.mse_loss((found - self.mean) / self.deviation, wanted.float().to(found.device))

    def wanted(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the standardised scores, [n, 1]."""
        return ((targets - self.mean) / self.deviation).float()[:, None], None

    def judge(self, outputs: Sequence[Outputs], examples: Labelled) -> PerExample:
        """Return the judgement of outputs [n, 1]."""
        (found,) = outputs
        predictions = found.values["logits"][:, 0].double().numpy()
        return PerExample(
            targets=None if examples.targets is None else scores_of(examples),
            predictions=predictions,
            scorers={name: REGRESSION[name] for name in self.metrics},
            described=described(
                examples,
                [example.target for example in examples.examples],
                [{"score": float(value)} for value in predictions],
                found.confidence,
            ),
        )

    def probes(
        self,
        features: Sequence[Outputs],
        examples: Labelled,
        chosen: Mapping[str, Any] | None = None,
    ) -> Iterable[LinearProbe]:
        """Yield ridge regressions of several strengths on standardised features."""
        from sklearn.linear_model import Ridge  # noqa: PLC0415 (slow to import)

        for strength in STRENGTHS if chosen is None else (chosen["strength"],):
            model = Ridge(alpha=strength)
            yield LinearProbe.fit(model, strength, features, scores_of(examples), _scores)


def _scores(model: Any, rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(model.predict(rows)))[:, None]


def scores_of(examples: Labelled) -> NDArray[np.float64]:
    """Return the score of each example, [n].

    Raises:
        ConfigError: some are hidden.
    """
    targets = examples.targets
    if targets is None:
        raise ConfigError("these examples have no targets to train on or to compare with")
    return np.asarray(targets, np.float64)
