"""What goes into a side model and what comes out: the same for cached batches and live models.

Legend: B samples, L tokens (padded), T valid tokens (packed), P patches, F frames of all samples,
N target layers, C outputs, E embedding width.
Price: none; the tensors are named and passed on. `stacked` copies only what does not lie together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

__all__ = ["Outputs", "SideModel", "States", "Stream", "stacked"]

NOTHING: Mapping[str, Tensor] = {}


class States(NamedTuple):
    """What one tower says of a batch of B samples."""

    states: Mapping[str, Tensor]
    """Tap -> tokens ``[T, D]`` packed or ``[B, L, D]`` padded, grid ``[B, P, D]``, map
    ``[B, C, H, W]``, vector ``[B, D]``; frames of videos have F rows instead of B."""
    offsets: Mapping[str, Tensor] = NOTHING
    """Ragged axis -> ``LongTensor [B + 1]``: where each sample's packed rows begin."""
    masks: Mapping[str, Tensor] = NOTHING
    """Ragged axis -> ``[B, L]``, true at valid tokens (or ``[B, F]``, at a sample's frames)."""


class Outputs(NamedTuple):
    """What a side model says of a batch of B samples."""

    values: Mapping[str, Tensor]
    """Name -> ``[B, ...]``, or ``[T, ...]`` where the name has offsets."""
    offsets: Mapping[str, Tensor] = NOTHING
    """Name of a packed value -> ``LongTensor [B + 1]``."""
    confidence: Mapping[str, Tensor] = NOTHING
    """Tower -> how much each target layer counts for each sample, ``[B, N]``; rows sum to 1."""
    scalars: Mapping[str, Tensor] = NOTHING
    """Trained numbers that the loss needs beside the samples, such as a logit scale."""


class Stream(NamedTuple):
    """The taps of one tower that a side network reads."""

    taps: tuple[str, ...]
    """Targets in order, then the anchor; a single tap is both."""
    axis: str | None = None
    """Ragged axis of the targets; None for taps of fixed shape."""

    def read(
        self, given: States
    ) -> tuple[Tensor, Tensor | list[Tensor], Tensor | None, Tensor | None]:
        """Return anchor, targets (one tensor if they are of one shape), mask and offsets.

        Raises:
            ValueError: a tap is missing.
        """
        lost = [name for name in self.taps if name not in given.states]
        if lost:
            raise ValueError(
                f"the states lack the tap(s) {', '.join(lost)}; given: {', '.join(given.states)}"
            )
        *targets, anchor = (given.states[name] for name in self.taps)
        axis = self.axis or ""
        return anchor, stacked(targets or [anchor]), given.masks.get(axis), given.offsets.get(axis)


class SideModel(nn.Module, ABC):
    """A trainable model over the states of frozen towers; it never sees an input or a backbone."""

    config: dict[str, Any]
    """The options it is built from, as JSON values."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config`, with freshly initialised parameters."""

    @abstractmethod
    def forward(self, towers: Mapping[str, States]) -> Outputs:
        """Return what the model says of a batch, given all of its towers, or some if it can."""


def stacked(tensors: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Return tensors of one shape as one, ``[N, ...]``; a list if shapes or types differ.

    Tensors that lie one after another in memory, as those of a cached batch do, are not copied.
    """
    first = tensors[0]
    if any(each.shape != first.shape or each.dtype != first.dtype for each in tensors):
        return list(tensors)
    if torch.compiler.is_compiling() or not _adjacent(tensors):
        return torch.stack(tuple(tensors))
    shape, stride = (len(tensors), *first.shape), (first.numel(), *first.stride())
    return first.as_strided(shape, stride, first.storage_offset())


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0]
    start, step = first.storage_offset(), first.numel()
    return all(
        each.is_contiguous()
        and not each.requires_grad
        and each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and each.storage_offset() == start + place * step
        for place, each in enumerate(tensors)
    )
