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

from cache.format.quantize import requantized
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


class CachedStates(nn.Module):
    """What taps emit, as their cache holds it: pooled, then rounded.

    Rounding errors are not noise: a nearly constant feature is rounded the same way every time,
    and the side network was trained on the rounded values.

    Args:
        spec: `taps`, `storage_type` of the cache (one, or a mapping by tap), `pool` (see
            `pool_states`; absent: "none"), and for int8 `channels`, how many each tap has.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        stored, self.taps = spec["storage_type"], list(spec["taps"])
        self.types = dict.fromkeys(self.taps, stored) if isinstance(stored, str) else dict(stored)
        self.pool = str(spec.get("pool", "none"))
        for number, tap in enumerate(self.taps):
            if self.types[tap] == "int8":
                self.register_buffer(f"rms_{number}", torch.ones(spec["channels"][tap]))

    def set_rms(self, rms: Mapping[str, Tensor]) -> None:
        """Take the size of each channel of the taps in int8."""
        for number, tap in enumerate(self.taps):
            if self.types[tap] == "int8":
                self.get_buffer(f"rms_{number}").copy_(rms[tap])

    def forward(self, tap: str, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the state of a tap in float32.

        Args:
            tap: its name.
            state: [b, L, D], [b, P, D], [b, C, H, W] or [b, D].
            mask: [b, L], true at the tokens of texts.
        """
        state = pool_states(state, self.pool, mask)
        if self.types[tap] != "int8":
            return rounded(state, self.types[tap])
        return requantized(state, self.get_buffer(f"rms_{self.taps.index(tap)}").float())


def rounded(states: Tensor, storage_type: str) -> Tensor:
    """Return float32 states that went through the floating-point type `storage_type`."""
    stored = getattr(torch, storage_type)
    if stored != torch.float32:
        limit = torch.finfo(stored).max
        states = states.float().clamp(-limit, limit).to(stored)
    return states.float()
