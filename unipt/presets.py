"""The published side networks as named options, at their published sizes.

`preset` returns a config; any option can be overridden, the sizes first of all. Sizes are those of
the released models: see docs/side-networks.md for the table and the parameter counts.
"""

from __future__ import annotations

from typing import Any

from .config import ConvSideNetworkConfig, EncoderDecoderConfig, SideNetworkConfig

__all__ = ["T5_LAYERS", "preset", "preset_names"]

AnyConfig = SideNetworkConfig | ConvSideNetworkConfig | EncoderDecoderConfig

T5_LAYERS = (1, 2, 3, 5, 6, 7, 9, 10, 11)
"""Blocks kept of T5-base's 12 in each stack, counted from 0; the last is the anchor."""

_CLIP4CLIP = {
    "anchor": "vector",
    "side_width": 512,
    "out_width": 512,
    "anchor_width": 512,
    "down_activation": "relu",
    "down_norm": "none",
    "eps": 1e-6,
    "eps_mode": "clamp",
    "residual": "position",
    "projection": "none",
    "up": "relu_linear",
    "anchor_skip": False,
    "add_anchor": True,
}

_PRESETS: dict[str, tuple[type[AnyConfig], dict[str, Any]]] = {
    "text": (
        SideNetworkConfig,
        {
            "widths": (768,) * 12,
            "anchor_width": 768,
            "side_width": 192,
            "out_width": 768,
            "input_norm": "standard",
            "projection": "linear",
            "up": "relu_linear",
        },
    ),
    "vse_text": (
        SideNetworkConfig,
        {"widths": (768,) * 12, "anchor_width": 768, "side_width": 512, "out_width": 1024},
    ),
    "vse_image": (
        ConvSideNetworkConfig,
        {"widths": (256, 512, 1024), "anchor_width": 2048, "side_width": 512, "out_width": 1024},
    ),
    "clip4clip_text": (SideNetworkConfig, {**_CLIP4CLIP, "widths": (512,) * 13}),
    "clip4clip_frames": (SideNetworkConfig, {**_CLIP4CLIP, "widths": (768,) * 13}),
    "clip_vil": (
        SideNetworkConfig,
        {
            "widths": (768,) * 12,
            "anchor_width": 768,
            "side_width": 384,
            "out_width": 768,
            "eps": 1e-6,
            "projection": "mlp",
            "up": "linear",
            "norm_eps": 1e-12,
        },
    ),
    "mdetr": (
        EncoderDecoderConfig,
        {
            "encoder_layers": 3,
            "decoder_layers": 3,
            "width": 256,
            "side_width": 128,
            "out_width": 256,
            "outputs": "all",
            "up": "relu_linear_norm",
        },
    ),
    "t5": (
        EncoderDecoderConfig,
        {
            "encoder_layers": len(T5_LAYERS) - 1,
            "decoder_layers": len(T5_LAYERS) - 1,
            "width": 768,
            "side_width": 192,
            "out_width": 768,
            "causal": True,
            "up": "relu_linear",
        },
    ),
}


def preset_names() -> tuple[str, ...]:
    """Return the names `preset` knows."""
    return tuple(_PRESETS)


def preset(name: str, **overrides: Any) -> AnyConfig:
    """Return the config of a published side network.

    Args:
        name: "text" (any text encoder: VSE-infinity's text network with standardised inputs),
            "vse_text", "vse_image", "clip4clip_text", "clip4clip_frames", "clip_vil", "mdetr",
            "t5".
        overrides: options that differ from the published ones.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if an option is unknown.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(_PRESETS)}")
    kind, options = _PRESETS[name]
    return kind(**{**options, **overrides})
