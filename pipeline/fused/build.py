"""Builds a fused model and its tokenizer from backbones and a trained side model.

Cost: the weights once more in memory, as the fused model shares none with what it is built from.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import singledispatch
from typing import Any

import transformers
from torch import nn

from cache.format.spec import one_or_each
from pipeline.backbones import ImageBackbone, TextBackbone, VideoBackbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.convnets.config import ConvNetConfig
from pipeline.fused.configuration_unipt import UniPTConfig
from pipeline.fused.job import ExportError, Job
from pipeline.fused.modeling_unipt import UniPTModel
from pipeline.fused.package import api_class, auto_map
from pipeline.fused.tokenizer import joint_tokenizer, separate_tokenizer, special_tokens
from pipeline.fused.tower_unipt import CONVNETS
from unipt import SideTower

FRAMES = {"fps": 1.0, "max_frames": 12}
"""Frames a second and most frames of a video, for a model of images that is shown one."""


def build_fused(job: Job) -> UniPTModel:
    """Put backbones and a side model together; the backbones' weights keep their types.

    Raises:
        ExportError: a backbone's or the side model's class cannot be shipped, or a tap is unknown.
    """
    system, model = job.setup.system, job.model
    wanted = api_class(system.api).side_model
    if type(model) is not wanted:
        raise ExportError(
            f"a {type(model).__name__} cannot be exported as {system.api}, which is of a "
            f"{wanted.__name__}"
        )
    sides = {name: each.side for each in system.sides(model) for name in each.towers}
    towers: dict[str, Any] = {
        name: tower_spec(job, name, sides[name]) if name == same else same
        for name, same in job.shared.items()
    }
    pads = [towers[name]["pad_id"] for name in job.own if "pad_id" in towers[name]]
    config = UniPTConfig(
        api=system.api,
        towers=towers,
        side_config=model.config,
        auto_map=auto_map(system.api),
        pad_token_id=pads[0] if pads else None,
        **system.api_config(model, job.setup),
    )
    fused = api_class(system.api)(config)
    for name in job.own:
        tower = fused.tower(name)
        _fill(tower.backbone, job.backbones[name].model)
        tower.cached.set_rms(job.setup.caches[name].rms or {})
    fused.side.load_state_dict(model.state_dict())
    fused.requires_grad_(False).train(False)
    return fused


def tower_spec(job: Job, name: str, side: SideTower) -> dict[str, Any]:
    """Return what a fused model's configuration says of a tower, see `UniPTConfig`.

    Raises:
        ExportError: the backbone's class is neither part of transformers nor shipped, or it records
            no such tap.
    """
    backbone, cache, taps = job.backbones[name], job.setup.caches[name], job.setup.taps[name].names
    shapes = {tap.name: tap.shape for tap in backbone.taps}
    unknown = [tap for tap in taps if tap not in shapes]
    if unknown:
        raise ExportError(f"{backbone.name} records no tap {unknown}; it records {list(shapes)}")
    stored = cache.geometry.dtype
    types = {tap: stored if isinstance(stored, str) else stored[tap] for tap in taps}
    channels = {tap: shapes[tap][0 if len(shapes[tap]) == 3 else -1] for tap in taps}
    return {
        **_backbone_class(backbone),
        **reads(backbone),
        "suffix": _suffix(job, backbone),
        "modality": backbone.modality,
        "taps": list(taps),
        "tap_modules": {tap: backbone.tap_modules[tap] for tap in taps},
        "axis": backbone.axis,
        "pool": backbone.pool,
        "storage_type": one_or_each(types),
        "channels": {tap: count for tap, count in channels.items() if types[tap] == "int8"},
        "frames": side.frames,
        "normalize": side.normalize,
    }


@singledispatch
def reads(backbone: Backbone) -> dict[str, Any]:
    """Return what a fused model must know of how a backbone reads its inputs.

    Raises:
        ExportError: it cannot be exported.
    """
    raise ExportError(f"{backbone.name} reads {backbone.modality}, which no exported model can")


@reads.register
def _(backbone: TextBackbone) -> dict[str, Any]:
    names = ("token_types", "max_length", "full_length", "pad_id")
    return _emitted(backbone) | {name: getattr(backbone, name) for name in names}


@reads.register
def _(backbone: ImageBackbone) -> dict[str, Any]:
    return _emitted(backbone) | {"transform": backbone.transform.to_dict()} | FRAMES


@reads.register
def _(backbone: VideoBackbone) -> dict[str, Any]:
    frames = {"fps": backbone.fps, "max_frames": backbone.max_frames}
    return _emitted(backbone) | {"transform": backbone.transform.to_dict()} | frames


def _emitted(backbone: TextBackbone | ImageBackbone) -> dict[str, Any]:
    shapes = {tap.name: list(tap.shape) for tap in backbone.emitted_taps}
    return {"arguments": dict(backbone.arguments), "tap_shapes": shapes}


def _backbone_class(backbone: Backbone) -> dict[str, Any]:
    name, config = type(backbone.model).__name__, backbone.model.config
    shipped = name in CONVNETS and isinstance(config, ConvNetConfig)
    if not shipped and getattr(transformers, name, None) is not type(backbone.model):
        raise ExportError(
            f"the backbone's class {type(backbone.model).__module__}.{name} is not part of "
            "transformers, so the exported folder could not load it"
        )
    options: Mapping[str, Any] = asdict(config) if shipped else config.to_dict()
    return {"backbone_class": name, "backbone_config": options}


def _fill(module: nn.Module, source: nn.Module) -> None:
    module.to(next(source.parameters()).dtype)
    module.load_state_dict(source.state_dict())


def _separate(job: Job, backbone: Backbone) -> bool:
    """Whether several towers read one row of texts, each a text of its own, with this backbone."""
    return sum(each is backbone for each in job.backbones.values()) > 1


def _suffix(job: Job, backbone: Backbone) -> int:
    if not _separate(job, backbone):
        return 0
    return len(special_tokens(getattr(backbone, "tokenizer", None))[1])


def build_tokenizer(job: Job) -> Any:
    """Return the tokenizer to ship with the fused model; None where nothing reads texts.

    Raises:
        ExportError: there are several.
        TokenizerError: it cannot be rewritten for texts that are encoded separately.
    """
    texts = [each for each in map(job.backbones.get, job.own) if isinstance(each, TextBackbone)]
    if not texts:
        return None
    if len(texts) > 1:
        names = ", ".join(each.name for each in texts)
        raise ExportError(
            f"an exported folder holds one tokenizer, and these have one each: {names}"
        )
    make = separate_tokenizer if _separate(job, texts[0]) else joint_tokenizer
    return make(texts[0].tokenizer, max_length=texts[0].max_length)
