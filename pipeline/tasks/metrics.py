"""Metrics of one prediction an example, and the bootstrap intervals of every task's metrics.

Each metric is one line, computed by scikit-learn or scipy. An interval costs `resamples`
evaluations of the metrics: about 1 s for 1,000 resamples of 1,000 rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from pipeline.config import ConfigError
from pipeline.tasks.base import Judged

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]
"""Maps targets [n] and predictions [n] to a number, the higher the better (errors are negated
where an epoch is chosen)."""


def _correlation(method: Callable[[Array, Array], Any]) -> Metric:
    """Return a correlation that is 0 where one side is constant, as it explains nothing."""

    def correlate(targets: Array, predictions: Array) -> float:
        if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(method(targets, predictions).statistic)

    return correlate


def _f1_of_second(targets: Array, predictions: Array) -> float:
    """F1 of class 1, the positive one of a two-class task."""
    return float(sk.f1_score(targets == 1, predictions == 1, zero_division=0.0))


def _macro_f1(targets: Array, predictions: Array) -> float:
    return float(sk.f1_score(targets, predictions, average="macro", zero_division=0.0))


def _matthews(targets: Array, predictions: Array) -> float:
    """Matthews correlation; 0 where one side has a single class, as for the correlations."""
    if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(sk.matthews_corrcoef(targets, predictions))


CLASSIFICATION: dict[str, Metric] = {
    "accuracy": lambda t, p: float(sk.accuracy_score(t, p)),
    "f1": _f1_of_second,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}
REGRESSION: dict[str, Metric] = {
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mse": lambda t, p: float(sk.mean_squared_error(t, p)),
    "mae": lambda t, p: float(sk.mean_absolute_error(t, p)),
    "r2": lambda t, p: float(sk.r2_score(t, p)) if len(t) > 1 else 0.0,
}
LOWER_IS_BETTER = frozenset({"mse", "mae"})


@dataclass(frozen=True)
class Interval:
    """A metric with the bounds of its bootstrap percentile interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return asdict(self)


def check_metrics(names: Sequence[str], known: Iterable[str]) -> None:
    """Raise ConfigError naming the `known` metrics if one of `names` is not among them."""
    listed = tuple(known)
    unknown = [name for name in names if name not in listed]
    if unknown or not names:
        raise ConfigError(
            f"unknown metric(s) {', '.join(unknown) or '(none given)'}; known: {', '.join(listed)}"
        )


def better(name: str, new: float, old: float | None) -> bool:
    """Whether `new` beats `old` in the metric `name`; anything finite beats None."""
    if not np.isfinite(new):
        return False
    return old is None or (new < old if name in LOWER_IS_BETTER else new > old)


def bootstrap(
    judged: Sequence[Judged], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Return each metric with its percentile interval over draws of the units.

    Args:
        judged: of one model, or of several on the same units for the mean of their metrics.
        resamples: draws with replacement (Efron 1979); 0 gives intervals of no width.
        level: share of the resamples inside the interval.
        seed: seed of the draws.
    """
    count, random = len(judged[0]), np.random.default_rng(seed)

    def mean(units: NDArray[np.int64] | None) -> dict[str, float]:
        found = [each.metrics(units) for each in judged]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    values = mean(None)
    if not values:
        return {}
    draws = [mean(random.integers(0, count, count)) for _ in range(resamples)]
    tails = (50 * (1 - level), 50 * (1 + level))
    return {
        name: Interval(
            value, *map(float, np.percentile([each[name] for each in draws] or [value], tails))
        )
        for name, value in values.items()
    }
