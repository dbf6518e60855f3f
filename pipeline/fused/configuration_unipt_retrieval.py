"""Configuration of a fused two-tower model: two backbones, their taps, two side towers.

Written into every exported folder and loaded from there by transformers; it needs nothing else.
"""

from typing import Any

from transformers import PreTrainedConfig


class UniPTRetrievalConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of `UniPTForRetrieval`.

    `text_tower` and `media_tower` each hold `backbone_class`, `backbone_config` (the backbone's own
    configuration), `taps` (names in the side network's order, the anchor last), `tap_modules` (tap
    name to module path), `pool` (pooling of the recorded states, as of the cached ones),
    `storage_type` (number type of the cached states the side tower was trained on; recorded states
    pass through it) and `channels` (features of each tap, for the storage type int8).

    Args:
        text_tower: also `token_types` (pass `token_type_ids` on, as extraction did), `max_length`
            (longest text in tokens) and `full_length` (fill every text up to it, unmasked).
        media_tower: also `modality` ("image" or "video"), `tap_shapes` (tap name to the shape of
            one picture's states before they are pooled), `arguments` (of the backbone's forward
            pass), `transform` (`ImageTransform.to_dict()`), `fps` and `max_frames` (how frames of
            a clip are chosen).
        towers: `TwoTowers.config`.
        kwargs: the common arguments of `PreTrainedConfig`.
    """

    model_type = "unipt_retrieval"

    def __init__(
        self,
        *,
        text_tower: dict[str, Any] | None = None,
        media_tower: dict[str, Any] | None = None,
        towers: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_tower = dict(text_tower or {})
        self.media_tower = dict(media_tower or {})
        self.towers = dict(towers or {})
        super().__init__(**kwargs)
