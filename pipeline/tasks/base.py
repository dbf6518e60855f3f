"""What a task is: targets, their loss, and the judgement of a split's outputs.

A task family is a file; a system says which one it has. It never sees a cache, a tower or a file.
n examples of a split, b of a batch, C outputs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import Ints, Labelled
from unipt import Outputs

__all__ = ["Judged", "Moment", "PerExample", "Probe", "Targets", "Task"]


class Moment(NamedTuple):
    """Where a training is: epoch and batch from 0, and the batches of an epoch."""

    epoch: int
    batch: int
    batches: int


class Targets(Protocol):
    """The targets of a split's examples."""

    def batch(self, index: Tensor) -> Any:
        """Return what `Task.loss` takes of the examples at these positions, [b]."""


class Judged(Protocol):
    """A split's outputs beside its targets, which can be scored on any choice of its units."""

    @property
    def unit(self) -> str:
        """What a unit is, in the plural: "examples", "items"."""

    @property
    def digits(self) -> int:
        """Digits after the point that its metrics are shown with."""

    def __len__(self) -> int:
        """Number of units, those that a bootstrap draws."""

    def metrics(self, units: Ints | None = None) -> dict[str, float]:
        """Return the task's metrics on these units (with repetitions), by default on all.

        Empty where the targets are hidden.
        """

    def extras(self) -> dict[str, float]:
        """Return figures of the whole split that are not resampled."""

    def records(self) -> Mapping[str, Iterable[dict[str, Any]]]:
        """Return the records of each predictions file, by the first part of its name."""


class Probe(Protocol):
    """A closed-form or linear model of features, fitted with several strengths."""

    def outputs(self, features: Sequence[Outputs]) -> Sequence[Outputs]:
        """Return what `Task.judge` takes, given the features of each inference pass."""

    def describe(self) -> dict[str, Any]:
        """Return what was chosen, as JSON values."""


class Task(Protocol):
    """How outputs become a loss while training, and figures and predictions afterwards.

    The examples of a split, and what a batch of targets is, are of the task's own types.
    """

    metrics: tuple[str, ...]
    """What is reported; the first one chooses the best epoch and trial."""

    @property
    def facts(self) -> dict[str, Any]:
        """What must be equal for a run to be evaluated or continued, as JSON values."""

    def targets(self, examples: Any, samples: Mapping[str, Ints]) -> Targets:
        """Return the targets of a split, given each tower's sample of each example, [n].

        Raises:
            ConfigError: they are hidden.
        """

    def loss(self, outputs: Outputs, targets: Any, now: Moment) -> Tensor:
        """Return the mean training loss of a batch."""

    def judge(self, outputs: Sequence[Outputs], examples: Any) -> Judged:
        """Return the judgement of a split's outputs, one for each inference pass."""

    def probes(
        self, features: Sequence[Outputs], examples: Any, chosen: Mapping[str, Any] | None = None
    ) -> Iterable[Probe]:
        """Yield probes fitted on the features of the training examples, the strongest first.

        `chosen`, what `Probe.describe` said, asks for that one alone.
        """


@dataclass(frozen=True, eq=False)
class PerExample:
    """The plain judgement: one target and one prediction an example.

    Attributes:
        targets: [n]; None where they are hidden.
        predictions: [n].
        scorers: each metric's name and function of targets and predictions.
        described: what the predictions file says of each example.
        means: metrics that are means of a number an example, [n] each.
        order: of the metrics; by default scorers, then means.
    """

    targets: NDArray[Any] | None
    predictions: NDArray[Any]
    scorers: Mapping[str, Any]
    described: Sequence[dict[str, Any]]
    means: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    unit: str = "examples"
    digits: int = 3

    def __len__(self) -> int:
        return len(self.predictions)

    def metrics(self, units: Ints | None = None) -> dict[str, float]:
        """Return each metric on these examples."""
        if self.targets is None:
            return {}
        rows: Any = slice(None) if units is None else units
        targets, predictions = self.targets[rows], self.predictions[rows]
        found = {name: float(score(targets, predictions)) for name, score in self.scorers.items()}
        found |= {name: float(values[rows].mean()) for name, values in self.means.items()}
        return {name: found[name] for name in self.order or found}

    def extras(self) -> dict[str, float]:
        """There are none."""
        return {}

    def records(self) -> dict[str, Iterable[dict[str, Any]]]:
        """Return one record an example."""
        return {"predictions": self.described}


def described(
    examples: Labelled,
    targets: Sequence[Any],
    predictions: Sequence[Mapping[str, Any]],
    confidence: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Return one record an example: id, target, prediction, confidence of each layer.

    Args:
        examples: of the split.
        targets: as they are shown, [n].
        predictions: [n].
        confidence: of each tower [n, N]; that of the first one is kept; none for probes.
    """
    layers: list[dict[str, Any]] = [{} for _ in targets]
    if confidence:
        layers = [{"confidence": row} for row in next(iter(confidence.values())).tolist()]
    return [
        {"id": example.id, "target": target, **prediction, **own}
        for example, target, prediction, own in zip(
            examples.examples, targets, predictions, layers, strict=True
        )
    ]
