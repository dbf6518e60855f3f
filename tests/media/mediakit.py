"""Tiny images and videos, made on the spot: frame i of every video is uniform with value 10 i."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 10


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def video(
    path: Path,
    codec: str = "libx264",
    frames: int = 20,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """Write a video; `pts` are the frames' times in milliseconds."""
    base = Fraction(1, rate if path.suffix == ".avi" else 1000)  # avi has one frame a unit
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 5
        stream.bit_rate = 2_000_000  # so that the values survive
        stream.codec_context.time_base = base
        if sound:
            add_sound(container)
        for index in range(frames):
            values = np.full((size[1], size[0], 3), index * STEP, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            frame.pts = round(index / rate / base) if pts is None else pts[index]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def add_sound(container: av.container.OutputContainer) -> None:
    stream = container.add_stream("aac", rate=8000)
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts = 8000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def animation(path: Path, frames: int = 12, ms: int | list[int] = 100, alpha: int = 255) -> Path:
    """Write an animated webp, gif or png."""
    images = [Image.new("RGBA", (32, 24), (i * STEP,) * 3 + (alpha,)) for i in range(frames)]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=ms, **lossless)
    return path


def numbers_seen(frames: list[Image.Image]) -> list[int]:
    """Return which frames of a video these are, from their values."""
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in frames]
