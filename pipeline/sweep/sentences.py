"""Sweeps over runs with a classifier or regressor, whose trials train in cohorts.

A trial's state is a file of its weights, two moments and best weights, written after each unit.
Cost: that of a cohort, see `pipeline.sweep.cohort`; data and caches are read once in a process.
"""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.memory import available_memory
from pipeline.config import ConfigError
from pipeline.data import load_dataset
from pipeline.evaluate import EvaluateConfig, run_outputs, run_task
from pipeline.run import Run, RunError
from pipeline.sweep.capacity import cohort_capacity
from pipeline.sweep.cohort import CohortTrial, shape_key, train_cohort
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.kinds import OnStep, Tested
from pipeline.sweep.setups import Setups
from pipeline.sweep.space import Space
from pipeline.sweep.state import TrialState
from pipeline.sweep.units import Course, Member, Unit, member_config, state_path, trial_folder
from pipeline.tasks.metrics import METRICS, Interval
from pipeline.train import train
from pipeline.training.build import Setup, build_model, identity
from pipeline.training.config import TrainConfig
from pipeline.training.results import RunResult, finish


class ClassifierKind:
    """Trains the trials of one shape together, from one reading of the cache."""

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.setups = Setups(config.folds, config.run.data.split_seed)

    def begin(self, space: Space) -> tuple[str, str]:
        """Read data and cache, and look for the taps of every branch; see `Kind`."""
        run = self.config.run
        whole = self.setups.whole(run)
        self.setups.get(run)  # which may lack groups for its folds
        for axis in itertools.chain(*space.branches):
            for taps in axis.choices if axis.name == "taps" else ():
                self.setups.whole(run.model_copy(update={"taps": taps}))
        if not self.config.folds and not whole.splits.get("dev"):
            raise ConfigError("there is no dev split to choose by; give one, or folds")
        return whole.task.metrics[0], identity(run, whole)

    def shape_of(self, config: TrainConfig, fold: int) -> str:
        """Return text that is equal for trainings that share a cohort."""
        return f"{shape_key(config)} {Setups.key(config, fold)}"

    def size_of(self, config: TrainConfig, fold: int, wanted: int) -> tuple[int, str]:
        """Return the most trainings of a cohort, and why as a sentence."""
        asked = self.config.cohort
        if asked is not None:
            return asked, f"{asked} trainings together at most, as asked for"
        setup = self.setups.get(config, fold)
        on_gpu = setup.device.type == "cuda"
        limit = None if on_gpu else available_memory() // (2 * max(1, self.config.workers))
        return cohort_capacity(config, setup, wanted=wanted, memory_limit=limit)

    def train(self, unit: Unit, on_step: OnStep | None) -> tuple[dict[Member, Course], int]:
        """Train a unit as one cohort; see `Kind`."""
        out = self.config.out
        trials = [
            CohortTrial(
                number=number,
                config=self._config_of(unit, member),
                state=TrialState.load(state_path(out, member, unit.start)) if unit.start else None,
            )
            for number, member in enumerate(unit.members)
        ]
        setup = self.setups.get(trials[0].config, unit.members[0].fold)
        courses = {}
        outcomes = train_cohort(trials, setup, unit.stop, on_step)
        for member, outcome in zip(unit.members, outcomes, strict=True):
            trial_folder(out, member.trial).mkdir(parents=True, exist_ok=True)
            outcome.state.save(state_path(out, member, unit.stop))
            courses[member] = Course(history=tuple(outcome.history), failed=outcome.failed)
        epochs = max(len(course.history) for course in courses.values()) - unit.start
        return courses, max(0, epochs) * _epoch_bytes(setup)

    def has_test(self) -> bool:
        """Whether there is a labelled test split."""
        test = self.setups.whole(self.config.run).splits.get("test")
        return test is not None and test.targets is not None

    def tested(self, runs: Sequence[Run]) -> Tested:
        """Return the first metric of the runs' task on test; see `Kind`."""
        return tested(runs)

    def write_run(self, config: TrainConfig, state: Path) -> RunResult:
        """Write the run of a trial from its last state; see `Kind`."""
        setup = self.setups.whole(config)
        now = TrialState.load(state).progress
        with torch.random.fork_rng():
            model = build_model(config, setup)
        config.out.mkdir(parents=True, exist_ok=True)
        own = identity(config, setup)
        return finish(config, setup, model, now, identity=own, tier="the cohorts of a sweep")

    def fit(self, config: TrainConfig) -> RunResult:
        """Train a run as `train` does."""
        return train(config)

    def _config_of(self, unit: Unit, member: Member) -> TrainConfig:
        return member_config(self.config.run, unit.points[member.trial], member)


def tested(runs: Sequence[Run], *, resamples: int = 1000, level: float = 0.95) -> Tested:
    """Return the first metric of the runs' task on test: mean over the runs, with its interval.

    Rows are resampled for all runs together; for one run this is what `evaluate` gives.
    """
    dataset = load_dataset(runs[0].data)
    task = run_task(runs[0], dataset)
    guesses: list[NDArray[Any]] = []
    for run in runs:
        located, outputs = run_outputs(run, dataset, "test", EvaluateConfig(run=run.path))
        guesses.append(task.decode(outputs.logits))
    targets, metric = located.targets, METRICS[task.kind][task.metrics[0]]
    if targets is None:
        raise RunError(f"{runs[0].path}: the test split has no targets")

    def mean(rows: Any) -> float:
        return statistics.fmean(metric(targets[rows], guess[rows]) for guess in guesses)

    random, tails = np.random.default_rng(0), (50 * (1 - level), 50 * (1 + level))
    draws = [mean(random.integers(0, len(targets), len(targets))) for _ in range(resamples)]
    low, high = map(float, np.percentile(draws, tails))
    return {task.metrics[0]: Interval(mean(slice(None)), low, high)}


def _epoch_bytes(setup: Setup) -> int:
    """Return the bytes that the loaders deliver in an epoch of training, and of dev after it."""
    stack = setup.cache.shape_of(setup.tap_names)
    row = setup.cache.geometry.row_bytes(stack) * len(setup.taps)
    return row * sum(
        int(setup.cache.row_counts(stack, located.samples.reshape(-1)).sum())
        for located in setup.splits.values()
    )
