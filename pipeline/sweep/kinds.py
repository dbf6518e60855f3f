"""What a sweep asks of the kind of run that it varies: the one place where kinds differ.

A kind reads data and caches once in a process, trains work units, and makes runs of trials.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.run import Run
from pipeline.sweep.config import RetrievalSweepConfig, SearchConfig, SweepConfig
from pipeline.sweep.space import Space
from pipeline.sweep.stacked_training import CohortProgress
from pipeline.sweep.units import Course, Member, Unit
from pipeline.tasks.metrics import Interval
from pipeline.training.results import RunResult

__all__ = ["Kind", "OnStep", "Tested", "kind_of"]

OnStep = Callable[[CohortProgress], Any]
Tested = dict[str, Interval]
"""Test metrics with their bootstrap intervals."""


class Kind(Protocol):
    """Trains and tests the runs of a sweep; a run's configuration is of the kind's own class."""

    def begin(self, space: Space) -> tuple[str, str]:
        """Read data and caches as every branch of the space wants them.

        Returns:
            The metric that chooses, and what must be equal to continue the sweep, as text.

        Raises:
            ConfigError: taps are not there, or nothing can be chosen by.
            DataError: the data are unusable or not in a cache.
            CacheError: a cache is missing, incomplete or damaged.
        """

    def shape_of(self, config: Any, fold: int) -> str:
        """Return text that is equal for trainings that may be in one unit."""

    def size_of(self, config: Any, fold: int, wanted: int) -> tuple[int, str]:
        """Return the most trainings of a unit of `config`'s shape, and why as a sentence."""

    def train(self, unit: Unit, on_step: OnStep | None) -> tuple[dict[Member, Course], int]:
        """Train a unit's members and write their states; return their courses and bytes read."""

    def has_test(self) -> bool:
        """Whether there is a test split that runs can be tested on."""

    def tested(self, runs: Sequence[Run]) -> Tested:
        """Return the metric that chooses on test: the mean over the runs, with its interval.

        Rows are resampled for all runs together; for one run this is what `evaluate` gives.
        """

    def write_run(self, config: Any, state: Path) -> RunResult:
        """Write the run of `config` from the state of a training that has ended."""

    def fit(self, config: Any) -> RunResult:
        """Train a run as `train` does."""


def kind_of(config: SearchConfig) -> Kind:
    """Return the kind of the run that `config` varies.

    Raises:
        TypeError: it is of no known kind.
    """
    if isinstance(config, RetrievalSweepConfig):
        from pipeline.sweep.pairs import RetrievalKind  # noqa: PLC0415 (it imports this module)

        return RetrievalKind(config)
    if isinstance(config, SweepConfig):
        from pipeline.sweep.sentences import ClassifierKind  # noqa: PLC0415

        return ClassifierKind(config)
    raise TypeError(f"{type(config).__name__} is no SweepConfig and no RetrievalSweepConfig")
