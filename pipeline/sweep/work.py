"""Does work units, in this process or in Dask workers; every one leaves its record on disk.

A worker needs no more than the sweep's folder: it opens data and cache once and keeps them. Workers
use one thread each, so results do not depend on their number.
"""

import functools
import importlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from cache.memory import available_memory
from pipeline.sweep.capacity import cohort_capacity
from pipeline.sweep.cohort import CohortProgress, CohortTrial, shape_key, train_cohort
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import read_config
from pipeline.sweep.setups import Setups
from pipeline.sweep.state import TrialState
from pipeline.sweep.units import (
    Course,
    Member,
    Unit,
    UnitRecord,
    member_config,
    state_path,
    trial_folder,
)
from pipeline.training.build import Setup

OnStep = Callable[[CohortProgress], Any]
RETRIES = 3
"""Times that a unit is given to another worker after its worker died."""


class Runner(Protocol):
    """Takes units and gives back their records as they are done."""

    def submit(self, unit: Unit) -> None:
        """Take a unit."""

    def wait(self) -> UnitRecord:
        """Return the record of a unit that is done; each once."""


class LocalRunner:
    """Does the units in this process, in their order."""

    def __init__(self, out: Path, on_step: OnStep | None = None) -> None:
        self.out, self.on_step = out, on_step
        self.units: deque[Unit] = deque()

    def submit(self, unit: Unit) -> None:
        """Take a unit."""
        self.units.append(unit)

    def wait(self) -> UnitRecord:
        """Do the next unit."""
        return do_unit(self.out, self.units.popleft(), self.on_step)


class DaskRunner:
    """Gives the units to the workers of a Dask client; a dead worker's units go to others."""

    def __init__(self, out: Path, client: Any) -> None:
        self.out, self.client = out.resolve(), client
        self.done = importlib.import_module("distributed").as_completed()

    def submit(self, unit: Unit) -> None:
        """Take a unit."""
        found = self.client.submit(
            do_unit_alone,
            self.out,
            unit,
            key=f"{self.out}/{unit.name}",
            retries=RETRIES,
            pure=False,
        )
        self.done.add(found)

    def wait(self) -> UnitRecord:
        """Return the next record; raise what a unit raised."""
        record: UnitRecord = next(self.done).result()
        return record


@contextmanager
def open_runner(config: SweepConfig, on_step: OnStep | None = None) -> Iterator[Runner]:
    """Yield what does the units of `config`: this process, local workers, or a cluster's.

    `on_step` is called after each step of this process.
    """
    if not config.workers and config.scheduler is None:
        yield LocalRunner(config.out, on_step)
        return
    distributed = importlib.import_module("distributed")  # slow, and most sweeps have no workers
    if config.scheduler is not None:
        with distributed.Client(config.scheduler) as client:
            yield DaskRunner(config.out, client)
        return
    settings = {"n_workers": config.workers, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        yield DaskRunner(config.out, client)


def do_unit_alone(out: Path, unit: Unit) -> UnitRecord:
    """Do a unit in a worker, with one thread."""
    torch.set_num_threads(1)
    return do_unit(out, unit)


def do_unit(out: Path, unit: Unit, on_step: OnStep | None = None) -> UnitRecord:
    """Train the members of a unit, unless its record is there, and write states and record."""
    found = UnitRecord.find(out, unit.name)
    if found is not None:
        return found
    config, setups = opened(out)
    started = time.perf_counter()
    setup = setups.get(_config_of(config, unit, unit.members[0]), unit.members[0].fold)
    courses = _train(out, config, unit, setup, on_step)
    record = UnitRecord(
        name=unit.name,
        start=unit.start,
        stop=unit.stop,
        courses=courses,
        seconds=time.perf_counter() - started,
        bytes_read=_bytes_read(setup, unit, courses),
    )
    record.save(out)
    return record


@functools.lru_cache(maxsize=2)
def opened(out: Path) -> tuple[SweepConfig, Setups]:
    """Return the configuration of the sweep at `out` and what its trials read."""
    config = read_config(out)
    return config, Setups(config.folds, config.run.data.split_seed)


def shape_of(config: Any, fold: int) -> str:
    """Return text that is equal for trainings that share a cohort."""
    return f"{shape_key(config)} {Setups.key(config, fold)}"


def _config_of(config: SweepConfig, unit: Unit, member: Member) -> Any:
    return member_config(config, unit.points[member.trial], member)


def _train(
    out: Path, config: SweepConfig, unit: Unit, setup: Setup, on_step: OnStep | None
) -> dict[Member, Course]:
    trials = [
        CohortTrial(
            number=number,
            config=_config_of(config, unit, member),
            state=TrialState.load(state_path(out, member, unit.start)) if unit.start else None,
        )
        for number, member in enumerate(unit.members)
    ]
    courses = {}
    for member, outcome in zip(
        unit.members, train_cohort(trials, setup, unit.stop, on_step), strict=True
    ):
        trial_folder(out, member.trial).mkdir(parents=True, exist_ok=True)
        outcome.state.save(state_path(out, member, unit.stop))
        courses[member] = Course(history=tuple(outcome.history), failed=outcome.failed)
    return courses


def _bytes_read(setup: Setup, unit: Unit, courses: dict[Member, Course]) -> int:
    """Return the bytes that the loaders delivered: all epochs of train, and dev after each."""
    epochs = max(len(course.history) for course in courses.values()) - unit.start
    stack = setup.cache.shape_of(setup.tap_names)
    row = setup.cache.geometry.row_bytes(stack) * len(setup.taps)
    rows = sum(
        int(setup.cache.row_counts(stack, located.samples.reshape(-1)).sum())
        for located in setup.splits.values()
    )
    return max(0, epochs) * rows * row


def cohort_size(config: SweepConfig, run: Any, setup: Setup, wanted: int) -> tuple[int, str]:
    """Return the most trainings of a cohort of `run`'s shape, and why as a sentence."""
    if config.cohort is not None:
        return config.cohort, f"{config.cohort} trials together at most, as asked for"
    on_gpu = setup.device.type == "cuda"
    limit = None if on_gpu else available_memory() // (2 * max(1, config.workers))
    return cohort_capacity(run, setup, wanted=wanted, memory_limit=limit)
