"""One tower of a fused model: a frozen backbone, recorded at its taps, as its cache holds them.

Written into every exported folder. Price of recording: a hook a tap and one rounding of what it
emitted, pooled first where the cache is; nothing else is copied. B texts, images or videos, L
tokens (padded), F frames of all videos, P patches, D wide.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from cache.format.quantize import requantized
from pipeline.backbones.convnets.build import build_convnet
from pipeline.backbones.convnets.config import ConvNetConfig
from pipeline.backbones.pooling import pool_states
from pipeline.backbones.shaping import as_tap
from unipt.recorder import TapRecorder
from unipt.states import States

CONVNETS = ("ResNet", "EfficientNetLite")
"""Backbones whose files stand beside this one; all others are classes of transformers."""


class FrozenTower(nn.Module):
    """A backbone and its taps.

    Args:
        spec: a tower's mapping, see `UniPTConfig`.

    Raises:
        ValueError: the backbone's class does not exist here.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    """Tensors that it reads; it is run where the first one is given."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec["backbone_class"], spec["backbone_config"])
        self.cached = CachedStates(spec)
        self._accepted = inspect.signature(self.backbone.forward).parameters

    @property
    def longest(self) -> int:
        """The most tokens, patches or cells of one input."""
        raise NotImplementedError

    def record(self, mask: Tensor | None = None, **inputs: Tensor | None) -> dict[str, Tensor]:
        """Run the backbone on the inputs it accepts; return its taps as the cache holds them."""
        spec = self.spec
        given = {k: v for k, v in inputs.items() if v is not None and k in self._accepted}
        with TapRecorder(self.backbone, spec["tap_modules"]) as recorder:
            self.backbone(**given, **spec["arguments"])
        states = recorder.states
        return {
            name: self.cached(name, as_tap(states[name], spec["tap_shapes"][name]), mask)
            for name in spec["taps"]
        }


class TextTower(FrozenTower):
    """Texts as tokens, int64 [B, L], valid ones first."""

    takes = ("input_ids", "attention_mask", "token_type_ids")

    @property
    def longest(self) -> int:
        """The most tokens of one text."""
        return int(self.spec["max_length"])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> States:
        """Return the states of texts, [B, L, D] or [B, D], and the mask of the valid tokens.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], 1 on tokens, 0 on padding; everything is a token if absent.
            token_type_ids: [B, L], passed on where extraction did.
        """
        spec = self.spec
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = token_type_ids if spec["token_types"] else None
        seen = mask
        if spec["full_length"]:
            room = spec["max_length"] - input_ids.shape[1]
            input_ids = F.pad(input_ids, (0, room), value=spec["pad_id"])
            mask = F.pad(mask, (0, room))
            types = None if types is None else F.pad(types, (0, room))
            seen = torch.ones_like(mask)  # by the backbone; the side model still sees the mask
        found = self.record(mask, input_ids=input_ids, attention_mask=seen, token_type_ids=types)
        return States(found, masks={spec["axis"]: mask.bool()})


class ImageTower(FrozenTower):
    """Images, or the frames of videos, as float32 [B, 3, H, W] or [F, 3, H, W]."""

    takes = ("pixel_values", "frame_counts")

    @property
    def longest(self) -> int:
        """The most patches or cells of an image, or of a video that is one sequence."""
        spec = self.spec
        shape = spec["tap_shapes"][spec["taps"][-1]]
        cells = {3: math.prod(shape[1:]), 2: shape[0], 1: 1}[len(shape)]
        return int(cells * (spec["max_frames"] if spec["frames"] == "sequence" else 1))

    def forward(self, pixel_values: Tensor, frame_counts: Tensor | None = None) -> States:
        """Return the states of images, or of frames.

        Args:
            pixel_values: of all images or frames.
            frame_counts: frames of each video, int64 [B]; None if every frame is an input.
        """
        dtype = next(self.backbone.parameters()).dtype
        found = self.record(pixel_values=pixel_values.to(dtype))
        if frame_counts is None:
            return States(found)
        bounds = F.pad(frame_counts.to(pixel_values.device).cumsum(0), (1, 0))
        return States(found, {self.spec["axis"]: bounds})


TOWERS: dict[str, type[FrozenTower]] = {
    "text": TextTower,
    "image": ImageTower,
    "video": ImageTower,
}
"""By modality."""


class CachedStates(nn.Module):
    """What taps emit, as their cache holds it: pooled, then rounded.

    Rounding errors are not noise: a nearly constant feature is rounded the same way every time,
    and the side model was trained on the rounded values.

    Args:
        spec: `taps`, `storage_type` of the cache (one, or a mapping by tap), `pool` (see
            `pool_states`), and for int8 `channels`, how many each tap has.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        stored, self.taps = spec["storage_type"], list(spec["taps"])
        self.types = dict.fromkeys(self.taps, stored) if isinstance(stored, str) else dict(stored)
        self.pool = str(spec["pool"])
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


def build_backbone(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a backbone with random weights, to be filled from a checkpoint.

    Args:
        class_name: of the backbone, such as "BertModel".
        config: its own configuration, as a dict.

    Raises:
        ValueError: transformers has no such model.
    """
    if class_name in CONVNETS:
        options: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return build_convnet(ConvNetConfig(**options))
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
