"""Sweeps over runs of a retrieval, whose trials train one at a time with the ordinary loop.

A trial's state is the checkpoint of that loop, so a unit that was killed goes on within its epochs.
Size: about four copies of the towers with their bases (weights, two moments, best), five with EMA.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.config import ConfigError
from pipeline.retrieval.build import RetrievalSetup, build_towers, retrieval_identity
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.evaluate import rank_run
from pipeline.retrieval.metrics import bootstrap
from pipeline.retrieval.train import METRIC, finish, make_job, train_retrieval
from pipeline.run import Run
from pipeline.sweep.config import RetrievalSweepConfig
from pipeline.sweep.kinds import OnStep, Tested
from pipeline.sweep.pair_setups import PairSetups
from pipeline.sweep.space import Space
from pipeline.sweep.stacked_training import CohortProgress
from pipeline.sweep.units import Course, Member, Unit, member_config, state_path
from pipeline.training.checkpoint import Progress, read_checkpoint
from pipeline.training.evaluation import EvaluateConfig
from pipeline.training.loop import Diverged, ProgressCallback, TrainProgress, run_stretch
from pipeline.training.results import RunResult

REASON = "1 training at a time: the towers of a retrieval are not stacked"


class RetrievalKind:
    """Trains each trial on its own; all share data, caches and what is fitted beforehand."""

    def __init__(self, config: RetrievalSweepConfig) -> None:
        self.config = config
        self.setups = PairSetups(config.folds, config.run.data.split_seed)

    def begin(self, space: Space) -> tuple[str, str]:
        """Read data and caches, and look for the taps of every branch; see `Kind`."""
        run = self.config.run
        whole = self.setups.whole(run)
        self.setups.get(run)  # which may lack groups for its folds
        for axis in itertools.chain(*space.branches):
            for taps in axis.choices if axis.name in ("text_taps", "media_taps") else ():
                self.setups.whole(run.model_copy(update={axis.name: taps}))
        return METRIC, retrieval_identity(run, whole)

    def shape_of(self, config: RetrievalTrainConfig, fold: int) -> str:
        """Return text that is equal for all trainings: their units hold one each."""
        return "retrieval"

    def size_of(self, config: RetrievalTrainConfig, fold: int, wanted: int) -> tuple[int, str]:
        """Return 1, and why."""
        return 1, REASON

    def train(self, unit: Unit, on_step: OnStep | None) -> tuple[dict[Member, Course], int]:
        """Train the members of a unit one after another; see `Kind`."""
        courses, read = {}, 0
        for member in unit.members:
            config = member_config(self.config.run, unit.points[member.trial], member)
            setup = self.setups.get(config, member.fold)
            courses[member] = self._train(unit, member, config, setup, on_step)
            epochs = max(0, len(courses[member].history) - unit.start)
            read += epochs * _epoch_bytes(setup)
        return courses, read

    def _train(
        self,
        unit: Unit,
        member: Member,
        config: RetrievalTrainConfig,
        setup: RetrievalSetup,
        on_step: OnStep | None,
    ) -> Course:
        """Train a member from its state, or from what a killed process has left of this unit."""
        end = state_path(self.config.out, member, unit.stop)
        start = state_path(self.config.out, member, unit.start) if unit.start else None
        end.parent.mkdir(parents=True, exist_ok=True)
        failed = None
        try:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                fresh = start is None and not end.exists()
                _, job = make_job(config, setup, self.setups.fits if fresh else None)
                run_stretch(
                    config,
                    job,
                    end,
                    identity=retrieval_identity(config, setup),
                    until=unit.stop,
                    start=start,
                    progress=None if on_step is None else _as_cohort(on_step),
                )
        except Diverged as error:
            failed = error.reason
        except ConfigError as error:  # the values of the point do not go together
            failed = str(error)
        known = end if end.exists() else start
        history = () if known is None else tuple(_progress(known).history)
        return Course(history=history, failed=failed)

    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self.setups.whole(self.config.run).splits

    def tested(self, runs: Sequence[Run]) -> Tested:
        """Return Rsum on test; see `Kind`."""
        ranked = [rank_run(run, EvaluateConfig(run=run.path)) for run in runs]
        owner = ranked[0].located.split.item_of
        return {METRIC: bootstrap([one.ranks for one in ranked], owner)[METRIC]}

    def write_run(self, config: RetrievalTrainConfig, state: Path) -> RunResult:
        """Write the run of a trial from its last checkpoint; see `Kind`."""
        setup = self.setups.whole(config)
        with torch.random.fork_rng():
            model = build_towers(config, setup)
        config.out.mkdir(parents=True, exist_ok=True)
        own = retrieval_identity(config, setup)
        now = _progress(state)
        return finish(config, setup, model, now, identity=own, tier="the units of a sweep")

    def fit(self, config: RetrievalTrainConfig) -> RunResult:
        """Train a run as `train` does."""
        return train_retrieval(config)


def _progress(checkpoint: Path) -> Progress:
    return Progress(**read_checkpoint(checkpoint)["progress"])


def _as_cohort(on_step: OnStep) -> ProgressCallback:
    """Return what tells the progress of one training as that of a cohort of one."""

    def told(now: TrainProgress) -> None:
        on_step(CohortProgress(now.epoch, now.batch, now.batches, 1, now.rate))

    return told


def _epoch_bytes(setup: RetrievalSetup) -> int:
    """Return the bytes that the loaders deliver in an epoch of training, and of dev after it.

    A training caption comes with its item; of dev each content is read once.
    """
    total = 0
    for name, located in setup.splits.items():
        samples = {"text": located.text[:, 0], "media": located.media[:, 0]}
        if name == "train":
            samples["media"] = samples["media"][located.split.item_of]
        else:
            samples = {tower: np.unique(rows) for tower, rows in samples.items()}
        for tower, rows in samples.items():
            cache = setup.caches[tower]
            for group in cache.group_taps(setup.taps[tower].names):
                size = cache.geometry.row_bytes(group.stack) * len(group.taps)
                total += size * int(cache.row_counts(group.stack, rows).sum())
    return total
