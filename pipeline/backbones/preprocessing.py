"""The transform of a checkpoint: from its preprocessor file, or from its architecture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.backbones.convnets import ARCHITECTURES
from pipeline.backbones.convnets.config import IMAGENET_MEAN, IMAGENET_STD
from pipeline.backbones.family import BackboneError
from pipeline.media.transform import ImageTransform

NESTED, PLAIN = "processor_config.json", "preprocessor_config.json"
"""Where transformers keeps an image processor: as a part of the first, or alone in the second."""

_BILINEAR = 2
Channels = tuple[float, float, float]


def load_transform(name: str, source: Mapping[str, Any], random_config: Any) -> ImageTransform:
    """Return the transform that comes with the checkpoint `name`.

    Args:
        name: a local folder or a hub id.
        source: `revision` of a hub id, as of `load_backbone`.
        random_config: the configuration of a model with random weights, which may come without a
            preprocessor; it then gets ImageNet's mean and deviation. Else None.

    Raises:
        BackboneError: the checkpoint has no preprocessor file.
    """
    nested = _read_json(name, NESTED, source).get("image_processor")
    if found := nested or _read_json(name, PLAIN, source):
        return ImageTransform.from_processor_config(found)
    if random_config is not None:
        size = getattr(random_config, "image_size", None) or 224
        return plain_transform(size, IMAGENET_MEAN, IMAGENET_STD)
    raise BackboneError(
        f"{name} has no {PLAIN}, so how its images are resized and normalised is unknown: add "
        "the file of the original checkpoint"
    )


def convnet_transform(architecture: str) -> ImageTransform:
    """Return the transform of a ConvNet loaded from a weights file: see `plain_transform`."""
    config = ARCHITECTURES[architecture]
    return plain_transform(config.image_size, config.mean, config.std)


def plain_transform(size: int | tuple[int, int], mean: Channels, std: Channels) -> ImageTransform:
    """Return a transform that takes the whole image at exactly `size`, as VSE-infinity does."""
    sides = (size, size) if isinstance(size, int) else size
    return ImageTransform(size=sides, mean=mean, std=std, resample=_BILINEAR)


def _read_json(name: str, file: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `file` of a checkpoint, empty where there is none."""
    from transformers.utils.hub import cached_file  # noqa: PLC0415 - heavy to import

    path = cached_file(
        name,
        file,
        revision=source.get("revision"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found
