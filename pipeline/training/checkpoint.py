"""Checkpoints: everything an interrupted training needs to go on bit for bit.

A checkpoint is one atomic file, readable with `torch.load(weights_only=True)`. Size: about four
copies of the weights (weights, two moments, best), five with EMA.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.training.ema import WeightAverage
from pipeline.training.files import write_with

FORMAT = 1


@dataclass
class Progress:
    """Where a training stands; plain values and tensors only."""

    epoch: int = 0
    """Epoch in work, from 0."""
    batch: int = 0
    """Batches of that epoch already trained on."""
    step: int = 0
    """Optimizer steps taken in all."""
    loss_sum: float = 0.0
    """Sum of the losses of the epoch in work, each times its batch's examples."""
    loss_count: int = 0
    """Examples in that sum."""
    best_epoch: int | None = None
    best_value: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record a finished epoch."""
    stopped: bool = False
    """Whether early stopping ended the training."""


@dataclass
class RandomState:
    """The state of torch's random generators, of the CPU and of every CUDA device."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def take(cls) -> Self:
        """Return the present state."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), cuda)

    def give(self) -> None:
        """Make this the state of torch's generators."""
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.cuda)

    @contextlib.contextmanager
    def within(self, wanted: bool = True) -> Iterator[None]:
        """Draw from this state inside the `with`, if it is wanted; what is left is kept here."""
        if not wanted:
            yield
            return
        self.give()
        yield
        left = self.take()
        self.cpu, self.cuda = left.cpu, left.cuda


def save_checkpoint(
    path: Path,
    *,
    identity: str,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    random: RandomState,
) -> None:
    """Replace the checkpoint at `path` atomically.

    Args:
        path: of the file.
        identity: what must be equal to resume (configuration and cache), as text.
        progress: where the training stands.
        model: its weights, at this point.
        optimizer: its moments.
        average: the EMA of the weights, if one is kept.
        random: what its next step draws from.
    """
    state = {
        "format": FORMAT,
        "identity": identity,
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state(),
        "random": random.cpu,
        "random_cuda": random.cuda,
    }
    write_with(path, lambda file: torch.save(state, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Raises:
        ValueError: the file is not a checkpoint of this format.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of format {FORMAT}; remove it to start anew")
    return state


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> tuple[Progress, RandomState]:
    """Put the state of `read_checkpoint` back, the random generators' included."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load(state["average"])
    random = RandomState(state["random"], state["random_cuda"])
    random.give()
    return progress_of(state), random


def progress_of(state: dict[str, Any]) -> Progress:
    """Return where the training of a state of `read_checkpoint` stood."""
    return Progress(**state["progress"])
