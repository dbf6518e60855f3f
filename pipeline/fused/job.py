"""What an export reads: a trained side model, its data, its caches and their backbones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache import Cache, Fingerprint, FingerprintMismatch
from pipeline.backbones.base import Backbone
from pipeline.errors import PipelineError
from pipeline.systems import Setup
from unipt import SideModel


class ExportError(PipelineError, ValueError):
    """This run cannot be exported; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card of an exported folder says about the run.

    Attributes:
        metrics: split -> metric -> value or interval.
        data: configuration of the data.
        training: hyperparameters.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A trained side model with everything that its export reads.

    Attributes:
        setup: its system, data, caches and taps; the examples of its splits are replayed.
        model: the trained side model, on the CPU.
        backbones: tower -> the frozen model its cache came from, with the cache's taps; towers
            with one cache share one.
        samples: of each inference pass to replay, at most.
        facts: for the model card.
    """

    setup: Setup
    model: SideModel
    backbones: Mapping[str, Backbone]
    samples: int = 64
    facts: Facts = field(default_factory=Facts)

    @property
    def shared(self) -> dict[str, str]:
        """Tower -> the first tower that has its backbone: itself, where it has its own."""
        found: dict[str, str] = {}
        for name, backbone in self.backbones.items():
            found[name] = next((n for n in found if self.backbones[n] is backbone), name)
        return found

    @property
    def own(self) -> tuple[str, ...]:
        """Towers that have a backbone of their own."""
        return tuple(dict.fromkeys(self.shared.values()))


def check_backbone(backbone: Backbone, cache: Cache) -> None:
    """Compare a backbone with the one a cache was computed by.

    Raises:
        FingerprintMismatch: weights, preprocessing or taps differ; the message shows the lines.
    """
    now = backbone.fingerprint_parts()
    recorded = cache.fingerprint.mapping
    then = {name: recorded.get(name) for name in now}
    lines = Fingerprint(then).diff(Fingerprint(now))
    if lines:
        raise FingerprintMismatch(
            f"{backbone.name} is not the backbone that {cache.path} was computed by:\n  "
            + "\n  ".join(lines)
            + "\nGive the right one with `backbone`, or extract and train again"
        )
