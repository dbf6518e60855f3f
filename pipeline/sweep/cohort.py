"""Trains the trials of a cohort together: one reading of the batches, one step for all of them.

Trials of one shape (`shape_key`) see the same batches in the same order; each has its own weights,
rates, dropout, loss, average and generator, so it comes out as `pipeline.train.train` with the
same configuration does, within the rounding of the arithmetic, whatever its neighbours do. A trial
is trained from its state to an epoch and given back as a state: stopping, cutting out and
regrouping change nothing.

Cost of a step: one reading of the batch and the GEMMs of K trials. Memory: `cohort_capacity`.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from pipeline.config import ConfigError
from pipeline.sweep.stacked_training import Cohort, CohortProgress
from pipeline.sweep.state import CohortTrial, TrialOutcome
from pipeline.training.build import Setup
from pipeline.training.config import TrainConfig

__all__ = ["CohortProgress", "CohortTrial", "TrialOutcome", "shape_key", "train_cohort"]

FREE = frozenset(
    (
        *("out", "epochs", "lr", "weight_decay", "beta2", "schedule", "warmup", "step_at", "clip"),
        *("ema", "patience", "seed", "device", "tier", "checkpoint_steps", "tensorboard"),
        *("dropout", "label_smoothing", "class_weights", "reduction", "side_width", "out_width"),
    )
)
"""Fields of a configuration in which the trials of a cohort may differ (sizes: by their result)."""


def shape_key(config: TrainConfig) -> str:
    """Return a text that is equal for trials of one study that can be trained together."""
    values = config.model_dump(mode="json", exclude=set(FREE))
    width = {"side_width": config.side_width or f"1/{config.reduction}"}
    shape = {"out_width": config.out_width, "order_seed": config.batch_seed}
    return json.dumps(values | width | shape, sort_keys=True)


def train_cohort(
    trials: Sequence[CohortTrial],
    setup: Setup,
    until: Mapping[int, int] | int,
    progress: Callable[[CohortProgress], None] | None = None,
) -> list[TrialOutcome]:
    """Train the trials of one shape together, from the epoch they have reached.

    Args:
        trials: of one `shape_key`, all at the same epoch.
        setup: data, cache and device; its task's options are replaced by each trial's own.
        until: epochs to reach, one number or one for each trial's number; a trial ends earlier
            at its own `epochs`, or by its patience.
        progress: called after each step.

    Returns:
        One outcome a trial, in the order given.

    Raises:
        ConfigError: the trials are not of one shape or not at one epoch.
        CacheError: the cache is damaged.
        ValueError: the options do not fit the data or the cache.
    """
    _check(trials)
    ends = {
        trial.number: min(
            trial.config.epochs, until if isinstance(until, int) else until[trial.number]
        )
        for trial in trials
    }
    outcomes: dict[int, TrialOutcome] = {}
    cohort = Cohort(trials, setup)
    while True:
        outcomes |= {done.number: done for done in cohort.take_finished(ends)}
        if not cohort.trials:
            return [outcomes[trial.number] for trial in trials]
        cohort.train_epoch(progress)


def _check(trials: Sequence[CohortTrial]) -> None:
    if not trials:
        raise ConfigError("a cohort needs at least one trial")
    shapes = {shape_key(trial.config) for trial in trials}
    if len(shapes) > 1:
        raise ConfigError(
            f"trials {[trial.number for trial in trials]} are of {len(shapes)} shapes; group them "
            "by shape_key"
        )
    epochs = {0 if trial.state is None else trial.state.epoch for trial in trials}
    if len(epochs) > 1:
        raise ConfigError(
            f"the trials of a cohort must stand at one epoch, given {sorted(epochs)}; they share "
            "their batches"
        )
