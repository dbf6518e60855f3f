"""The study: an Optuna study that outlives its process, with points that are asked atomically.

Point `number` is a function of the sampler, the seed, the number and the trials told before its
generation began, so an interrupted study goes on as if nothing had happened. A trial enters the
storage in one transaction, as running, and is told once; Optuna's dashboard can watch meanwhile.
Cost: with tpe, one copy of the study in memory for each generation.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.config import ConfigError
from pipeline.errors import PipelineError
from pipeline.sweep.axis import Axis, encode
from pipeline.sweep.config import Sampler
from pipeline.sweep.space import Params, Space

NAME = "sweep"
DATABASE = "study.db"
State = Literal["complete", "pruned", "failed"]


class StudyError(PipelineError, RuntimeError):
    """The storage holds another study."""


def optuna() -> Any:
    """Return the package, imported only when there is a sweep: it is slow to import."""
    return importlib.import_module("optuna")


class Study:
    """Asks and tells trials by number.

    Args:
        folder: of the sweep; its name and place name the study in a shared storage.
        storage: URL of the storage; None for an SQLite file in `folder`.
        space: what varies.
        sampler: how points are chosen.
        seed: of the sampler.
        lower_is_better: whether scores are errors.
    """

    def __init__(
        self,
        folder: Path,
        *,
        space: Space,
        sampler: Sampler,
        seed: int,
        storage: str | None = None,
        lower_is_better: bool = False,
    ) -> None:
        self.space, self.sampler, self.seed = space, sampler, seed
        self.optuna = optuna()
        self.direction = "minimize" if lower_is_better else "maximize"
        self.url = storage or f"sqlite:///{(folder / DATABASE).resolve()}"
        self.name = NAME if storage is None else f"{NAME} {folder.resolve()}"
        self._grid = space.grid() if sampler == "grid" else []
        self._axes = joined(space)
        self._distributions = {name: distribution(axis) for name, axis in self._axes.items()}
        with quiet(self.optuna):
            self.storage = self.optuna.storages.get_storage(self.url)
            self.study = self.optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                direction=self.direction,
                load_if_exists=True,
            )
        self._id = self.storage.get_study_id_from_name(self.name)

    def ask(self, numbers: range) -> dict[int, Params]:
        """Return the points of a generation; those that were asked before stay as they are.

        Raises:
            StudyError: the storage holds other trials under these numbers.
        """
        known = len(self._trials())
        if known < numbers.start:
            raise StudyError(
                f"{self.url} has {known} trials and lacks those before number {numbers.start}; "
                "restore it, or sweep into a new folder"
            )
        points = {n: self._decoded(n) for n in numbers if n < known}
        missing = range(max(known, numbers.start), numbers.stop)
        scratch = self._scratch() if self.sampler == "tpe" and missing else None
        for number in missing:
            points[number] = self._propose(number, scratch)
            self._add(points[number])
        return points

    def report(self, number: int, scores: Mapping[int, float]) -> None:
        """Record the scores of a running trial by epoch, from 1."""
        if self.state(number) is not None:
            return
        trial = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for epoch, score in scores.items():
            self.storage.set_trial_intermediate_value(trial, epoch, score)

    def tell(self, number: int, state: State, score: float | None) -> None:
        """Record how trial `number` ended; one that was told already stays as it is."""
        if self.state(number) is not None:
            return
        states = self.optuna.trial.TrialState
        kinds = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        value = score if state == "complete" else None
        with quiet(self.optuna):
            self.study.tell(number, value, state=kinds[state])

    def state(self, number: int) -> State | None:
        """Return how trial `number` ended; None while it runs."""
        states = self.optuna.trial.TrialState
        kinds: dict[Any, State] = {
            states.COMPLETE: "complete",
            states.PRUNED: "pruned",
            states.FAIL: "failed",
        }
        return kinds.get(self._trials()[number].state)

    def close(self) -> None:
        """Let go of the storage's connections."""
        self.storage.remove_session()

    def _trials(self) -> list[Any]:
        """Return the trials of the study, not to be changed."""
        trials: list[Any] = self.study.get_trials(deepcopy=False)
        return trials

    def _propose(self, number: int, scratch: Any) -> Params:
        if self.sampler == "grid":
            return self._grid[number]
        if self.sampler == "random":
            return self.space.random(self.seed, number)
        if self.sampler == "qmc":
            return self.space.quasi_random(self.seed, number)
        scratch.sampler = self._tpe(number)
        found = scratch.ask(fixed_distributions=self._distributions).params
        return {name: decode(self._axes[name], found[name]) for name in self.space.names}

    def _tpe(self, number: int) -> Any:
        """Return a sampler for one trial, so that its draws depend on nothing but its number.

        Running trials count as bad ones, which keeps the points of a generation apart.
        """
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return self.optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _scratch(self) -> Any:
        with quiet(self.optuna):
            scratch = self.optuna.create_study(direction=self.direction)
            scratch.add_trials(self._trials())
        return scratch

    def _add(self, params: Params) -> None:
        """Add a running trial in one transaction."""
        trial = self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING,
            params={name: encode(value) for name, value in params.items()},
            distributions={name: self._distributions[name] for name in params},
        )
        self.study.add_trial(trial)

    def _decoded(self, number: int) -> Params:
        params = self._trials()[number].params
        if not set(params) <= set(self.space.names):
            raise StudyError(
                f"trial {number} of {self.url} varies {', '.join(params)}, this sweep "
                f"{', '.join(self.space.names)}; sweep into a new folder or another storage"
            )
        return {name: decode(self._axes[name], stored) for name, stored in params.items()}


def joined(space: Space) -> dict[str, Axis]:
    """Return the axis of each field, the choices of several branches joined.

    Raises:
        ConfigError: branches give a field different ranges.
    """
    found: dict[str, Axis] = {}
    for axis in (axis for branch in space.branches for axis in branch):
        known = found.setdefault(axis.name, axis)
        if known.choices and axis.choices:
            joined = {encode(choice): choice for choice in (*known.choices, *axis.choices)}
            found[axis.name] = Axis(name=axis.name, choices=tuple(joined.values()))
        elif (known.low, known.high, known.describe()) != (axis.low, axis.high, axis.describe()):
            raise ConfigError(
                f"{axis.name}: branches give it {known.describe()} and {axis.describe()}; a field "
                "that is a range must be the same one in all branches"
            )
    return found


def distribution(axis: Axis) -> Any:
    """Return Optuna's distribution of an axis."""
    made = optuna().distributions
    if axis.choices:
        return made.CategoricalDistribution([encode(choice) for choice in axis.choices])
    if axis.whole:
        step = int(axis.step or 1)
        return made.IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=step)
    if axis.frozen is not None:  # which may have no end
        return made.FloatDistribution(float(axis.at(0.0)), float(axis.at(1.0)))
    return made.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def decode(axis: Axis, stored: Any) -> Any:
    """Return the value that `encode` stored."""
    return next((choice for choice in axis.choices if encode(choice) == stored), stored)


@contextlib.contextmanager
def quiet(package: Any) -> Iterator[None]:
    """Let Optuna log only warnings meanwhile."""
    before = package.logging.get_verbosity()
    package.logging.set_verbosity(package.logging.WARNING)
    try:
        yield
    finally:
        package.logging.set_verbosity(before)
