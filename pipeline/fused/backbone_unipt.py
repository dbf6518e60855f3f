"""A frozen backbone inside a fused model: built from its configuration, recorded at its taps.

Written into every exported folder. Price of recording: a hook a tap and one rounding of what it
emitted; nothing else is copied.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

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
    backbone: nn.Module, taps: Mapping[str, str], storage_type: str, **arguments: Tensor | bool
) -> dict[str, Tensor]:
    """Run the backbone; return what each tap emitted, in float32, rounded as a cache rounds it.

    Rounding errors are not noise: a nearly constant feature is rounded the same way every time,
    and the side network was trained on the rounded values.

    Args:
        backbone: to run.
        taps: tap name -> module path.
        storage_type: number type of the cache.
        arguments: of its forward pass.
    """
    with TapRecorder(backbone, taps) as recorder:
        backbone(**arguments)
    return {name: rounded(state, storage_type) for name, state in recorder.states.items()}


def rounded(states: Tensor, storage_type: str) -> Tensor:
    """Return float32 states that went through the number type `storage_type`."""
    stored = getattr(torch, storage_type)
    if stored != torch.float32:
        limit = torch.finfo(stored).max
        states = states.float().clamp(-limit, limit).to(stored)
    return states.float()
