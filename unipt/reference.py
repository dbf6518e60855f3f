"""Parameters under the names of the published code, so that released checkpoints import.

`reference_views` lists, for a module, every reference name with the part of our (stacked) tensors
that holds it; `import_reference` copies a state dict along that list. The names are data: one
`_Names` per published system. Price: one copy of each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .convnet import ConvSideNetwork
from .encoder_decoder import EncoderDecoderSideNetwork
from .layers import Down, StackedNorm
from .network import SideNetwork
from .pooling import GeneralizedPooling

__all__ = ["import_reference", "reference_views"]


@dataclass(frozen=True)
class _Names:
    """Reference prefixes of one published side network.

    ``{i}`` is the target, ``{j} = i - 1``; in ``anchor``, ``{n}`` is the number of
    targets, ``{m} = n - 1``.
    """

    down: str
    anchor: str
    gate: str
    projection: str
    up: str
    first: str | None = None
    """Name of target 0 where it differs."""


_VSE = _Names(
    "downsample_layers.{i}",
    "downsample_layers.{n}",
    "gate_layer",
    "projection_layer",
    "upsample_layer",
)
_CLIP4CLIP = _Names(
    "downsample_layers.{i}", "downsample_layer", "gate_layer", "projection_layer", "upsample_layer"
)
# CLIP-ViL counts from the embedding: its "first" Down is target 0, its last one the anchor's
_CLIP_VIL = _Names(
    "side_downsamples_l.{j}",
    "side_downsamples_l.{m}",
    "side_gate_layer_l",
    "side_projection_l",
    "side_final_upsample_l",
    first="side_first_downsample_l",
)
_MDETR = {
    stack: _Names(
        f"side_downsamples_{stack}.{{i}}",
        f"side_downsample0_{stack}",
        f"side_gate_layer_{stack}",
        f"side_projection_{stack}",
        "side_final_upsample",
    )
    for stack in ("encoder", "decoder")
}


def reference_views(module: nn.Module, names: set[str] | None = None) -> dict[str, Tensor]:
    """Map reference names to views of the module's parameters and buffers.

    Args:
        module: a `SideNetwork`, `ConvSideNetwork`, `EncoderDecoderSideNetwork` or
            `GeneralizedPooling`.
        names: names present in the checkpoint; they tell the published `SideNetwork`s apart (by
            default CLIP4Clip's for a vector anchor, VSE-infinity's otherwise).

    Raises:
        TypeError: if no published names exist for the module.
    """
    names = names or set()
    if isinstance(module, GeneralizedPooling):
        return dict(module.named_parameters())
    if isinstance(module, SideNetwork):
        return dict(_side(module, _side_names(module, names)))
    if isinstance(module, ConvSideNetwork):
        views = dict(_side(module.side, _VSE))
        for i, guide in enumerate(module.guides):
            views |= dict(_prefixed(f"identity_layers.{i}.0", guide))
        return views
    if isinstance(module, EncoderDecoderSideNetwork):
        views = dict(_side(module.encoder, _MDETR["encoder"]))
        views |= dict(_side(module.decoder, _MDETR["decoder"]))
        for i, part in enumerate(module.cross):
            views |= dict(_prefixed(f"side_projection_crosser.{i}", part))
        return views
    raise TypeError(f"no reference names are known for {type(module).__name__}")


def import_reference(
    module: nn.Module, state: Mapping[str, Tensor], *, prefix: str = ""
) -> list[str]:
    """Copy a released checkpoint's parameters into a side network.

    Convolution weights ``[d, C, 1, 1]`` become Linear weights; layers go to their place in the
    stacked tensors.

    Args:
        module: see `reference_views`.
        state: the checkpoint, under the reference's own names.
        prefix: of the names that belong to this module, cut off before matching.

    Returns:
        The names under ``prefix`` that were not used, for example those of the backbone.

    Raises:
        KeyError: if a parameter of the module is not in the checkpoint.
        ValueError: if a shape differs.
    """
    own = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    views = reference_views(module, set(own))
    missing = sorted(set(views) - set(own))
    if missing:
        raise KeyError(f"the checkpoint lacks {missing} under the prefix {prefix!r}")
    with torch.no_grad():
        for name, view in views.items():
            value = own[name]
            if value.numel() != view.numel():
                raise ValueError(
                    f"{name} is {list(value.shape)} in the checkpoint, {list(view.shape)} here; "
                    "build the side network with the checkpoint's sizes"
                )
            view.copy_(value.reshape(view.shape))
    return sorted(set(own) - set(views))


def _side_names(module: SideNetwork, names: set[str]) -> _Names:
    if any(name.startswith("side_downsamples_l.") for name in names):
        return _CLIP_VIL
    return _CLIP4CLIP if module.anchor_kind == "vector" else _VSE


def _side(side: SideNetwork, names: _Names) -> Iterator[tuple[str, Tensor]]:
    count = len(side.widths)
    for i in range(count):
        prefix = names.first if i == 0 and names.first else names.down.format(i=i, j=i - 1)
        yield from _down(side.target_down, i, prefix)
    yield from _down(side.anchor_down, 0, names.anchor.format(n=count, m=count - 1))
    yield from _prefixed(names.gate, side.gate)
    yield from _prefixed(names.projection, side.projection)
    yield from _prefixed(names.up, side.up)


def _down(down: Down, position: int, prefix: str) -> Iterator[tuple[str, Tensor]]:
    place = 1 if down.activation == "relu" else 0  # the ReLU counts in the reference
    yield f"{prefix}.{place}.weight", down.linear.layer_weight(position)
    yield f"{prefix}.{place}.bias", down.linear.bias[position]
    if down.norm is not None:
        yield from _norm(down.norm, position, f"{prefix}.{place + 1}")


def _norm(norm: StackedNorm, position: int, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        yield f"{prefix}.{name}", value[position] if value.dim() else value


def _prefixed(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, part in module.named_modules():
        path = f"{prefix}.{name}".rstrip(".")
        if isinstance(part, StackedNorm):
            yield from _norm(part, 0, path)
        else:
            for key, value in part.named_parameters(recurse=False):
                yield f"{path}.{key}", value
