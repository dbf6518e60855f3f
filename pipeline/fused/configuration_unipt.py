"""Configuration of a fused model: its towers, its side model, and what it answers to.

Written into every exported folder and loaded from there by transformers; it needs nothing else.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig


class UniPTConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a `UniPTModel`.

    Each tower's mapping holds:

    - `backbone_class` and `backbone_config`: the frozen model and its own configuration;
    - `arguments`: given to every forward pass beside the inputs;
    - `modality`: what it reads, "text", "image" or "video";
    - `taps` (in the side model's order, the anchor last), `tap_modules` (tap to module path) and
      `tap_shapes` (tap to the shape of one input's states before they are pooled);
    - `axis`: the ragged axis of its states; None where there is none;
    - `pool`, `storage_type`, `channels`: how the cache that the side model was trained from pooled
      and rounded the states, see `CachedStates`;
    - `frames`: what the side model does with the frames of a video, see `SideTower`;
    - of texts: `token_types` (pass `token_type_ids` on, as extraction did), `max_length` (longest
      text in tokens), `full_length` (fill every text up to it, unmasked), `pad_id`, and `suffix`,
      the special tokens that end a text;
    - of images and videos: `transform` (`ImageTransform.to_dict()`), `fps` and `max_frames`.

    Args:
        api: what the model answers to, a file of `api/`.
        towers: name -> its mapping, or the name of the tower whose backbone it shares.
        side_config: `SideModel.config`.
        output_confidence: return the confidence of every tap, not only when asked per call.
        kwargs: the common arguments of `PreTrainedConfig` (`id2label`, ...), and the API's own.
    """

    model_type = "unipt"

    def __init__(
        self,
        *,
        api: str = "",
        towers: Mapping[str, Any] | None = None,
        side_config: Mapping[str, Any] | None = None,
        output_confidence: bool = False,
        **kwargs: Any,
    ) -> None:
        self.api = api
        self.towers = dict(towers or {})
        self.side_config = dict(side_config or {})
        self.output_confidence = output_confidence
        super().__init__(**kwargs)
