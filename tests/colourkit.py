"""Small coloured images in class folders, and a training on a tiny vision transformer's states."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessorPil, ViTModel

from pipeline.extract import ExtractConfig, extract

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}
SIDE = 16


def write_images(folder: Path, count: int = 20) -> Path:
    """Write `count` images of each colour, each with a stripe of its own, in class folders."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (SIDE, SIDE), colour)
            for place in range(SIDE):
                image.putpixel((place, number % SIDE), (255 - number, place * 10, number * 5))
            image.save(folder / name / f"{number:02}.png")
    return folder


def save_vit(folder: Path) -> Path:
    """Write a random vision transformer of two layers, and its processor."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    """Write a random convolutional network of two stages, and its processor."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ResNetModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def settings(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
    """Return a small training as plain values, its data, model and cache written on first use."""
    data = {"task": "image-classification", "train": str(folder / "colours")}
    if not (folder / "cache").exists():
        write_images(folder / "colours")
        model = save_vit(folder / "model")
        options = {"data": data, "backbone": str(model), "out": str(folder / "cache"), "views": 2}
        extract(ExtractConfig.build(options | {"device": "cpu"}))
    return {
        "data": data,
        "cache": str(folder / "cache"),
        "out": str(folder / out),
        "epochs": 8,
        "batch_size": 8,
        "lr": 1e-2,
        "dropout": 0.0,
        "device": "cpu",
    } | changes
