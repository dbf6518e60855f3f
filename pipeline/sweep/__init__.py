"""Sweeps: many side networks trained from one reading of the cache, losers stopped early."""

from pipeline.sweep.config import RetrievalSweepConfig, SweepConfig
from pipeline.sweep.engine import SweepProgress, sweep
from pipeline.sweep.folder import SweepError
from pipeline.sweep.results import SweepResult

__all__ = [
    "RetrievalSweepConfig",
    "SweepConfig",
    "SweepError",
    "SweepProgress",
    "SweepResult",
    "sweep",
]
