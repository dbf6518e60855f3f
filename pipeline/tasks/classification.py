"""Classification of an example into one of several classes: cross-entropy."""

import warnings
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
from pipeline.tasks.linear import LinearProbe
from pipeline.tasks.metrics import CLASSIFICATION, check_metrics
from unipt import Outputs

DEFAULT_METRICS = ("accuracy", "macro_f1", "matthews")
TOP = {"top5_accuracy": 5}
"""Metric -> how many of the most likely classes may be the right one."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values tried of C, the inverse strength of a probe's penalty; strongest first."""


class Classification:
    """Cross-entropy with optional label smoothing and class weights.

    Args:
        labels: class names, in order.
        metrics: what to report; None takes accuracy, macro F1 and Matthews.
        label_smoothing: share of the target spread over all classes, 0 to 1.
        counts: training examples of each class, to weigh a class by n / (classes * its count).

    Raises:
        ConfigError: an unknown metric, or weights and a class without training examples.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        metrics: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        counts: NDArray[Any] | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.metrics = tuple(metrics or DEFAULT_METRICS)
        check_metrics(self.metrics, (*CLASSIFICATION, *TOP))
        self.label_smoothing = label_smoothing
        self.weights = None if counts is None else self._balanced(counts)

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.labels)

    @property
    def facts(self) -> dict[str, Any]:
        """The class names."""
        return {"labels": list(self.labels)}

    def targets(self, examples: Labelled, samples: Mapping[str, Ints]) -> "Classes":
        """Return the class of each example."""
        return Classes(torch.from_numpy(class_numbers(examples)))

    def loss(self, outputs: Outputs, targets: Tensor, now: Moment) -> Tensor:
        """Return the mean cross-entropy of logits [b, C] against classes [b]."""
        logits = outputs.values["logits"].float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        return F.cross_entropy(
            logits, targets.to(logits.device), weight=weights, label_smoothing=self.label_smoothing
        )

    def wanted(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return regression targets of classes [n]: one-hot, centred [n, C], and weights [n]."""
        hot = F.one_hot(targets, self.num_outputs).float()
        weights = None if self.weights is None else self.weights[targets]
        share = hot if weights is None else hot * weights[:, None]
        return hot - share.sum(0) / share.sum(), weights

    def judge(self, outputs: Sequence[Outputs], examples: Labelled) -> PerExample:
        """Return the judgement of logits [n, C]."""
        (found,) = outputs
        logits = found.values["logits"].double()
        targets = None if examples.targets is None else class_numbers(examples)
        probabilities = torch.softmax(logits, 1).numpy()
        predictions = probabilities.argmax(1)
        return PerExample(
            targets=targets,
            predictions=predictions,
            scorers={name: CLASSIFICATION[name] for name in self.metrics if name not in TOP},
            order=self.metrics,
            means={
                name: _among(TOP[name], probabilities, targets)
                for name in self.metrics
                if name in TOP and targets is not None
            },
            described=described(
                examples,
                [None if e.target is None else self.labels[e.target] for e in examples.examples],
                [
                    {
                        "label": self.labels[best],
                        "probabilities": dict(zip(self.labels, row, strict=True)),
                    }
                    for best, row in zip(predictions, probabilities.tolist(), strict=True)
                ],
                found.confidence,
            ),
        )

    def probes(
        self,
        features: Sequence[Outputs],
        examples: Labelled,
        chosen: Mapping[str, Any] | None = None,
    ) -> Iterable[LinearProbe]:
        """Yield logistic regressions of several strengths on standardised features."""
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (slow to import)
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

        balanced = None if self.weights is None else "balanced"
        for strength in STRENGTHS if chosen is None else (chosen["strength"],):
            model = LogisticRegression(C=strength, max_iter=500, class_weight=balanced)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                yield LinearProbe.fit(
                    model, strength, features, class_numbers(examples), self._logits
                )

    def _logits(self, model: Any, rows: NDArray[Any]) -> Tensor:
        found = np.full((len(rows), self.num_outputs), -np.inf)  # a class may have no row
        with np.errstate(divide="ignore"):  # a probability may be 0
            found[:, model[-1].classes_] = model.predict_log_proba(rows)
        return torch.from_numpy(found)

    def _balanced(self, counts: NDArray[Any]) -> Tensor:
        if not counts.all():
            empty = [name for name, count in zip(self.labels, counts, strict=True) if not count]
            raise ConfigError(f"balanced class weights: no training row of {', '.join(empty)}")
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)


class Classes:
    """Class numbers [n] as targets."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def batch(self, index: Tensor) -> Tensor:
        """Return those at these positions."""
        return self.values[index]


def _among(
    count: int, probabilities: NDArray[Any], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return whether each target is among the `count` most likely classes, [n]; no tie helps."""
    own = np.take_along_axis(probabilities, targets[:, None], 1)
    rivals = probabilities.shape[1] - (probabilities < own).sum(1)  # those as likely, and itself
    among: NDArray[np.bool_] = rivals <= count
    return among.astype(np.float64)


def class_numbers(examples: Labelled) -> NDArray[np.int64]:
    """Return the class of each example, [n].

    Raises:
        ConfigError: some are hidden.
    """
    targets = examples.targets
    if targets is None:
        raise ConfigError("these examples have no targets to train on or to compare with")
    return np.asarray(targets, np.int64)
