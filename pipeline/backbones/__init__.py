"""Frozen text and image models with named taps: one small file per family, and a discovery."""

from pipeline.backbones import families
from pipeline.backbones.base import Backbone, Encoded, Modality
from pipeline.backbones.encoded_media import EncodedMedia
from pipeline.backbones.encoding import EncodedTexts, length_batches
from pipeline.backbones.family import (
    FAMILIES,
    BackboneError,
    Family,
    register_family,
    select_taps,
)
from pipeline.backbones.frozen import NotFrozen, check_frozen
from pipeline.backbones.image import ImageBackbone
from pipeline.backbones.loading import load_backbone
from pipeline.backbones.registry import Registry
from pipeline.backbones.text import TextBackbone
from pipeline.backbones.video import VideoBackbone

__all__ = [
    "FAMILIES",
    "Backbone",
    "BackboneError",
    "Encoded",
    "EncodedMedia",
    "EncodedTexts",
    "Family",
    "ImageBackbone",
    "Modality",
    "NotFrozen",
    "Registry",
    "TextBackbone",
    "VideoBackbone",
    "check_frozen",
    "families",
    "length_batches",
    "load_backbone",
    "register_family",
    "select_taps",
]
