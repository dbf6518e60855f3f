"""Images from files: every mode Pillow reads becomes 8-bit RGB, or is refused by name.

What was done on the way (16 bits scaled, transparency laid over white, the first frame taken) is
told in notes that callers count. Cost: one decode, and one copy per conversion; an image holds
3 bytes a pixel, and none above `MAX_PIXELS` is decoded.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PipelineError

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "MediaError",
    "inspect_image",
    "open_image",
    "opened",
    "to_rgb",
]

MAX_PIXELS = 178_956_970
"""Most pixels an image may have: twice Pillow's own mark, 537 MB as RGB."""

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
ANIMATED_FORMATS = ("AVIF", "GIF", "PNG", "WEBP")
NOT_IMAGES = {
    b"version https://git-lfs": "it is a Git LFS pointer: fetch the file with `git lfs pull`",
    b"<!doctype html": "it is a web page, probably of a failed download: download it again",
    b"<html": "it is a web page, probably of a failed download: download it again",
    b"<svg": "it is an SVG drawing: render it to PNG first",
    b"<?xml": "it is XML, perhaps an SVG drawing: render it to PNG first",
    b"%pdf": "it is a PDF: render its pages to PNG first",
}


class MediaError(PipelineError, ValueError):
    """An image, a video or its preprocessing cannot be used; the message names it and a way out."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What an image file holds."""

    width: int
    """Width as shown, after the EXIF rotation, in pixels."""
    height: int
    """Height as shown, after the EXIF rotation, in pixels."""
    frames: int
    """Frames or pages in the file; only the first is used."""
    mode: str
    """Pillow's mode of the stored pixels: "RGB", "I;16", "CMYK", ..."""
    notes: tuple[str, ...]
    """What is done to make it 8-bit RGB; empty for an ordinary image."""


def open_image(source: Path | str | bytes) -> Image.Image:
    """Decode an image as RGB, upright after its EXIF orientation.

    16-bit values are scaled to 8 bits, transparency is laid over white, an animation gives its
    first frame, CMYK and palettes are converted.

    Args:
        source: a file, or its bytes.

    Raises:
        MediaError: no image, damaged, truncated, too large, or with pixels that have no RGB form.
    """
    with opened(source) as image:
        return to_rgb(image)[0]


def inspect_image(source: Path | str | bytes) -> ImageInfo:
    """Decode an image as `open_image` does and describe it.

    Raises:
        MediaError: as `open_image`.
    """
    with opened(source) as image:
        mode = image.mode
        rgb, notes = to_rgb(image)
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1:
            kind = "animated" if image.format in ANIMATED_FORMATS else "several images"
            unit = "frames" if kind == "animated" else "pages"
            notes = (f"{kind}: first of {frames} {unit}", *notes)
        width, height = rgb.size
        return ImageInfo(width=width, height=height, frames=frames, mode=mode, notes=notes)


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the current frame of a Pillow image as upright 8-bit RGB, and notes on what was done.

    Raises:
        MediaError: float pixels that are not finite.
        ValueError: Pillow knows no way from the image's mode to RGB.
    """
    notes = []
    deep = image.mode in DEEP_MODES or _is_16_bit(image)
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    if image.mode in ("I", "F", *DEEP_MODES):
        pixels, note = _as_bytes(image, deep)
        notes.append(note)
        rgb = Image.fromarray(pixels).convert("RGB")
    elif image.has_transparency_data:
        rgb, shows = _over_white(image)
        notes += ["16-bit: scaled to 8"] * deep + ["transparent: laid over white"] * shows
    else:
        rgb = image.convert("RGB")
        if deep:
            notes.append("16-bit: scaled to 8")
        elif image.mode not in ("RGB", "L", "1", "P"):
            notes.append(f"{image.mode}: converted to RGB without its colour profile")
    if orientation in range(2, 9):
        rgb.getexif()[0x0112] = orientation
        rgb = ImageOps.exif_transpose(rgb)
        notes.append("rotated as its EXIF says")
    return rgb, tuple(notes)


@contextmanager
def opened(source: Path | str | bytes) -> Iterator[Image.Image]:
    """Open an image; whatever fails inside the block is a MediaError that names the file."""
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise MediaError(f"{name}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise MediaError(f"{name}: the file is empty; restore it or leave its row out")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            yield image
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{name}: not an image: {_guess(data)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"{name}: too large ({error}); at most {MAX_PIXELS:,} pixels: make it smaller first"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct...
        raise MediaError(
            f"{name}: damaged or truncated ({type(error).__name__}: {error}); restore the file or "
            "leave its row out"
        ) from error


def _guess(data: bytes) -> str:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in NOT_IMAGES.items():
        if head.startswith(start):
            return what
    return "its format is unknown to Pillow; convert it to PNG or JPEG, or leave its row out"


def _is_16_bit(image: Image.Image) -> bool:
    """Whether 16-bit samples are reduced by Pillow's decoder (raw modes such as "RGB;16B")."""
    tiles = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return any(";16" in args and "BGR;16" not in args for args in tiles)


def _as_bytes(image: Image.Image, deep: bool) -> tuple[np.ndarray, str]:
    """Scale one channel of 16-bit, 32-bit or float values to 8 bits: [height, width] uint8.

    16-bit files have a known range. Others have none, so the smallest usual one that holds every
    value is taken: 0 to 1 (float), 0 to 255, 0 to 65535, else from the least to the largest.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise MediaError("holds values that are not finite; replace them and save it as 8 bits")
    low, high = float(values.min()), float(values.max())
    if deep or (image.mode == "I" and image.format in ("PPM", "PNG")):
        low, high, note = 0.0, 65535.0, "16-bit: scaled to 8"
    else:
        tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        top = next((top for top in tops if low >= 0 and high <= top), None)
        low, high = (low, high) if top is None else (0.0, top)
        kind = "float" if image.mode == "F" else "32-bit"
        note = f"{kind}: from {low:g} to {high:g} scaled to 8"
    scaled = (values - low) * (255 / (high - low) if high > low else 0.0)
    return np.rint(scaled).astype(np.uint8), note


def _over_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Lay an image with transparency over white; also say whether any of it shows through."""
    layers = image.convert("RGBA")
    shows = bool(np.asarray(layers.getchannel("A")).min() < 255)
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB"), shows
