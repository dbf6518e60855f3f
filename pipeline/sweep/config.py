"""The configuration of a sweep: the run that is varied, the space, the search and its limits."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.systems import AnyTrain
from pipeline.systems.config import TrainConfig

Sampler = Literal["tpe", "random", "grid", "qmc"]
Pruner = Literal["none", "halving", "hyperband"]
TPE_GENERATION = 16
"""Trials that TPE proposes before it sees their results, unless `generation` says otherwise."""


class SweepConfig(Config):
    """What is searched, how, and where the study is kept.

    The fields of the run may be given beside those of the sweep: `SweepConfig.build({"cache": ...,
    "out": ..., "data": ..., "space": ..., "trials": 50})`.
    """

    run: AnyTrain
    """The run that every trial starts from; its `out` is the folder of the sweep."""
    space: dict[str, Any] | list[dict[str, Any]]
    """Field of the run -> what to try, in the words of `pipeline.sweep.space`."""
    trials: int | None = Field(default=None, ge=1)
    """Points of the space to try; by default 50, or all of a grid."""
    sampler: Sampler = "tpe"
    """How points are chosen: tpe learns from results, the others do not look at them."""
    generation: int | None = Field(default=None, ge=1)
    """Trials proposed, trained and judged together; by default 16 with tpe, else all of them."""
    pruner: Pruner = "halving"
    """Which trials stop early: none, successive halving, or hyperband's mix of its brackets."""
    min_epochs: int = Field(default=1, ge=1)
    """Epochs before the first rung decides who goes on."""
    eta: int = Field(default=3, ge=2)
    """One in eta trials survives a rung, and the next rung is eta times as far."""
    folds: int = Field(default=0, ge=0)
    """Parts of the training rows for cross-validation, which then scores trials; 0 uses dev."""
    seeds: int = Field(default=1, ge=1)
    """Seeds each trial is trained with; the mean of their scores counts."""
    keep: int = Field(default=5, ge=1)
    """Best finished trials whose weights are kept, and which are tested at the end."""
    refit: Literal["train", "train+dev", "none"] = "train"
    """Rows that the run in the folder `best` is trained on: on train it is the best trial's own."""
    together: int | None = Field(default=None, ge=1)
    """Most trainings that share one pass over the data; by default what the memory allows."""
    workers: int = Field(default=0, ge=0)
    """Local processes that train; 0 trains in this one."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers train; they must see the folders."""
    storage: str | None = None
    """URL of the Optuna storage; by default an SQLite file in the folder of the sweep."""

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        """Move the fields of the run, where they stand beside those of the sweep, into `run`."""
        if not isinstance(values, dict):
            return values
        flat = {name: value for name, value in values.items() if name not in cls.model_fields}
        if not flat:
            return values
        rest = {name: value for name, value in values.items() if name in cls.model_fields}
        inner: Any = rest.get("run", {})
        if not isinstance(inner, dict):
            raise ValueError(f"give {', '.join(sorted(flat))} within `run`, or change it there")
        return rest | {"run": _merged(flat, inner)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds must be 0 (score on dev) or at least 2")
        if self.workers and self.scheduler:
            raise ValueError("give workers (local processes) or scheduler (a cluster), not both")
        if self.run.data.fit_on_dev:
            raise ValueError(
                "fit_on_dev leaves no dev split to choose by; refit: train+dev uses it at the end"
            )
        if self.run.patience is not None and self.pruner != "none":
            raise ValueError("patience stops runs on its own; use pruner none with it, or leave it")
        if self.refit == "train+dev":
            self.last_fit(self.run)
        return self

    def last_fit(self, run: TrainConfig) -> TrainConfig:
        """Return the training of the last fit, which has the dev rows if `refit` says so.

        Raises:
            ConfigError: it needs the dev split that it is to be trained on.
        """
        data = run.data.model_dump() | {"fit_on_dev": self.refit == "train+dev"}
        return type(run).build(run.model_dump() | {"data": data})

    @property
    def out(self) -> Path:
        """Folder of the sweep."""
        return self.run.out

    @property
    def generation_size(self) -> int | None:
        """Trials of a generation; None for all."""
        return self.generation or (TPE_GENERATION if self.sampler == "tpe" else None)


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with those of `over` in their place, mappings merged."""
    result: dict[str, Any] = dict(values)
    for name, value in over.items():
        old: Any = result.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[name] = _merged(old, value) if both else value
    return result
