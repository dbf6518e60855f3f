"""Learning-rate schedules: a factor of the peak rate for each optimizer step."""

import math

from pipeline.systems.config import Schedule


def rate_factor(
    step: int,
    total: int,
    *,
    schedule: Schedule,
    warmup: float = 0.0,
    step_at: float = 0.6,
    step_factor: float = 0.1,
) -> float:
    """Return the factor of step `step` (0-based) of `total`.

    Args:
        step: number of optimizer steps taken so far.
        total: number of steps of the whole training; where batches are bounded by tokens the last
            epochs may have a few more, which take the rate of the end.
        schedule: "cosine" and "linear" fall to 0 at the end, "step" falls once, "constant" stays.
        warmup: share of `total` over which the rate grows linearly from 0.
        step_at: share of `total` after which "step" falls.
        step_factor: what "step" falls to.
    """
    warm = round(warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return step_factor if step >= step_at * total else 1.0
    progress = min(1.0, (step - warm) / max(1, total - warm))
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
