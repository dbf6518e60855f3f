"""Trains a side network from a cache: targets and activations in, a run folder out.

The backbone is neither loaded nor imported. Memory: the weights (about four copies), and the
cache's blocks in the host tier or a window of them in the disk tier. A step costs one pass over
the batch's states (taps x tokens x width) in the Down maps and as much again for their gradients.

An interrupted training goes on from its last checkpoint, bit for bit on a CPU; see
`pipeline.training.checkpoint`.
"""

import contextlib
import importlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.console import duration
from pipeline.errors import PipelineError
from pipeline.evaluate import split_metrics
from pipeline.run import CHECKPOINT, CURVES, INFO, Run, RunError
from pipeline.tasks.metrics import better
from pipeline.training.augment import add_noise, drop_tokens
from pipeline.training.build import (
    Setup,
    build_model,
    identity,
    make_loader,
    make_optimizer,
    prepare,
    set_statistics,
)
from pipeline.training.checkpoint import Progress, read_checkpoint, restore, save_checkpoint
from pipeline.training.config import TrainConfig
from pipeline.training.ema import WeightAverage, copy_weights
from pipeline.training.files import write_lines
from pipeline.training.inference import run_model
from pipeline.training.results import RunResult, finish, reuse
from pipeline.training.schedule import rate_factor
from unipt import SideClassifier

__all__ = ["Diverged", "RunResult", "TrainConfig", "TrainProgress", "train"]

logger = logging.getLogger(__name__)


class Diverged(PipelineError, ArithmeticError):  # noqa: N818 (reads as what happened)
    """The loss or the gradient is not finite any more."""


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
        dev = "".join(f"  dev {name} {value:.3f}" for name, value in self.dev.items())
        return (
            f"epoch {self.epoch} of {self.epochs}  batch {self.batch} of {self.batches}  "
            f"loss {self.loss:.4f}{dev}  {self.rate:,.0f} examples/s  {duration(self.eta)} left"
        )


ProgressCallback = Callable[[TrainProgress], None]


def train(config: TrainConfig, progress: ProgressCallback | None = None) -> RunResult:
    """Train, or finish, the run that `config` describes.

    Args:
        config: data, cache, side network, optimizer; `config.out` is the run folder.
        progress: called after each step.

    Raises:
        RunError: the folder holds another run.
        Diverged: the loss is not finite.
        DataError: the data are unusable or not in the cache.
        CacheError: the cache is missing, incomplete or damaged.
        ValueError: the options do not fit the data or the cache.
    """
    setup = prepare(config)
    own = identity(config, setup)
    if (config.out / INFO).exists():
        return reuse(Run.open(config.out), own)
    config.out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return _train(config, setup, own, progress)


