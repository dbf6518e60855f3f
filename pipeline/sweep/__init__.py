"""Sweeps: many side networks trained from each read of the caches, the weak ones pruned."""

from pipeline.sweep.config import SweepConfig
from pipeline.sweep.engine import SweepProgress, sweep
from pipeline.sweep.folder import SweepError
from pipeline.sweep.results import SweepResult

__all__ = [
    "SweepConfig",
    "SweepError",
    "SweepProgress",
    "SweepResult",
    "sweep",
]
