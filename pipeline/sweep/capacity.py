"""How many trials train together best: from the memory at hand and a few measured steps.

Cost: steps of 1, 2, 4, .. trials on one batch, three each, until doubling gains no more than a
twentieth: about ten steps of the cohort that is chosen.
"""

import time
from dataclasses import dataclass

import torch

from cache.memory import available_memory, free_device_memory, size
from pipeline.sweep.stacked_training import Cohort
from pipeline.sweep.state import CohortTrial
from pipeline.training.build import Setup
from pipeline.training.config import TrainConfig

__all__ = ["Measured", "cohort_capacity", "measure_cohort"]

COPIES = 8
"""Copies of the weights that a trial holds: weights, gradient, two moments, best, average, and two
while cohorts are built and cut."""
GAIN = 0.05
"""Share of the time of a trial that doubling a cohort must save."""
REPEATS = 2


@dataclass(frozen=True)
class Measured:
    """A step of a cohort."""

    trials: int
    seconds: float
    """The fastest of the measured steps."""
    examples: int
    """Of the batch."""
    weight_bytes: int
    """One copy of one trial's weights."""
    device_bytes: int
    """Most memory in use on an accelerator; 0 on a CPU."""

    @property
    def share(self) -> float:
        """Seconds of the step that one trial costs."""
        return self.seconds / self.trials


def measure_cohort(config: TrainConfig, setup: Setup, trials: int) -> Measured:
    """Measure one step of `trials` trials like `config`, on the first batch of the first epoch."""
    config = config.model_copy(update={"order_seed": config.batch_seed})
    members = [
        CohortTrial(number=n, config=config.model_copy(update={"seed": n})) for n in range(trials)
    ]
    cohort = Cohort(members, setup, statistics=False)
    batch = next(cohort.loader.epoch(0))
    seconds, on_gpu = [], setup.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setup.device)
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        cohort.step(batch, 0, 0).tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return Measured(
        trials=trials,
        seconds=min(seconds[1:]),
        examples=len(batch.index),
        weight_bytes=cohort.model.flat[0].numel() * cohort.model.flat.element_size(),
        device_bytes=torch.cuda.max_memory_allocated(setup.device) if on_gpu else 0,
    )


def cohort_capacity(
    config: TrainConfig,
    setup: Setup,
    *,
    wanted: int,
    memory_limit: int | None = None,
) -> tuple[int, str]:
    """Choose how many trials like `config` train together.

    Args:
        config: one of the trials; all must have its shape.
        setup: data, cache and device.
        wanted: trials there are, the most that is of use.
        memory_limit: bytes for the trials at most; None for half of what is free on the device.

    Returns:
        The number, at least 1, and the reason for it as a sentence.
    """
    if memory_limit is None:
        free = free_device_memory(setup.device)
        memory_limit = (available_memory() if free is None else free) // 2
    best = measure_cohort(config, setup, 1)
    why = f"there are {wanted}"
    while best.trials < wanted:
        count = min(wanted, 2 * best.trials)
        needed = max(count * COPIES * best.weight_bytes, count * best.device_bytes // best.trials)
        if needed > memory_limit:
            why = f"{count} would need {size(needed)} of {size(memory_limit)}"
            break
        now = measure_cohort(config, setup, count)
        gain = 1 - now.share / best.share
        if gain < GAIN:
            why = f"{count} would save {max(0.0, gain):.0%} of a trial's time"
            break
        best = now
    return best.trials, _reason(best, why)


def _reason(best: Measured, why: str) -> str:
    rate = best.examples / best.share
    weights = size(best.trials * COPIES * best.weight_bytes)
    return (
        f"{best.trials} trials together, as {why}; a step takes {1000 * best.share:.0f} ms a trial "
        f"({rate:,.0f} examples x trials/s), {weights} for weights and moments"
    )
