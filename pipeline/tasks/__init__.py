"""Task families: loss, metrics and presets of classification and regression."""

from pipeline.tasks.base import FAMILIES, Task, make_task, register, target_array
from pipeline.tasks.classification import Classification
from pipeline.tasks.regression import Regression

__all__ = [
    "FAMILIES",
    "Classification",
    "Regression",
    "Task",
    "make_task",
    "register",
    "target_array",
]
