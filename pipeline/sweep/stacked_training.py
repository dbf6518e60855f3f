"""The trials of a cohort in training: one stacked model, one optimizer, a `Progress` for each.

Cost of a step: one reading of the batch, and the GEMMs of K trials. On a CPU the trials of a step
are worked on one after another behind the states they share, so the activations are those of one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from cache import Batch, Loader
from pipeline.evaluate import split_metrics
from pipeline.sweep.stacked_optimizer import StackedAdamW
from pipeline.sweep.state import CohortTrial, TrialOutcome, TrialState, to_cpu
from pipeline.tasks import Task, make_task
from pipeline.training.augment import compute_type, training_states
from pipeline.training.build import (
    Setup,
    apply_statistics,
    build_model,
    decayed_names,
    make_loader,
    state_statistics,
    target_tensor,
)
from pipeline.training.checkpoint import Progress
from pipeline.training.inference import run_model
from pipeline.training.loop import NEVER_FINITE, describe_divergence, end_epoch
from unipt import SideClassifier, StackedClassifiers

__all__ = ["Cohort", "CohortProgress"]


class CohortProgress(NamedTuple):
    """How far a cohort is; `rate` is in examples times trials a second."""

    epoch: int
    batch: int
    batches: int
    trials: int
    rate: float


class Cohort:
    """The trials in training: the stacked model, its optimizer, and a `Progress` for each.

    Args:
        trials: of one shape, all at the same epoch.
        setup: data, cache and device.
        statistics: give fresh trials the statistics of the training states, one pass over them,
            where the shape needs them; without it their results mean nothing.
    """

    def __init__(
        self, trials: Sequence[CohortTrial], setup: Setup, *, statistics: bool = True
    ) -> None:
        self.trials, self.setup = list(trials), setup
        self.shared = trials[0].config  # of what all trials have in common
        self.loader = make_loader(self.shared, setup)
        models, self.generators = _build(trials, setup, self.loader if statistics else None)
        decayed, plain = decayed_names(models[0])
        self.model = StackedClassifiers(
            models, order=[*decayed, *plain], generators=self.generators
        ).to(setup.device)
        self.optimizer = StackedAdamW(
            [trial.config for trial in trials],
            self.model.flat,
            decayed=self.model.columns[decayed[-1]][1],
            steps_per_epoch=len(self.loader),
        )
        self.tasks = _tasks(trials, setup)
        self.progress = [_restored(trial) for trial in trials]
        for row, trial in enumerate(trials):
            if trial.state is not None:
                self._restore(row, trial.state)
        self.targets = target_tensor(setup)
        self.gradient = torch.empty_like(self.model.flat, requires_grad=False)  # [K, P]
        self.low = self.shared.precision == "bfloat16"

    def _restore(self, row: int, state: TrialState) -> None:
        """Put moments and average of a trial back."""
        self.optimizer.mean[row] = self.model.row(state.mean)
        self.optimizer.square[row] = self.model.row(state.square)
        if self.optimizer.average is not None and state.average is not None:
            self.optimizer.average[row] = self.model.row(state.average)

    def train_epoch(self, progress: Callable[[CohortProgress], None] | None) -> None:
        """Train one epoch, score all trials on dev, and record."""
        started, epoch = time.perf_counter(), self.progress[0].epoch
        losses = torch.zeros(len(self.trials), dtype=torch.float64, device=self.setup.device)
        examples = 0
        self.model.train()
        for number, batch in enumerate(self.loader.epoch(epoch)):
            losses += self.step(batch, epoch, number) * len(batch.index)
            examples += len(batch.index)
            if progress is not None:
                rate = examples * len(self.trials) / max(1e-9, time.perf_counter() - started)
                now = (epoch + 1, number + 1, len(self.loader), len(self.trials), rate)
                progress(CohortProgress(*now))
        scores = self._score()
        seconds = (time.perf_counter() - started) / len(self.trials)
        for row, total in enumerate(losses.tolist()):
            self._end_epoch(row, scores[row], total, examples, seconds)

    def step(self, batch: Batch, epoch: int, number: int) -> Tensor:
        """Take one step with all trials; return their losses ``[K]``."""
        device, model = self.setup.device, self.model
        states, offsets = training_states(
            self.shared, batch, device, epoch=epoch, number=number, convert=False
        )
        targets = self.targets[batch.index].to(device)
        shared = model.share(states, offsets, compute_type(self.shared))
        losses = torch.zeros(len(model), device=device)
        for rows in model.portions():  # a portion's activations are gone before the next
            weights = model.flat[rows].detach().requires_grad_()
            with torch.autocast(device.type, torch.bfloat16, enabled=self.low):
                logits = model.predict(weights, shared, rows).logits  # [k, B, C]
            own = torch.stack(
                [
                    task.loss(row, targets)
                    for task, row in zip(self.tasks[rows], logits, strict=True)
                ]
            )
            (self.gradient[rows],) = torch.autograd.grad(own.sum(), weights)
            losses[rows] = own.detach()
        step = epoch * len(self.loader) + number
        self.optimizer.step(model.flat, self.gradient, losses, step)
        return losses

    def _scored(self, row: int) -> Tensor:
        """Weights of a trial that are scored and kept, ``[P]``: the average, where it has one."""
        average = self.optimizer.average if self.trials[row].config.ema else None
        return (self.model.flat.detach() if average is None else average)[row]

    def _score(self) -> list[dict[str, float]]:
        """Metrics of every trial on dev, in one pass over it; empty without a dev split."""
        setup, flat = self.setup, self.model.flat
        if "dev" not in setup.splits:
            return [{} for _ in self.trials]
        located = setup.splits["dev"]
        if self.optimizer.average is not None:
            rows = [self._scored(row) for row in range(len(self.trials))]
            self.model.flat = nn.Parameter(torch.stack(rows))
        outputs = run_model(
            self.model,
            setup.cache,
            located.samples,
            taps=setup.tap_names,
            batch_size=self.shared.batch_size,
            device=setup.device,
        )
        self.model.flat = flat
        scale, shift = setup.task.unscale
        alive = self.optimizer.alive.tolist()
        return [
            split_metrics(setup.task, logits * scale + shift, located.targets) if well else {}
            for logits, well in zip(outputs.logits, alive, strict=True)
        ]

    def _end_epoch(
        self, row: int, dev: dict[str, float], loss: float, examples: int, seconds: float
    ) -> None:
        """Record a trial's epoch; a trial that has diverged stands where its last one ended."""
        now = self.progress[row]
        if not self.optimizer.alive[row]:
            return
        now.step += len(self.loader)
        now.loss_sum, now.loss_count = loss, examples
        end_epoch(
            self.trials[row].config,
            now,
            dev,
            self.setup.task.metrics[0],
            weights=lambda: to_cpu(self.model.state_of(self._scored(row))),
            lr=self.optimizer.rate(row, now.step - 1),
            seconds=seconds,
        )

    def take_finished(self, ends: Mapping[int, int]) -> Iterator[TrialOutcome]:
        """Cut out, and yield, the trials that have failed, stopped or reached their end."""
        kept = []
        for row, (trial, now) in enumerate(zip(self.trials, self.progress, strict=True)):
            failed = self._failure(row)
            if failed is None and not now.stopped and now.epoch < ends[trial.number]:
                kept.append(row)
            else:
                yield TrialOutcome(number=trial.number, state=self._state(row), failed=failed)
        if len(kept) == len(self.trials):
            return
        self.model.select(kept)
        self.optimizer.select(kept)
        self.gradient = self.gradient[: len(kept)]
        self.trials = [self.trials[row] for row in kept]
        self.progress = [self.progress[row] for row in kept]
        self.tasks = [self.tasks[row] for row in kept]
        self.generators = [self.generators[row] for row in kept]

    def _failure(self, row: int) -> str | None:
        """Why a trial cannot go on, or None."""
        config, now = self.trials[row].config, self.progress[row]
        if not self.optimizer.alive[row]:
            step, loss, norm = self.optimizer.failure[row].tolist()
            return describe_divergence(config, now.epoch, int(step), loss, norm)
        ended = now.stopped or now.epoch >= config.epochs
        return NEVER_FINITE if ended and now.best_epoch is None else None

    def _state(self, row: int) -> TrialState:
        """Everything a trial needs to go on."""
        model, optimizer = self.model, self.optimizer
        average = optimizer.average if self.trials[row].config.ema else None
        return TrialState(
            progress=self.progress[row],
            weights=to_cpu(model.extract(row)),
            mean=to_cpu(model.named(optimizer.mean[row])),
            square=to_cpu(model.named(optimizer.square[row])),
            average=None if average is None else to_cpu(model.named(average[row])),
            random=self.generators[row].get_state(),
        )


