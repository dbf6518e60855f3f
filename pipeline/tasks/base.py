"""What a task family is: loss, decoding, metrics; and the registry of the families.

A family is a small class registered in `FAMILIES` beside its definition; adding one is a file and
a row. B examples, C outputs of the model.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import Dataset, Example
from pipeline.tasks.metrics import check_metrics


class Task(Protocol):
    """How outputs become a loss while training, and predictions afterwards."""

    kind: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    """What is reported; the first one chooses the best epoch."""

    @property
    def num_outputs(self) -> int:
        """Numbers the model gives for one example, C."""

    @property
    def unscale(self) -> tuple[float, float]:
        """Scale and shift from the trained outputs to the target's units; (1, 0) if the same."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean training loss of outputs [B, C] against targets [B]."""

    def aims(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return outputs [n, C] for a least-squares fit of targets [n], and each row's weight."""

    def decode(self, outputs: NDArray[np.float32]) -> NDArray[Any]:
        """Turn outputs [n, C], in the target's units, into predictions [n]."""

    def describe(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return one JSON-able prediction a row of outputs [n, C]."""


TaskMaker = Callable[..., Task]
FAMILIES: dict[str, TaskMaker] = {}


def register(kind: str) -> Callable[[TaskMaker], TaskMaker]:
    """Register a task family under `kind`; a second one of the same name is refused."""

    def add(maker: TaskMaker) -> TaskMaker:
        if kind in FAMILIES:
            raise ValueError(f"the task family {kind!r} is registered already")
        FAMILIES[kind] = maker
        return maker

    return add


def make_task(
    dataset: Dataset, *, label_smoothing: float = 0.0, class_weights: str = "none"
) -> Task:
    """Build the task of `dataset`; statistics of the targets come from its training rows.

    Raises:
        ValueError: a metric or option does not fit the family.
    """
    preset = dataset.config.preset
    metrics = dataset.config.metrics or (preset.metrics if preset else None)
    if metrics is not None:
        check_metrics(dataset.kind, metrics)
    maker = FAMILIES[dataset.kind]
    return maker(
        dataset, metrics=metrics, label_smoothing=label_smoothing, class_weights=class_weights
    )


def target_array(examples: Sequence[Example]) -> NDArray[Any] | None:
    """Return the targets [n] as int64 classes or float64 scores, None if they are hidden."""
    targets = [example.target for example in examples]
    if not targets or any(target is None for target in targets):
        return None
    dtype = np.int64 if isinstance(targets[0], int) else np.float64
    return np.asarray(targets, dtype=dtype)
