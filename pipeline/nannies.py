"""See `pipeline.processes`."""

from pipeline.processes import undisturbed_environment

__all__ = ["undisturbed_environment"]
