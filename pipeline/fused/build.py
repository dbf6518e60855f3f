"""Builds a fused model, its tokenizer and its inputs from a backbone and a trained classifier.

Cost: the weights once more in memory, as the fused model shares none with what it is built from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from pipeline.backbones import TextBackbone
from pipeline.errors import PipelineError
from pipeline.fused.configuration_unipt import UniPTConfig
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.package import AUTO_MAP
from pipeline.fused.tokenizer import joint_tokenizer, separate_tokenizer, special_tokens
from pipeline.inputs import TextInput
from unipt.classifier import SideClassifier


class ExportError(PipelineError, ValueError):
    """This run cannot be exported; the message says why and what to do."""


def build_fused(
    backbone: TextBackbone,
    classifier: SideClassifier,
    taps: Sequence[str],
    *,
    segments: int,
    labels: Sequence[str] | None,
    storage_type: str = "float32",
) -> UniPTForSequenceClassification:
    """Put a backbone and a side classifier together; the backbone's weights keep their type.

    Args:
        backbone: the frozen text model the cache came from.
        classifier: the trained side classifier.
        taps: its taps, in its order; the last is the anchor.
        segments: 2 if the classifier compares two sentences encoded separately, else 1.
        labels: class names in order; None for a regression.
        storage_type: number type of the cached states.

    Raises:
        ExportError: the backbone's class is not part of transformers, or a tap is unknown.
    """
    name = type(backbone.model).__name__
    if getattr(transformers, name, None) is not type(backbone.model):
        raise ExportError(
            f"the backbone's class {type(backbone.model).__module__}.{name} is not part of "
            "transformers, so the exported folder could not load it"
        )
    unknown = [tap for tap in taps if tap not in backbone.tap_modules]
    if unknown:
        raise ExportError(
            f"{backbone.name} records no tap {unknown}; it records {backbone.all_taps}"
        )
    separate = segments == 2
    config = UniPTConfig(
        backbone_class=name,
        backbone_config=backbone.config.to_dict(),
        taps=taps,
        tap_modules={tap: backbone.tap_modules[tap] for tap in taps},
        side_config=classifier.config,
        storage_type=storage_type,
        token_types=backbone.token_types,
        segments=segments,
        segment_length=backbone.max_length if separate else None,
        segment_suffix=len(special_tokens(backbone.tokenizer)[1]) if separate else 0,
        id2label=dict(enumerate(labels or ["score"])),
        label2id={label: i for i, label in enumerate(labels or ["score"])},
        problem_type="single_label_classification" if labels else "regression",
        pad_token_id=backbone.pad_id,
        auto_map=dict(AUTO_MAP),
    )
    fused = UniPTForSequenceClassification(config)
    fused.backbone.to(next(backbone.model.parameters()).dtype)
    fused.backbone.load_state_dict(backbone.model.state_dict())
    fused.side_classifier.load_state_dict(classifier.state_dict())
    fused.requires_grad_(False).train(False)
    return fused


def build_tokenizer(backbone: TextBackbone, segments: int) -> Any:
    """Return the tokenizer to ship with the fused model of `backbone`."""
    make = separate_tokenizer if segments == 2 else joint_tokenizer
    return make(backbone.tokenizer, max_length=backbone.max_length)


def model_inputs(
    tokenizer: Any,
    rows: Sequence[Sequence[TextInput]],
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
    firsts = [row[0].text for row in rows]
    seconds = [row[1].text if separate else row[0].pair for row in rows]
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
