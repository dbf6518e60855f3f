"""Linear probes of one output: a scikit-learn model on standardised features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipt import Outputs

FEATURES = "features"
"""Name of the value that holds an inference pass's features."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe.

    Attributes:
        model: scikit-learn pipeline.
        strength: of its penalty.
        predict: gives logits or scores [n, C] of the model for features [n, F].
    """

    model: Any
    strength: float
    predict: Callable[[Any, NDArray[Any]], Tensor]

    @classmethod
    def fit(
        cls,
        model: Any,
        strength: float,
        features: Sequence[Outputs],
        targets: NDArray[Any],
        predict: Callable[[Any, NDArray[Any]], Tensor],
    ) -> Self:
        """Fit `model` on standardised features [n, F] and targets [n]."""
        from sklearn.pipeline import make_pipeline  # noqa: PLC0415 (slow to import)
        from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

        fitted = make_pipeline(StandardScaler(), model).fit(rows_of(features), targets)
        return cls(fitted, strength, predict)

    def outputs(self, features: Sequence[Outputs]) -> list[Outputs]:
        """Return the probe's logits or scores, [n, C]."""
        (found,) = features
        logits = self.predict(self.model, rows_of(features))
        return [Outputs(values={"logits": logits}, offsets=found.offsets)]

    def describe(self) -> dict[str, Any]:
        """Return the strength."""
        return {"strength": self.strength}


def rows_of(features: Sequence[Outputs]) -> NDArray[np.float32]:
    """Return the features [n, F] of the only inference pass."""
    (found,) = features
    rows: NDArray[np.float32] = found.values[FEATURES].to(torch.float32).numpy()
    return rows
