"""Pixels of images and videos, as the cache's were made.

Needs numpy and Pillow (and PyAV for mp4, webm, mkv, avi and mov).
Written into exported folders whose API takes media files. Cost: one decode an image or frame.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.media.images import open_image, to_rgb
from pipeline.media.transform import ImageTransform
from pipeline.media.video import read_frames

OneImage = Image.Image | Path | str | bytes
OneVideo = Path | str | Sequence[Image.Image]


def prepare(media: Any, modality: str, spec: Mapping[str, Any]) -> Tensor:
    """Return the pixel values of one image or video, float32 [frames, 3, H, W], on the CPU.

    Args:
        media: a path; an image or a file's bytes; of a video also a list of frames.
        modality: "image" (one frame) or "video".
        spec: `transform`, `fps` and `max_frames` of the tower, see `UniPTConfig`.

    Raises:
        MediaError: the file cannot be read as that.
    """
    transform = ImageTransform.from_dict(spec["transform"])
    return torch.stack([transform(frame) for frame in READERS[modality](media, spec)])


def _image(media: OneImage, _: Mapping[str, Any]) -> list[Image.Image]:
    return [to_rgb(media)[0] if isinstance(media, Image.Image) else open_image(media)]


def _frames(media: OneVideo, spec: Mapping[str, Any]) -> list[Image.Image]:
    if isinstance(media, str | Path):
        return read_frames(Path(media), fps=spec["fps"], max_frames=spec["max_frames"])
    return [to_rgb(frame)[0] for frame in media]


READERS = {"image": _image, "video": _frames}


def as_images(images: Any) -> list[OneImage]:
    """Return one or several images as a list."""
    return [images] if isinstance(images, Image.Image | Path | str | bytes) else list(images)


def as_videos(videos: Any) -> list[OneVideo]:
    """Return one or several videos as a list; a list of images is one video."""
    one = isinstance(videos, str | Path) or (bool(videos) and isinstance(videos[0], Image.Image))
    return [videos] if one else list(videos)
