"""The transform equals the Pillow processors of transformers, at every shape of image."""

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from mediakit import noise
from PIL import Image, ImageOps

from pipeline.media.images import MediaError
from pipeline.media.processors import FAMILIES
from pipeline.media.transform import ImageTransform, TransformNotSupported

SIZES = [(640, 480), (333, 500), (1, 1), (30, 7), (224, 224), (801, 100)]
PARITY: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "ViT", {}),  # Swin's too
    ("vit", "ViT", {"size": {"height": 384, "width": 640}}),
    ("vit", "ViT", {"size": 64, "do_normalize": False, "do_rescale": False}),
    ("clip", "CLIP", {}),
    ("clip", "CLIP", {"size": 336, "crop_size": 336}),
    ("clip", "CLIP", {"size": 100}),  # padded with black
    ("clip", "CLIP", {"crop_size": {"height": 128, "width": 200}}),
    ("siglip", "Siglip", {}),
    ("siglip", "Siglip", {"size": {"height": 384, "width": 384}, "resample": 2}),
    ("bit", "Bit", {"size": {"shortest_edge": 256}}),  # DINOv2's
    ("deit", "DeiT", {}),
    ("beit", "Beit", {"do_center_crop": True, "size": 256}),
    ("convnext", "ConvNext", {}),
    ("convnext", "ConvNext", {"size": 224}),  # ResNet's
    ("convnext", "ConvNext", {"size": {"shortest_edge": 288}, "crop_pct": 0.95}),
    ("efficientnet", "EfficientNet", {}),
    ("efficientnet", "EfficientNet", {"include_top": False, "do_center_crop": True}),
    (
        "efficientnet",
        "EfficientNet",
        {
            "rescale_offset": True,
            "rescale_factor": 1 / 127.5,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
]


@pytest.mark.parametrize(("module", "family", "options"), PARITY)
def test_parity_with_transformers(module: str, family: str, options: dict[str, Any]) -> None:
    name = f"{family}ImageProcessor"
    source = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(source, f"{name}Pil")(**options)
    saved = json.loads(processor.to_json_string())
    transform = ImageTransform.from_processor_config(saved)
    assert ImageTransform.from_processor_config({"image_processor_type": name, **options}) == (
        transform
    )  # our defaults are theirs
    for width, height in SIZES:
        image = noise(width, height)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        ours = transform(image)
        assert ours.shape == theirs.shape == (3, *transform.size)
        assert ours.dtype == torch.float32
        if options.get("rescale_offset"):  # folded into the mean
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(ours.numpy(), theirs)


def test_every_family_has_a_parity_row() -> None:
    assert {family for _, family, _ in PARITY} == set(FAMILIES)


def test_old_names_and_nesting() -> None:
    new = ImageTransform.from_processor_config({"image_processor_type": "CLIPImageProcessor"})
    for name in ("CLIPFeatureExtractor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"):
        assert ImageTransform.from_processor_config({"feature_extractor_type": name}) == new
    nested = {
        "processor_class": "X",
        "image_processor": {"image_processor_type": "CLIPImageProcessor"},
    }
    assert ImageTransform.from_processor_config(nested) == new


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "known are ViT"),
        ({"image_processor_type": "DetrImageProcessor"}, "'DetrImageProcessor' is unknown"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "does do_pad"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "form no batch"),
        (
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"shortest_edge": 480, "longest_edge": 1333},
            },
            "longest_edge",
        ),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "give an image size"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True},
            "no do_center_crop",
        ),
    ],
)
def test_unsupported_processors_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TransformNotSupported, match=message):
        ImageTransform.from_processor_config(config)
    assert issubclass(TransformNotSupported, MediaError)


def test_size_may_stand_in_for_a_missing_crop() -> None:
    config = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    transform = ImageTransform.from_processor_config(config, size=(96, 128))
    assert transform(noise(300, 40)).shape == (3, 96, 128)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("size", [(64, 64), (384, 640)])
def test_any_size_of_any_family(family: str, size: tuple[int, int]) -> None:
    config = {"image_processor_type": f"{family}ImageProcessor"}
    transform = ImageTransform.from_processor_config(config, size=size)
    for shape in [(50, 31), (700, 200), (1, 90)]:
        assert transform(Image.new("RGB", shape, "white")).shape == (3, *size)


def test_crop_keeps_its_share() -> None:
    dino = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
    transform = ImageTransform.from_processor_config(dino, size=(518, 518))
    assert (transform.size, transform.resize_size) == ((518, 518), (592, 592))


