"""The training loop of every system: steps, checkpoints, EMA, early stopping.

It knows no data and no model: a `Job` brings a model, its loss of a batch, and the score of dev.
Several trainings that want the same batches go through them together, one reading for all; each has
its own weights, rates, average and random numbers, and comes out as it would alone.
Memory: the weights of each training, about four copies (five with EMA). A step costs what the job's
loss costs, forward and backward.

An interrupted training goes on from its last checkpoint, bit for bit on a CPU; see
`pipeline.training.checkpoint`.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.console import duration
from pipeline.errors import PipelineError
from pipeline.run import RunError
from pipeline.systems.config import LoopConfig
from pipeline.tasks.base import Moment
from pipeline.tasks.metrics import better
from pipeline.training.checkpoint import (
    Progress,
    RandomState,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from pipeline.training.ema import WeightAverage, copy_weights
from pipeline.training.schedule import rate_factor

__all__ = [
    "Batches",
    "Diverged",
    "Job",
    "ProgressCallback",
    "TrainProgress",
    "Training",
    "train_epochs",
]

logger = logging.getLogger(__name__)

SHOWN = 4
"""Dev metrics on the line of progress."""
NEVER_FINITE = "no epoch gave a finite dev metric; lower lr, or look at metrics.jsonl"


class Diverged(PipelineError, ArithmeticError):  # noqa: N818 (reads as what happened)
    """The loss or the gradient is not finite any more.

    Attributes:
        reason: what happened, and what may help.
    """

    def __init__(self, reason: str, way: str = "") -> None:
        super().__init__(f"{reason}; {way}" if way else reason)
        self.reason = reason


class Batches(Protocol):
    """Minibatches of every epoch, the same ones for the same number: a loader of `cache`."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from `start_batch` on; each has an `index` [b]."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one training brings to the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[Any, Moment], Tensor]
    """The loss of a batch, a scalar."""
    score_dev: Callable[[], dict[str, float]]
    """Metrics of the dev split with the model as it is; empty if there is no such split."""
    metric: str
    """The metric of `score_dev` that chooses the epoch to keep."""


