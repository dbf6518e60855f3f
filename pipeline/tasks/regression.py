"""Regression to one score, trained on standardised targets and reported in the target's units."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import Dataset
from pipeline.tasks.base import register, target_array

DEFAULT_METRICS = ("pearson", "spearman", "mse", "mae")


@register("regression")
class Regression:
    """Mean squared error on (target - mean) / deviation of the training rows.

    Args:
        dataset: gives the mean and deviation of its training rows.
        metrics: what to report; None takes Pearson, Spearman, MSE and MAE.
        label_smoothing: must be 0, it has no meaning here.
        class_weights: must be "none", likewise.

    Raises:
        ValueError: an option of classification was set.
    """

    kind = "regression"
    labels: tuple[str, ...] | None = None
    num_outputs = 1

    def __init__(
        self,
        dataset: Dataset,
        *,
        metrics: tuple[str, ...] | None = None,
        label_smoothing: float = 0.0,
        class_weights: str = "none",
    ) -> None:
        if label_smoothing or class_weights != "none":
            raise ValueError("label_smoothing and class_weights are options of classification")
        self.metrics = metrics or DEFAULT_METRICS
        targets = target_array(dataset.examples("train"))
        self.mean = 0.0 if targets is None else float(targets.mean())
        deviation = 0.0 if targets is None else float(targets.std())
        self.deviation = deviation if deviation > 0 else 1.0

    @property
    def unscale(self) -> tuple[float, float]:
        """Deviation and mean of the training targets."""
        return self.deviation, self.mean

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of outputs [B, 1] against standardised scores [B]."""
        wanted = (targets - self.mean) / self.deviation
        return F.mse_loss(outputs.float().squeeze(1), wanted.float())

    def aims(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the standardised scores, [n, 1]."""
        return ((targets - self.mean) / self.deviation).float()[:, None], None

    def decode(self, outputs: NDArray[np.float32]) -> NDArray[Any]:
        """Return the scores [n]."""
        return outputs[:, 0].astype(np.float64)

    def describe(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return the score of each row."""
        return [{"score": float(value)} for value in outputs[:, 0]]
