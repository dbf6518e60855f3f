"""Checkpoints that hold two towers: which class loads which one.

`projection`, the vector the towers are compared by, comes with the classes named here; `AutoModel`
would load both towers, and needs both inputs.
"""

from typing import Any

from pipeline.backbones.base import Modality
from pipeline.backbones.family import BackboneError

_CLASSES: dict[str, tuple[str, str]] = {  # text, vision
    "clip": ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipTextModel", "SiglipVisionModel"),
}
_SINGLE = {
    "clip_text_model": "CLIPTextModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip_text_model": "SiglipTextModel",
    "siglip_vision_model": "SiglipVisionModel",
}


def is_two_towers(config: Any) -> bool:
    """Whether `config` describes a text and a vision model side by side."""
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def tower_config(config: Any, tower: str, name: str) -> tuple[str, Any]:
    """Return the class name and the configuration of one tower of `config`.

    Args:
        config: of a checkpoint of two towers.
        tower: "text", "image" or "video".
        name: of the checkpoint, for messages.

    Raises:
        BackboneError: no tower was chosen, or this kind of model is not supported.
    """
    if config.model_type not in _CLASSES:
        raise BackboneError(
            f"{name} is a {config.model_type}, which joins texts and images in a way of its own; "
            f"of models with two towers, {' and '.join(_CLASSES)} are supported"
        )
    if tower == "auto":
        raise BackboneError(
            f"{name} holds a text and an image tower: choose with --tower text, image or video"
        )
    text = tower == "text"
    part = config.text_config if text else config.vision_config
    if config.model_type == "clip":
        part.projection_dim = config.projection_dim
    return _CLASSES[config.model_type][0 if text else 1], part


def model_class(config: Any) -> str:
    """Return the name of the transformers class that loads one tower or an ordinary model."""
    return _SINGLE.get(config.model_type, "AutoModel")


def check_tower(tower: str, found: Modality, name: str) -> Modality:
    """Return the modality that `tower` asks of a model that reads `found`.

    Raises:
        BackboneError: a text model was asked for as an image tower, or the other way round.
    """
    if tower in ("auto", found):
        return found
    if found == "image" and tower == "video":
        return "video"
    raise BackboneError(
        f"{name} reads {'texts' if found == 'text' else 'images'}, so it cannot be the {tower} "
        "tower"
    )
