"""Trains and tests the runs of a sweep, whatever their system: with the ordinary setup and loop.

Trainings of a unit go through the same batches together; a trial's state is the checkpoint of the
loop. Data, caches and what is fitted beforehand are read or fitted once in a process. The test
split is left out of everything that chooses.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from cache.memory import available_memory, free_device_memory, size
from pipeline.config import ConfigError
from pipeline.run import Run
from pipeline.sweep.batches import batches_key, epoch_bytes
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.space import Space, apply
from pipeline.sweep.units import Replicate, TrainingHistory, Unit, replicate_config, state_path
from pipeline.systems import Setup
from pipeline.systems.config import TrainConfig
from pipeline.systems.memo import Memo
from pipeline.tasks.metrics import Interval, bootstrap
from pipeline.training.checkpoint import progress_of, read_checkpoint
from pipeline.training.job import make_job, make_model
from pipeline.training.judge import judge_split
from pipeline.training.loop import ProgressCallback, Training, train_epochs
from pipeline.training.results import RunResult, finish
from pipeline.training.setup import fold_setup, identity, make_loader, prepare

__all__ = ["Tested", "Trainer"]

Tested = dict[str, Interval]
"""Test metrics with their bootstrap intervals."""
JUDGED = 64
"""Examples of a pass over test, as `evaluate` takes by default."""
STATES, MOMENTS = 4, 3
"""Copies that a training holds: of its state (weights, best, average, one while dev is scored), and
of what is trained (gradient, two moments)."""


class Trainer:
    """What trains the trials of a sweep in one process.

    Attributes:
        config: of the sweep.
        memo: what has been read and fitted.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.config, self.memo = config, Memo()

    def whole(self, config: TrainConfig) -> Setup:
        """Return what a training reads, with every split."""
        return prepare(config, self.memo)

    def setup(self, config: TrainConfig, fold: int = 0) -> Setup:
        """Return the setup for choosing: train and dev, or all folds but one and that one.

        Raises:
            ConfigError: there are fewer groups than folds, or taps or options do not fit.
        """
        whole, folds = self.whole(config), self.config.folds
        if folds:
            return fold_setup(whole, config, fold, folds, config.data.split_seed)
        chosen = {name: part for name, part in whole.splits.items() if name != "test"}
        return dataclasses.replace(whole, splits=chosen)

    def begin(self, space: Space) -> tuple[str, str]:
        """Read data and caches as the run and every end of an axis want them.

        Returns:
            The metric that chooses, and what must be equal to continue the sweep, as text.

        Raises:
            ConfigError: taps are not there, or nothing can be chosen by.
            DataError: the data are unusable or not in a cache.
            CacheError: a cache is missing, incomplete or damaged.
        """
        run = self.config.run
        whole, setup = self.whole(run), self.setup(run)
        for axis in itertools.chain(*space.branches):
            for value in axis.ends():
                self.whole(apply(run, {axis.name: value}))
        if "dev" not in setup.splits:
            raise ConfigError("there is no dev split to choose by; give one, or folds")
        for located in setup.splits.values():
            setup.task.targets(located.examples, located.clean)  # which may be hidden
        return setup.task.metrics[0], identity(run, whole)

    def batches(self, given: tuple[TrainConfig, int]) -> str:
        """Return text that is equal for trainings, each with its fold, that share their batches.

        Raises:
            ConfigError: the options do not fit the data or the caches.
        """
        config, fold = given
        return batches_key(config, self.setup(config, fold))

    def size_of(self, group: Sequence[tuple[TrainConfig, int]], workers: int) -> tuple[int, str]:
        """Return how many of these trainings a unit takes at most, and why as a sentence."""
        asked = self.config.together
        if asked is not None:
            return asked, f"{_sharing(asked)}, at most, as asked for"
        device = self.setup(*group[0]).device
        free = free_device_memory(device)
        limit = (available_memory() if free is None else free) // (2 * workers)
        each = max(1, *(self._bytes(config, fold) for config, fold in group))
        fits, even = max(1, limit // each), math.ceil(len(group) / workers)
        count = min(fits, even)
        why = "there is no other" if len(group) == 1 else f"there are {len(group)}"
        if fits < even:
            why = f"{count + 1} would need {size((count + 1) * each)} of {size(limit)}"
        elif workers > 1:
            why += f" for {workers} workers"
        return count, f"{_sharing(count)}, as {why}; {size(each)} each for weights and moments"

    def _bytes(self, config: TrainConfig, fold: int) -> int:
        """Return the bytes that a training holds beside its batch; 0 where values do not fit."""
        with torch.random.fork_rng():
            try:
                setup = self.setup(config, fold)
                model = setup.system.build(config, setup)
            except ConfigError:
                return 0
        state: int = sum(value.nbytes for value in model.state_dict().values())
        trained: int = sum(each.nbytes for each in model.parameters() if each.requires_grad)
        return STATES * state + MOMENTS * trained

    def train(
        self, unit: Unit, on_step: ProgressCallback | None = None
    ) -> tuple[dict[Replicate, TrainingHistory], int]:
        """Train a unit's replicates and write their checkpoints.

        Returns:
            How each has gone since its first epoch, and the bytes of activations read.
        """
        run = self.config.run
        configs = {r: replicate_config(run, unit.points[r.trial], r) for r in unit.replicates}
        setups = {r: self.setup(config, r.fold) for r, config in configs.items()}
        first = unit.replicates[0]
        loader = make_loader(configs[first], setups[first])
        going: dict[Replicate, Training] = {}
        histories: dict[Replicate, TrainingHistory] = {}
        with torch.random.fork_rng():
            for each, config in configs.items():
                try:
                    going[each] = self._begin(unit, each, config, setups[each], len(loader))
                except ConfigError as error:  # the values of the point do not go together
                    histories[each] = TrainingHistory(history=(), failed=str(error))
            train_epochs(list(going.values()), loader, until=unit.stop, progress=on_step)
        for each, training in going.items():
            reason = None if training.failed is None else training.failed.reason
            history = tuple(training.now.history)
            histories[each] = TrainingHistory(history=history, failed=reason)
        epochs = [max(0, len(each.history) - unit.start) for each in histories.values()]
        train, dev = epoch_bytes(setups[first])
        return histories, max(epochs) * train + sum(epochs) * dev

    def _begin(
        self, unit: Unit, replicate: Replicate, config: TrainConfig, setup: Setup, batches: int
    ) -> Training:
        """Return a training as the unit before left it, or a killed process this one."""
        out = self.config.out
        end = state_path(out, replicate, unit.stop)
        start = state_path(out, replicate, unit.start) if unit.start else None
        end.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        begun = start is not None or end.exists()  # with all that is fitted
        model = setup.system.build(config, setup) if begun else make_model(config, setup)
        return Training(
            config,
            make_job(config, setup, model),
            batches,
            end,
            identity=identity(config, setup),
            start=start,
        )

    def has_test(self) -> bool:
        """Whether there is a test split that runs can be tested on."""
        return "test" in self.whole(self.config.run).splits

    def tested(self, runs: Sequence[Run]) -> Tested:
        """Return the metric that chooses on test: the mean over the runs, with its interval.

        Units are resampled for all runs together; for one run this is what `evaluate` gives. Empty
        where the targets are hidden.
        """
        judged = []
        for run in runs:
            setup = self.whole(run.config)
            model = run.model().to(setup.device)
            judged.append(judge_split(setup, model, "test", batch_size=JUDGED))
        found = bootstrap(judged)
        metric = runs[0].metrics[0]
        return {metric: found[metric]} if found else {}

    def write_run(self, config: TrainConfig, state: Path) -> RunResult:
        """Write the run of `config` from the checkpoint of a training that has ended."""
        setup = self.whole(config)
        with torch.random.fork_rng():
            model = setup.system.build(config, setup)
        config.out.mkdir(parents=True, exist_ok=True)
        now, own = progress_of(read_checkpoint(state)), identity(config, setup)
        return finish(config, setup, model, now, identity=own, tier="the units of a sweep")


def _sharing(count: int) -> str:
    if count == 1:
        return "each training reads the caches for itself"
    return f"{count} trainings share each read of the caches"
