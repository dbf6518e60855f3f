"""The training loop of every task: steps, checkpoints, EMA, early stopping, curves.

It knows no data and no model: a `Job` brings batches, their loss, and the score of the dev split.
Memory: the weights, about four copies (five with EMA). A step costs what the job's loss costs,
forward and backward.

An interrupted training goes on from its last checkpoint, bit for bit on a CPU; see
`pipeline.training.checkpoint`.
"""

import contextlib
import importlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.console import duration
from pipeline.errors import PipelineError
from pipeline.run import CHECKPOINT, CURVES, RunError
from pipeline.tasks.metrics import better
from pipeline.training.checkpoint import Progress, read_checkpoint, restore, save_checkpoint
from pipeline.training.config import LoopConfig
from pipeline.training.ema import WeightAverage, copy_weights
from pipeline.training.files import write_lines
from pipeline.training.schedule import rate_factor

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


class BatchOf(Protocol):
    """A minibatch: all the loop looks at is how many examples it has."""

    @property
    def index(self) -> Tensor:
        """Positions of its examples, [b]."""


class Batches(Protocol):
    """Minibatches of every epoch, the same ones for the same number: `cache.Loader` and such."""

    @property
    def tier_reason(self) -> str:
        """Where the batches come from, and why."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Any]:
        """Yield the batches (`BatchOf`) of an epoch, from `start_batch` on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one task brings to the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    loss_of: Callable[[Any, Progress], Tensor]
    """The loss of a batch, a scalar; `Progress` says in which epoch and where in it."""
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

    def describe(self) -> str:
        """Return one line: epoch, batch, loss, dev metrics, examples a second, time left."""
        shown = list(self.dev.items())[:SHOWN]
        dev = "".join(f"  dev {name} {value:.3f}" for name, value in shown)
        return (
            f"epoch {self.epoch} of {self.epochs}  batch {self.batch} of {self.batches}  "
            f"loss {self.loss:.4f}{dev}  {self.rate:,.0f} examples/s  {duration(self.eta)} left"
        )


ProgressCallback = Callable[[TrainProgress], None]


def run_loop(
    config: LoopConfig,
    job: Job,
    *,
    identity: str,
    progress: ProgressCallback | None = None,
) -> Progress:
    """Train `job`, from its fresh weights or from the checkpoint in `config.out`, to the end.

    Args:
        config: epochs, rates, stopping, and the run folder that takes checkpoints and curves.
        job: model, optimizer, batches and loss.
        identity: what must be equal for a checkpoint to be continued, as text.
        progress: called after each step.

    Returns:
        Where the training ended, with the weights of its best epoch.

    Raises:
        RunError: the checkpoint is another training's.
        Diverged: the loss is not finite, or no epoch gave a finite dev metric.
    """
    logger.info("batches from %s", job.batches.tier_reason)
    return run_stretch(
        config,
        job,
        config.out / CHECKPOINT,
        identity=identity,
        until=config.epochs,
        after_epoch=lambda now: _write_curves(config, now),
        progress=progress,
    )


def run_stretch(
    config: LoopConfig,
    job: Job,
    checkpoint: Path,
    *,
    identity: str,
    until: int,
    start: Path | None = None,
    after_epoch: Callable[[Progress], None] | None = None,
    progress: ProgressCallback | None = None,
) -> Progress:
    """Train `job` up to an epoch: stretch by stretch it comes to what `run_loop` gives.

    Args:
        config: as in `run_loop`; its epochs, not `until`, give the schedule.
        job: as in `run_loop`.
        checkpoint: file that takes the checkpoints; where there is one, it is continued.
        identity: as in `run_loop`.
        until: epochs to reach.
        start: checkpoint to begin from where `checkpoint` has none; None for the fresh weights.
        after_epoch: called after each epoch, before its checkpoint.
        progress: called after each step.

    Returns:
        Where the training stands.

    Raises:
        RunError: a checkpoint is another training's.
        Diverged: the loss is not finite, or the training ended without a finite dev metric.
    """
    model, batches = job.model, job.batches
    average = WeightAverage(model, config.ema) if config.ema else None
    now = Progress()
    known = checkpoint if checkpoint.exists() else start
    if known is not None:
        now = restore(_read_own(known, identity), model, job.optimizer, average)
        logger.info("resumed at epoch %d, batch %d", now.epoch + 1, now.batch)

    def save() -> None:
        save_checkpoint(
            checkpoint,
            identity=identity,
            progress=now,
            model=model,
            optimizer=job.optimizer,
            average=average,
        )

    meter = _Meter(config, len(batches), progress)
    model.train()
    while now.epoch < min(until, config.epochs) and not now.stopped:
        started = time.perf_counter()
        for batch in batches.epoch(now.epoch, start_batch=now.batch):
            _step(config, job, batch, now, checkpoint)
            if average is not None:
                average.update(model)
            if config.checkpoint_steps and now.step % config.checkpoint_steps == 0:
                save()
            meter.step(now, len(batch.index))
        with average.applied(model) if average is not None else contextlib.nullcontext():
            dev = job.score_dev()
            end_epoch(
                config,
                now,
                dev,
                job.metric,
                weights=lambda: copy_weights(model),
                lr=job.optimizer.param_groups[0]["lr"],
                seconds=time.perf_counter() - started,
            )
        if after_epoch is not None:
            after_epoch(now)
        save()
    if now.best_epoch is None and (now.stopped or now.epoch >= config.epochs):
        raise Diverged(NEVER_FINITE)
    return now