def test_rectangles_are_covered_without_black() -> None:
    transform = ImageTransform(size=(384, 640), resize="shortest", crop="center")
    for shape in [(100, 100), (640, 384), (37, 400), (1000, 30), (641, 384)]:
        assert float(transform(Image.new("RGB", shape, "white")).min()) == 1.0


def test_lite0_preprocessing() -> None:
    transform = ImageTransform(size=(2, 2), rescale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
    pixels = transform(Image.fromarray(np.full((2, 2, 3), 255, dtype=np.uint8)))
    assert torch.equal(pixels, torch.ones(3, 2, 2))
    assert float(transform(Image.new("RGB", (2, 2)))[0, 0, 0]) == -127 / 128


def test_channels_stay_apart() -> None:
    transform = ImageTransform(size=(1, 1), rescale=1.0, mean=(0, 1, 2), std=(1, 2, 4))
    assert transform(Image.new("RGB", (1, 1), (5, 7, 10))).flatten().tolist() == [5, 3, 2]


def test_very_long_images_are_not_blown_up() -> None:
    transform = ImageTransform(size=(32, 32), resize="shortest", crop="center")
    ramp = np.repeat(np.linspace(0, 255, 4000).astype(np.uint8)[None, :, None], 4, axis=0)
    image = Image.fromarray(np.repeat(ramp, 3, axis=2))  # 4000 x 4, to 32000 x 32
    whole = image.resize((32000, 32), transform.resample).crop((15984, 0, 16016, 32))
    assert np.abs(np.asarray(transform.fit(image)).astype(int) - np.asarray(whole)).max() <= 1
    # 16 GB if it were resized before the crop
    assert transform(Image.new("RGB", (5_000_000, 1), "white")).shape == (3, 32, 32)


def test_augmented_views_follow_their_seed() -> None:
    transform, image = ImageTransform(size=(32, 32)), noise(60, 40)
    views = [transform.augmented(image, seed) for seed in range(20)]
    assert all(torch.equal(transform.augmented(image, seed), views[seed]) for seed in range(20))
    assert len({view.numpy().tobytes() for view in views}) == 20
    key = bytes(range(16))
    assert torch.equal(transform.augmented(image, key), transform.augmented(image, key))
    assert not torch.equal(transform.augmented(image, key), transform.augmented(image, key[::-1]))


def test_augmented_crops_are_0_6_to_1_and_half_are_mirrored() -> None:
    width = 200
    ramp = np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (width, 1, 3))
    transform = ImageTransform(
        size=(width, width), resample=2, rescale=1.0, mean=(0,) * 3, std=(1,) * 3
    )
    sides, flips = [], 0
    for seed in range(200):
        row = transform.augmented(Image.fromarray(ramp), seed)[0, 0]
        sides.append(float(row.max() - row.min() + 1) / width)
        flips += bool(row[0] > row[-1])
    assert 0.595 <= min(sides) < 0.62
    assert 0.98 < max(sides) <= 1.0
    assert 75 < flips < 125


def test_one_seed_gives_all_frames_of_a_video_the_same_crop() -> None:
    transform = ImageTransform(size=(16, 16), rescale=1.0, mean=(0,) * 3, std=(1,) * 3)
    frame = noise(50, 40)
    negative = ImageOps.invert(frame)
    both = transform.augmented(frame, 3) + transform.augmented(negative, 3)
    assert float((both - 255).abs().max()) <= 2


@pytest.mark.parametrize("resize", ["shortest", "exact", "none"])
def test_dictionary_round_trip(resize: str) -> None:
    transform = ImageTransform(
        size=(3, 5), resize=resize, resize_size=(8, 9), crop="center", mean=(0.1, 0.2, 0.3)
    )
    assert ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 5)}, "size="),
        ({"size": (5,)}, "size="),
        ({"size": (5, 5), "resize": "fit"}, "resize='fit'"),
        ({"size": (5, 5), "resize": "shortest"}, "form no batch"),
        ({"size": (5, 5), "resize_size": (8, 8)}, "form no batch"),
        ({"size": (5, 5), "resample": 9}, "resample=9"),
        ({"size": (5, 5), "std": (1.0, 0.0, 1.0)}, "no std of 0"),
    ],
)
def test_unusable_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform(**fields)


def test_unknown_field_of_a_dictionary() -> None:
    with pytest.raises(TypeError, match="blur"):
        ImageTransform.from_dict({"size": [4, 4], "blur": 2})
