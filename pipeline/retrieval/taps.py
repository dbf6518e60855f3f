"""Which taps a tower takes, and how a batch of them becomes the tower's arguments.

b samples of a batch, T tokens, F frames of all clips, P patches, N targets. Cost: choosing is free;
a batch is cast once at most, and augmented in one pass if asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cache import Cache, Part, TapSpec
from cache.format.spec import group_taps
from pipeline.config import ConfigError
from pipeline.selection import select_names
from pipeline.training.augment import add_grid_noise, add_noise, drop_patches, drop_rows
from unipt import ConvSideNetwork, SideTower

Layout = Literal["tokens", "grid", "map", "vector"]
"""What one text, picture or frame is in a tap: ragged tokens, patches, channels x cells, one."""


class TowerInputs(NamedTuple):
    """What `SideTower.forward` takes."""

    anchor: Tensor
    targets: Tensor | list[Tensor]
    offsets: Tensor | None
    frames: Tensor | None


@dataclass(frozen=True)
class TowerTaps:
    """The taps of one tower, in the cache's order, the anchor last.

    A single tap is anchor and target both, so that a tower given one layer differs from one given
    all in nothing else.
    """

    taps: tuple[TapSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the taps."""
        return tuple(tap.name for tap in self.taps)

    @property
    def anchor(self) -> TapSpec:
        """The last tap."""
        return self.taps[-1]

    @property
    def targets(self) -> tuple[TapSpec, ...]:
        """All taps but the anchor; the anchor if it is the only one."""
        return self.taps[:-1] or self.taps

    @property
    def layout(self) -> Layout:
        """Layout of the targets."""
        return layout(self.targets[0])

    @property
    def vector_anchor(self) -> bool:
        """Whether the anchor is one vector beside targets of several tokens (CLIP4Clip)."""
        return layout(self.anchor) == "vector" != self.layout

    @property
    def clips(self) -> bool:
        """Whether a sample is a clip of frames."""
        return self.anchor.kind == "frames"

    def inputs(
        self, part: Part, device: torch.device, dtype: torch.dtype | None, *, drop: float = 0.0,
        noise: float = 0.0,
    ) -> TowerInputs:  # fmt: skip
        """Return a batch's states as a tower takes them.

        Args:
            part: of a batch, with these taps.
            device: where the tower is.
            dtype: of the arithmetic; None leaves the states as stored, see `input_type`.
            drop: share of tokens or patches to drop; see `pipeline.training.augment`.
            noise: Gaussian noise, in deviations of each feature.
        """
        stacks = [stack.to(device, non_blocking=True) for stack in part.stacks]
        if dtype is not None:
            stacks = [stack.to(dtype) for stack in stacks]
        offsets = {axis: bounds.to(device) for axis, bounds in part.offsets.items()}
        axis = self.targets[0].axis if self.targets[0].ragged else None
        if drop:
            stacks, offsets = self._drop(stacks, offsets, axis, drop)
        if noise:
            stacks = [
                add_noise(stack, noise) if stack.dim() == 3 else add_grid_noise(stack, noise)
                for stack in stacks
            ]
        bounds = None if axis is None else offsets[axis]
        anchor, targets = self._split(stacks)
        if self.clips:
            return TowerInputs(anchor, targets, None, bounds)
        return TowerInputs(anchor, targets, bounds, None)

    def _drop(
        self, stacks: list[Tensor], offsets: dict[str, Tensor], axis: str | None, share: float
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Drop patches of grids, or rows of the ragged axis: tokens, or frames of vectors."""
        chosen = [
            number
            for number, stack in enumerate(group_taps(self.taps))
            if layout(stack.taps[0]) == self.layout
        ]
        picked = [stacks[number] for number in chosen]
        if self.layout == "grid":
            picked = drop_patches(picked, share)
        elif axis is not None:
            picked, offsets[axis] = drop_rows(
                picked, offsets[axis], share, keep_last=self.vector_anchor
            )
        kept = dict(zip(chosen, picked, strict=True))
        return [kept.get(number, stack) for number, stack in enumerate(stacks)], offsets

    def _split(self, stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor | list[Tensor]]:
        if len(stacks) == 1:
            (stack,) = stacks
            return stack[-1], stack[:-1] if len(stack) > 1 else stack
        named = {
            tap.name: state
            for group, stack in zip(group_taps(self.taps), stacks, strict=True)
            for tap, state in zip(group.taps, stack, strict=True)
        }
        return named[self.anchor.name], [named[tap.name] for tap in self.targets]


def input_type(tower: SideTower, dtype: torch.dtype, *, noise: float = 0.0) -> torch.dtype | None:
    """Return the type a tower takes its states in; None is as stored.

    The ConvNet side network copies each map and casts it on the way, so that a cast before would be
    one more pass over the largest states there are; noise is added in `dtype`.
    """
    return None if isinstance(tower.side, ConvSideNetwork) and not noise else dtype


def layout(tap: TapSpec) -> Layout:
    """Return what one text, picture or frame is in a tap."""
    if tap.kind != "frames":
        return tap.kind
    kinds: dict[int, Layout] = {1: "vector", 2: "grid", 3: "map"}
    if len(tap.shape) not in kinds:
        raise ConfigError(f"tap {tap.name}: frames of shape {tap.shape} fit no side network")
    return kinds[len(tap.shape)]


def width(tap: TapSpec) -> int:
    """Return the features of one token, cell or vector of a tap."""
    return tap.shape[0] if layout(tap) == "map" else tap.shape[-1]


def select(cache: Cache, patterns: Sequence[str] | None, tower: str) -> TowerTaps:
    """Choose a tower's taps by patterns, see `select_names`, in the cache's order; the anchor last.

    Args:
        cache: of the tower.
        patterns: None takes all taps.
        tower: "text" or "media", for messages.

    Raises:
        ConfigError: a pattern matches nothing, or the chosen taps do not go together.
    """
    names = [tap.name for tap in cache.taps]
    wanted, lost = (names, ()) if patterns is None else select_names(names, patterns)
    if lost:
        raise ConfigError(
            f"the pattern {lost[0]!r} of {tower}_taps matches none of {', '.join(names)}"
        )
    chosen = TowerTaps(tuple(tap for tap in cache.taps if tap.name in wanted))
    _check(chosen, tower)
    return chosen


def _check(chosen: TowerTaps, tower: str) -> None:
    listed = ", ".join(f"{tap.name} ({tap.kind} {list(tap.shape)})" for tap in chosen.taps)
    way = f"choose others with {tower}_taps; chosen are {listed}"
    if not chosen.taps:
        raise ConfigError(f"{tower}_taps is empty; leave it out to take all taps")
    layouts = {layout(tap) for tap in chosen.targets}
    if len(layouts) > 1 or len({tap.kind == "frames" for tap in chosen.taps}) > 1:
        raise ConfigError(f"targets of the {tower} tower differ in kind: {way}")
    if layout(chosen.anchor) != chosen.layout and not chosen.vector_anchor:
        raise ConfigError(f"the {tower} tower's anchor is not of its targets' kind: {way}")
    if chosen.vector_anchor and chosen.layout == "map":
        raise ConfigError(f"a vector cannot be the anchor of maps: {way}")
    if chosen.layout == "grid" and len({t.shape[0] for t in chosen.targets}) > 1:
        raise ConfigError(f"grids of the {tower} tower differ in their number of patches: {way}")
    if chosen.layout == "grid" and not chosen.vector_anchor:
        patches = {tap.shape[0] for tap in chosen.taps}
        if len(patches) > 1:
            raise ConfigError(f"the {tower} tower's anchor has other patches: {way}")