def _build(
    trials: Sequence[CohortTrial], setup: Setup, loader: Loader | None
) -> tuple[list[SideClassifier], list[Generator]]:
    """Build each trial's classifier and generator: fresh as `train` does, or from its state.

    `loader` gives the statistics of fresh ones.
    """
    models, generators = [], []
    statistics: tuple[Tensor, Tensor] | None = None
    with torch.random.fork_rng():
        for trial in trials:
            torch.manual_seed(trial.config.seed)
            generator = Generator(setup.device)
            model = build_model(trial.config, setup)
            if trial.state is not None:
                model.load_state_dict(trial.state.weights)
                generator.set_state(trial.state.random)
            else:
                if loader is not None and model.config["side"]["input_norm"] == "standard":
                    statistics = statistics or state_statistics(loader)
                    apply_statistics(model, *statistics)
                generator.set_state(_random_state(setup.device))
            models.append(model)
            generators.append(generator)
    return models, generators


def _random_state(device: torch.device) -> Tensor:
    """State of torch's own generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restored(trial: CohortTrial) -> Progress:
    """Return a copy of where a trial stands."""
    if trial.state is None:
        return Progress()
    now = trial.state.progress
    return replace(now, history=list(now.history), best_weights=dict(now.best_weights))


def _tasks(trials: Sequence[CohortTrial], setup: Setup) -> list[Task]:
    """Return the task of each trial, with its own smoothing and class weights."""
    return [
        make_task(
            setup.dataset,
            label_smoothing=trial.config.label_smoothing,
            class_weights=trial.config.class_weights,
        )
        for trial in trials
    ]
