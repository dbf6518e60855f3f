"""Trials as they go into a cohort and come out, with all they need to go on as if never stopped.

Size: about four copies of the weights (weights, two moments, best), five with EMA.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.training.checkpoint import Progress
from pipeline.training.config import TrainConfig
from pipeline.training.files import write_with

FORMAT = "1"
BEST = "best"
RANDOM = "random"


@dataclass(kw_only=True)
class TrialState:
    """A trial at the end of an epoch; tensors are on the CPU."""

    progress: Progress
    """Epochs, history, best epoch with its weights: as `training.results.finish` takes it."""
    weights: dict[str, Tensor]
    """State dict of the classifier."""
    mean: dict[str, Tensor]
    """AdamW's first moment of each parameter."""
    square: dict[str, Tensor]
    """AdamW's second moment."""
    average: dict[str, Tensor] | None
    """EMA of the parameters, where one is kept."""
    random: Tensor
    """State of the trial's own generator."""

    @property
    def epoch(self) -> int:
        """Epochs trained."""
        return self.progress.epoch

    def save(self, path: Path) -> None:
        """Replace the file at `path` atomically by this state (safetensors, no code in it)."""
        progress = {k: v for k, v in vars(self.progress).items() if k != "best_weights"}
        tensors = {RANDOM: self.random}
        for part, values in self._parts().items():
            tensors |= {f"{part}.{name}": value.contiguous() for name, value in values.items()}
        about = {"format": FORMAT, "progress": json.dumps(progress)}
        write_with(path, lambda file: save_file(tensors, file, metadata=about))

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        parts = {"weights": self.weights, "mean": self.mean, "square": self.square}
        average = {} if self.average is None else {"average": self.average}
        return parts | average | {BEST: self.progress.best_weights}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: it is not a trial's state of this format.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118 - not a dict
                    part, _, name = key.partition(".")
                    parts.setdefault(part, {})[name] = file.get_tensor(key)
        except SafetensorError as error:
            raise ConfigError(f"{path} is damaged ({error}); train the trial anew") from error
        if about.get("format") != FORMAT:
            raise ConfigError(
                f"{path} is not a trial's state of format {FORMAT}; train the trial anew"
            )
        progress = Progress(**json.loads(about["progress"]), best_weights=parts.get(BEST, {}))
        random = parts[RANDOM][""]
        rest = {name: parts.get(name, {}) for name in ("weights", "mean", "square")}
        return cls(progress=progress, average=parts.get("average"), random=random, **rest)

    def bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [self.random, *(v for part in self._parts().values() for v in part.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, kw_only=True)
class CohortTrial:
    """A trial to be trained: its configuration, and where it stands."""

    number: int
    config: TrainConfig
    state: TrialState | None = None
    """None for a trial that has not begun."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """A trial after its training in a cohort."""

    number: int
    state: TrialState
    failed: str | None = None
    """Why it cannot go on: what `Diverged` says of a training alone."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record a finished epoch, from the first one on."""
        return self.state.progress.history


def to_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies on the CPU."""
    return {
        name: value.detach().to("cpu", torch.float32, copy=True) for name, value in values.items()
    }
