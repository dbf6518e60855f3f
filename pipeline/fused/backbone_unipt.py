"""A frozen backbone inside a fused model: built from its configuration, recorded at its taps.

Written into every exported folder. Price of recording: a hook a tap and one rounding of what it
emitted, pooled first where the cache is; nothing else is copied.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from pipeline.backbones.pooling import pool_states
from unipt.recorder import TapRecorder


def build_backbone(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a backbone of transformers with random weights, to be filled from a checkpoint.

    Args:
        class_name: of the backbone, such as "BertModel".
        config: its own configuration, as a dict.

    Raises:
        ValueError: transformers has no such model.
    """
    backbone = getattr(transformers, class_name, None)
    if not (isinstance(backbone, type) and issubclass(backbone, PreTrainedModel)):
        raise ValueError(
            f"transformers {transformers.__version__} has no model {class_name!r}: "
            "install the version that config.json names, or a later one"
        )
    model: nn.Module = backbone._from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(**config)
    )
    return model


def accepted_arguments(backbone: nn.Module) -> frozenset[str]:
    """Return the names of the arguments a backbone's forward takes."""
    return frozenset(inspect.signature(backbone.forward).parameters)


def record(
    backbone: nn.Module, taps: Mapping[str, str], **arguments: Tensor | bool
) -> dict[str, Tensor]:
    """Run the backbone; return what each tap emitted.

    Args:
        backbone: to run.
        taps: tap name -> module path.
        arguments: of its forward pass.
    """
    with TapRecorder(backbone, taps) as recorder:
        backbone(**arguments)
    return recorder.states


def as_cached(state: Tensor, spec: Mapping[str, Any], mask: Tensor | None = None) -> Tensor:
    """Return what a tap emitted as its cache holds it: pooled, then rounded; float32.

    Args:
        state: [b, L, D], [b, P, D], [b, C, H, W] or [b, D].
        spec: `pool` (see `pool_states`; absent: "none") and `storage_type` of the cache.
        mask: [b, L], true at the tokens of texts.
    """
    return rounded(pool_states(state, spec.get("pool", "none"), mask), spec["storage_type"])


def rounded(states: Tensor, storage_type: str) -> Tensor:
    """Return float32 states that went through the number type `storage_type`.

    Rounding errors are not noise: a nearly constant feature is rounded the same way every time,
    and the side network was trained on the rounded values.
    """
    stored = getattr(torch, storage_type)
    if stored != torch.float32:
        limit = torch.finfo(stored).max
        states = states.float().clamp(-limit, limit).to(stored)
    return states.float()
