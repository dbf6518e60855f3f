"""From an image to a model's pixels: resize, crop, rescale and normalise, or an augmented view.

Equal, bit for bit, to the Pillow processors of transformers for the families in `processors.py`,
whose `preprocessor_config.json` it reads (EfficientNet's offset is folded into the mean, which
differs by float32 rounding, 4e-6 of values up to 19). Images whose resized form would be
`OVERSIZE` times the output are resized only where the crop is, within one level of 255. Cost: one
Pillow resize and one table look-up a value.
Legend: H, W the height and width of the output.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from .processors import BICUBIC, HALF, TransformNotSupported, processor_fields

__all__ = ["ImageTransform", "TransformNotSupported"]

LEAST_SIDE = 0.6
"""Smallest side of an augmented view's crop, as a fraction of the image's (VSE-infinity)."""
OVERSIZE = 16
"""A resized image that is this many times the crop is not made: only the crop is."""


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Preprocessing of one image: Pillow RGB to float32 ``[3, H, W]``.

    Value v of channel c becomes ``(v * rescale - mean[c]) / std[c]``.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    size: tuple[int, int]
    """Height and width of the output, in pixels."""
    resize: Literal["shortest", "exact", "none"] = "exact"
    """"shortest" keeps the shape and covers `resize_size`, "exact" warps to it, "none" keeps."""
    resize_size: tuple[int, int] | None = None
    """Height and width to resize to before the crop, in pixels; None: `size`."""
    crop: Literal["center", "none"] = "none"
    """"center" cuts `size` from the middle, black where the image is smaller."""
    resample: int = BICUBIC
    """Pillow's filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming."""
    rescale: float = 1 / 255
    """Factor of the values 0 to 255, before mean and deviation."""
    mean: tuple[float, float, float] = HALF
    """Subtracted from the rescaled values, per channel."""
    std: tuple[float, float, float] = HALF
    """Divides what remains, per channel."""

    def __post_init__(self) -> None:
        sizes = (*self.size, *(self.resize_size or self.size))
        if len(sizes) != 4 or not all(isinstance(side, int) and side > 0 for side in sizes):
            raise ValueError(
                f"size={self.size}, resize_size={self.resize_size}: give positive "
                "(height, width) in pixels"
            )
        if self.resize not in ("shortest", "exact", "none") or self.crop not in ("center", "none"):
            raise ValueError(
                f"resize={self.resize!r}, crop={self.crop!r}; choose resize from "
                "shortest, exact, none and crop from center, none"
            )
        exact = self.resize == "exact" and self.resize_size in (None, self.size)
        if self.crop == "none" and not exact:
            raise ValueError(
                f"resize={self.resize!r} without a crop gives images of several "
                "sizes, which form no batch; take crop='center' or resize='exact'"
            )
        if self.resample not in range(6):
            raise ValueError(f"resample={self.resample!r}; Pillow's filters are 0 to 5")
        if len(self.mean) != 3 or len(self.std) != 3 or 0.0 in self.std:
            raise ValueError(f"mean={self.mean}, std={self.std}: three values each, no std of 0")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels of an RGB image of any size: float32 ``[3, H, W]``."""
        levels = np.arange(256, dtype=np.float64) * self.rescale
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        table = (levels.astype(np.float32)[:, None] - mean) / std  # [256, 3]
        pixels = np.asarray(self.fit(image))  # [H, W, 3] uint8
        return torch.from_numpy(np.stack([table[:, c][pixels[..., c]] for c in range(3)]))

    def augmented(self, image: Image.Image, seed: int | bytes) -> torch.Tensor:
        """Return the pixels of a random crop (sides 0.6 to 1.0), half the time mirrored.

        The view depends on the seed alone, so all frames of a video get the same one.

        Args:
            image: RGB, any size.
            seed: not negative, or bytes such as a view's key.
        """
        if isinstance(seed, bytes):
            seed = int.from_bytes(seed, "little")
        side, x, y, flip = np.random.default_rng(seed).random(4)
        side = LEAST_SIDE + (1 - LEAST_SIDE) * side
        width, height = (max(1, round(length * side)) for length in image.size)
        left, top = round(x * (image.width - width)), round(y * (image.height - height))
        view = image.crop((left, top, left + width, top + height))
        return self(ImageOps.mirror(view) if flip < 0.5 else view)

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop to 8-bit RGB of exactly `size`."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        height, width = self._resized(image)
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        target = (width, height)
        if height * width > OVERSIZE * self.size[0] * self.size[1] and top >= 0 and left >= 0:
            scale = (image.width / width, image.height / height)
            box = (
                left * scale[0],
                top * scale[1],
                min((left + self.size[1]) * scale[0], image.width),
                min((top + self.size[0]) * scale[1], image.height),
            )
            return image.resize(self.size[::-1], self.resample, box=box)
        if target != image.size:
            image = image.resize(target, self.resample)
        if self.crop == "none" or target == self.size[::-1]:
            return image
        return image.crop((left, top, left + self.size[1], top + self.size[0]))  # black outside

    def with_size(self, height: int, width: int) -> "ImageTransform":
        """Return the transform for another output size; the crop keeps its share of the image."""
        if self.resize_size is None:
            return dataclasses.replace(self, size=(height, width))
        rows, columns = (
            new * old // out
            for new, old, out in zip((height, width), self.resize_size, self.size, strict=True)
        )
        return dataclasses.replace(self, size=(height, width), resize_size=(rows, columns))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageTransform":
        """Return the transform of `to_dict`'s mapping.

        Raises:
            TypeError: a name is unknown or missing.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    @classmethod
    def from_processor_config(
        cls, config: Mapping[str, Any], size: tuple[int, int] | None = None
    ) -> "ImageTransform":
        """Return what a `preprocessor_config.json` of transformers asks for.

        Args:
            config: its content, or that of a `processor_config.json` which holds it.
            size: another output (height, width), in pixels; the crop keeps its share.

        Raises:
            TransformNotSupported: the processor does something else than resize, centre crop,
                rescale and normalise; the message says what.
        """
        transform = cls.from_dict(processor_fields(config, sized=size is not None))
        return transform if size is None else transform.with_size(*size)

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Return the height and width that the image is resized to."""
        rows, columns = self.resize_size or self.size
        if self.resize == "none":
            return image.height, image.width
        if self.resize == "exact":
            return rows, columns
        if rows * image.width >= columns * image.height:  # the height decides
            return rows, max(columns, int(rows * image.width / image.height))
        return max(rows, int(columns * image.height / image.width)), columns
