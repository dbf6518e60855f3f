"""What the image processors of transformers do, read from their configuration, as plain fields.

A processor's class has defaults that its file may leave out; they are the table `FAMILIES`. Steps
outside resize, centre crop, rescale and normalise are refused by name. Cost: none to speak of.
"""

from collections.abc import Mapping
from typing import Any

from .images import MediaError

__all__ = ["FAMILIES", "TransformNotSupported", "processor_fields"]

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
HALF = (0.5, 0.5, 0.5)
OPENAI = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
SUFFIXES = ("Pil", "Fast", "ImageProcessor", "FeatureExtractor")


class TransformNotSupported(MediaError):  # noqa: N818 - says it all
    """A processor's preprocessing has steps that `ImageTransform` does not do."""


def _family(size: Mapping[str, int], **more: Any) -> dict[str, Any]:
    common = {"image_mean": HALF, "image_std": HALF, "resample": BICUBIC, "size": size}
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
    return common | steps | {"crop_size": SQUARE, "default_to_square": True} | more


SQUARE = {"height": 224, "width": 224}
SHORTEST = {"shortest_edge": 224}
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT": _family(SQUARE, resample=BILINEAR),
    "DeiT": _family({"height": 256, "width": 256}, do_center_crop=True),
    "Beit": _family(SQUARE),
    "Siglip": _family(SQUARE, default_to_square=False),
    "CLIP": _family(SHORTEST, do_center_crop=True, default_to_square=False, **OPENAI),
    "Bit": _family(SHORTEST, do_center_crop=True, default_to_square=False, **OPENAI),
    "ConvNext": _family({"shortest_edge": 384}, crop_pct=224 / 256, default_to_square=False),
    "EfficientNet": _family(
        {"height": 346, "width": 346}, crop_size={"height": 289, "width": 289}, include_top=True
    ),
}
"""Processor class without its suffix -> its defaults in transformers 5.23.

DINOv2 uses Bit's processor, Swin ViT's, ResNet and RegNet ConvNext's.
"""


def processor_fields(config: Mapping[str, Any], *, sized: bool = False) -> dict[str, Any]:
    """Return `ImageTransform`'s fields for a processor's configuration.

    Args:
        config: a `preprocessor_config.json`, or a `processor_config.json` which holds one.
        sized: the caller sets an output size of its own, so a missing one is not an error.

    Raises:
        TransformNotSupported: an unknown processor, or steps or sizes outside the supported ones.
    """
    config = config.get("image_processor", config)
    name = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    family = name
    for suffix in SUFFIXES:
        family = family.removesuffix(suffix)
    if family not in FAMILIES:
        raise TransformNotSupported(
            f"image processor {name!r} is unknown; known are {', '.join(FAMILIES)} (with the "
            "suffix ImageProcessor): write the ImageTransform by hand, or set image_processor_type "
            "to the one that does the same"
        )
    values = FAMILIES[family] | {key: value for key, value in config.items() if value is not None}
    others = sorted(
        key
        for key, value in values.items()
        if key.startswith("do_") and value and key not in (*STEPS, "do_reduce_labels")
    )
    if others:
        raise TransformNotSupported(
            f"{name} does {', '.join(others)}, which is not supported; supported are "
            f"{', '.join(STEPS)}: switch the others off in its configuration"
        )
    geometry = _convnext(name, values) if family == "ConvNext" else _geometry(name, values, sized)
    return geometry | {"resample": int(values["resample"])} | _statistics(values)


def _statistics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fold rescaling and normalising into one factor, mean and deviation per channel."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values["do_normalize"]:
        mean, std = _three(values["image_mean"]), _three(values["image_std"])
    if values.get("rescale_offset") and values["do_rescale"]:  # EfficientNet: v * rescale - 1
        mean = (mean[0] + 1, mean[1] + 1, mean[2] + 1)
    if values.get("include_top"):  # EfficientNet divides by the deviation once more
        again = _three(values["image_std"])
        std = (std[0] * again[0], std[1] * again[1], std[2] * again[2])
    rescale = float(values.get("rescale_factor", 1 / 255)) if values["do_rescale"] else 1.0
    return {"rescale": rescale, "mean": mean, "std": std}


def _geometry(name: str, values: Mapping[str, Any], sized: bool) -> dict[str, Any]:
    cropped = bool(values["do_center_crop"])
    crop = _size(name, values["crop_size"], square=True)[1] if cropped else None
    if not values["do_resize"]:
        if crop is None and not sized:
            raise TransformNotSupported(
                f"{name} neither resizes nor crops, so images form no batch: give an image size"
            )
        return {"resize": "none", "crop": "center", "size": crop or (224, 224)}
    kind, size = _size(name, values["size"], square=bool(values["default_to_square"]))
    if crop is None and kind == "shortest" and not sized:
        raise TransformNotSupported(
            f"{name} keeps the images' shapes (size {values['size']} and no centre crop), so "
            "they form no batch: give an image size"
        )
    if crop is None:
        return {"resize": kind, "crop": "center" if kind == "shortest" else "none", "size": size}
    return {"resize": kind, "crop": "center", "size": crop, "resize_size": size}


def _convnext(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ConvNext's sizes: below 384 pixels resize to size / crop_pct and crop, else warp."""
    kind, size = _size(name, values["size"], square=False)
    if kind != "shortest" or values["do_center_crop"] or not values["do_resize"]:
        raise TransformNotSupported(
            f"{name} is supported with size {{'shortest_edge': n}}, do_resize and no "
            f"do_center_crop; got size {values['size']}"
        )
    if size[0] >= 384:
        return {"resize": "exact", "crop": "none", "size": size}
    edge = int(size[0] / values["crop_pct"])
    return {"resize": "shortest", "crop": "center", "size": size, "resize_size": (edge, edge)}


def _size(name: str, size: Any, *, square: bool) -> tuple[str, tuple[int, int]]:
    """Return the kind of resize and (height, width) of a processor's size."""
    if isinstance(size, int):
        return "exact" if square else "shortest", (size, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return "exact", (int(size[0]), int(size[1]))
    entries = {key: int(value) for key, value in dict(size).items() if value is not None}
    if set(entries) == {"height", "width"}:
        return "exact", (entries["height"], entries["width"])
    if set(entries) == {"shortest_edge"}:
        return "shortest", (entries["shortest_edge"], entries["shortest_edge"])
    raise TransformNotSupported(
        f"{name} has size {entries}; supported are {{'height', 'width'}} and {{'shortest_edge'}}: "
        "give an image size of that form in its configuration"
    )


def _three(values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return (float(values),) * 3
    one, two, three = values
    return float(one), float(two), float(three)
