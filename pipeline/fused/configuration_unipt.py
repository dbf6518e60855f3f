"""Configuration of a fused model: which backbone, which taps, which side classifier.

Written into every exported folder and loaded from there by transformers; it needs nothing else.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig


class UniPTConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of `UniPTForSequenceClassification`.

    Args:
        backbone_class: name of the backbone's class in transformers, such as "BertModel".
        backbone_config: the backbone's own configuration, as its `to_dict` gives it.
        taps: names of the taps in the side network's order; the last one is the anchor.
        tap_modules: tap name to module path within the backbone (JSON does not keep its order).
        side_config: `SideClassifier.config`.
        storage_type: number type of the cached states the side classifier was trained on, or that
            of each tap; the recorded states pass through it.
        pool: pooling of the recorded states, as of the cached ones.
        channels: features of each tap, for the storage type int8.
        token_types: pass `token_type_ids` on to the backbone, as extraction did.
        segments: 1 if a row is one sentence or one jointly encoded pair; 2 if it holds two
            sentences, told apart by `token_type_ids`, that the backbone reads separately.
        segment_length: longest sentence the backbone reads, in tokens (segments = 2 only).
        segment_suffix: special tokens that end each sentence, kept when it is cut to
            `segment_length` (segments = 2 only).
        output_confidence: return the confidence of every tap, not only when asked per call.
        kwargs: the common arguments of `PreTrainedConfig`: `id2label`, `problem_type`, ...
    """

    model_type = "unipt"

    def __init__(
        self,
        *,
        backbone_class: str = "",
        backbone_config: dict[str, Any] | None = None,
        taps: Sequence[str] = (),
        tap_modules: dict[str, str] | None = None,
        side_config: dict[str, Any] | None = None,
        storage_type: str | dict[str, str] = "float32",
        pool: str = "none",
        channels: dict[str, int] | None = None,
        token_types: bool = False,
        segments: int = 1,
        segment_length: int | None = None,
        segment_suffix: int = 0,
        output_confidence: bool = False,
        **kwargs: Any,
    ) -> None:
        self.backbone_class = backbone_class
        self.backbone_config = dict(backbone_config or {})
        self.taps = list(taps)
        self.tap_modules = dict(tap_modules or {})
        self.side_config = dict(side_config or {})
        self.storage_type = storage_type
        self.pool = pool
        self.channels = dict(channels or {})
        self.token_types = token_types
        self.segments = segments
        self.segment_length = segment_length
        self.segment_suffix = segment_suffix
        self.output_confidence = output_confidence
        super().__init__(**kwargs)
