"""Does work units, in this process or in Dask workers; every one leaves its record on disk.

A worker needs no more than the sweep's folder: it opens data and caches once and keeps them.
Workers use one thread each, so results do not depend on their number.
"""

import functools
import importlib
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.processes import undisturbed_environment
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import read_config
from pipeline.sweep.trainer import Trainer
from pipeline.sweep.units import Unit, UnitRecord
from pipeline.training.loop import ProgressCallback

RETRIES = 3
"""Times that a unit is given to another worker after its worker died."""


class Runner(Protocol):
    """Takes units and gives back their records as they are done."""

    @property
    def workers(self) -> int:
        """Units that are done at once."""

    def submit(self, unit: Unit) -> None:
        """Take a unit."""

    def wait(self) -> UnitRecord:
        """Return the record of a unit that is done; each once."""


class LocalRunner:
    """Does the units in this process, in their order."""

    workers = 1

    def __init__(self, trainer: Trainer, on_step: ProgressCallback | None = None) -> None:
        self.trainer, self.on_step = trainer, on_step
        self.units: deque[Unit] = deque()

    def submit(self, unit: Unit) -> None:
        """Take a unit."""
        self.units.append(unit)

    def wait(self) -> UnitRecord:
        """Do the next unit."""
        return do_unit(self.units.popleft(), self.trainer, self.on_step)


class DaskRunner:
    """Gives the units to the workers of a Dask client; a dead worker's units go to others."""

    def __init__(self, out: Path, client: Any) -> None:
        self.out, self.client = out.resolve(), client
        self.done = importlib.import_module("distributed").as_completed()

    @property
    def workers(self) -> int:
        """Workers that there are now, or one that is to come."""
        return max(1, len(self.client.nthreads()))

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
def open_runner(
    config: SweepConfig, trainer: Trainer, on_step: ProgressCallback | None = None
) -> Iterator[Runner]:
    """Yield what does the units of `config`: this process, local workers, or a cluster's.

    `trainer` trains in this process, and `on_step` is called after each step of it.
    """
    if not config.workers and config.scheduler is None:
        yield LocalRunner(trainer, on_step)
        return
    distributed = importlib.import_module("distributed")  # slow, and most sweeps have no workers
    if config.scheduler is not None:
        with distributed.Client(config.scheduler) as client:
            yield DaskRunner(config.out, client)
        return
    settings = {
        "n_workers": config.workers,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",  # any free port
        "scheduler_kwargs": {"dashboard": False},
    }
    with (
        undisturbed_environment(),
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield DaskRunner(config.out, client)


def do_unit_alone(out: Path, unit: Unit) -> UnitRecord:
    """Do a unit in a worker, with one thread."""
    torch.set_num_threads(1)
    return do_unit(unit, opened(out))


def do_unit(unit: Unit, trainer: Trainer, on_step: ProgressCallback | None = None) -> UnitRecord:
    """Train the replicates of a unit, unless its record is there; write states and record."""
    out = trainer.config.out
    found = UnitRecord.find(out, unit.name)
    if found is not None:
        return found
    started = time.perf_counter()
    histories, bytes_read = trainer.train(unit, on_step)
    record = UnitRecord(
        name=unit.name,
        start=unit.start,
        stop=unit.stop,
        histories=histories,
        seconds=time.perf_counter() - started,
        bytes_read=bytes_read,
    )
    record.save(out)
    return record


@functools.lru_cache(maxsize=2)
def opened(out: Path) -> Trainer:
    """Return what trains the trials of the sweep at `out`, with what they read."""
    return Trainer(read_config(out))
