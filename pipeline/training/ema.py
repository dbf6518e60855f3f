"""Exponential moving average of a model's weights (Polyak averaging), with a warm start.

Cost: one fused multiply-add over the weights a step, and one more copy of them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the state of `model`; floating-point entries are averaged, others copied.

    Args:
        model: the model to follow.
        decay: weight of the past in the limit; the first steps use (1 + n) / (10 + n) if less.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the present weights."""
        decay = warm_decay(self.decay, self.updates)
        self.updates += 1
        for name, value in model.state_dict().items():
            mean = self.weights[name]
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let `model` have the averaged weights inside the `with`."""
        own = copy_weights(model)
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to continue."""
        return {"updates": self.updates, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
        self.updates = int(state["updates"])
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


def warm_decay(decay: float, updates: int) -> float:
    """Return the weight of the past after `updates` updates: less than `decay` at first."""
    return min(decay, (1 + updates) / (10 + updates))


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a detached copy of the model's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
