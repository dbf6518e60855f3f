"""A trial and a bracket of trials as they go: what has been trained, what is next, who goes on."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ConfigError
from pipeline.sweep.config import RunConfig, SearchConfig
from pipeline.sweep.halving import Bracket, survivors
from pipeline.sweep.space import Params
from pipeline.sweep.study import State
from pipeline.sweep.units import Course, Member, Unit, UnitRecord, member_config, members_of
from pipeline.tasks.metrics import LOWER_IS_BETTER

ShapeOf = Callable[[RunConfig, int], str]
"""Maps a training and its fold to text that is equal for trainings that share a cohort."""
SizeOf = Callable[[str, RunConfig, int, int], int]
"""Maps shape, a training of it, its fold, and a number of trainings to a cohort's most."""


@dataclass
class Trial:
    """One point of the space with everything trained for it."""

    number: int
    params: Params
    configs: dict[Member, RunConfig]
    """The trainings; empty if the point is no valid run."""
    courses: dict[Member, Course] = field(default_factory=dict)
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
    def begin(cls, number: int, params: Params, config: SearchConfig) -> "Trial":
        """Return trial `number` before its first epoch; a point that is no run has failed."""
        try:
            configs = {m: member_config(config.run, params, m) for m in members_of(number, config)}
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
        return min((len(course.history) for course in self.courses.values()), default=0)

    def curve(self, metric: str) -> list[float]:
        """Return the mean over its trainings of the best score up to each epoch."""
        curves = [course.scores(metric) for course in self.courses.values()]
        return [statistics.fmean(values) for values in zip(*curves, strict=False)]

    def score(self, metric: str) -> float | None:
        """Return the mean over its trainings of their best scores; None if one has failed."""
        if not self.courses or any(course.failed for course in self.courses.values()):
            return None
        ends = [course.scores(metric)[-1:] for course in self.courses.values()]
        if not all(ends):
            return None
        score = statistics.fmean(end for (end,) in ends)
        return score if math.isfinite(score) else None

    def take(self, record: UnitRecord) -> None:
        """Add what a unit did for it."""
        share = len(record.courses)
        for member, course in record.courses.items():
            if member.trial == self.number:
                self.courses[member] = course
                self.seconds += record.seconds / share
                self.bytes_read += record.bytes_read / share
                self.reason = course.failed or self.reason


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

    def units(self, shape_of: ShapeOf, size_of: SizeOf) -> list[Unit]:
        """Return the units of this stage: trainings of equal shape together, in numbers' order."""
        groups: dict[str, list[Member]] = {}
        for number in self.alive:
            for member, config in self.trials[number].configs.items():
                if config.epochs > self.start:
                    groups.setdefault(shape_of(config, member.fold), []).append(member)
        units = []
        for shape, members in groups.items():
            one = self.trials[members[0].trial].configs[members[0]]
            size = size_of(shape, one, members[0].fold, len(members))
            for part in divided(members, size):
                points = {member.trial: self.trials[member.trial].params for member in part}
                units.append(
                    Unit(members=tuple(part), points=points, start=self.start, stop=self.stop)
                )
        self.waiting = {unit.name for unit in units}
        return units

    def take(self, record: UnitRecord) -> bool:
        """Add a unit's record; return whether the stage is done."""
        for number in {member.trial for member in record.courses}:
            self.trials[number].take(record)
        self.waiting.discard(record.name)
        return not self.waiting

    def decide(self) -> bool:
        """End the stage: set who has failed, finished or lost; return whether any goes on.

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


def divided(members: Sequence[Member], size: int) -> list[list[Member]]:
    """Return `members` in as few parts of at most `size` as there can be, of about equal length."""
    count = math.ceil(len(members) / size)
    edges = [round(part * len(members) / count) for part in range(count + 1)]
    return [list(members[low:high]) for low, high in itertools.pairwise(edges)]


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