def _train(
    config: TrainConfig, setup: Setup, own: str, progress: ProgressCallback | None
) -> RunResult:
    """The training loop, from fresh weights or the last checkpoint to the run folder."""
    device, task = setup.device, setup.task
    loader = make_loader(config, setup)
    logger.info("batches from %s", loader.tier_reason)
    targets = _target_tensor(setup, "train")
    model = build_model(config, setup)
    if model.config["side"]["input_norm"] == "standard":
        set_statistics(model, loader)
    model = model.to(device)
    optimizer = make_optimizer(model, config)
    average = WeightAverage(model, config.ema) if config.ema else None
    now = Progress()
    if (config.out / CHECKPOINT).exists():
        now = restore(_read_own(config.out / CHECKPOINT, own), model, optimizer, average)
        logger.info("resumed at epoch %d, batch %d", now.epoch + 1, now.batch)

    def save() -> None:
        save_checkpoint(
            config.out / CHECKPOINT,
            identity=own,
            progress=now,
            model=model,
            optimizer=optimizer,
            average=average,
        )

    total = config.epochs * len(loader)
    meter = _Meter(config, len(loader), progress)
    compute = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    model.train()
    while now.epoch < config.epochs and not now.stopped:
        started = time.perf_counter()
        for batch in loader.epoch(now.epoch, start_batch=now.batch):
            _set_rate(optimizer, config, now.step, total)
            states = batch.values.to(device, non_blocking=True).to(compute)  # [N + 1, T, D]
            states, offsets = drop_tokens(states, batch.offsets.to(device), config.token_drop)
            states = add_noise(states, config.noise)
            with torch.autocast(device.type, torch.bfloat16, enabled=compute == torch.bfloat16):
                outputs = model(states, offsets=offsets).logits  # [B, C]
            loss = task.loss(outputs, targets[batch.index].to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
            _check_finite(loss, norm, now, config)
            optimizer.step()
            if average is not None:
                average.update(model)
            now.step, now.batch = now.step + 1, now.batch + 1
            now.loss_sum += loss.item() * len(batch.index)
            now.loss_count += len(batch.index)
            if config.checkpoint_steps and now.step % config.checkpoint_steps == 0:
                save()
            meter.step(now, len(batch.index))
        with average.applied(model) if average is not None else contextlib.nullcontext():
            dev = _score(config, setup, model, "dev") if "dev" in setup.splits else {}
            _keep_best(now, dev, task.metrics[0], model)
        _end_epoch(config, now, dev, optimizer, time.perf_counter() - started)
        save()
    if now.best_epoch is None:
        raise Diverged("no epoch gave a finite dev metric; lower lr, or look at metrics.jsonl")
    return finish(config, setup, model, now, identity=own, tier=loader.tier_reason)


def _target_tensor(setup: Setup, split: str) -> Tensor:
    targets = setup.splits[split].targets
    if targets is None:
        raise ConfigError(f"the split {split!r} has no targets to train on")
    return torch.from_numpy(targets)


def _set_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, total: int) -> None:
    factor = rate_factor(
        step, total, schedule=config.schedule, warmup=config.warmup, step_at=config.step_at
    )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def _check_finite(loss: Tensor, norm: Tensor, now: Progress, config: TrainConfig) -> None:
    if math.isfinite(loss.item()) and math.isfinite(norm.item()):
        return
    raise Diverged(
        f"the training diverged at epoch {now.epoch + 1}, step {now.step + 1}: loss "
        f"{loss.item()}, gradient norm {norm.item()}. Lower lr (now {config.lr}), raise warmup "
        f"(now {config.warmup}), set clip (now {config.clip}), or use precision float32; then "
        f"train into a new folder, or remove {config.out / CHECKPOINT}"
    )


def _score(
    config: TrainConfig, setup: Setup, model: SideClassifier, split: str
) -> dict[str, float]:
    located = setup.splits[split]
    outputs = run_model(
        model,
        setup.cache,
        located.samples,
        taps=setup.tap_names,
        batch_size=config.batch_size,
        device=setup.device,
    )
    scale, shift = setup.task.unscale
    return split_metrics(setup.task, outputs.logits * scale + shift, located.targets)


def _keep_best(now: Progress, dev: dict[str, float], name: str, model: SideClassifier) -> None:
    """Keep the weights of the best epoch on dev; without a dev split, of the last epoch."""
    if not dev or better(name, dev[name], now.best_value):
        now.best_epoch, now.best_value = now.epoch, dev.get(name)
        now.best_weights = copy_weights(model)


def _end_epoch(
    config: TrainConfig,
    now: Progress,
    dev: dict[str, float],
    optimizer: torch.optim.Optimizer,
    seconds: float,
) -> None:
    """Record the epoch and go on to the next one, or stop."""
    record = {
        "epoch": now.epoch + 1,
        "step": now.step,
        "loss": now.loss_sum / max(1, now.loss_count),
        "dev": dev,
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": seconds,
    }
    now.history.append(record)
    write_lines(config.out / CURVES, now.history)
    if config.tensorboard:
        _write_tensorboard(config.out / "tensorboard", record)
    waited = now.epoch - (now.best_epoch if now.best_epoch is not None else -1)
    now.stopped = config.patience is not None and waited >= config.patience
    now.epoch, now.batch, now.loss_sum, now.loss_count = now.epoch + 1, 0, 0.0, 0


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

    def __init__(self, config: TrainConfig, batches: int, report: ProgressCallback | None) -> None:
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
        left = self.config.epochs * self.batches - now.step
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
