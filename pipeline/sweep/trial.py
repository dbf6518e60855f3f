"""A trial and a bracket of trials as they go: what has been trained, what is next, who goes on."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ConfigError
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.halving import Bracket, survivors
from pipeline.sweep.space import Params
from pipeline.sweep.study import State
from pipeline.sweep.units import (
    Replicate,
    TrainingHistory,
    Unit,
    UnitRecord,
    replicate_config,
    replicates_of,
)
from pipeline.systems.config import TrainConfig
from pipeline.tasks.metrics import LOWER_IS_BETTER

Training = tuple[TrainConfig, int]
"""A training and the fold that it leaves out."""
BatchesOf = Callable[[Training], str]
"""Maps a training to text that is equal for those that want the same batches, or raises
ConfigError where it cannot be trained."""
SizeOf = Callable[[str, Sequence[Training]], int]
"""Maps such trainings, and a name of what they share, to how many of them a unit takes at most."""


@dataclass
class Trial:
    """One point of the space with everything trained for it."""

    number: int
    params: Params
    configs: dict[Replicate, TrainConfig]
    """The trainings; empty if the point is no valid run."""
    histories: dict[Replicate, TrainingHistory] = field(default_factory=dict)
    rung: int = 0
    """Rungs that it has survived."""
    state: State | None = None
    """None while it may go on."""
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0
    """Its share of the wall-clock time of its units."""
    bytes_read: float = 0.0
    """Its share of the bytes that these read."""

    @classmethod
    def begin(cls, number: int, params: Params, config: SweepConfig) -> "Trial":
        """Return trial `number` before its first epoch; a point that is no run has failed."""
        try:
            wanted = replicates_of(number, config)
            configs = {each: replicate_config(config.run, params, each) for each in wanted}
        except ConfigError as error:
            return cls(number, params, {}, state="failed", reason=str(error))
        return cls(number, params, configs)

    @property
    def epochs(self) -> int:
        """Epochs that its trainings are to have at most."""
        return max((config.epochs for config in self.configs.values()), default=0)

    @property
    def trained(self) -> int:
        """Epochs that all its trainings have had."""
        return min((len(each.history) for each in self.histories.values()), default=0)

    def curve(self, metric: str) -> list[float]:
        """Return the mean over its trainings of the best score up to each epoch."""
        curves = [each.scores(metric) for each in self.histories.values()]
        return [statistics.fmean(values) for values in zip(*curves, strict=False)]

    def score(self, metric: str) -> float | None:
        """Return the mean over its trainings of their best scores; None if one has failed."""
        if not self.histories or any(each.failed for each in self.histories.values()):
            return None
        ends = [each.scores(metric)[-1:] for each in self.histories.values()]
        if not all(ends):
            return None
        score = statistics.fmean(end for (end,) in ends)
        return score if math.isfinite(score) else None

    def take(self, record: UnitRecord) -> None:
        """Add what a unit did for it."""
        share = len(record.histories)
        for replicate, history in record.histories.items():
            if replicate.trial == self.number:
                self.histories[replicate] = history
                self.seconds += record.seconds / share
                self.bytes_read += record.bytes_read / share
                self.reason = history.failed or self.reason

    def fail(self, replicate: Replicate, reason: str) -> None:
        """Record that a training cannot begin."""
        self.histories[replicate] = TrainingHistory(history=(), failed=reason)
        self.reason = reason


@dataclass
class BracketRun:
    """A bracket in work: `units` are to be done, then `decide` says who goes on."""

    bracket: Bracket
    trials: dict[int, Trial]
    metric: str
    stage: int = 0
    waiting: set[str] = field(default_factory=set)
    """Names of the units of this stage that are not done."""

    def __post_init__(self) -> None:
        self.alive = [n for n in self.bracket.numbers if self.trials[n].state is None]

    @property
    def start(self) -> int:
        """Epochs that those alive have had."""
        return self.bracket.rungs[self.stage - 1] if self.stage else 0

    @property
    def stop(self) -> int:
        """Epochs after this stage."""
        if self.stage < len(self.bracket.rungs):
            return self.bracket.rungs[self.stage]
        return max((self.trials[n].epochs for n in self.alive), default=0)

    def units(self, batches_of: BatchesOf, size_of: SizeOf) -> list[Unit]:
        """Return the units of this stage: trainings of equal batches together, by their numbers.

        Args:
            batches_of: says which trainings share their batches.
            size_of: says how many of those a unit takes.
        """
        units = []
        for batches, group in self._groups(batches_of).items():
            given = [(self.trials[each.trial].configs[each], each.fold) for each in group]
            size = size_of(f"{batches} from epoch {self.start}", given)
            for part in divided(group, size):
                points = {each.trial: self.trials[each.trial].params for each in part}
                units.append(
                    Unit(replicates=tuple(part), points=points, start=self.start, stop=self.stop)
                )
        self.waiting = {unit.name for unit in units}
        return units

    def _groups(self, batches_of: BatchesOf) -> dict[str, list[Replicate]]:
        """Return who shares batches in this stage; a training that cannot begin has failed."""
        groups: dict[str, list[Replicate]] = {}
        for number in self.alive:
            trial = self.trials[number]
            for replicate, config in trial.configs.items():
                if config.epochs > self.start:
                    try:
                        batches = batches_of((config, replicate.fold))
                    except ConfigError as error:
                        trial.fail(replicate, str(error))
                    else:
                        groups.setdefault(batches, []).append(replicate)
        return groups

    def take(self, record: UnitRecord) -> bool:
        """Add a unit's record; return whether the stage is done."""
        for number in {replicate.trial for replicate in record.histories}:
            self.trials[number].take(record)
        self.waiting.discard(record.name)
        return not self.waiting

    def decide(self) -> bool:
        """End the stage: set who has failed, is complete or pruned; return whether any goes on.

        A trial that has had all its epochs stays in its place while it is among the best, and is
        complete in any case.
        """
        scores = {n: self.trials[n].score(self.metric) for n in self.alive}
        last = self.stage >= len(self.bracket.rungs)
        kept = len(scores) if last else self.bracket.kept(self.stage)
        lower = self.metric in LOWER_IS_BETTER
        staying = set(survivors(scores, kept, lower_is_better=lower))
        for number in self.alive:
            trial = self.trials[number]
            if scores[number] is None:
                trial.state, trial.reason = "failed", trial.reason or "its score is not finite"
            elif last or (number not in staying and trial.epochs <= self.stop):
                trial.state = "complete"
            elif number not in staying:
                trial.state = "pruned"
            else:
                trial.rung += 1
        self.alive = [n for n in self.alive if self.trials[n].state is None]
        self.stage += 1
        if any(self.trials[n].epochs > self.start for n in self.alive):
            return True
        for number in self.alive:
            self.trials[number].state = "complete"
        self.alive = []
        return False


def divided(group: Sequence[Replicate], size: int) -> list[list[Replicate]]:
    """Return `group` in as few parts of at most `size` as there can be, of about equal length."""
    count = math.ceil(len(group) / size)
    edges = [round(part * len(group) / count) for part in range(count + 1)]
    return [list(group[low:high]) for low, high in itertools.pairwise(edges)]


def summary(trial: Trial, metric: str) -> dict[str, Any]:
    """Return a trial as JSON values."""
    return {
        "number": trial.number,
        "params": trial.params,
        "state": trial.state,
        "score": trial.score(metric),
        "epochs": trial.trained,
        "planned": trial.epochs,
        "rung": trial.rung,
        "seconds": trial.seconds,
        "bytes_read": round(trial.bytes_read),
        "reason": trial.reason,
    }
