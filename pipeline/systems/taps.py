"""Which taps of its cache a tower takes, in what layout, and which of them is the anchor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cache import Cache, TapSpec
from pipeline.config import ConfigError
from pipeline.inputs import FACTS
from pipeline.selection import select_names

Layout = Literal["tokens", "grid", "map", "vector"]
"""What one text, image or frame is in a tap: ragged tokens, patches, channels x cells, one."""


@dataclass(frozen=True)
class TowerTaps:
    """The taps of one tower, in the cache's order, the anchor last.

    A single tap is anchor and target both, so that a tower given one layer differs from one given
    all in nothing else.
    """

    taps: tuple[TapSpec, ...]
    facts: tuple[TapSpec, ...] = ()
    """Facts of the input that are read along, and that no side network sees."""

    @property
    def read(self) -> tuple[TapSpec, ...]:
        """Everything that is read of a batch: the taps, then the facts."""
        return self.taps + self.facts

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
        """Whether a sample is a video of frames."""
        return self.anchor.kind == "frames"

    @property
    def axis(self) -> str | None:
        """Ragged axis of the targets; None for fixed shapes."""
        return self.targets[0].axis if self.targets[0].ragged else None

    def widths(self) -> dict[str, Any]:
        """Return the widths of targets and anchor, as a side network takes them."""
        return {
            "widths": tuple(width(tap) for tap in self.targets),
            "anchor_width": width(self.anchor),
        }


def layout(tap: TapSpec) -> Layout:
    """Return what one text, image or frame is in a tap."""
    if tap.kind != "frames":
        return tap.kind
    kinds: dict[int, Layout] = {1: "vector", 2: "grid", 3: "map"}
    if len(tap.shape) not in kinds:
        raise ConfigError(f"tap {tap.name}: frames of shape {tap.shape} fit no side network")
    return kinds[len(tap.shape)]


def width(tap: TapSpec) -> int:
    """Return the features of one token, cell or vector of a tap."""
    return tap.shape[0] if layout(tap) == "map" else tap.shape[-1]


def select(
    cache: Cache, patterns: Sequence[str] | None, option: str, facts: Sequence[str] = ()
) -> TowerTaps:
    """Choose a tower's taps by patterns, see `select_names`, in the cache's order; the anchor last.

    Args:
        cache: of the tower.
        patterns: None takes all taps.
        option: name of the option that gives the patterns, for messages.
        facts: taps to read along, see `FACTS`.

    Raises:
        ConfigError: a pattern matches nothing, or the chosen taps do not go together.
    """
    lacking = [name for name in facts if name not in {tap.name for tap in cache.taps}]
    if lacking:
        raise ConfigError(
            f"{cache.path} lacks {', '.join(lacking)}, which this task needs; extract the cache "
            "anew with the data of this task"
        )
    names = [tap.name for tap in cache.taps if tap.name not in FACTS]
    wanted, lost = (names, ()) if patterns is None else select_names(names, patterns)
    if lost:
        raise ConfigError(
            f"the tap pattern {lost[0]!r} of {option} matches none of {', '.join(names)}"
        )
    chosen = TowerTaps(
        tuple(tap for tap in cache.taps if tap.name in wanted),
        tuple(tap for tap in cache.taps if tap.name in facts),
    )
    _check(chosen, option)
    return chosen


def _check(chosen: TowerTaps, option: str) -> None:
    listed = ", ".join(f"{tap.name} ({tap.kind} {list(tap.shape)})" for tap in chosen.taps)
    way = f"choose others with {option}; chosen are {listed}"
    if not chosen.taps:
        raise ConfigError(f"{option} is empty; leave it out to take all taps")
    layouts = {layout(tap) for tap in chosen.targets}
    if len(layouts) > 1 or len({tap.kind == "frames" for tap in chosen.taps}) > 1:
        raise ConfigError(f"the targets differ in kind: {way}")
    if len({tap.axis for tap in chosen.targets if tap.ragged}) > 1:
        raise ConfigError(f"the targets lie on different axes: {way}")
    if layout(chosen.anchor) != chosen.layout and not chosen.vector_anchor:
        raise ConfigError(f"the anchor (the last tap) is not of its targets' kind: {way}")
    if chosen.vector_anchor and chosen.layout == "map":
        raise ConfigError(f"a vector cannot be the anchor of maps: {way}")
    if chosen.layout == "grid" and len({t.shape[0] for t in chosen.targets}) > 1:
        raise ConfigError(f"the targets' grids differ in their number of patches: {way}")
    if chosen.layout == "grid" and not chosen.vector_anchor:
        patches = {tap.shape[0] for tap in chosen.taps}
        if len(patches) > 1:
            raise ConfigError(f"the anchor's grid has another number of patches: {way}")
