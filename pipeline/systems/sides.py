"""Which side network fits a tower's taps, and the options of a head on it.

Costs nothing: options become records; weights are made by the system.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from pipeline.config import ConfigError
from pipeline.systems.taps import TowerTaps, layout, width
from unipt import ConvSideNetworkConfig, Outputs, SideNetworkConfig, States, preset
from unipt.classifier import joined
from unipt.pooling import TokenPoolingKind
from unipt.towers import FramePooling, layer_mean

__all__ = ["InputNorm", "Pooling", "head_options", "joined_means", "side_config", "tap_means"]

Pooling = TokenPoolingKind
InputNorm = Literal["none", "layer", "standard"]


def side_config(
    taps: TowerTaps,
    *,
    side_width: int,
    out_width: int,
    tokens: str,
    input_norm: InputNorm | None = None,
    maps_as_tokens: bool = False,
    options: Mapping[str, Any] | None = None,
) -> SideNetworkConfig | ConvSideNetworkConfig:
    """Return the options of the side network that reads these taps.

    Args:
        taps: targets and anchor.
        side_width: d, in features.
        out_width: E, in features.
        tokens: preset of `unipt` for tokens, patches and vectors; maps and vector anchors have
            their own.
        input_norm: scaling of the states; None for the preset's. Beside a vector anchor it is none,
            and the ConvNet side network knows none and standard.
        maps_as_tokens: read maps with the network for tokens, by the cells of the last one.
        options: any other options by name; they win.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    sizes: dict[str, Any] = {
        **taps.widths(),
        "side_width": side_width,
        "out_width": out_width,
        **(options or {}),
    }
    norm: dict[str, Any] = {} if input_norm is None else {"input_norm": input_norm}
    try:
        if taps.vector_anchor:
            side = preset("clip4clip_text", **sizes)
        elif taps.layout == "map" and not maps_as_tokens:
            if norm:
                norm["input_norm"] = "standard" if input_norm == "standard" else "none"
            side = preset("vse_image", **norm | sizes)
        else:
            side = preset(tokens, **norm | sizes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the side network cannot be built: {error}") from error
    if not isinstance(side, SideNetworkConfig | ConvSideNetworkConfig):
        raise ConfigError(f"preset {tokens!r} is none of one tower's side network")
    return side


def frames_of(taps: TowerTaps, *, sequence: bool = False) -> FramePooling:
    """Return how a tower takes frames: "none", their "mean", or as one "sequence"."""
    if not taps.clips:
        return "none"
    return "sequence" if sequence and not taps.vector_anchor else "mean"


def head_options(
    taps: TowerTaps,
    *,
    preset_name: str,
    side_width: int | None,
    reduction: float,
    out_width: int | None,
    input_norm: InputNorm | None,
    pooling: Pooling,
) -> dict[str, Any]:
    """Return what `SideTower` takes of a tower whose vectors a head reads.

    Args:
        taps: of the tower.
        preset_name: of the side network for tokens.
        side_width: d; None for the anchor's width over `reduction`.
        reduction: see there.
        out_width: E; None for the anchor's width.
        input_norm: scaling of the states; None for the preset's.
        pooling: over tokens, patches or cells.
    """
    if pooling not in get_args(TokenPoolingKind):
        raise ConfigError(f"pooling {pooling!r} is none of {', '.join(get_args(TokenPoolingKind))}")
    own = width(taps.anchor)
    out = own if taps.vector_anchor else out_width or own
    return {
        "side": side_config(
            taps,
            side_width=side_width or max(1, round(own / reduction)),
            out_width=out,
            tokens=preset_name,
            input_norm=input_norm,
        ),
        "taps": taps.names,
        "axis": taps.axis,
        "pooling": "none" if taps.vector_anchor else pooling,
        "frames": frames_of(taps),
        "normalize": False,
        "position": "last" if taps.layout == "tokens" else "first",
    }


def tap_means(states: States, taps: TowerTaps) -> torch.Tensor:
    """Return the float32 mean of every tap over tokens, cells and frames, joined, [b, F]."""
    means = []
    for tap in taps.taps:
        value = states.states[tap.name]
        ragged = states.offsets[tap.axis] if tap.ragged else None
        if tap.kind == "frames" and layout(tap) != "vector":
            value = layer_mean(value, None, None)  # of each frame
        means.append(layer_mean(value, None, ragged))
    return torch.cat(means, 1)


def joined_means(towers: Mapping[str, States], taps: Mapping[str, TowerTaps]) -> Outputs:
    """Return "features" [b, F]: the means of one tower's taps, or those of two compared."""
    return Outputs({"features": joined([tap_means(each, taps[n]) for n, each in towers.items()])})
