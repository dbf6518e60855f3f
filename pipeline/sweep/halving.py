"""Who goes on: rungs, brackets and decisions of successive halving and Hyperband. Pure.

Successive halving (Jamieson and Talwalkar 2016) trains n trials for r epochs, keeps the best
n / eta, trains these to r * eta epochs, and so on. Hyperband (Li et al. 2018) hedges the choice of
r: bracket s of s_max + 1 starts with ceil((s_max + 1) / (s + 1) * eta^s) trials, the first ones at
rung s_max - s. Survivors keep their weights, so an epoch is never trained twice. Cost of a bracket
of n trials: n r + (n / eta) (eta - 1) r + ... epochs, about n r log_eta(R / r) instead of n R.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.sweep.config import Pruner


@dataclass(frozen=True)
class Bracket:
    """Trials that are judged against each other.

    Attributes:
        numbers: of the trials.
        rungs: epochs after which a rung decides, ascending; all are below the last epoch.
        eta: one in eta survives a rung.
    """

    numbers: tuple[int, ...]
    rungs: tuple[int, ...]
    eta: int

    def kept(self, rung: int) -> int:
        """Number of trials that go on after rung `rung`, at least one."""
        return max(1, len(self.numbers) // int(self.eta ** (rung + 1)))


def rung_epochs(min_epochs: int, eta: int, epochs: int) -> tuple[int, ...]:
    """Return `min_epochs * eta^k` for k = 0, 1, .. as long as it is below `epochs`."""
    found = []
    budget = min_epochs
    while budget < epochs:
        found.append(budget)
        budget *= eta
    return tuple(found)


def plan_brackets(
    numbers: Sequence[int], *, pruner: Pruner, min_epochs: int, eta: int, epochs: int
) -> list[Bracket]:
    """Divide a generation into brackets.

    Args:
        numbers: of the trials, ascending.
        pruner: "none" (one bracket without rungs), "halving" (one with all), or "hyperband".
        min_epochs: epochs before the first rung.
        eta: one in eta survives.
        epochs: the most that any trial trains.
    """
    rungs = rung_epochs(min_epochs, eta, epochs) if pruner != "none" else ()
    if pruner != "hyperband":
        return [Bracket(tuple(numbers), rungs, eta)]
    dealt: list[list[int]] = [[] for _ in range(len(rungs) + 1)]
    rest = list(numbers)
    while rest:
        for number, size in enumerate(bracket_sizes(len(rungs), eta)):
            dealt[number] += rest[:size]
            rest = rest[size:]
    return [
        Bracket(tuple(chosen), rungs[number:], eta) for number, chosen in enumerate(dealt) if chosen
    ]


def bracket_sizes(s_max: int, eta: int) -> list[int]:
    """Return the trials of each bracket of one round of Hyperband, the hastiest one first."""
    return [math.ceil((s_max + 1) / (s + 1) * eta**s) for s in range(s_max, -1, -1)]


def survivors(
    scores: Mapping[int, float | None], kept: int, *, lower_is_better: bool = False
) -> list[int]:
    """Return the numbers of the best `kept` trials, ascending.

    Args:
        scores: of each trial; None or NaN for one that failed, which never survives, even where
            places stay free.
        kept: places.
        lower_is_better: whether the metric is an error.

    Of trials with equal scores the one with the lower number is better.
    """
    sign = 1.0 if lower_is_better else -1.0
    sound = {n: s for n, s in scores.items() if s is not None and math.isfinite(s)}
    ranked = sorted(sound, key=lambda number: (sign * sound[number], number))
    return sorted(ranked[:kept])
