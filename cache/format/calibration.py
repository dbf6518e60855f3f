"""The size of every channel, measured before an int8 cache is started and kept with it.

Samples are permuted before they are packed, so the first ones of the first shard are a random
choice. Cost: a forward pass (or a read) over about `ROWS` tokens, patches or cells.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .layout import CacheLayout
from .quantize import channel_axis
from .spec import Ints

ROWS = 8192
"""Tokens, patches or cells of the smallest tap that are measured."""
LEAST = 16
"""Samples that are measured at least."""
FLOOR = 1 / 32
"""Least RMS of a channel, as a share of the tap's median: a channel that was dead in the sample
must not drown the others in a token where it lives."""


class Calibration:
    """The root mean square of every channel of every tap; sums are in float64."""

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in states by tap: [n, D], [n, P, D] or [n, C, H, W], any float type and device."""
        for name, states in values.items():
            axis = channel_axis(states) % states.dim()
            others = [i for i in range(states.dim()) if i != axis]
            squares = states.detach().double().square().sum(others).cpu()
            self._squares[name] = self._squares.get(name, 0.0) + squares
            self._counts[name] = self._counts.get(name, 0) + states.numel() // len(squares)

    def rms(self) -> dict[str, Tensor]:
        """Return tap -> float32 [channels], all positive; 1 where nothing was seen but zeros."""
        return {
            name: _floored((squares / max(1, self._counts[name])).sqrt())
            for name, squares in self._squares.items()
        }


def _floored(rms: Tensor) -> Tensor:
    rms = rms.nan_to_num(1.0, 1.0, 1.0)  # storing such a state fails, and names it
    alive = rms[rms > 0]
    if not len(alive):
        return torch.ones(len(rms))
    return rms.clamp_min(float(alive.median()) * FLOOR).float()


def calibration_samples(layout: CacheLayout) -> Ints:
    """Return the samples to measure: the first of the first shard, in packed order."""
    if not layout.n_shards:
        return np.empty(0, np.int64)
    samples = layout.samples_of(0)
    geometry, rows = layout.geometry, np.full(len(samples), 2**40, np.int64)
    for stack in geometry.quantized_stacks or geometry.value_stacks:
        cells = stack.width // stack.channels
        length = layout.packing.table.length
        rows = np.minimum(rows, cells * (length[stack.axis][samples] if stack.ragged else 1))
    count = int(np.searchsorted(np.cumsum(rows), ROWS)) + 1
    return samples[: max(LEAST, count)]
