"""An image processor of transformers that makes pixels as the cache's were made.

Written into exported folders whose API is used through `transformers.pipeline` with images. Cost:
one Pillow resize an image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
from transformers.processing_utils import ImagesKwargs

from pipeline.fused.media_unipt import as_images, prepare


class UniPTImageProcessor(ImageProcessingMixin):
    """Images (paths, Pillow images or files' bytes) to pixel values [B, 3, H, W].

    Args:
        transform: `ImageTransform.to_dict()` of the tower.
        kwargs: what transformers adds.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    valid_kwargs = ImagesKwargs

    def __init__(self, transform: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault(
            "auto_map", {"AutoImageProcessor": f"processing_unipt.{type(self).__name__}"}
        )
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.transform = dict(transform or {})

    def __call__(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """Return the pixel values of images.

        Raises:
            MediaError: a file is no readable image.
        """
        spec = {"transform": self.transform}
        pixels = torch.cat([prepare(image, "image", spec) for image in as_images(images)])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
