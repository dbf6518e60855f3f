"""Classification of one sentence or a pair: cross-entropy over two or more classes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.data import Dataset
from pipeline.tasks.base import register, target_array

DEFAULT_METRICS = ("accuracy", "macro_f1", "matthews")


@register("classification")
class Classification:
    """Cross-entropy with optional label smoothing and class weights.

    Args:
        dataset: gives the class names, and the class counts of its training rows.
        metrics: what to report; None takes accuracy, macro F1 and Matthews.
        label_smoothing: share of the target spread over all classes, 0 to 1.
        class_weights: "none", or "balanced" for weights n / (classes * count of the class).

    Raises:
        ValueError: balanced weights, and a class without training rows.
    """

    kind = "classification"

    def __init__(
        self,
        dataset: Dataset,
        *,
        metrics: tuple[str, ...] | None = None,
        label_smoothing: float = 0.0,
        class_weights: str = "none",
    ) -> None:
        self.labels: tuple[str, ...] | None = dataset.labels
        self.names = dataset.labels or ()
        self.metrics = metrics or DEFAULT_METRICS
        self.label_smoothing = label_smoothing
        self.weights = _balanced(dataset) if class_weights == "balanced" else None

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.names)

    @property
    def unscale(self) -> tuple[float, float]:
        """Logits are trained as they are."""
        return 1.0, 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits [B, C] against classes [B]."""
        weights = None if self.weights is None else self.weights.to(outputs.device)
        return F.cross_entropy(
            outputs.float(), targets, weight=weights, label_smoothing=self.label_smoothing
        )

    def aims(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return classes [n] one-hot without their (weighted) mean [n, C], and weights [n]."""
        hot = F.one_hot(targets, self.num_outputs).float()
        weights = None if self.weights is None else self.weights[targets]
        share = hot if weights is None else hot * weights[:, None]
        return hot - share.sum(0) / share.sum(), weights

    def decode(self, outputs: NDArray[np.float32]) -> NDArray[Any]:
        """Return the most likely class of each row, [n]."""
        classes: NDArray[np.int64] = outputs.argmax(axis=1)
        return classes

    def describe(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return label and probabilities of each row."""
        probabilities = torch.softmax(torch.from_numpy(outputs).double(), dim=1).numpy()
        return [
            {
                "label": self.names[int(row.argmax())],
                "probabilities": dict(zip(self.names, map(float, row), strict=True)),
            }
            for row in probabilities
        ]


def _balanced(dataset: Dataset) -> Tensor:
    targets = target_array(dataset.examples("train"))
    names = dataset.labels or ()
    counts = np.bincount(
        np.zeros(0, np.int64) if targets is None else targets, minlength=len(names)
    )
    if not counts.all():
        empty = [name for name, count in zip(names, counts, strict=True) if not count]
        raise ConfigError(f"balanced class weights: no training row of {', '.join(empty)}")
    return torch.tensor(counts.sum() / (len(names) * counts), dtype=torch.float32)
