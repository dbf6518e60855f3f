"""Every mode of image becomes RGB with the right values, or is refused by name."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from mediakit import animation, noise
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.media import images
from pipeline.media.images import MediaError, inspect_image, open_image


def values(source: Path | bytes) -> np.ndarray:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png16(width: int, colour: int, samples: np.ndarray) -> bytes:
    """Write a 16-bit PNG by hand: Pillow writes no 16-bit RGB. Samples are [height, width * c]."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, len(samples), 16, colour, 0, 0, 0)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_ordinary_image_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(5, 3).save(path)
    assert np.array_equal(values(path), np.asarray(noise(5, 3)))
    assert np.array_equal(values(path.read_bytes()), np.asarray(noise(5, 3)))
    info = inspect_image(path)
    assert (info.width, info.height, info.frames, info.mode, info.notes) == (5, 3, 1, "RGB", ())


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    samples = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = png16(4, 0, samples)
    assert values(data)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert inspect_image(data).notes == ("16-bit: scaled to 8",)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_scaled(colour: int, channels: int) -> None:
    pixels = np.array([[65535, 32896, 257], [0, 65535, 257]], dtype=np.uint16)
    full = np.concatenate([pixels, np.full((2, channels - 3), 65535, np.uint16)], axis=1)
    data = png16(2, colour, full.reshape(1, -1))
    assert np.abs(values(data)[0] - [[255, 128, 1], [0, 255, 1]]).max() <= 1
    assert inspect_image(data).notes == ("16-bit: scaled to 8",)


def test_sixteen_bits_a_pixel_is_not_16_bit_a_sample() -> None:
    header = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 0, 4, 0, 0, 0, 0)
    info = inspect_image(header + struct.pack("<HH", 0x7FFF, 0))  # 5 bits a colour
    assert info.notes == ()


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    assert np.abs(values(path)[8, 8] - [255, 0, 0]).max() <= 4
    assert inspect_image(path).mode == "CMYK"
    assert "CMYK" in inspect_image(path).notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=0)
        expected = [[255, 255, 255], [40, 50, 60]]
    else:
        image = Image.new("RGBA", (2, 1), (40, 40, 40, 0))
        image.putpixel((1, 0), (40, 40, 40, 255))
        image.convert(mode).save(path)
        expected = [[255, 255, 255], [40, 40, 40]]
    assert values(path)[0].tolist() == expected
    assert inspect_image(path).notes == ("transparent: laid over white",)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(path)
    assert values(path)[0, 0].tolist() == [204, 204, 204]


def test_opaque_alpha_needs_no_note(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(path)
    assert inspect_image(path).notes == ()


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_one_channel_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert(mode).save(path)
    assert values(path)[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert inspect_image(path).notes == ()


@pytest.mark.parametrize(
    ("stored", "dtype", "expected", "note"),
    [
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255], "float: from 0 to 1"),
        ([0.0, 7.0, 255.0], np.float32, [0, 7, 255], "float: from 0 to 255"),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255], "float: from -1 to 1"),
        ([0, 7, 255], np.int32, [0, 7, 255], "32-bit: from 0 to 255"),
        ([0, 32896, 65535], np.int32, [0, 128, 255], "32-bit: from 0 to 65535"),
        ([0, 32896, 65535], np.uint16, [0, 128, 255], "16-bit"),
    ],
)
def test_tiff_of_wide_values(
    tmp_path: Path, stored: list[float], dtype: type, expected: list[int], note: str
) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([stored], dtype=dtype)).save(path)
    assert values(path)[0, :, 0].tolist() == expected
    assert inspect_image(path).notes[0].startswith(note)


def test_float_with_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[np.nan, 1]], dtype=np.float32)).save(path)
    with pytest.raises(MediaError, match=r"a\.tiff.*not finite"):
        open_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    shown = np.zeros((16, 32, 3), dtype=np.uint8)
    shown[:8, :8] = 255  # white in the corner at the top left, as shown
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes
    image = Image.fromarray(shown)
    if orientation > 1:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    assert np.abs(values(path) - shown).max() < 60
    info = inspect_image(path)
    assert (info.width, info.height) == (32, 16)
    if suffix != "tiff":  # Pillow itself turns a TIFF as it loads it
        assert info.notes == (("rotated as its EXIF says",) if orientation > 1 else ())


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_animated_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    path = animation(tmp_path / f"a.{suffix}")
    assert values(path).max() == 0
    info = inspect_image(path)
    assert (info.frames, info.notes[0]) == (12, "animated: first of 12 frames")


def test_pages_are_no_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    noise(4, 4).save(path, save_all=True, append_images=[noise(4, 4, 1)])
    assert inspect_image(path).notes == ("several images: first of 2 pages",)


def test_one_pixel() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (1, 2, 3)).save(buffer, "PNG")
    assert values(buffer.getvalue()).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "unknown to Pillow"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"\n<svg xmlns=''/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_not_an_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (open_image, inspect_image):
        with pytest.raises(MediaError, match=rf"bad\.png.*{reason}"):
            read(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.png: cannot be read"):
        open_image(tmp_path / "none.png")
    with pytest.raises(MediaError, match="cannot be read"):
        open_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=rf"cut\.{suffix}: (damaged or truncated|not an image)"):
        open_image(path)


def test_bytes_are_named_by_their_number() -> None:
    with pytest.raises(MediaError, match="<5 bytes>"):
        open_image(b"hello")


def test_pixel_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    noise(20, 20).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 399)
    with pytest.raises(MediaError, match=r"huge\.png: too large \(20 x 20\); at most 399 pixels"):
        open_image(path)


def test_decompression_bomb_is_not_decoded() -> None:
    row = np.zeros((1, 1), dtype=np.uint16)
    data = png16(1_000_000, 0, np.repeat(row, 5, axis=0))
    data = data.replace(struct.pack(">II", 1_000_000, 5), struct.pack(">II", 1_000_000, 1_000_000))
    data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    with pytest.raises(MediaError, match="too large"):
        open_image(data)


def test_media_error_is_caught_as_either_base() -> None:
    assert issubclass(MediaError, PipelineError)
    assert issubclass(MediaError, ValueError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
def test_damage_gives_an_image_or_a_media_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(24, 24).save(path)
    whole = path.read_bytes()
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of odd tags
            try:
                assert open_image(bytes(data)).mode == "RGB"
                outcomes["read"] += 1
            except MediaError as error:
                assert "bytes>" in str(error)
                outcomes["refused"] += 1
    assert outcomes["refused"] > 20
