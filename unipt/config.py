"""Options of the side networks as frozen records that can be stored as JSON and built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from .convnet import ConvSideNetwork, MapNorm
from .encoder_decoder import EncoderDecoderSideNetwork, Outputs
from .interaction import EpsMode, Residual
from .layers import Activation, InputNorm, Norm, ProjectionKind, UpKind
from .network import AnchorKind, SideNetwork

__all__ = ["ConvSideNetworkConfig", "EncoderDecoderConfig", "SideNetworkConfig"]


class _Config:
    """Conversion to and from plain dicts."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; ``"kind"`` names the record."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()  # type: ignore[call-overload]
        }
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_dict` returned.

        Raises:
            ValueError: if the record is of another kind or has unknown fields.
        """
        given = dict(values)
        kind = given.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ValueError(f"expected a {cls.kind!r} record, got {kind!r}")
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"unknown options {unknown}; known are {known}")
        return cls(**given)

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_dict().items() if name != "kind"}

    def _freeze(self, name: str) -> None:
        object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class SideNetworkConfig(_Config):
    """Options of a `SideNetwork`; see there for the meaning of each."""

    kind: ClassVar[str] = "tokens"

    widths: Sequence[int]
    anchor_width: int
    side_width: int
    out_width: int
    anchor: AnchorKind = "tokens"
    down_activation: Activation = "none"
    down_norm: Norm = "layer"
    input_norm: InputNorm = "none"
    eps: float = 1e-8
    eps_mode: EpsMode = "add"
    causal: bool = False
    residual: Residual = "identity"
    projection: ProjectionKind = "linear"
    projection_width: int = 0
    projection_norm: Norm = "layer"
    up: UpKind = "relu_linear"
    anchor_skip: bool = True
    add_anchor: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        self._freeze("widths")

    def build(self) -> SideNetwork:
        """Build the network with freshly initialised parameters."""
        return SideNetwork(**self._options())


@dataclass(frozen=True, kw_only=True)
class ConvSideNetworkConfig(_Config):
    """Options of a `ConvSideNetwork`; see there for the meaning of each."""

    kind: ClassVar[str] = "maps"

    widths: Sequence[int]
    anchor_width: int
    side_width: int
    out_width: int
    eps: float = 1e-8
    eps_mode: EpsMode = "add"
    projection: ProjectionKind = "linear"
    projection_width: int = 0
    up: UpKind = "relu_linear"
    norm_eps: float = 1e-5
    input_norm: MapNorm = "none"

    def __post_init__(self) -> None:
        self._freeze("widths")

    def build(self) -> ConvSideNetwork:
        """Build the network with freshly initialised parameters."""
        return ConvSideNetwork(**self._options())


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(_Config):
    """Options of an `EncoderDecoderSideNetwork`; see there for the meaning of each."""

    kind: ClassVar[str] = "encoder_decoder"

    encoder_layers: int
    decoder_layers: int
    width: int
    side_width: int
    out_width: int
    causal: bool = False
    outputs: Outputs = "last"
    input_norm: InputNorm = "none"
    eps: float = 1e-7
    eps_mode: EpsMode = "add"
    projection: ProjectionKind = "mlp"
    projection_width: int = 0
    cross: bool = True
    up: UpKind = "relu_linear"
    norm_eps: float = 1e-5

    def build(self) -> EncoderDecoderSideNetwork:
        """Build the network with freshly initialised parameters."""
        return EncoderDecoderSideNetwork(**self._options())