def _step(config: LoopConfig, job: Job, batch: BatchOf, now: Progress, checkpoint: Path) -> None:
    """Take one optimizer step and count it."""
    _set_rate(job.optimizer, config, now.step, config.epochs * len(job.batches))
    loss = job.loss_of(batch, now)
    job.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(job.model.parameters(), config.clip or math.inf)
    _check_finite(config, loss, norm, now, checkpoint)
    job.optimizer.step()
    now.step, now.batch = now.step + 1, now.batch + 1
    now.loss_sum += loss.item() * len(batch.index)
    now.loss_count += len(batch.index)


def _set_rate(optimizer: torch.optim.Optimizer, config: LoopConfig, step: int, total: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, total)


def learning_rate(config: LoopConfig, step: int, total: int) -> float:
    """Return the rate of optimizer step `step` (from 0) of `total`."""
    return config.lr * rate_factor(
        step, total, schedule=config.schedule, warmup=config.warmup, step_at=config.step_at
    )


def _check_finite(
    config: LoopConfig, loss: Tensor, norm: Tensor, now: Progress, checkpoint: Path
) -> None:
    if math.isfinite(loss.item()) and math.isfinite(norm.item()):
        return
    raise Diverged(
        describe_divergence(config, now.epoch, now.step, loss.item(), norm.item()),
        f"then train into a new folder, or remove {checkpoint}",
    )


def describe_divergence(config: LoopConfig, epoch: int, step: int, loss: float, norm: float) -> str:
    """Say at which step (epoch and step from 0) a training diverged, and what may help."""
    return (
        f"the training diverged at epoch {epoch + 1}, step {step + 1}: loss {loss}, gradient norm "
        f"{norm}. Lower lr (now {config.lr}), raise warmup (now {config.warmup}), set clip (now "
        f"{config.clip}), or use precision float32"
    )


def end_epoch(
    config: LoopConfig,
    now: Progress,
    dev: dict[str, float],
    metric: str,
    *,
    weights: Callable[[], dict[str, Tensor]],
    lr: float,
    seconds: float,
) -> None:
    """Keep the weights of the best epoch, record this one and go on to the next, or stop.

    Args:
        config: patience.
        now: standing at the end of the epoch; moved on.
        dev: metrics of the dev split; without any, the last epoch is the best one.
        metric: the one that chooses.
        weights: gives a copy of the weights that `dev` was scored with.
        lr: rate of the last step.
        seconds: that the epoch took.
    """
    if not dev or better(metric, dev[metric], now.best_value):
        now.best_epoch, now.best_value = now.epoch, dev.get(metric)
        now.best_weights = weights()
    now.history.append(
        {
            "epoch": now.epoch + 1,
            "step": now.step,
            "loss": now.loss_sum / max(1, now.loss_count),
            "dev": dev,
            "lr": lr,
            "seconds": seconds,
        }
    )
    waited = now.epoch - (now.best_epoch if now.best_epoch is not None else -1)
    now.stopped = config.patience is not None and waited >= config.patience
    now.epoch, now.batch, now.loss_sum, now.loss_count = now.epoch + 1, 0, 0.0, 0


def _write_curves(config: LoopConfig, now: Progress) -> None:
    write_lines(config.out / CURVES, now.history)
    if config.tensorboard:
        _write_tensorboard(config.out / "tensorboard", now.history[-1])


def _read_own(path: Path, own: str) -> dict[str, Any]:
    state = read_checkpoint(path)
    if state["identity"] != own:
        raise RunError(
            f"{path} belongs to a training of another configuration, cache or data; choose "
            "another out folder, or remove it"
        )
    return state


def _write_tensorboard(folder: Path, record: dict[str, Any]) -> None:
    try:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ImportError(
            "tensorboard: true needs the package; pip install 'unipt[tensorboard]'"
        ) from error
    with tensorboard.SummaryWriter(str(folder)) as writer:
        writer.add_scalar("loss", record["loss"], record["step"])
        writer.add_scalar("lr", record["lr"], record["step"])
        for name, value in record["dev"].items():
            writer.add_scalar(f"dev/{name}", value, record["step"])


class _Meter:
    """Counts examples and seconds of this process, and reports them."""

    def __init__(self, config: LoopConfig, batches: int, report: ProgressCallback | None) -> None:
        self.config, self.batches, self.report = config, batches, report
        self.started = time.perf_counter()
        self.examples = 0
        self.steps = 0

    def step(self, now: Progress, examples: int) -> None:
        """Count one step and call the callback."""
        self.examples += examples
        self.steps += 1
        if self.report is None:
            return
        seconds = max(1e-9, time.perf_counter() - self.started)
        left = max(0, self.config.epochs * self.batches - now.step)
        self.report(
            TrainProgress(
                epoch=now.epoch + 1,
                epochs=self.config.epochs,
                batch=now.batch,
                batches=self.batches,
                loss=now.loss_sum / now.loss_count,
                dev=now.history[-1]["dev"] if now.history else {},
                rate=self.examples / seconds,
                eta=left * seconds / self.steps,
            )
        )
