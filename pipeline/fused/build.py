"""Builds fused models, their tokenizers and their inputs from backbones and trained side networks.

Cost: the weights once more in memory, as the fused model shares none with what it is built from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from cache.format.spec import one_or_each
from pipeline.backbones import TextBackbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.convnets.config import ConvNetConfig
from pipeline.backbones.image import ImageBackbone
from pipeline.backbones.video import VideoBackbone
from pipeline.errors import PipelineError
from pipeline.fused.configuration_unipt import UniPTConfig
from pipeline.fused.configuration_unipt_retrieval import UniPTRetrievalConfig
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.modeling_unipt_retrieval import CONVNETS, UniPTForRetrieval
from pipeline.fused.package import PACKAGES
from pipeline.fused.tokenizer import joint_tokenizer, separate_tokenizer, special_tokens
from pipeline.inputs import Input, TextInput
from unipt.classifier import SideClassifier
from unipt.towers import TwoTowers

CLIP_FRAMES = (1.0, 12)
"""Frames a second and most frames of a clip, for a model of pictures that is shown one."""


class ExportError(PipelineError, ValueError):
    """This run cannot be exported; the message says why and what to do."""


def build_fused(
    backbone: TextBackbone,
    classifier: SideClassifier,
    taps: Sequence[str],
    *,
    segments: int,
    labels: Sequence[str] | None,
    storage_type: str | Mapping[str, str] = "float32",
    rms: Mapping[str, Tensor] | None = None,
) -> UniPTForSequenceClassification:
    """Put a backbone and a side classifier together; the backbone's weights keep their type.

    Args:
        backbone: the frozen text model the cache came from.
        classifier: the trained side classifier.
        taps: its taps, in its order; the last is the anchor.
        segments: 2 if the classifier compares two sentences encoded separately, else 1.
        labels: class names in order; None for a regression.
        storage_type: number type of the cached states, of all taps or of each.
        rms: size of each channel of each tap, of an int8 cache.

    Raises:
        ExportError: the backbone's class is not part of transformers, or a tap is unknown.
    """
    separate = segments == 2
    config = UniPTConfig(
        **backbone_spec(backbone, taps, storage_type),
        side_config=classifier.config,
        token_types=backbone.token_types,
        segments=segments,
        segment_length=backbone.max_length if separate else None,
        segment_suffix=len(special_tokens(backbone.tokenizer)[1]) if separate else 0,
        id2label=dict(enumerate(labels or ["score"])),
        label2id={label: i for i, label in enumerate(labels or ["score"])},
        problem_type="single_label_classification" if labels else "regression",
        pad_token_id=backbone.pad_id,
        auto_map=dict(PACKAGES["unipt"].auto_map),
    )
    fused = UniPTForSequenceClassification(config)
    _fill(fused.backbone, backbone)
    fused.cached_states.set_rms(rms or {})
    fused.side_classifier.load_state_dict(classifier.state_dict())
    fused.requires_grad_(False).train(False)
    return fused


def build_retrieval(
    text: TextBackbone,
    media: ImageBackbone,
    towers: TwoTowers,
    *,
    text_taps: Sequence[str],
    media_taps: Sequence[str],
    text_storage: str | Mapping[str, str] = "float32",
    media_storage: str | Mapping[str, str] = "float32",
    text_rms: Mapping[str, Tensor] | None = None,
    media_rms: Mapping[str, Tensor] | None = None,
) -> UniPTForRetrieval:
    """Put two backbones and two side towers together; the backbones' weights keep their types.

    Args:
        text: the frozen text model its cache came from.
        media: the frozen image model its cache came from, of pictures or of clips.
        towers: the trained side towers.
        text_taps: taps of the text tower, in its order; the last is the anchor.
        media_taps: taps of the media tower.
        text_storage: number type of the text tower's cache.
        media_storage: number type of the media tower's cache.
        text_rms: size of each channel of each tap, of an int8 cache of the texts.
        media_rms: the same of the media.

    Raises:
        ExportError: a backbone's class cannot be shipped, or a tap is unknown.
    """
    clips = (media.fps, media.max_frames) if isinstance(media, VideoBackbone) else CLIP_FRAMES
    shapes = {tap.name: list(tap.shape) for tap in media.emitted_taps}
    config = UniPTRetrievalConfig(
        text_tower=backbone_spec(text, text_taps, text_storage)
        | {
            "token_types": text.token_types,
            "max_length": text.max_length,
            "full_length": text.full_length,
        },
        media_tower=backbone_spec(media, media_taps, media_storage)
        | {
            "modality": media.modality,
            "tap_shapes": {tap: shapes[tap] for tap in media_taps},
            "arguments": dict(media.arguments),
            "transform": media.transform.to_dict(),
            "fps": clips[0],
            "max_frames": clips[1],
        },
        towers=towers.config,
        pad_token_id=text.pad_id,
        auto_map=dict(PACKAGES["unipt_retrieval"].auto_map),
    )
    fused = UniPTForRetrieval(config)
    _fill(fused.text_backbone, text)
    _fill(fused.media_backbone, media)
    fused.text_states.set_rms(text_rms or {})
    fused.media_states.set_rms(media_rms or {})
    fused.towers.load_state_dict(towers.state_dict())
    fused.requires_grad_(False).train(False)
    return fused


def backbone_spec(
    backbone: Backbone, taps: Sequence[str], storage_type: str | Mapping[str, str]
) -> dict[str, Any]:
    """Return what a fused model's configuration says of a backbone.

    Raises:
        ExportError: the backbone's class is neither part of transformers nor shipped, or it records
            no such tap.
    """
    name = type(backbone.model).__name__
    config = backbone.model.config
    shipped = name in CONVNETS and isinstance(config, ConvNetConfig)
    if not shipped and getattr(transformers, name, None) is not type(backbone.model):
        raise ExportError(
            f"the backbone's class {type(backbone.model).__module__}.{name} is not part of "
            "transformers, so the exported folder could not load it"
        )
    unknown = [tap for tap in taps if tap not in backbone.tap_modules]
    if unknown:
        raise ExportError(
            f"{backbone.name} records no tap {unknown}; it records {backbone.all_taps}"
        )
    shapes = {tap.name: tap.shape for tap in backbone.taps}
    types = (
        dict.fromkeys(taps, storage_type)
        if isinstance(storage_type, str)
        else {tap: storage_type[tap] for tap in taps}
    )
    channels = {tap: shapes[tap][0 if len(shapes[tap]) == 3 else -1] for tap in taps}
    return {
        "backbone_class": name,
        "backbone_config": asdict(config) if shipped else config.to_dict(),
        "taps": list(taps),
        "tap_modules": {tap: backbone.tap_modules[tap] for tap in taps},
        "pool": backbone.pool,
        "storage_type": one_or_each(types),
        "channels": {tap: count for tap, count in channels.items() if types[tap] == "int8"},
    }


def _fill(module: nn.Module, backbone: Backbone) -> None:
    module.to(next(backbone.model.parameters()).dtype)
    module.load_state_dict(backbone.model.state_dict())


def build_tokenizer(backbone: TextBackbone, segments: int) -> Any:
    """Return the tokenizer to ship with the fused model of `backbone`."""
    make = separate_tokenizer if segments == 2 else joint_tokenizer
    return make(backbone.tokenizer, max_length=backbone.max_length)


def model_inputs(
    tokenizer: Any,
    rows: Sequence[Sequence[Input]],
    config: UniPTConfig,
    *,
    extra: int = 0,
) -> dict[str, Tensor]:
    """Tokenise examples for a fused model.

    Args:
        tokenizer: the one exported with it.
        rows: one input an example (text or joint pair), or two (`segments` = 2).
        config: the fused model's.
        extra: padding beyond the longest row, in tokens, as far as the model takes it.

    Returns:
        `input_ids`, `attention_mask`, and `token_type_ids` if the model uses them, [B, L] each.
    """
    separate = config.segments == 2
    texts = [[item for item in row if isinstance(item, TextInput)] for row in rows]
    firsts = [row[0].text for row in texts]
    seconds = [row[1].text if separate else row[0].pair for row in texts]
    found: Mapping[str, Tensor] = tokenizer(
        firsts,
        None if seconds[0] is None else seconds,
        truncation=not separate,  # the model itself cuts separate sentences
        padding=True,
        return_tensors="pt",
        verbose=False,
    )
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if separate or config.token_types else []
    length = found["input_ids"].shape[1]
    room = extra if separate else max(0, min(extra, tokenizer.model_max_length - length))
    fill = {"input_ids": tokenizer.pad_token_id}
    return {
        name: F.pad(found[name].to(torch.int64), (0, room), value=fill.get(name, 0))
        for name in names
    }
