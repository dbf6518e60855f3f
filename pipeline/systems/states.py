"""A cached batch as the states that a side model takes, augmented if a training asks for it.

b samples of a batch, T tokens, F frames of all videos, P patches. Cost: a batch is moved and cast
once at most, and augmented in one pass if asked.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cache import Part
from cache.format.spec import group_taps
from pipeline.systems.augment import add_noise, drop_patches, drop_rows
from pipeline.systems.taps import TowerTaps, layout
from unipt import States

__all__ = ["Change", "batch_states", "tower_states"]


class Change(NamedTuple):
    """How a training changes a tower's states."""

    noise: float
    """In standard deviations of each feature."""
    drop: float
    """Share of the tokens, patches or frames."""
    generator: Generator


def batch_states(
    parts: Mapping[str, Part], taps: Mapping[str, TowerTaps], device: torch.device
) -> dict[str, States]:
    """Return a batch's states of each tower, as they are."""
    return {name: tower_states(part, taps[name], device) for name, part in parts.items()}


def tower_states(
    part: Part, taps: TowerTaps, device: torch.device, change: Change | None = None
) -> States:
    """Return one tower's states.

    Packed tokens and maps stay in the type they are stored in, which a side network casts on its
    way, so that no float32 copy of the largest states is made; all others, and what is given noise,
    are cast to float32.

    Args:
        part: of a batch, with these taps in their order.
        taps: of the tower.
        device: where the model is.
        change: noise and dropping; None for none.
    """
    noise = change.noise if change is not None else 0.0
    as_stored = taps.layout in ("tokens", "map") and not taps.vector_anchor and not noise
    stacks = [stack.to(device, non_blocking=True) for stack in part.stacks]
    if not as_stored:
        stacks = [stack.float() for stack in stacks]
    offsets = {axis: bounds.to(device) for axis, bounds in part.offsets.items()}
    groups = group_taps(taps.read)
    if change is not None and change.drop:
        stacks, offsets = _dropped(stacks, offsets, taps, change)
    if change is not None and noise:
        stacks = [
            add_noise(stack, noise, change.generator, features=2 if stack.dim() == 5 else -1)
            if group.taps[0] in taps.taps
            else stack
            for group, stack in zip(groups, stacks, strict=True)
        ]
    named: dict[str, Tensor] = {
        tap.name: state
        for group, stack in zip(groups, stacks, strict=True)
        for tap, state in zip(group.taps, stack, strict=True)
    }
    return States(named, offsets)


def _dropped(
    stacks: list[Tensor], offsets: dict[str, Tensor], taps: TowerTaps, change: Change
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Drop patches of grids, or rows of the ragged axis: tokens, or frames of vectors."""
    chosen = [
        number
        for number, group in enumerate(group_taps(taps.read))
        if layout(group.taps[0]) == taps.layout
    ]
    picked = [stacks[number] for number in chosen]
    if taps.layout == "grid":
        picked = drop_patches(picked, change.drop, change.generator)
    elif taps.axis is not None:
        picked, offsets[taps.axis] = drop_rows(
            picked, offsets[taps.axis], change.drop, change.generator, keep_last=taps.vector_anchor
        )
    kept = dict(zip(chosen, picked, strict=True))
    return [kept.get(number, stack) for number, stack in enumerate(stacks)], offsets