class TrainProgress(NamedTuple):
    """How far a training is: mean loss of the epoch, examples a second, seconds left."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    dev: dict[str, float]
    rate: float
    eta: float
    trainings: int = 1

    def describe(self) -> str:
        """Return one line: epoch, batch, loss, dev metrics, examples a second, time left."""
        shown = list(self.dev.items())[:SHOWN]
        dev = "".join(f"  dev {name} {value:.3f}" for name, value in shown)
        return (
            f"epoch {self.epoch} of {self.epochs}  batch {self.batch} of {self.batches}  "
            f"loss {self.loss:.4f}{dev}  {self.rate:,.0f} examples/s  {duration(self.eta)} left"
        )


ProgressCallback = Callable[[TrainProgress], Any]


class Training:
    """One training as it goes, from its fresh weights or from a checkpoint.

    Args:
        config: epochs, rates, stopping.
        job: model, optimizer and loss.
        batches: of an epoch.
        checkpoint: file that takes the checkpoints; where there is one, it is continued.
        identity: what must be equal for a checkpoint to be continued, as text.
        start: checkpoint to begin from where `checkpoint` has none; None for the fresh weights.
        after_epoch: called after each epoch, before its checkpoint.

    Attributes:
        now: where it stands.
        failed: why it cannot go on; None if it can.

    Raises:
        RunError: a checkpoint is another training's.
    """

    def __init__(
        self,
        config: LoopConfig,
        job: Job,
        batches: int,
        checkpoint: Path,
        *,
        identity: str,
        start: Path | None = None,
        after_epoch: Callable[[Progress], None] | None = None,
    ) -> None:
        self.config, self.job, self.batches = config, job, batches
        self.checkpoint, self.identity, self.after_epoch = checkpoint, identity, after_epoch
        self.average = WeightAverage(job.model, config.ema) if config.ema else None
        self.now = Progress()
        self.failed: Diverged | None = None
        self.random = RandomState.take()
        known = checkpoint if checkpoint.exists() else start
        if known is not None:
            state = read_checkpoint(known)
            if state["identity"] != identity:
                raise RunError(
                    f"{known} belongs to a training of another configuration, cache or data; "
                    "choose another out folder, or remove it"
                )
            self.now, self.random = restore(state, job.model, job.optimizer, self.average)
            logger.info("resumed at epoch %d, batch %d", self.now.epoch + 1, self.now.batch)
        job.model.train()

    def goes_on(self, until: int) -> bool:
        """Whether it is to train before it has had `until` epochs."""
        ended = self.now.stopped or self.now.epoch >= min(until, self.config.epochs)
        return not ended and self.failed is None

    def step(self, batch: Any) -> None:
        """Take one optimizer step and count it."""
        config, job, now = self.config, self.job, self.now
        rate = learning_rate(config, now.step, config.epochs * self.batches)
        for group in job.optimizer.param_groups:
            group["lr"] = rate
        loss = job.loss_of(batch, Moment(now.epoch, now.batch, self.batches))
        job.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(job.model.parameters(), config.clip or math.inf)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            self.failed = self._diverged(value, norm.item())
            return
        job.optimizer.step()
        if self.average is not None:
            self.average.update(job.model)
        now.step, now.batch = now.step + 1, now.batch + 1
        now.loss_sum += value * len(batch.index)
        now.loss_count += len(batch.index)

    def end_epoch(self, seconds: float) -> None:
        """Score dev, keep the weights of the best epoch, and go on to the next, or stop.

        Args:
            seconds: that the epoch's steps took.
        """
        now, model = self.now, self.job.model
        started = time.perf_counter()
        with self.average.applied(model) if self.average else contextlib.nullcontext():
            dev = self.job.score_dev()
            if not dev or better(self.job.metric, dev[self.job.metric], now.best_value):
                now.best_epoch, now.best_value = now.epoch, dev.get(self.job.metric)
                now.best_weights = copy_weights(model)
        now.history.append(
            {
                "epoch": now.epoch + 1,
                "step": now.step,
                "loss": now.loss_sum / max(1, now.loss_count),
                "dev": dev,
                "lr": self.job.optimizer.param_groups[0]["lr"],
                "seconds": seconds + time.perf_counter() - started,
            }
        )
        waited = now.epoch - (now.best_epoch if now.best_epoch is not None else -1)
        now.stopped = self.config.patience is not None and waited >= self.config.patience
        now.epoch, now.batch, now.loss_sum, now.loss_count = now.epoch + 1, 0, 0.0, 0
        if now.best_epoch is None and not self.goes_on(self.config.epochs):
            self.failed = Diverged(NEVER_FINITE)
        if self.after_epoch is not None:
            self.after_epoch(now)

    def save(self) -> None:
        """Replace the checkpoint."""
        save_checkpoint(
            self.checkpoint,
            identity=self.identity,
            progress=self.now,
            model=self.job.model,
            optimizer=self.job.optimizer,
            average=self.average,
            random=self.random,
        )

    def _diverged(self, loss: float, norm: float) -> Diverged:
        config, now = self.config, self.now
        return Diverged(
            f"the training diverged at epoch {now.epoch + 1}, step {now.step + 1}: loss {loss}, "
            f"gradient norm {norm}. Lower lr (now {config.lr}), raise warmup (now "
            f"{config.warmup}), set clip (now {config.clip}), or use precision float32",
            f"then train into a new folder, or remove {self.checkpoint}",
        )


def train_epochs(
    trainings: Sequence[Training],
    batches: Batches,
    *,
    until: int,
    progress: ProgressCallback | None = None,
) -> None:
    """Train to an epoch, each training or until it fails or stops; in parts it comes to the same.

    One alone writes its checkpoint after each epoch and within it; several write theirs at the end.

    Args:
        trainings: that want the same batches.
        batches: of every epoch.
        until: epochs to reach; their own `epochs` give the schedules.
        progress: called after each step of all.
    """
    alone = len(trainings) == 1
    meter = _Meter(batches, progress)
    while going := [each for each in trainings if each.goes_on(until)]:
        epoch = min(each.now.epoch for each in going)
        here = [each for each in going if each.now.epoch == epoch]
        started, first = time.perf_counter(), min(each.now.batch for each in here)
        for place, batch in enumerate(batches.epoch(epoch, start_batch=first), first):
            for each in here:
                if each.failed is None and place >= each.now.batch:
                    with each.random.within(not alone):
                        each.step(batch)
            every = here[0].config.checkpoint_steps
            if alone and every and here[0].now.step % every == 0 and here[0].failed is None:
                _save(here[0])
            meter.step(here, len(batch.index))
            if all(each.failed for each in here):
                break
        seconds = (time.perf_counter() - started) / len(here)
        for each in here:
            if each.failed is None:
                with each.random.within(not alone):
                    each.end_epoch(seconds)
                if alone:
                    _save(each)
    if not alone:
        for each in trainings:
            each.save()


def _save(training: Training) -> None:
    """Write the checkpoint of a training that uses torch's own random numbers."""
    training.random = RandomState.take()
    training.save()


def learning_rate(config: LoopConfig, step: int, total: int) -> float:
    """Return the rate of optimizer step `step` (from 0) of `total`."""
    return config.lr * rate_factor(
        step, total, schedule=config.schedule, warmup=config.warmup, step_at=config.step_at
    )


class _Meter:
    """Counts examples and seconds of this process, and reports the first training's progress."""

    def __init__(self, batches: Batches, report: ProgressCallback | None) -> None:
        self.batches, self.report = batches, report
        self.started = time.perf_counter()
        self.examples = self.steps = 0

    def step(self, here: Sequence[Training], examples: int) -> None:
        """Count one batch and call the callback."""
        self.examples += examples
        self.steps += 1
        if self.report is None:
            return
        first = next((each for each in here if each.failed is None), here[0])
        now, epochs = first.now, first.config.epochs
        seconds = max(1e-9, time.perf_counter() - self.started)
        left = max(0, epochs * len(self.batches) - now.step)
        self.report(
            TrainProgress(
                epoch=now.epoch + 1,
                epochs=epochs,
                batch=now.batch,
                batches=len(self.batches),
                loss=now.loss_sum / max(1, now.loss_count),
                dev=now.history[-1]["dev"] if now.history else {},
                rate=self.examples / seconds,
                eta=left * seconds / self.steps,
                trainings=len(here),
            )
        )
