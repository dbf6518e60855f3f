"""The sweep: generations of trials, rungs, survivors, tests of the best, and the last fit.

Everything that decides is a function of the configuration and of the records on disk, so a sweep
that was killed goes on by deciding the same things again, and training only what has no record.
Cost: for each unit one reading of the training examples an epoch, whatever its number of trials,
and one of dev for each trial.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.console import duration
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import BEST, SIZES, begin
from pipeline.sweep.halving import plan_brackets, survivors
from pipeline.sweep.results import SweepResult, collect, points
from pipeline.sweep.runs import refit, test_trials
from pipeline.sweep.space import Space
from pipeline.sweep.study import Study
from pipeline.sweep.trainer import Trainer
from pipeline.sweep.trial import BracketRun, Training, Trial
from pipeline.sweep.units import drop_states, state_path
from pipeline.sweep.work import Runner, open_runner
from pipeline.tasks.metrics import LOWER_IS_BETTER
from pipeline.training.files import write_json
from pipeline.training.loop import TrainProgress

DEFAULT_TRIALS = 50


class SweepProgress(NamedTuple):
    """How far a sweep is."""

    ended: int
    trials: int
    running: int
    epochs: int
    best: float | None
    best_number: int | None
    metric: str
    seconds: float
    unit: TrainProgress | None = None
    """The unit that this process trains."""

    def describe(self) -> str:
        """Return one line: trials ended and in training, epochs trained, the best so far."""
        best = (
            ""
            if self.best is None
            else (f"  best dev {self.metric} {points(self.best)} (trial {self.best_number})")
        )
        now = ""
        if self.unit is not None:
            one = self.unit
            now = f"  {one.trainings} at epoch {one.epoch}, batch {one.batch} of {one.batches}"
        return (
            f"{self.ended} of {self.trials} trials ended, {self.running} in training, "
            f"{self.epochs:,} epochs{best}{now}  {duration(self.seconds)}"
        )


ProgressCallback = Callable[[SweepProgress], Any]


def sweep(config: SweepConfig, progress: ProgressCallback | None = None) -> SweepResult:
    """Search the space of `config`, or go on with the search in its folder.

    Args:
        config: the run, the space, the search; `config.out` is the folder.
        progress: called after each work unit.

    Raises:
        SweepError: the folder holds something else.
        ConfigError: the space does not fit the run, or nothing can be chosen by.
        DataError: the data are unusable or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
    """
    space = Space.parse(config.space)
    space.check(config.run)
    trainer = Trainer(config)
    metric, identity = trainer.begin(space)
    begin(config, space, identity)
    search = _Search(config, space, trainer, metric, progress)
    try:
        search.run()
    finally:
        search.study.close()
    ranked = search.ranked()
    tested = test_trials(config, trainer, [search.trials[number] for number in ranked])
    best = None
    if ranked and config.refit != "none":
        best = refit(config, trainer, search.trials[ranked[0]], config.out / BEST)
    return collect(
        config,
        space,
        search.trials,
        metric=search.metric,
        ranked=ranked,
        tested=tested,
        refit=best,
        sizes=search.sizes,
    )


class _Search:
    """The trials of a sweep and who may go on."""

    def __init__(
        self,
        config: SweepConfig,
        space: Space,
        trainer: Trainer,
        metric: str,
        progress: ProgressCallback | None,
    ) -> None:
        self.config, self.trainer, self.metric, self.progress = config, trainer, metric, progress
        self.lower = metric in LOWER_IS_BETTER
        self.trials: dict[int, Trial] = {}
        self.count = config.trials or DEFAULT_TRIALS
        if config.sampler == "grid":
            points = len(space.grid())
            self.count = min(config.trials or points, points)
        self.study = Study(
            config.out,
            space=space,
            sampler=config.sampler,
            seed=config.run.seed,
            storage=config.storage,
            lower_is_better=self.lower,
        )
        self.sizes: dict[str, dict[str, Any]] = {}
        if (config.out / SIZES).is_file():
            self.sizes = json.loads((config.out / SIZES).read_text(encoding="utf-8"))
        self.started = time.perf_counter()
        self.now = self._count()

    def run(self) -> None:
        """Go through the generations."""
        size = self.config.generation_size or self.count
        with open_runner(self.config, self.trainer, self._tell_step) as runner:
            for start in range(0, self.count, size):
                self._generation(range(start, min(start + size, self.count)), runner)

    def ranked(self) -> list[int]:
        """Return the best complete trials, at most `keep` of them, the best one first."""
        scores = {n: t.score(self.metric) for n, t in self.trials.items() if t.state == "complete"}
        kept = survivors(scores, self.config.keep, lower_is_better=self.lower)
        sign = 1.0 if self.lower else -1.0
        return sorted(kept, key=lambda number: (sign * (scores[number] or 0.0), number))

    def _generation(self, numbers: range, runner: Runner) -> None:
        points = self.study.ask(numbers)
        trials = {n: Trial.begin(n, points[n], self.config) for n in numbers}
        self.trials |= trials
        self.now = self._count()
        brackets = plan_brackets(
            numbers,
            pruner=self.config.pruner,
            min_epochs=self.config.min_epochs,
            eta=self.config.eta,
            epochs=max((trial.epochs for trial in trials.values()), default=0),
        )
        working: dict[str, BracketRun] = {}
        for bracket in brackets:
            run = BracketRun(bracket, trials, self.metric)
            self._advance(run, working, runner)
        while working:
            record = runner.wait()
            run = working.pop(record.name)
            if run.take(record):
                self._clear(run)
                if run.decide():
                    self._advance(run, working, runner)
                self._drop_pruned(run)
            self._tell_progress()
        self._tell(trials)
        self._retain()

    def _advance(self, run: BracketRun, working: dict[str, BracketRun], runner: Runner) -> None:
        """Hand out the units of the bracket's next stage that has any."""

        def size_of(shared: str, group: Sequence[Training]) -> int:
            return self._size_of(shared, group, runner.workers)

        units = run.units(self.trainer.batches, size_of)
        while not units and run.decide():
            units = run.units(self.trainer.batches, size_of)
        for unit in units:
            working[unit.name] = run
            runner.submit(unit)

    def _size_of(self, shared: str, group: Sequence[Training], workers: int) -> int:
        """Return the most trainings of a unit, the same one when the sweep is continued."""
        if shared not in self.sizes:
            size, reason = self.trainer.size_of(group, workers)
            self.sizes[shared] = {"size": size, "reason": reason}
            write_json(self.config.out / SIZES, self.sizes)
        return int(self.sizes[shared]["size"])

    def _clear(self, run: BracketRun) -> None:
        """Delete the states that a stage began with."""
        for number in run.alive if run.start else ():
            for replicate, config in run.trials[number].configs.items():
                if config.epochs > run.start:
                    state_path(self.config.out, replicate, run.start).unlink(missing_ok=True)

    def _drop_pruned(self, run: BracketRun) -> None:
        for number in run.bracket.numbers:
            if run.trials[number].state in ("pruned", "failed"):
                drop_states(self.config.out, number)

    def _tell(self, trials: dict[int, Trial]) -> None:
        """Tell the study how a generation ended, in the order of its numbers."""
        for number, trial in sorted(trials.items()):
            if trial.state is None:
                raise RuntimeError(f"trial {number} is neither done nor in work")
            curve = trial.curve(self.metric)
            self.study.report(number, {e: v for e, v in enumerate(curve, 1) if math.isfinite(v)})
            self.study.tell(number, trial.state, trial.score(self.metric))

    def _retain(self) -> None:
        """Delete the states of all ended trials but the best."""
        kept = self.ranked()
        for number, trial in self.trials.items():
            if trial.state is not None and number not in kept:
                drop_states(self.config.out, number)

    def _tell_step(self, unit: TrainProgress) -> None:
        """Tell a step of a unit, beside what was known before."""
        if self.progress is not None:
            seconds = time.perf_counter() - self.started
            self.progress(self.now._replace(unit=unit, seconds=seconds))

    def _tell_progress(self) -> None:
        self.now = self._count()
        if self.progress is not None:
            self.progress(self.now)

    def _count(self) -> SweepProgress:
        """Return how far the sweep is."""
        ended = [t for t in self.trials.values() if t.state is not None]
        scores = {n: t.score(self.metric) for n, t in self.trials.items()}
        best = survivors(scores, 1, lower_is_better=self.lower)
        return SweepProgress(
            ended=len(ended),
            trials=self.count,
            running=len(self.trials) - len(ended),
            epochs=sum(trial.trained for trial in self.trials.values()),
            best=scores[best[0]] if best else None,
            best_number=best[0] if best else None,
            metric=self.metric,
            seconds=time.perf_counter() - self.started,
        )
